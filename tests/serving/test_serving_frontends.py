"""Several front ends on one port: what must be one for the whole server is one, and one that dies takes only its own connections with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import psutil
import pytest

from aimass_lab.serving.errors import ServerError
from aimass_lab.serving.launch import Server, start

from .scenarios import running
from .servers import Answer, infer, metric, wait_for, write_faulty
from .test_serving_grpc import request, send

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux divides the connections of a port among processes")

BATCH = 16
NEVER_S = 60.0
"""A batch that is not full would wait for so long."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two front ends of a model that waits for full batches; its tokens are admin, which has no rate, and slow, good for one request in a hundred seconds."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "tokens").write_text("root admin\ncrawl slow 0.01\n")
    bundle = write_faulty(folder / "bundle", frontends=2, max_batch_size=BATCH, max_wait_s=NEVER_S, wait_policy="always", request_timeout_s=NEVER_S)
    with start(bundle, arguments=("--token-file", str(folder / "tokens"), "--log-requests", str(folder / "log"))) as server:
        yield server
        assert server.exit_code is None, server.log


class Client:
    """A connection that stays open for a test; `port` is ours, by which the front end that has it is found."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, server: Server) -> None:
        self.opened.append(self)
        address = urlsplit(server.url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        self.ask("GET", "/v2/health/live")  # accepted
        self.port = self._connection.sock.getsockname()[1]

    def ask(self, method: str, path: str, body: Any = None, *, token: str = "root") -> Answer:
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, {"Authorization": f"Bearer {token}"})
        return Answer(self._connection.getresponse())

    def infer(self, rows: list[list[float]], **more: Any) -> Answer:
        token = more.pop("token", "root")
        entry = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
        return self.ask("POST", "/v2/models/net/infer", {"inputs": [entry]} | more, token=token)

    def hang_up(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    yield
    while Client.opened:
        Client.opened.pop().close()


def clients_of_each(server: Server, count: int) -> dict[int, list[Client]]:
    """Connections by the process that has them, at least `count` to each front end."""
    found: dict[int, list[Client]] = {process.pid: [] for process in running(server, "remote")}
    assert len(found) == 2
    while min(map(len, found.values())) < count:
        client = Client(server)
        holders = [p.pid for p in running(server, "remote") if client.port in {c.raddr.port for c in p.net_connections("tcp") if c.raddr}]
        found[holders[0]].append(client)
    return found


def full_batch(clients: list[Client]) -> list[Answer]:
    with ThreadPoolExecutor(BATCH) as pool:
        return list(pool.map(lambda numbered: numbered[1].infer([[float(numbered[0]), 0.0]]), enumerate(clients)))


def counted(client: Client, name: str) -> float:
    """A metric, summed over its labels, as the front end of a client tells it."""
    lines = client.ask("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def test_requests_to_both_share_a_batch_a_count_and_a_log(pair: Server) -> None:
    first, second = clients_of_each(pair, BATCH // 2).values()
    before = counted(first[0], "aimass_batch_items_count"), counted(first[0], "aimass_requests_total")
    answers = full_batch([*first[: BATCH // 2], *second[: BATCH // 2]])
    assert [answer.json["outputs"][0]["data"] for answer in answers] == [[2.0 * i, 0.0] for i in range(BATCH)]
    assert first[0].infer([[1.0]]).status == 400
    for client in (first[0], second[0]):
        assert counted(client, "aimass_batch_items_count") == before[0] + 1
        assert counted(client, "aimass_requests_total") == before[1] + BATCH + 1
    log = Path(pair.folder.parent / "log")
    ids = {answer.headers["x-request-id"] for answer in answers}
    wait_for(lambda: ids <= {json.loads(line)["id"] for line in log.read_text().splitlines()})


def test_a_rate_is_one_for_both(pair: Server) -> None:
    first, second = (clients[0] for clients in clients_of_each(pair, 1).values())
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(first.infer, [[1.0, 0.0]], token="crawl")
        wait_for(lambda: counted(second, "aimass_queue_items") == 1)
        refused = second.infer([[1.0, 0.0]], token="crawl")
        assert (refused.status, int(refused.headers["Retry-After"]) > 1) == (429, True)
        assert second.infer([[1.0, 0.0]] * (BATCH - 1)).status == 200  # which fills the batch
        assert accepted.result().status == 200
    assert second.infer([[1.0, 0.0]], token="wrong").status == 401


def test_what_is_loaded_is_known_to_both_when_the_answer_comes(pair: Server) -> None:
    first, second = (clients[0] for clients in clients_of_each(pair, 1).values())
    for asking, other in ((first, second), (second, first)):
        assert asking.ask("POST", "/v2/repository/models/net/unload", {}).status == 200
        assert (other.ask("GET", "/v2/models/net").status, other.ask("GET", "/v2/health/ready").status) == (404, 503)
        assert asking.ask("POST", "/v2/repository/models/net/load", {}).status == 200
        assert other.ask("GET", "/v2/models/net/ready").status == 200
        assert other.infer([[3.0, 0.0]] * BATCH).json["outputs"][0]["data"] == [6.0, 0.0] * BATCH
    assert first.ask("POST", "/v2/repository/models/net/unload", {}, token="crawl").status == 403


def test_both_speak_grpc_on_one_port(pair: Server) -> None:
    ports = [{c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN} for process in running(pair, "remote")]
    assert ports[0] == ports[1] == {urlsplit(pair.url).port, int((pair.grpc_address or "").rsplit(":", 1)[1])}
    made = request(raw_input_contents=[b"\0" * 8 * BATCH])
    made.inputs[0].shape[:] = [BATCH, 2]
    before = metric_of_grpc(pair)
    for _ in range(8):  # each over a connection of its own
        assert send(pair, made, metadata=(("authorization", "Bearer root"),)).outputs[0].shape == [BATCH, 2]
    assert metric_of_grpc(pair) == before + 8


def metric_of_grpc(server: Server) -> float:
    text = Client(server).ask("GET", "/metrics").body.decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith('aimass_requests_total{code="200",protocol="grpc"}'))


def test_a_client_that_hangs_up_leaves_the_queue(pair: Server) -> None:
    first, second = (clients[0] for clients in clients_of_each(pair, 1).values())
    with ThreadPoolExecutor(1) as pool:
        hung_up = pool.submit(first.infer, [[1.0, 0.0]])
        wait_for(lambda: counted(second, "aimass_queue_items") == 1)
        first.hang_up()
        wait_for(lambda: counted(second, "aimass_queue_items") == 0)
        assert hung_up.exception() is not None


def test_a_killed_front_end_loses_its_own_connections_and_nothing_else(pair: Server) -> None:
    clients = clients_of_each(pair, 1)
    (killed, (lost, *_)), (kept, (safe, *_)) = clients.items()
    counts = counted(safe, "aimass_requests_total")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(safe.infer, [[1.0, 0.0]])
        dropped = pool.submit(lost.infer, [[2.0, 0.0]])
        other = Client(pair)
        wait_for(lambda: counted(other, "aimass_queue_items") == 2)
        os.kill(killed, signal.SIGKILL)
        assert isinstance(dropped.exception(), (OSError, http.client.HTTPException))
        wait_for(lambda: len(running(pair, "remote")) == 2 and killed not in [process.pid for process in running(pair, "remote")])
        fresh = [client for pid, (client, *_) in clients_of_each(pair, 1).items() if pid != kept]
        wait_for(lambda: counted(fresh[0], "aimass_queue_items") == 1)  # what nobody waits for any more is not computed
        assert fresh[0].infer([[3.0, 0.0]] * (BATCH - 1)).status == 200
        assert waiting.result().json["outputs"][0]["data"] == [2.0, 0.0]
    assert counted(fresh[0], "aimass_requests_total") == counts + 2
    assert "its connections are lost" in pair.log


def test_a_front_end_that_stands_still_is_replaced_and_its_connections_are_taken(tmp_path: Path) -> None:
    with start(write_faulty(tmp_path / "b", frontends=2, request_timeout_s=2.0), grpc_port=None) as server:
        (stopped, kept), address = running(server, "remote"), urlsplit(server.url)
        os.kill(stopped.pid, signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=120)) for _ in range(12)]  # some come to it
            for connection in waiting:
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
            wait_for(lambda: not stopped.is_running() and len(running(server, "remote")) == 2, timeout=120)
            assert [connection.recv(12) for connection in waiting] == [b"HTTP/1.1 200"] * len(waiting)
        assert kept.pid in [process.pid for process in running(server, "remote")]
        assert f"front end {stopped.pid} has been silent for 5 s, and is ended" in server.log


def test_time_in_which_the_server_itself_stood_still_is_no_front_ends_silence(tmp_path: Path) -> None:
    with start(write_faulty(tmp_path / "b", frontends=2, request_timeout_s=2.0), grpc_port=None) as server:
        before = [process.pid for process in running(server, "remote")]
        for everybody in ([server.pid], [server.pid, *before]):
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(7.0)  # longer than a front end may be silent
            for pid in everybody:
                os.kill(pid, signal.SIGCONT)
            for _ in range(20):
                assert infer(server, [[1.0, 0.0]]).status == 200
                time.sleep(0.1)
        assert [process.pid for process in running(server, "remote")] == before
        assert server.log == ""


def test_a_killed_worker_loses_no_request_of_either(pair: Server) -> None:
    first, second = (clients[0] for clients in clients_of_each(pair, 1).values())
    observer = Client(pair)
    (worker,) = running(pair, "worker")
    with ThreadPoolExecutor(2) as pool:
        launched = counted(observer, "aimass_queue_seconds_count")
        asked = [pool.submit(first.infer, [[1.0, 2.0]] + [[1.0, 0.0]] * (BATCH - 1))]
        wait_for(lambda: counted(observer, "aimass_queue_seconds_count") == launched + 1)
        asked.append(pool.submit(second.infer, [[2.0, 0.0]] * BATCH))
        wait_for(lambda: counted(observer, "aimass_queue_items") == BATCH)
        worker.kill()
        assert [future.result().status for future in asked] == [200, 200]
    assert counted(observer, "aimass_worker_restarts_total") == 1


def test_two_servers_do_not_share_a_port(pair: Server) -> None:
    port, grpc_port = urlsplit(pair.url).port or 0, int((pair.grpc_address or "").rsplit(":", 1)[1])
    for frontends in ("1", "2"):
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            start(pair.folder, port=port, arguments=("--frontends", frontends))
        with pytest.raises(ServerError, match=f"cannot listen for gRPC on 127.0.0.1.*{grpc_port}"):
            start(pair.folder, grpc_port=grpc_port, arguments=("--frontends", frontends))


def test_drain_waits_for_all(tmp_path: Path) -> None:
    with start(write_faulty(tmp_path / "b", max_batch_size=1), grpc_port=None, arguments=("--frontends", "2")) as server:
        first, second = (clients[0] for clients in clients_of_each(server, 1).values())
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(first.infer, [[1.0, 2.0]])]
            wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
            asked.append(pool.submit(second.infer, [[2.0, 0.0]]))
            wait_for(lambda: metric(server, "aimass_queue_items") == 1)
            os.kill(server.pid, signal.SIGTERM)
            assert [future.result().json["outputs"][0]["data"] for future in asked] == [[2.0, 4.0], [4.0, 0.0]]
        assert server.wait() == 0, server.log
        assert "Traceback" not in server.log


def test_no_front_end_outlives_the_server(tmp_path: Path) -> None:
    with start(write_faulty(tmp_path / "b", frontends=2), grpc_port=None) as server:
        left = running(server, "remote")
        assert infer(server, [[1.0, 0.0]]).status == 200
        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs(left, timeout=30)
        assert not [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
