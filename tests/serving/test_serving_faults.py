"""Accidents: what a model, a client, a worker or an operator does wrong stays with the one who did it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from aimass_lab.serving import listener
from aimass_lab.serving.launch import Server, start

from .servers import FAULTY, WEIGHT, call, infer, linear_onnx, metric, onnx_bytes, rehash, wait_for, write_faulty, write_linear
from .test_serving_rest import raw

RAISE, DIE, HANG, NAN, SHORT = 101, 102, 103, 104, 105
RunFaulty = Callable[..., Server]


def workers(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


def many(server: Server, rows: list[list[float]]) -> list[Any]:
    """Ask for every row at the same time, each in a request of its own."""
    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(lambda row: infer(server, [row]), rows))


# --- the model ---------------------------------------------------------------------------


def test_only_the_culprit_of_a_batch_fails(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_wait_s=0.3, wait_policy="always")
    culprits = {3: RAISE, 7: NAN, 11: SHORT}
    rows = [[culprits.get(i, float(i)), 0.0] for i in range(16)]
    answers = many(server, rows)
    assert metric(server, "aimass_batch_items_count") < 16, "they did not share a batch, so this shows nothing"
    for i, answer in enumerate(answers):
        if i in culprits:
            assert (answer.status, "the model failed" in answer.json["error"]) == (500, True)
        else:
            assert answer.json["outputs"][0]["data"] == [2.0 * i, 0.0]
    assert metric(server, "aimass_worker_restarts_total") == 0


def test_a_request_that_kills_workers_gets_500_once_and_is_then_refused(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_wait_s=0.3, wait_policy="always")
    rows = [[float(DIE if i == 5 else i), 0.0] for i in range(8)]
    answers = many(server, rows)
    assert [answer.status for answer in answers] == [500 if i == 5 else 200 for i in range(8)]
    assert metric(server, "aimass_worker_restarts_total") == 2
    again = infer(server, [[DIE, 0.0]])
    assert (again.status, "not tried again" in again.json["error"]) == (500, True)
    assert metric(server, "aimass_worker_restarts_total") == 2


def test_a_hung_worker_is_ended_and_its_request_gets_504(run_faulty: RunFaulty) -> None:
    server = run_faulty(request_timeout_s=1.0)
    before = workers(server)[0].pid
    assert infer(server, [[HANG, 0.0]]).status == 504
    wait_for(lambda: [w.pid for w in workers(server)] not in ([before], []))
    wait_for(lambda: call(server, "GET", "/v2/health/ready").status == 200)
    assert infer(server, [[1.0, 0.0]]).status == 200


def test_timeout_parameter_and_no_compute_after_it(run_faulty: RunFaulty) -> None:
    server = run_faulty()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(infer, server, [[1.0, 1.0]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        late = infer(server, [[2.0, 0.0]], parameters={"timeout": 100_000})
        assert (late.status, slow.result().status) == (504, 200)
    assert infer(server, [[3.0, 0.0]]).status == 200
    assert metric(server, "aimass_queue_seconds_count") == 2


def test_overload_gets_503_and_retry_after(run_faulty: RunFaulty) -> None:
    """Here the queue is full of bytes, 8 an item; of items it is in `test_overload_in_short`."""
    server = run_faulty(max_queue_bytes=32, max_batch_size=1)
    with ThreadPoolExecutor(5) as pool:
        accepted = [pool.submit(infer, server, [[1.0, 2.0]])]
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        accepted += [pool.submit(infer, server, [[2.0, 0.0]]) for _ in range(4)]
        wait_for(lambda: metric(server, "aimass_queue_items") == 4)
        refused = infer(server, [[3.0, 0.0]])
        assert refused.status == 503
        assert [future.result().status for future in accepted] == [200] * 5
    assert int(refused.headers["Retry-After"]) >= 1
    assert "overloaded: 4 items of 32 bytes wait, and at most 1024 of 32 bytes may" in refused.json["error"]


def test_a_request_larger_than_the_queue_is_taken_when_nobody_waits(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_queue_items=2, max_queue_bytes=16)
    large = [[float(number), 0.0] for number in range(8)]
    assert infer(server, large).json["outputs"][0]["data"] == [2 * value for row in large for value in row]
    with ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(infer, server, [[1.0, 1.0]])]
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 2)
        accepted.append(pool.submit(infer, server, large))
        wait_for(lambda: metric(server, "aimass_queue_items") == 8)
        assert infer(server, [[2.0, 0.0]]).status == 503
        assert [future.result().status for future in accepted] == [200] * 2


# --- clients -----------------------------------------------------------------------------


def test_hangup_cancels_queued_work(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_batch_size=1)
    address = urlsplit(server.url)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(infer, server, [[1.0, 2.5]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [2, 0.5]}]}).encode()
        head = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        connections = [socket.create_connection((address.hostname, address.port)) for _ in range(50)]
        for connection in connections:
            connection.sendall(head + body)
        wait_for(lambda: metric(server, "aimass_queue_items") == 50)
        for connection in connections:
            connection.close()
        wait_for(lambda: metric(server, "aimass_queue_items") == 0)
        assert slow.result().status == 200
    assert metric(server, "aimass_queue_seconds_count") == 1


def test_slow_senders_are_shown_the_door(tmp_path: Path) -> None:
    begun = b"POST /v2/models/net/infer HTTP/1.1\r\nHo"
    with start(write_linear(tmp_path / "b", header_timeout_s=0.5, body_timeout_s=0.5), grpc_port=None) as server, ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(raw, server, sent) for sent in (b"", begun, begun + b"st: a\r\nContent-Length: 9\r\n\r\nabc")]
        assert infer(server, [[1, 2, 3, 4]]).status == 200
        for answer in slow:
            assert answer.result().startswith(b"HTTP/1.1 408")
        assert infer(server, [[1, 2, 3, 4]]).status == 200


def sent(*row: float) -> bytes:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": row}]}).encode()
    return b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("broken", [b"POST /v2/models/net/infer HTTP/1.1\r\nHo", b"no HTTP\r\n\r\n"], ids=["unfinished", "malformed"])
@pytest.mark.parametrize("ahead", [1, 2])
def test_requests_get_their_own_answers_and_not_that_of_what_is_broken_behind_them(run_faulty: RunFaulty, broken: bytes, ahead: int) -> None:
    server = run_faulty(header_timeout_s=0.3)
    answers = raw(server, b"".join(sent(number, 1.0) for number in range(1, ahead + 1)) + broken, timeout=60)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1 : ahead + 1]] == [b"200"] * ahead
    assert [b'"data":[%.1f,2.0]' % (2 * number) in answers for number in range(1, ahead + 1)] == [True] * ahead
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_body_that_we_do_not_read_yet_is_not_late(run_faulty: RunFaulty) -> None:
    """It was sent ahead, behind a request that takes longer than a body may."""
    server = run_faulty(body_timeout_s=0.3)
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        late = sent(2.0, 0.0)
        connection.sendall(sent(1.0, 1.0) + late[:-5])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        connection.sendall(late[-5:])
        received = b""
        while received.count(b"]}]}") < 2:
            more = connection.recv(65536)
            assert more, received
            received += more
    assert received.count(b"HTTP/1.1 200") == 2


def test_who_begins_another_request_and_hangs_up_is_computed_for_no_longer(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_batch_size=1)
    address = urlsplit(server.url)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(infer, server, [[1.0, 2.5]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(sent(2.0, 0.5) + b"POST /v2/models/net/infer HTTP/1.1\r\nHo")
            wait_for(lambda: metric(server, "aimass_queue_items") == 1)
        wait_for(lambda: metric(server, "aimass_queue_items") == 0)
        assert slow.result().status == 200
    assert metric(server, "aimass_queue_seconds_count") == 1


# --- killed workers ----------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2])
def test_kill_9_loses_nothing(tmp_path: Path, num_workers: int) -> None:
    with start(write_linear(tmp_path / "b", workers=num_workers), grpc_port=None) as server:
        results: Counter[Any] = Counter()
        stop = threading.Event()

        def ask(seed: int) -> None:
            generator = np.random.default_rng(seed)
            while not stop.is_set():
                x = generator.normal(size=(1, 4)).astype(np.float32)
                answer = infer(server, x.tolist())
                right = answer.status == 200 and np.allclose(answer.json["outputs"][0]["data"], (x @ WEIGHT)[0], rtol=1e-4, atol=1e-5)
                results["right" if right else answer.body] += 1

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask, seed) for seed in range(8)]
            for _ in range(4):
                wait_for(lambda: len(workers(server)) == num_workers and call(server, "GET", "/v2/health/ready").status == 200)
                before = sum(results.values())
                wait_for(lambda: sum(results.values()) > before + 20)  # noqa: B023
                with contextlib.suppress(psutil.NoSuchProcess):
                    workers(server)[0].kill()
                if num_workers == 1:
                    assert call(server, "GET", "/v2/health/live").status == 200
            before = sum(results.values())
            wait_for(lambda: sum(results.values()) > before + 50)
            stop.set()
            for future in futures:
                future.result()
        assert set(results) == {"right"}
        assert metric(server, "aimass_worker_restarts_total") == 4


def test_ready_is_false_while_no_worker_is_up(run_faulty: RunFaulty) -> None:
    server = run_faulty()
    workers(server)[0].kill()
    wait_for(lambda: call(server, "GET", "/v2/health/ready").status == 503)
    assert call(server, "GET", "/v2/health/live").json == {"live": True}
    wait_for(lambda: call(server, "GET", "/v2/health/ready").status == 200)


def test_a_worker_is_ready_once_it_has_computed_a_batch_of_one_and_a_full_one(tmp_path: Path) -> None:
    """The first one, and one that takes its place: no request pays for what a runtime does at its first calls."""
    told = FAULTY.replace("    return Faulty()", '    Faulty.seen = path.with_name("seen")\n    return Faulty()')
    told = told.replace("(x,) = inputs", '(x,) = inputs\n        self.seen.open("a").write(f"{len(x)} ")')
    folder = write_faulty(tmp_path / "b", extra_runner=told, max_batch_size=8)
    seen = folder / "model/net/1/seen"
    with start(folder, grpc_port=None) as server:
        assert seen.read_text() == "1 8 "
        workers(server)[0].kill()
        wait_for(lambda: metric(server, "aimass_worker_restarts_total") == 1 and metric(server, "aimass_workers_ready") == 1, timeout=60)
        assert seen.read_text() == "1 8 1 8 "


def test_gives_up_when_workers_cannot_start_any_more(tmp_path: Path) -> None:
    folder = write_faulty(tmp_path / "b")
    with start(folder, grpc_port=None) as server:
        (folder / "serving.json").write_text("{")
        workers(server)[0].kill()
        wait_for(lambda: server.exit_code is not None, timeout=60)
        assert server.exit_code == 4
        assert "workers in a row did not start" in server.log.splitlines()[-1]


def test_a_model_changed_under_the_server_does_not_answer_in_the_old_ones_name(tmp_path: Path) -> None:
    """A bundle is written over the one that is served, and a worker dies: the one in its place would compute something else than the others."""
    folder = write_linear(tmp_path / "b", workers=2)
    with start(folder, grpc_port=None) as server:
        (folder / "model/net/1/model.onnx").write_bytes(linear_onnx(WEIGHT * 2))
        workers(server)[0].kill()

        def has_ended() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):  # it ends meanwhile
                for answer in many(server, [[1.0, 0.0, 0.0, 0.0]] * 4):
                    assert answer.status != 200 or np.allclose(answer.json["outputs"][0]["data"], WEIGHT[0], rtol=1e-4)
            return server.exit_code is not None

        wait_for(has_ended, timeout=120)
        assert server.exit_code == 4
        assert "the file was changed" in server.log.splitlines()[-1]


# --- the end -----------------------------------------------------------------------------


def test_sigterm_answers_all_that_was_accepted(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_batch_size=1)
    children = workers(server)
    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(infer, server, [[1.0, 1.5]])]
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        futures += [pool.submit(infer, server, [[float(i), 0.05]]) for i in range(8)]
        wait_for(lambda: metric(server, "aimass_queue_items") == 8)
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: call(server, "GET", "/v2/health/ready").status == 503)
        in_grace = infer(server, [[50.0, 0.0]])
        assert (in_grace.status, in_grace.headers["Connection"]) == (200, "close")
        assert [future.result().status for future in futures] == [200] * 9
    wait_for(lambda: server.exit_code is not None)
    assert server.exit_code == 0
    assert not any(child.is_running() for child in children)


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """What is started hears that a terminal was closed, though the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("second", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("frontends", [1, 2])
def test_a_closed_terminal_loses_no_request(run_faulty: RunFaulty, frontends: int, second: int) -> None:
    """The terminal and its shell both say so, to all processes; where systemd does, SIGTERM comes with it."""
    server = run_faulty(max_batch_size=1, frontends=frontends, drain_grace_s=2.0)
    everybody = [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]
    assert len(everybody) == {1: 2, 2: 4}[frontends]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(infer, server, [[1.0, 2.0]])]
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        asked.append(pool.submit(infer, server, [[2.0, 0.0]]))
        wait_for(lambda: metric(server, "aimass_queue_items") == 1)
        for pid in everybody:
            os.kill(pid, signal.SIGHUP)
        wait_for(lambda: call(server, "GET", "/v2/health/ready").status == 503)  # two that come before the first was seen are one
        for pid in everybody:
            os.kill(pid, second)
        assert [future.result().json["outputs"][0]["data"] for future in asked] == [[2.0, 4.0], [4.0, 0.0]]
    assert (server.wait(), server.log) == (0, "")


