"""The client of one file: every datatype, and what it does when servers are busy, gone, or gone for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimass_lab.serving import client as client_module
from aimass_lab.serving.client import AsyncClient, Client, InferenceError
from aimass_lab.serving.launch import Server, start

from .servers import TYPES, WEIGHT, write_linear

X = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)


def test_arrays_lists_and_a_lone_input(linear: Server) -> None:
    with Client(linear.url) as client:
        assert client.ready()
        assert client.metadata()["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        np.testing.assert_allclose(client.infer({"x": X})["y"], X @ WEIGHT, rtol=1e-5)
        np.testing.assert_allclose(client.infer(X)["y"], X @ WEIGHT, rtol=1e-5)
        np.testing.assert_allclose(client.infer([[1, 2, 3, 4]])["y"], np.array([[1, 2, 3, 4]], np.float32) @ WEIGHT, rtol=1e-5)
        np.testing.assert_allclose(client.infer(X[:, ::-1])["y"], X[:, ::-1] @ WEIGHT, rtol=1e-5)  # not contiguous
        assert client.infer(X, outputs=["y"], priority=1, id="mine").keys() == {"y"}


def test_every_datatype_comes_back_as_it_went(identity: Server) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"in_{name}": generator.integers(0, 2, (2, 3)).astype(kind) for name, kind in TYPES.items() if name != "BYTES"}
    arrays["in_BYTES"] = np.array([["a", "", "ä"], ["long" * 100, "c", "d"]])
    with Client(identity.url, model="net", version="1") as client:
        outputs = client.infer(arrays)
    for name in TYPES:
        got, sent = outputs[f"out_{name}"], arrays[f"in_{name}"]
        if name == "BYTES":
            assert got.tolist() == [[text.encode() for text in row] for row in sent.tolist()]
        else:
            assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
            np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (X.astype(np.float64), "datatype 'FP64', the model wants FP32"),
        ({"z": X}, "no input called 'z'"),
        ({"z": [[1.0]]}, "no input 'z'; it has x"),
        ({"x": [["a"]]}, "is no array of FP32"),
        (X.astype(complex), "complex128, which the protocol does not have"),
        (X[:, :3], "shape"),
    ],
)
def test_what_cannot_be_computed_is_not_tried_again(linear: Server, inputs: Any, text: str) -> None:
    waits: list[float] = []
    with Client(linear.url, sleep=waits.append) as client, pytest.raises(InferenceError, match=text) as caught:
        client.infer(inputs)
    assert caught.value.status in (None, 400)
    assert not waits


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("in_BYTES", np.array([[1, 2]], object), "an element of type int"),
        ("in_BYTES", [["a", 2]], "an element of type int"),
        ("in_BYTES", [[1.5, b"a"]], "an element of type float"),
        ("in_UINT8", [[300, 1]], "is no array of UINT8"),
        ("in_UINT8", [[-1, 1]], "is no array of UINT8"),
        ("in_INT64", [[1.5, 2]], "is no array of INT64: its numbers would become others"),
        ("in_BOOL", [[2, 0]], "is no array of BOOL: its numbers would become others"),
    ],
)
def test_nothing_is_sent_in_place_of_what_was_given(identity: Server, name: str, value: Any, text: str) -> None:
    inputs: dict[str, Any] = {f"in_{datatype}": np.ones((1, 2)).astype(kind) for datatype, kind in TYPES.items()}
    with Client(identity.url) as client:
        with pytest.raises(InferenceError, match=text) as caught:
            client.infer(inputs | {name: value})
        assert caught.value.status is None
        lists = inputs | {"in_BYTES": [["a", b"b"]], "in_INT64": [[1.0, -(2**63)]], "in_UINT64": [[2**64 - 1, 0]], "in_BOOL": [[1, False]]}
        outputs = client.infer(lists)
    assert outputs["out_BYTES"].tolist() == [[b"a", b"b"]]
    assert outputs["out_UINT64"].tolist() == [[2**64 - 1, 0]]
    assert outputs["out_BOOL"].tolist() == [[True, False]]


def test_a_token_is_shown_and_never_told(linear_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("s3cret alice\n")
    with start(linear_folder, grpc_port=None, arguments=("--token-file", str(tmp_path / "tokens"))) as server:
        with Client(server.url, token="s3cret") as client:
            assert client.infer(X)["y"].shape == (3, 3)
        with Client(server.url, token="wr0ng") as client, pytest.raises(InferenceError, match="401") as caught:
            client.infer(X)
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("options", [{"urls": "localhost:8000"}, {"urls": []}, {"urls": "http://h", "attempts": 0}, {"urls": "ftp://h"}])
def test_a_client_that_could_never_ask_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is no address|leave nothing to try"):
        Client(**options)


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for name in ("gone.pem", "no.pem"):
        with pytest.raises(ValueError, match=f"cannot use the certificate .*{name}: "):
            Client("https://h", cafile=str(tmp_path / name))


# --- when servers are busy or gone ----------------------------------------------------------


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers with what the server was told to answer, in turn; the last one for ever."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        script: list[tuple[Any, dict[str, str]]] = self.server.script  # type: ignore[attr-defined]
        self.server.asked += 1  # type: ignore[attr-defined]
        status, headers = script.pop(0) if len(script) > 1 else script[0]
        status = status() if callable(status) else status
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return
        output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [float(self.server.server_port)]}
        body = json.dumps({"outputs": [output]} if status == 200 else {"error": "told to"}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


MakeStub = Callable[..., Any]


@pytest.fixture
def stub() -> Iterator[MakeStub]:
    servers = []

    def make(*script: int | tuple[Any, dict[str, str]], tls: tuple[Path, Path] | None = None) -> Any:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
        server.script = [(entry, {}) if isinstance(entry, int) else entry for entry in script]  # type: ignore[attr-defined]
        server.asked = 0  # type: ignore[attr-defined]
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def port_of(outputs: dict[str, Any]) -> int:
    return int(outputs["y"][0])


def test_a_busy_server_is_asked_again_after_the_time_that_it_asks_for(stub: MakeStub) -> None:
    server, waits = stub((503, {"Retry-After": "3"}), (429, {"Retry-After": "1"}), 503, 200), list[float]()
    with Client(server.url, model="m", sleep=waits.append) as client:
        assert port_of(client.infer({"x": X})) == server.server_port
    assert server.asked == 4
    assert waits[:2] == [3.0, 1.0]
    assert 0 < waits[2] <= 0.2  # what grows from 50 ms, with a share drawn by lot


def test_it_gives_up_after_its_attempts_with_the_last_answer(stub: MakeStub) -> None:
    server, waits = stub(503), list[float]()
    with Client(server.url, model="m", attempts=3, sleep=waits.append) as client, pytest.raises(InferenceError, match="503: told to"):
        client.infer({"x": X})
    assert (server.asked, len(waits)) == (3, 2)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 504])
def test_other_errors_are_final(stub: MakeStub, status: int) -> None:
    server = stub(status)
    with Client(server.url, model="m") as client, pytest.raises(InferenceError) as caught:
        client.infer({"x": X})
    assert (caught.value.status, server.asked) == (status, 1)


def test_no_attempt_is_begun_after_the_callers_time(stub: MakeStub) -> None:
    server = stub((503, {"Retry-After": "60"}))
    began = time.monotonic()
    with Client(server.url, model="m", attempts=4) as client, pytest.raises(InferenceError):
        client.infer({"x": X}, timeout_s=5.0)
    assert time.monotonic() - began < 30  # it does not wait for what would come too late
    assert server.asked == 1  # nor does it ask again without waiting


def test_others_stand_by_for_the_first(stub: MakeStub) -> None:
    first, second = stub(503, 200), stub(200)
    with Client([first.url, second.url], model="m", sleep=lambda s: pytest.fail("it waited although another server was there")) as client:
        assert port_of(client.infer({"x": X})) == second.server_port
        assert port_of(client.infer({"x": X})) == first.server_port
        assert port_of(client.infer({"x": X})) == first.server_port
    assert (first.asked, second.asked) == (3, 1)


def test_a_busy_first_is_left_alone_as_long_as_it_asks(stub: MakeStub) -> None:
    first, second = stub((503, {"Retry-After": "600"})), stub(200)
    with Client([first.url, second.url], model="m", sleep=lambda s: pytest.fail("it waited although another server was there")) as client:
        for _ in range(3):
            assert port_of(client.infer({"x": X})) == second.server_port
    assert (first.asked, second.asked) == (1, 3)


def test_where_all_are_busy_the_one_that_asks_for_least_is_waited_for(stub: MakeStub) -> None:
    first, second, waits = stub((503, {"Retry-After": "7"})), stub((503, {"Retry-After": "2"}), 200), list[float]()
    with Client([first.url, second.url], model="m", sleep=waits.append) as client:
        assert port_of(client.infer({"x": X})) == second.server_port
    assert (waits, first.asked, second.asked) == ([2.0], 1, 2)


def test_a_rate_is_kept_to_and_not_had_from_another_server(stub: MakeStub) -> None:
    first, second, waits = stub((429, {"Retry-After": "1"}), 200), stub(200), list[float]()
    with Client([first.url, second.url], model="m", sleep=waits.append) as client:
        assert port_of(client.infer({"x": X})) == first.server_port
    assert (waits, first.asked, second.asked) == ([1.0], 2, 0)


def test_an_address_that_cannot_be_reached_rests(stub: MakeStub, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = stub(200), stub(200)
    gone.shutdown()
    gone.server_close()
    with Client([gone.url, there.url], model="m") as client:
        asked: list[str] = []
        send = client_module._Address.send
        monkeypatch.setattr(client_module._Address, "send", lambda self, *a: (asked.append(self.url), send(self, *a))[1])
        for _ in range(3):
            assert port_of(client.infer({"x": X})) == there.server_port
    assert asked == [gone.url, there.url, there.url, there.url]


def test_a_primary_whose_machine_is_silent_does_not_take_all_of_the_callers_time(stub: MakeStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_S", 0.2)
    with socket.socket() as silent, contextlib.ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):  # nobody takes these, and whoever comes then hears nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        there = stub(200)
        with Client([f"http://127.0.0.1:{silent.getsockname()[1]}", there.url], model="m", timeout_s=60) as client:
            assert port_of(client.infer({"x": X})) == there.server_port


def test_a_primary_that_takes_requests_and_is_silent_leaves_time_for_a_standby(linear_folder: Path, stub: MakeStub, monkeypatch: pytest.MonkeyPatch) -> None:
    there, asked = stub(200), list[str]()
    send = client_module._Address.send
    monkeypatch.setattr(client_module._Address, "send", lambda self, *a: (asked.append(self.url), send(self, *a))[1])

    async def ask(urls: list[str]) -> dict[str, Any]:
        async with AsyncClient(urls, model="net", timeout_s=8.0) as client:
            return await client.infer({"x": X})

    with start(linear_folder, grpc_port=None) as primary, Client([primary.url, there.url], model="net", timeout_s=8.0) as client:
        np.testing.assert_allclose(client.infer({"x": X})["y"], X @ WEIGHT, rtol=1e-4)
        os.kill(primary.pid, signal.SIGSTOP)  # the system goes on taking connections and requests for it
        try:
            for _ in range(2):
                assert port_of(client.infer({"x": X})) == there.server_port
            assert asked == [primary.url, primary.url, there.url, there.url]  # for as long as it was silent, it is asked after the others
            assert port_of(asyncio.run(ask([primary.url, there.url]))) == there.server_port
        finally:
            os.kill(primary.pid, signal.SIGCONT)


@pytest.mark.parametrize("refusal", [404, 503, 0, None])
@pytest.mark.parametrize("secure", [False, True])
def test_a_primary_that_takes_long_is_heard_whatever_the_standby_says(
    stub: MakeStub, certificate: tuple[Path, Path], secure: bool, refusal: int | None
) -> None:
    """Also where the standby says nothing, but for what TLS has it say."""
    asked, heard = threading.Event(), threading.Event()

    def refuse() -> int:
        asked.set()
        if refusal is None:
            heard.wait(20)
        return refusal or 0

    def answer() -> int:
        assert asked.wait(20)
        time.sleep(0.3)  # so that the refusal is there first
        return 200

    tls = certificate if secure else None
    primary, standby = stub((200, {}), (answer, {}), (200, {}), tls=tls), stub((refuse, {}), tls=tls)
    with Client([primary.url, standby.url], model="m", timeout_s=6.0, cafile=str(certificate[0]) if secure else None) as client:
        connections = list[Any]()
        connect = client._addresses[0]._connect
        client._addresses[0]._connect = lambda *a: (connections.append(a), connect(*a))[1]  # type: ignore[method-assign]
        for _ in range(3):
            assert port_of(client.infer({"x": X})) == primary.server_port
        assert (primary.asked, standby.asked, len(connections)) == (3, 1, 1)
    heard.set()


def test_who_wants_one_attempt_gets_one(stub: MakeStub) -> None:
    silent, standby = stub((lambda: time.sleep(3) or 0, {})), stub(200)
    with Client([silent.url, standby.url], model="m", timeout_s=0.5, attempts=1) as client, pytest.raises(InferenceError, match="TimeoutError"):
        client.infer({"x": X})
    assert standby.asked == 0


def test_requests_can_be_spread(stub: MakeStub) -> None:
    servers = [stub(200) for _ in range(3)]
    with Client([server.url for server in servers], model="m", spread=True) as client:
        for _ in range(9):
            client.infer({"x": X})
    assert [server.asked for server in servers] == [3, 3, 3]


def test_a_lost_connection_is_no_lost_request(stub: MakeStub) -> None:
    server = stub(200, 0, 0, 200)
    with Client(server.url, model="m", sleep=lambda s: None) as client:
        assert port_of(client.infer({"x": X})) == server.server_port
        assert port_of(client.infer({"x": X})) == server.server_port


def test_nobody_there_says_who_was_asked() -> None:
    with Client("http://127.0.0.1:9", model="m", attempts=2, sleep=lambda s: None) as client:
        with pytest.raises(InferenceError, match="http://127.0.0.1:9: ConnectionRefusedError"):
            client.infer({"x": X})
        assert not client.ready()


def test_a_primary_that_is_killed_under_load_loses_nothing(linear_folder: Path) -> None:
    async def ask(urls: list[str], kill: Callable[[], None]) -> list[Any]:
        async with AsyncClient(urls, concurrency=8, timeout_s=60.0) as client:
            assert await client.ready()
            tasks = [asyncio.create_task(client.infer({"x": X + number})) for number in range(200)]
            await tasks[20]
            kill()
            return await asyncio.gather(*tasks)

    with start(linear_folder, grpc_port=None) as standby:
        primary = start(linear_folder, grpc_port=None)
        try:
            outputs = asyncio.run(ask([primary.url, standby.url], lambda: os.kill(primary.pid, signal.SIGKILL)))
        finally:
            primary.stop()
    assert len(outputs) == 200
    for number, found in enumerate(outputs):
        np.testing.assert_allclose(found["y"], (X + number) @ WEIGHT, rtol=1e-4)


def test_it_works_alone_in_a_folder(linear: Server, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_bytes(Path(client_module.__file__).read_bytes())
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from client import Client\n"
        "print(Client(sys.argv[2]).infer([[1, 0, 0, 0]])['y'].tolist())\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('aimass_lab', 'orjson', 'uvicorn', 'grpc', 'psutil')))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path), linear.url], capture_output=True, text=True, check=True)
    numbers, modules = done.stdout.splitlines()
    np.testing.assert_allclose(json.loads(numbers), WEIGHT[:1], rtol=1e-5)
    assert modules == "[]"


def test_two_versions_of_a_server_can_be_told_apart(tmp_path: Path) -> None:
    with start(write_linear(tmp_path / "bundle", version="7"), grpc_port=None) as server, Client(server.url) as client:
        assert client.metadata()["versions"] == ["7"]
        with Client(server.url, model="net", version="8") as other, pytest.raises(InferenceError, match="404"):
            other.infer({"x": X})
