"""What the machine and the network do: handles, disks, clocks, memory and slow readers run out or change, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from aimass_lab.serving.launch import Server, start

from .scenarios import resident_bytes, tree
from .servers import call, infer, metric, onnx_bytes, rehash, wait_for
from .test_serving_faults import run
from .test_serving_grpc import request, send
from .test_serving_rest import GOOD, INFER

ROW = [[1.0, 2.0, 3.0, 4.0]]


def interpreter(tmp_path: Path, *before: str) -> str:
    """An interpreter that does something first: a program to be run in place of python."""
    path = tmp_path / f"python{len(list(tmp_path.iterdir()))}"
    path.write_text("\n".join(["#!/bin/sh", *before, f'exec "{sys.executable}" "$@"', ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@contextlib.contextmanager
def connections(server: Server, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Clients that open a connection, send a little and then nothing."""
    address = urlsplit(server.url)
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60)))
            opened[-1].sendall(sent)
        yield opened


def handles(server: Server) -> int:
    return psutil.Process(server.pid).num_fds()


# --- handles and connections -------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"POST /v2/models/net/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab"], ids=["idle", "half a body"])
def test_connections_that_owe_a_request_never_take_all_handles(linear_folder: Path, tmp_path: Path, sent: bytes) -> None:
    """More than twice as many as the server may have handles; those who do ask get in, and so does a new worker."""
    with start(linear_folder, python=interpreter(tmp_path, "ulimit -n 200")) as server:
        with connections(server, 450, sent):
            assert infer(server, ROW).status == 200
            assert send(server, request()).id == "9"
            assert handles(server) < 200
            tree(server)[1].kill()
            wait_for(lambda: metric(server, "aimass_worker_restarts_total") == 1 and metric(server, "aimass_workers_ready") == 1, timeout=60)
            assert infer(server, ROW).status == 200
        wait_for(lambda: handles(server) < 60)
        assert "Too many open files" not in server.log


def test_grpc_connections_do_not_take_all_handles_either(linear_folder: Path, tmp_path: Path) -> None:
    with start(linear_folder, python=interpreter(tmp_path, "ulimit -n 200")) as server, contextlib.ExitStack() as stack:
        host, port = str(server.grpc_address).rsplit(":", 1)
        for _ in range(300):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        assert infer(server, ROW).status == 200
        assert handles(server) < 200


def test_hangups_leave_nothing_behind(linear: Server) -> None:
    """200 clients that go away in the middle of a body, and 200 that do not wait for the answer."""
    before = handles(linear)
    body = json.dumps({"inputs": [GOOD]}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
    for sent in (head + body[:20], head + body):
        with connections(linear, 200, sent) as opened:
            for connection in opened:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
    wait_for(lambda: handles(linear) <= before + 2)
    assert metric(linear, "aimass_queue_items") == 0
    assert infer(linear, ROW).status == 200


def test_one_who_does_not_read_holds_up_nobody(linear_folder: Path, tmp_path: Path) -> None:
    """Answers pile up for a client that goes on asking and never reads; it is not asked for more, and others are served."""
    with start(linear_folder, grpc_port=None) as server, connections(server, 1) as (connection,):
        before = resident_bytes(server)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.5)
        body = json.dumps({"inputs": [GOOD]}).encode()
        asked = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (INFER.encode(), len(body), body)
        end = time.monotonic() + 10
        with contextlib.suppress(TimeoutError):  # the server takes no more
            while time.monotonic() < end:
                connection.sendall(asked * 200)
        assert infer(server, ROW).status == 200
        assert resident_bytes(server) - before < 40 * 2**20


# --- disks -------------------------------------------------------------------------------


def test_a_full_disk_stops_nobody(linear_folder: Path) -> None:
    with start(linear_folder, grpc_port=None, arguments=("--log-requests", "/dev/full")) as server:
        for _ in range(20):
            assert infer(server, ROW).status == 200
        assert server.log.count("cannot be written any more") == 1
        assert server.stop() == 0


