"""The history: two notebooks at once, a killed kernel, a full disk, a newer version."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

from aimass_lab.errors import StoreError
from aimass_lab.records import Check
from aimass_lab.store import Store

WRITER = """
    import sys
    from aimass_lab.records import Check
    from aimass_lab.store import Store
    store, count = Store(sys.argv[1]), int(sys.argv[2])
    for i in range(count):
        store.add("check", Check(subject=f"{sys.argv[3]} {i}", passed=True), summary="s" * 2000)
        print(i, flush=True)
"""


def start_writer(path, count, who):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(count), who], stdout=subprocess.PIPE, text=True)


def test_what_was_kept_comes_back(tmp_path):
    store = Store(tmp_path / "deep" / "history.db")
    record = Check(subject="x", passed=False)
    number = store.add("check", record, model="m", model_digest="d", summary="one line")
    run, found = store.get(number)
    assert found == record
    assert (run.id, run.verb, run.model, run.summary) == (number, "check", "m", "one line")
    assert store.runs() == (run,)
    assert store.runs(model="other") == ()


def test_what_a_verb_found_of_a_model_is_listed_newest_first_without_what_cannot_be_read_any_more(tmp_path):
    store = Store(tmp_path / "history.db")
    assert store.records("check", model_digest="d") == ()
    kept = [Check(subject=f"x{i}", passed=False) for i in range(3)]
    for record in kept:
        store.add("check", record, model_digest="d")
    store.add("check", Check(subject="of another model", passed=False), model_digest="e")
    store.add("prove", Check(subject="of another verb", passed=False), model_digest="d")
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE runs SET record = ? WHERE id = 2", ('{"record": "check", "a_field": "of long ago"}',))
    assert store.records("check", model_digest="d") == (kept[2], kept[0])
    assert store.records("check", model_digest="d", limit=1) == (kept[2],)


def test_an_empty_history_is_no_error_and_writes_nothing(tmp_path):
    store = Store(tmp_path / "history.db")
    assert store.runs() == ()
    with pytest.raises(StoreError, match="there is no run 7"):
        store.get(7)
    assert not store.path.exists()


def test_two_notebooks_write_at_once(tmp_path):
    path = tmp_path / "history.db"
    writers = [start_writer(path, 60, who) for who in "ab"]
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    runs = Store(path).runs(limit=1000)
    assert len(runs) == 120
    assert len({run.id for run in runs}) == 120


def test_a_killed_kernel_loses_at_most_what_it_was_writing(tmp_path):
    path = tmp_path / "history.db"
    with start_writer(path, 100_000, "victim") as writer:
        acknowledged = [writer.stdout.readline() for _ in range(40)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += writer.stdout.readlines()
    runs = Store(path).runs(limit=200_000)
    assert len(acknowledged) <= len(runs) <= len(acknowledged) + 1
    assert Store(path).add("check", Check(subject="after", passed=True)) == runs[0].id + 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_writer_waits_for_another_notebooks_transaction(tmp_path):
    path = tmp_path / "history.db"
    Store(path).add("check", Check(subject="first", passed=True))
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    writer = start_writer(path, 1, "patient")
    time.sleep(0.5)
    assert writer.poll() is None
    other.rollback()
    other.close()
    writer.communicate(timeout=30)
    assert len(Store(path).runs()) == 2


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    path = tmp_path / "history.db"
    store = Store(path)
    store.add("check", Check(subject="small", passed=True))
    real = sqlite3.connect

    def nearly_full(*args, **kwargs):
        connection = real(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 4")  # SQLite's own way to say that no page is left
        return connection

    monkeypatch.setattr(sqlite3, "connect", nearly_full)
    with pytest.raises(StoreError, match="full"):
        store.add("check", Check(subject="x" * 100_000, passed=True))
    monkeypatch.undo()
    assert len(store.runs()) == 1


def test_a_file_that_is_no_history_is_left_alone(tmp_path):
    path = tmp_path / "history.db"
    path.write_text("my thesis" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Store(path).add("check", Check(subject="x", passed=True))
    assert path.read_text().startswith("my thesis")


def test_a_history_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "history.db"
    Store(path).add("check", Check(subject="x", passed=True))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer version"):
        Store(path).runs()