def test_who_ignores_a_closed_terminal_has_it_ignored(linear_folder: Path, tmp_path: Path) -> None:
    """As nohup does."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntrap "" HUP\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with start(linear_folder, grpc_port=None, python=str(python)) as server:
        for _ in range(10):
            os.kill(server.pid, signal.SIGHUP)
            assert call(server, "GET", "/v2/health/ready").status == 200
        assert server.stop() == 0


@pytest.mark.parametrize(("where", "workers"), [("return Faulty()", 1), ("(x,) = inputs", 2)], ids=["loading", "warming up"])
def test_sigterm_while_it_starts_is_silent_and_leaves_nothing(where: str, workers: int, tmp_path: Path) -> None:
    stuck = f"open(os.environ['MARK'], 'w').close(); time.sleep(3600); {where}"
    folder = write_faulty(tmp_path / "b", extra_runner=FAULTY.replace(where, stuck), workers=workers)
    command = [sys.executable, str(folder / "run.py"), "serve", "--port", "0", "--grpc-port", "0"]
    mark = tmp_path / "mark"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "MARK": str(mark)}) as process:
        wait_for(mark.exists, timeout=60)
        children = psutil.Process(process.pid).children()
        assert len(children) == workers
        process.terminate()
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (0, "", "")
    assert not any(child.is_running() for child in children)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_is_the_parents_also_before_its_children_can_say_so(number: int, tmp_path: Path) -> None:
    """As a terminal and systemd send it; here while a worker still imports what it needs."""
    folder = write_faulty(tmp_path / "b")
    worker, mark = folder / "aimass_serve/worker.py", tmp_path / "mark"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    worker.write_text(worker.read_text().replace("import itertools\n", f"{code}\nimport itertools\n", 1))
    rehash(folder)
    command = [sys.executable, str(folder / "run.py"), "serve", "--port", "0", "--grpc-port", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for(lambda: mark.exists() and bool(mark.read_text()), timeout=60)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (0, "", "")
    assert not psutil.pid_exists(int(mark.read_text()))


def test_who_starts_it_can_say_that_nobody_has_to_move_on(tmp_path: Path) -> None:
    with start(write_faulty(tmp_path / "bundle", drain_grace_s=300.0), grpc_port=None, arguments=("--drain-grace", "0")) as server:
        assert server.stop(timeout_s=60) == 0  # it would have been killed else


def test_second_sigterm_ends_at_once(run_faulty: RunFaulty) -> None:
    server = run_faulty()
    children = workers(server)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(infer, server, [[1.0, 240.0]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: call(server, "GET", "/v2/health/ready").status == 503)  # two that come before the first was seen are one
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: server.exit_code is not None, timeout=60)
        assert server.exit_code == 1
        assert isinstance(slow.exception(), (ConnectionError, http.client.HTTPException))
    wait_for(lambda: not any(child.is_running() for child in children))


def test_no_orphans_when_the_front_end_is_killed(run_faulty: RunFaulty) -> None:
    server = run_faulty(workers=2)
    children = workers(server)
    assert len(children) == 2
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() for child in children))


def test_no_server_outlives_the_program_that_started_it(linear_folder: Path) -> None:
    code = f"import os; from aimass_lab.serving.launch import start; print(start({str(linear_folder)!r}, grpc_port=None).pid, flush=True); os._exit(0)"
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=Path(__file__).parents[2]).stdout)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("stdin", ["/dev/null", "a file", "closed"])
def test_an_input_that_nobody_can_close_is_no_input_to_wait_for(linear_folder: Path, stdin: str) -> None:
    command = [sys.executable, str(linear_folder / "run.py"), "serve", "--port", "0", "--grpc-port", "none", "--until-stdin-closes"]
    given = {"/dev/null": "</dev/null", "a file": f"<{shlex.quote(str(linear_folder / 'run.py'))}", "closed": "<&-"}[stdin]
    done = subprocess.run(["sh", "-c", f"{shlex.join(command)} {given}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (4, "", False)
    assert "--until-stdin-closes needs a standard input that somebody holds open" in done.stderr


def test_without_a_standard_input_it_serves_and_ends_as_with_one(linear_folder: Path) -> None:
    command = shlex.join([sys.executable, str(linear_folder / "run.py"), "serve", "--port", "0", "--grpc-port", "none", "--drain-grace", "0"])
    with subprocess.Popen(["sh", "-c", f"exec {command} <&-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready http")
        process.terminate()
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


# --- starting ----------------------------------------------------------------------------


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def sabotage_hash(folder: Path) -> None:
    with (folder / "model/net/1/model.onnx").open("ab") as file:
        file.write(b"\0")


def sabotage_missing(folder: Path) -> None:
    (folder / "vectors.npz").unlink()


def sabotage_outside(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = "sha256:0"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sabotage_extra(folder: Path) -> None:
    (folder / "model/net/1/weights.bin").write_bytes(b"x")


def sabotage_pickle(folder: Path) -> None:
    (folder / "model/net/1/state.pkl").write_bytes(b"x")
    rehash(folder)


def sabotage_external(folder: Path) -> None:
    import onnx

    model = onnx.load_from_string(linear_onnx())
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../../serving.json")
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "model/net/1/model.onnx").write_bytes(model.SerializeToString())
    rehash(folder)


def sabotage_nested_external(folder: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    inner = numpy_helper.from_array(np.ones(3, np.float32), "inner")
    inner.data_location = onnx.TensorProto.EXTERNAL
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=inner)], "b", [], [helper.make_tensor_value_info("c", 1, [3])])
    condition = numpy_helper.from_array(np.array(True), "t")
    value = helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch)
    x, y = (helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 4), ("y", 3)))
    (folder / "model/net/1/model.onnx").write_bytes(onnx_bytes([value], [x], [y], [condition]))
    rehash(folder)


def sabotage_not_onnx(folder: Path) -> None:
    (folder / "model/net/1/model.onnx").write_bytes(b"\xff" * 100)
    rehash(folder)


def sabotage_signature(folder: Path) -> None:
    change_serving(folder, outputs=[{"name": "y", "datatype": "FP32", "shape": [-1, 4]}])


def sabotage_key(folder: Path) -> None:
    change_serving(folder, max_batchsize=4)


def change_serving(folder: Path, **changes: Any) -> None:
    serving = json.loads((folder / "serving.json").read_text()) | changes
    (folder / "serving.json").write_text(json.dumps(serving))
    rehash(folder)


@pytest.mark.parametrize(
    ("sabotage", "code", "text"),
    [
        (sabotage_hash, 3, "was altered"),
        (sabotage_missing, 3, "missing from the bundle"),
        (sabotage_outside, 3, "outside the bundle"),
        (sabotage_extra, 3, "does not name it"),
        (sabotage_pickle, 3, "run code when loaded"),
        (sabotage_key, 3, "unknown key 'max_batchsize'"),
        (sabotage_external, 4, "data in another file"),
        (sabotage_nested_external, 4, "data in another file"),
        (sabotage_not_onnx, 4, "not an ONNX file"),
        (sabotage_signature, 3, "'y' has shape (20, 3)"),
    ],
)
def test_a_bundle_that_is_not_whole_does_not_start(linear_folder: Path, tmp_path: Path, sabotage: Any, code: int, text: str) -> None:
    folder = shutil.copytree(linear_folder, tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    sabotage(folder)
    done = run(folder, "serve", "--port", "0", "--grpc-port", "none")
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_missing_package_is_one_line(linear_folder: Path) -> None:
    """In an interpreter that has no packages, as a user has who forgot to install them."""
    for command in (["serve", "--port", "0"], ["verify"], ["load", "--url", "http://127.0.0.1:1", "--rate", "1"]):
        done = subprocess.run([sys.executable, "-I", "-S", str(linear_folder / "run.py"), *command], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1), done.stderr
        assert "is not installed for" in done.stderr
        assert "pip install -r requirements.txt" in done.stderr


def test_port_in_use_is_one_line(linear: Server, linear_folder: Path) -> None:
    port = linear.url.rsplit(":", 1)[1]
    done = run(linear_folder, "serve", "--port", port, "--grpc-port", "none")
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    grpc_port = str(linear.grpc_address).rsplit(":", 1)[1]
    done = run(linear_folder, "serve", "--port", "0", "--grpc-port", grpc_port)
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
    assert f"cannot listen for gRPC on 127.0.0.1 port {grpc_port}" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_need_a_token(linear_folder: Path, host: str) -> None:
    done = run(linear_folder, "serve", "--host", host, "--port", "0", "--grpc-port", "none", AIMASS_TOKEN="")
    assert (done.returncode, "--token-file" in done.stderr) == (4, True)


def test_token(linear_folder: Path, tmp_path: Path) -> None:
    import grpc

    from .test_serving_grpc import code_of, request, send

    (tmp_path / "token").write_text("secret\n")
    with start(linear_folder, arguments=("--token-file", str(tmp_path / "token"))) as server:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
        for path, method in (("/v2/models/net/infer", "POST"), ("/predict", "POST"), ("/metrics", "GET"), ("/v2", "GET"), ("/v2/models/net", "GET")):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer secretx"}):
                refused = call(server, method, path, body if method == "POST" else None, header)
                assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert call(server, "POST", "/v2/models/net/infer", body, {"Authorization": "Bearer secret"}).status == 200
        assert call(server, "GET", "/v2/health/ready").status == 200
        assert code_of(server, request())[0] == grpc.StatusCode.UNAUTHENTICATED.name
        assert send(server, request(), metadata=(("authorization", "Bearer secret"),)).id == "9"
        assert "secret" not in server.log


def test_runs_without_the_package_it_was_copied_from(linear_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(linear_folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys, runpy; sys.path.insert(0, sys.argv[1])\n"
        "import pkgutil, importlib, aimass_serve\n"
        "for module in pkgutil.walk_packages(aimass_serve.__path__, 'aimass_serve.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('aimass_lab', 'torch', 'onnx', 'pandas', 'scipy', 'msgspec')))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(folder)], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"
    with start(folder, grpc_port=None) as server:
        assert infer(server, [[1, 2, 3, 4]]).status == 200


def test_a_connection_that_rests_is_closed_and_one_that_waits_for_its_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr(listener, "TICKS", 1)

    async def run() -> tuple[bytes, bytes]:
        waited = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["path"] == "/slow":
                await waited.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

        server = listener.make_http_server(app, header_timeout_s=60, body_timeout_s=60, drain_timeout_s=1)
        taken = listener.bind("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve(sockets=[taken]))
        slow, quick = [await asyncio.open_connection(*taken.getsockname()[:2]) for _ in range(2)]
        slow[1].write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        quick[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        ended = await asyncio.wait_for(quick[0].read(), 60)  # to its end, which the server makes
        waited.set()
        answered = await asyncio.wait_for(slow[0].readuntil(b"ok"), 60)
        server.should_exit = True
        await serving
        for _, writer in (slow, quick):
            writer.close()
        return ended, answered

    ended, answered = asyncio.run(run())
    assert ended.endswith(b"\r\n\r\nok")
    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