def test_a_disk_that_does_not_answer_holds_up_only_who_asked_for_a_file(linear_folder: Path, tmp_path: Path) -> None:
    """The stored samples become a pipe that nobody writes to: reading it waits."""
    folder = shutil.copytree(linear_folder, tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    with start(folder, grpc_port=None) as server, ThreadPoolExecutor(1) as pool:
        (folder / "vectors.npz").unlink()
        os.mkfifo(folder / "vectors.npz")
        waiting = pool.submit(call, server, "GET", "/v2/models/net/sample", None, None, 120)
        with (folder / "vectors.npz").open("wb"):  # opens once the server reads
            for _ in range(20):
                assert infer(server, ROW).status == 200
            assert metric(server, "aimass_requests_total") == 20
            assert not waiting.done()
        assert waiting.result().status == 500  # it was no archive


def test_nobody_to_tell_that_it_is_ready_is_one_line(linear_folder: Path) -> None:
    command = [sys.executable, str(linear_folder / "run.py"), "serve", "--port", "0", "--grpc-port", "none"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()) == (4, ["error: cannot write to standard output: No space left on device"])


def test_it_writes_nothing_into_its_folder(linear_folder: Path, tmp_path: Path) -> None:
    """So that it runs on a file system that it may not write: nothing is there afterwards that was not there before."""
    folder = shutil.copytree(linear_folder, tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        with start(folder) as server:
            assert infer(server, ROW).status == 200
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


# --- clocks ------------------------------------------------------------------------------

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { struct stat s; return stat(getenv("CLOCK_FILE"), &s) ? 0 : (long)s.st_size; }
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, t);
  if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += shift() * (getenv("CLOCK_BACK") ? -3600 : 3600);
  return result;
}
int gettimeofday(struct timeval *t, void *z) {
  struct timespec s;
  int result = clock_gettime(CLOCK_REALTIME, &s);
  t->tv_sec = s.tv_sec;
  t->tv_usec = s.tv_nsec / 1000;
  return result;
}
time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); if (t) *t = s.tv_sec; return s.tv_sec; }
"""
"""A wall clock that is as many hours off as a file has bytes."""


@pytest.mark.parametrize("direction", ["forward", "back"])
def test_a_wall_clock_that_jumps_changes_no_deadline(linear_folder: Path, tmp_path: Path, run_slow: Callable[..., Any], direction: str) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to make a clock that jumps")
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "clock.so"), str(tmp_path / "clock.c"), "-ldl"], check=True)
    hours = tmp_path / "hours"
    hours.touch()
    before = [f'export LD_PRELOAD="{tmp_path}/clock.so" CLOCK_FILE="{hours}"', *(["export CLOCK_BACK=1"] if direction == "back" else [])]
    server = run_slow(interpreter(tmp_path, *before), log=tmp_path / "requests.log")
    with ThreadPoolExecutor(3) as pool:
        under_way = pool.submit(infer, server, [[1.0, 2.0]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        queued = pool.submit(infer, server, [[2.0, 0.0]], parameters={"timeout": 60_000_000})
        over_grpc = pool.submit(_slow_grpc, server)
        wait_for(lambda: metric(server, "aimass_queue_items") == 2)
        hours.write_bytes(bytes(30))
        assert [under_way.result().status, queued.result().status, over_grpc.result()] == [200, 200, [6.0, 0.0]]
    assert infer(server, [[3.0, 0.0]]).status == 200
    times = [json.loads(line)["time"][:13] for line in (tmp_path / "requests.log").read_text().splitlines()]
    assert len(set(times)) > 1, "the clock did not jump, so this shows nothing"
    assert metric(server, "aimass_worker_restarts_total") == 0
    for what in ("queue", "compute", "request"):
        assert 0 <= metric(server, f"aimass_{what}_seconds_sum") < 1800, "a jump is counted as time that was waited"


def _slow_grpc(server: Server) -> list[float]:
    made = request(raw_input_contents=[np.float32([[3, 0]]).tobytes()])
    made.inputs[0].shape[:] = [1, 2]
    return [float(value) for value in np.frombuffer(send(server, made, timeout=60).raw_output_contents[0], np.float32)]


@pytest.fixture
def run_slow(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start the model that takes as long as it is told."""
    from .servers import write_faulty

    servers = []

    def run_slow(python: str, *, log: Path) -> Server:
        folder = write_faulty(tmp_path / "slow", max_batch_size=1)
        servers.append(start(folder, python=python, arguments=("--log-requests", str(log))))
        return servers[-1]

    yield run_slow
    for server in servers:
        with server:
            pass


# --- memory ------------------------------------------------------------------------------


def test_bodies_over_the_limit_cost_no_memory(linear: Server) -> None:
    """Sixteen of 32 MiB at the same time, of which each announces or hides its length."""
    infer(linear, ROW)
    before = resident_bytes(linear)
    most = [before]

    def post(number: int) -> int:
        chunks = (bytes(2**16) for _ in range(512))
        if number % 2:
            with contextlib.suppress(ConnectionError):
                return call(linear, "POST", INFER, b"".join(chunks)).status
            return 0
        address = urlsplit(linear.url)
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(head)
                for chunk in chunks:
                    connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    most.append(resident_bytes(linear))
                connection.sendall(b"0\r\n\r\n")
                return int(connection.recv(65536).split()[1])
            return 0

    for _ in range(3):  # what is kept of each is most seen when it adds up
        with ThreadPoolExecutor(16) as pool:
            statuses = set(pool.map(post, range(16)))
        assert statuses in ({413}, {413, 0})  # 0: closed on one who was still sending after the time in which he could have read the answer
        assert max(most) - before < 40 * 2**20
        wait_for(lambda: resident_bytes(linear) - before < 10 * 2**20)


