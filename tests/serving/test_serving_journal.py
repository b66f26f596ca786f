"""The journal of a server: every batch with the times of its requests, and all that became of a worker that was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aimass_lab.serving.launch import start

from .servers import infer, wait_for, write_faulty
from .test_serving_faults import run

DIE = 102


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_batches_and_a_workers_death_are_all_in_the_journal_and_the_log(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with start(write_faulty(tmp_path / "bundle"), grpc_port=None, arguments=("--journal", str(path))) as server:
        assert infer(server, [[1, 0], [2, 0]]).status == 200
        assert infer(server, [[DIE, 0]]).status == 500  # its worker died, another took it and died as well
        wait_for(lambda: sum(event["event"] == "ready" for event in events(path)) == 3, timeout=120)
        assert infer(server, [[3, 0]]).status == 200
    told = events(path)
    kinds = [event["event"] for event in told]
    assert [kind for kind in kinds if kind != "batch"].count("ended") == 2
    first, last = (event for event in told if event["event"] == "batch")
    assert (first["items"], last["items"]) == ([2], [1])
    assert first["queued"][0] <= first["at"] < first["at"] + first["seconds"] <= last["queued"][0]
    assert [(event["requests"], event["failed"]) for event in told if event["event"] == "handed_on"] == [(1, 0), (0, 1)]
    ready = [event for event in told if event["event"] == "ready"]
    assert [event["again"] for event in ready] == [False, True, True]
    assert last["worker"] == ready[-1]["worker"]
    assert {event["code"] for event in told if event["event"] == "ended"} == {-9}
    assert server.log.count("in place of one that ended") == 2
    assert "ended with 1 requests; 1 go to another" in server.log


def test_a_journal_that_cannot_be_written_is_one_line(linear_folder: Path) -> None:
    done = run(linear_folder, "serve", "--port", "0", "--grpc-port", "none", "--journal", "/dev/null/journal")
    assert done.returncode == 4
    assert "cannot write the journal" in done.stderr