def test_closed_connections_are_forgotten(linear: Server) -> None:
    """Crowds that come, ask and go: each takes what the one before gave up, and the server holds nothing of those that are gone."""
    body = json.dumps({"inputs": [GOOD]}).encode()
    asked = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (INFER.encode(), len(body), body)
    before = handles(linear)

    def crowd() -> int:
        with connections(linear, 400, asked) as opened:
            assert all(connection.recv(65536).startswith(b"HTTP/1.1 200") for connection in opened)
        wait_for(lambda: handles(linear) <= before + 2)
        return int(psutil.Process(linear.pid).memory_info().rss)

    first = crowd()
    assert max(crowd() for _ in range(4)) - first < 6 * 2**20  # one crowd that is kept takes that much


def test_what_large_requests_took_is_given_back_once_nobody_asks(tmp_path: Path) -> None:
    from .servers import write_linear

    with start(write_linear(tmp_path / "b", max_body_bytes=2**26), grpc_port=None) as server:
        infer(server, ROW)
        before = resident_bytes(server)
        for _ in range(3):
            assert infer(server, ROW, id="x" * 20_000_000).status == 200
        wait_for(lambda: resident_bytes(server) - before < 8 * 2**20, timeout=60)


def test_labels_do_not_grow_with_what_callers_make_up(linear: Server) -> None:
    infer(linear, ROW)
    call(linear, "POST", "/v2/models/nobody/infer", b"{}")

    def series() -> int:
        return len(call(linear, "GET", "/metrics").body.splitlines())

    before = series()
    for number in range(200):
        assert call(linear, "POST", f"/v2/models/made-up-{number}/infer", b"{}").status == 404
        assert call(linear, "POST", f"/v2/models/net/versions/{number + 7}/infer", b"{}").status == 404
    assert series() == before


def test_a_malformed_one_among_many_fails_alone(linear: Server) -> None:
    def ask(number: int) -> int:
        return call(linear, "POST", INFER, {"inputs": [GOOD | ({"shape": [1, 3]} if number % 16 == 5 else {})]}).status

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(ask, range(320)))
    assert statuses == [400 if number % 16 == 5 else 200 for number in range(320)]


# --- processes ---------------------------------------------------------------------------


def test_it_works_as_the_first_process_of_a_container(linear_folder: Path, tmp_path: Path) -> None:
    """Where no signal has a default action, and orphans come to it."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no process namespaces")
    command = [*unshare, sys.executable, str(linear_folder / "run.py"), "serve", "--port", "0", "--grpc-port", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready ")
        (first,) = psutil.Process(process.pid).children()
        workers = first.children()
        first.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert len(workers) == 1
        wait_for(lambda: not any(worker.is_running() for worker in workers))


# --- models that are not to be trusted ---------------------------------------------------


def test_an_operator_that_nobody_knows_does_not_start(linear_folder: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    folder = shutil.copytree(linear_folder, tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    node = helper.make_node("Evil", ["x"], ["y"], domain="not.ours")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    (folder / "model/net/1/model.onnx").write_bytes(onnx_bytes([node], infos[:1], infos[1:]))
    rehash(folder)
    done = run(folder, "serve", "--port", "0", "--grpc-port", "none")
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)


def test_sparse_weights_in_another_file_do_not_load(linear_folder: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    folder = shutil.copytree(linear_folder, tmp_path / "b", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "model/net/1/model.onnx"
    model = onnx.load(path)
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    values.data_location = TensorProto.EXTERNAL
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4]))
    path.write_bytes(model.SerializeToString())
    rehash(folder)
    done = run(folder, "serve", "--port", "0", "--grpc-port", "none")
    assert (done.returncode, "data in another file" in done.stderr) == (4, True)


def test_a_model_that_takes_too_long_to_load_is_given_up(tmp_path: Path) -> None:
    """In its own process, which is ended; the server says so and ends."""
    from .servers import FAULTY, write_faulty

    endless = FAULTY.replace("return Faulty()", "time.sleep(3600)")
    done = run(write_faulty(tmp_path / "b", start_timeout_s=1.0, extra_runner=endless), "serve", "--port", "0", "--grpc-port", "none")
    assert (done.returncode, "did not get ready within 1 s" in done.stderr, len(done.stderr.splitlines())) == (4, True, 1)


def test_a_model_that_asks_for_more_memory_than_there_is_fails_its_request_only(tmp_path: Path) -> None:
    from .servers import FAULTY, write_faulty

    greedy = FAULTY.replace('raise ValueError("asked to raise")', "np.ones(2**55)").replace("import os,", "import numpy as np, os,")
    with start(write_faulty(tmp_path / "b", extra_runner=greedy), grpc_port=None) as server:
        answer = infer(server, [[101.0, 0.0]])
        assert (answer.status, "MemoryError" in answer.json["error"]) == (500, True)
        assert infer(server, [[1.0, 0.0]]).json["outputs"][0]["data"] == [2.0, 0.0]
        assert metric(server, "aimass_worker_restarts_total") == 0
