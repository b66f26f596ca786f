"""Who may ask, how often, in which order, over what wire, and what is written down of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from aimass_lab.serving import request_log
from aimass_lab.serving.access import ANYBODY, Door, Token, read_tokens
from aimass_lab.serving.client import Client
from aimass_lab.serving.errors import RequestError, ServerError
from aimass_lab.serving.launch import Server, start
from aimass_lab.serving.request_log import RequestLog, request_id

from .servers import call, infer, metric, rehash, wait_for, write_linear

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
PATH = "/v2/models/net/infer"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- the door ----------------------------------------------------------------------------


def test_a_door_without_tokens_is_open_and_may_still_be_slow() -> None:
    now = [0.0]
    door = Door(requests_per_s=2.0, clock=lambda: now[0])
    assert door.admit(None) == ANYBODY
    door.spend(ANYBODY)
    door.spend(ANYBODY)
    with pytest.raises(RequestError, match="more than 2 requests per second") as caught:
        door.spend(ANYBODY)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 0.5)
    now[0] += 0.5
    door.spend(ANYBODY)
    now[0] += 1000.0  # what was not used long ago is not saved up
    for _ in range(2):
        door.spend(ANYBODY)
    with pytest.raises(RequestError):
        door.spend(ANYBODY)


def num_allowed(door: Door, name: str) -> int:
    for count in range(100):
        try:
            door.spend(name)
        except RequestError:
            return count
    return 100


def test_a_rate_next_to_nothing_still_tells_when_to_come_again() -> None:
    door = Door(requests_per_s=1e-320, clock=lambda: 0.0)
    door.spend("-")
    with pytest.raises(RequestError) as caught:
        door.spend("-")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 86400.0)  # a front end writes it as whole seconds


def test_every_token_has_its_own_rate() -> None:
    door = Door([Token("a", "alice", 1.0), Token("b", "bob"), Token("c", "carol", 3.0)], requests_per_s=2.0, clock=lambda: 0.0)
    allowed = {}
    for value, name in (("a", "alice"), ("b", "bob"), ("c", "carol")):
        assert door.admit(f"Bearer {value}") == door.admit(f"bearer {value}") == door.admit(f"BEARER {value}") == name  # RFC 9110, 11.1
        allowed[name] = num_allowed(door, name)
    assert allowed == {"alice": 1, "bob": 2, "carol": 3}
    for header in (None, "", "a", "Bearer ", "Bearer aa", "Bearera", "Bearer\ta", "Basic a", "Bearer ä"):
        with pytest.raises(RequestError) as caught:
            door.admit(header)
        assert caught.value.status == 401


def test_tokens_are_read_from_a_file_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# who may ask\n\nsecret\n other  bob\nthird carol 2.5\n")
    assert read_tokens(file, "ignored") == (Token("secret", "token-3"), Token("other", "bob"), Token("third", "carol", 2.5))
    assert read_tokens(None, " one ") == (Token("one", "token"),)
    assert read_tokens(None, None) == read_tokens(None, "  ") == ()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("a bob 1 2\n", "line 1 .* is not 'TOKEN"),
        ("a bob\nb carol many\n", "line 2"),
        ("a bob 0\n", "line 1"),
        ("a bob -3\n", "line 1"),
        ("a bob inf\n", "line 1"),
        ("a bob\na carol\n", "has a token twice"),
        ("a bob\nb bob\n", "has the name 'bob' twice"),
    ],
)
def test_a_token_file_that_is_not_understood_says_where(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(ServerError, match=text) as caught:
        read_tokens(file, None)
    assert "bob 1 2" not in str(caught.value)  # nothing of a line is shown: it holds a token
    with pytest.raises(ServerError, match="cannot read the token file"):
        read_tokens(tmp_path / "missing", None)


def test_a_caller_over_its_rate_gets_429_over_both_protocols_and_others_do_not(linear_folder: Path, tmp_path: Path) -> None:
    import grpc

    from .test_serving_grpc import request, send

    (tmp_path / "tokens").write_text("slow alice 0.2\nfast bob\n")
    with start(linear_folder, arguments=("--token-file", str(tmp_path / "tokens"))) as server:
        assert call(server, "POST", PATH, BODY, bearer("slow")).status == 200
        refused = call(server, "POST", PATH, BODY, bearer("slow"))
        assert refused.status == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 5
        assert "more than 0.2 requests per second" in refused.json["error"]
        with pytest.raises(grpc.RpcError) as caught:
            send(server, request(), metadata=(("authorization", "Bearer slow"),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1 <= int(dict(caught.value.trailing_metadata())["retry-after"]) <= 5
        assert call(server, "GET", "/v2/models/net", None, bearer("slow")).status == 200  # looking costs nothing
        assert [call(server, "POST", PATH, BODY, bearer("fast")).status for _ in range(5)] == [200] * 5
        assert call(server, "POST", PATH, BODY, bearer("guessed")).status == 401
        assert call(server, "POST", PATH.replace("net", "other"), BODY, bearer("fast")).status == 404
        for token, made in (("guessed", request()), ("fast", request(model_name="other"))):
            with pytest.raises(grpc.RpcError):
                send(server, made, metadata=(("authorization", f"Bearer {token}"),))
        text = call(server, "GET", "/metrics", None, bearer("fast")).body.decode()
        for protocol in ("rest", "grpc"):
            for code in (401, 404):
                assert f'aimass_refused_total{{code="{code}",protocol="{protocol}"}} 1.0' in text
                assert f'aimass_requests_total{{code="{code}"' not in text
        assert 'aimass_requests_total{code="429",protocol="rest"} 1.0' in text
        assert 'aimass_requests_total{code="429",protocol="grpc"} 1.0' in text
        assert call(server, "POST", PATH.replace("net", "other"), BODY, bearer("slow")).status == 404  # what gets to no model costs nothing
        with pytest.raises(grpc.RpcError) as caught:
            send(server, request(model_name="other"), metadata=(("authorization", "Bearer slow"),))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# --- priorities --------------------------------------------------------------------------


def test_the_first_priority_goes_first_and_others_fill_its_batch(run_faulty: Callable[..., Server]) -> None:
    server = run_faulty(max_batch_size=2, max_wait_s=0.0)
    order: list[float] = []

    def ask(value: float, priority: int | None) -> None:
        parameters = {} if priority is None else {"parameters": {"priority": priority}}
        assert infer(server, [[value, 0.1]], **parameters).status == 200
        order.append(value)

    with ThreadPoolExecutor(8) as pool:
        pool.submit(infer, server, [[99.0, 1.0]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        for number, (value, priority) in enumerate(((31.0, 3), (21.0, None), (32.0, 3), (22.0, 0), (11.0, 1)), 1):
            pool.submit(ask, value, priority)
            wait_for(lambda number=number: metric(server, "aimass_queue_items") == number)
    # batches of two: the urgent one with the oldest of the middle level, then the other of that level with the oldest of the last
    assert [set(order[:2]), set(order[2:4]), set(order[4:])] == [{11.0, 21.0}, {22.0, 31.0}, {32.0}]


@pytest.mark.parametrize("priority", [-1, 4, 1.0, "1", True])
def test_a_priority_that_there_is_not_is_refused(linear: Server, priority: Any) -> None:
    answer = call(linear, "POST", PATH, BODY | {"parameters": {"priority": priority}})
    assert answer.status == 400
    assert "priority must be a whole number from 1, which goes first, to 3" in answer.json["error"]


# --- names of requests, and the log -------------------------------------------------------


def test_a_request_keeps_the_name_that_its_client_gave_it(linear: Server) -> None:
    assert call(linear, "GET", "/v2", headers={"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert call(linear, "GET", "/nowhere", headers={"X-Request-Id": "lost"}).headers["x-request-id"] == "lost"
    names = {call(linear, "GET", "/v2").headers["x-request-id"] for _ in range(3)}
    assert len(names) == 3
    for unusable in ("two words", "x" * 129, "", "ä"):
        assert request_id(unusable) != unusable


def test_requests_are_written_down_and_neither_tokens_nor_tensors_are(linear_folder: Path, tmp_path: Path) -> None:
    from .test_serving_grpc import request, send

    (tmp_path / "tokens").write_text("s3cret alice\n")
    log = tmp_path / "requests.log"
    with start(linear_folder, arguments=("--token-file", str(tmp_path / "tokens"), "--log-requests", str(log))) as server:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [123456.0] * 8}]}
        call(server, "POST", PATH, body, bearer("s3cret") | {"X-Request-Id": "a"})
        call(server, "POST", PATH, {"inputs": []}, bearer("s3cret") | {"X-Request-Id": "b"})
        call(server, "GET", "/v2/models/%0d%0a%22fake%22", None, bearer("s3cret") | {"X-Request-Id": "c"})
        call(server, "GET", "/metrics", None, bearer("wrong") | {"X-Request-Id": "d"})
        send(server, request(), metadata=(("authorization", "Bearer s3cret"), ("x-request-id", "e")))
        wait_for(lambda: len(log.read_text().splitlines()) == 5)
    text = log.read_text()
    lines = {line["id"]: line for line in map(json.loads, text.splitlines())}
    assert {key: lines["a"][key] for key in ("protocol", "caller", "method", "path", "status", "items")} == {
        "protocol": "http", "caller": "alice", "method": "POST", "path": PATH, "status": 200, "items": 2,
    }  # fmt: skip
    assert 0 < lines["a"]["seconds"] < 30
    assert "error" not in lines["a"]
    assert (lines["b"]["status"], "input 'x' is missing" in lines["b"]["error"]) == (400, True)
    assert lines["c"]["status"] == 404
    assert (lines["d"]["status"], "caller" in lines["d"]) == (401, False)
    assert (lines["e"]["protocol"], lines["e"]["method"], lines["e"]["caller"], lines["e"]["status"]) == ("grpc", "ModelInfer", "alice", 200)
    assert not any(secret in text for secret in ("s3cret", "wrong", "123456"))


def test_a_log_is_rotated_and_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(request_log, "MAX_BYTES", 2000)
    log = RequestLog(str(tmp_path / "r.log"))
    for number in range(200):
        log.write(id=str(number), error="x" * 5000)
    log.close()
    files = sorted(tmp_path.glob("r.log*"))
    assert len(files) == 1 + request_log.KEPT_FILES
    assert all(file.stat().st_size <= 2000 for file in files)
    assert json.loads((tmp_path / "r.log").read_text().splitlines()[-1])["id"] == "199"
    full = RequestLog("/dev/full")
    for _ in range(3):
        full.write(id="1")
    assert [record.message for record in caplog.records if "cannot be written any more" in record.message] == [
        "the request log cannot be written any more: [Errno 28] No space left on device"
    ]
    full.close()
    with pytest.raises(ServerError, match="cannot write the request log"):
        RequestLog(str(tmp_path / "missing" / "r.log"))


# --- TLS ---------------------------------------------------------------------------------


def test_rest_and_grpc_over_tls(linear_folder: Path, certificate: tuple[Path, Path]) -> None:
    import grpc

    from aimass_lab.serving.grpc_messages import message

    cert, key = certificate
    with start(linear_folder, arguments=("--tls-cert", str(cert), "--tls-key", str(key))) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"{server.url}/v2/health/ready", context=trusted, timeout=20) as answer:
            assert json.load(answer) == {"live": True, "ready": True}
        posted = urllib.request.Request(server.url + PATH, json.dumps(BODY).encode())
        with urllib.request.urlopen(posted, context=trusted, timeout=20) as answer:
            assert len(json.load(answer)["outputs"][0]["data"]) == 3
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(server.url, timeout=20)
        with pytest.raises(OSError):  # a plain connection is dropped in one way or another
            urllib.request.urlopen(server.url.replace("https", "http"), timeout=20)
        load = [sys.executable, str(linear_folder / "run.py"), "load", "--url", server.url, "--rate", "50", "--duration", "0.2", "--cafile", str(cert)]
        assert json.loads(subprocess.run(load, capture_output=True, text=True, check=True).stdout)["ok"] == 10
        with Client(server.url, cafile=str(cert)) as client:
            assert client.infer([[1, 2, 3, 4]])["y"].shape == (1, 3)
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(str(server.grpc_address), credentials) as channel:
            live = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerLive",
                request_serializer=lambda value: value.SerializeToString(),
                response_deserializer=message("inference.ServerLiveResponse").FromString,
            )
            assert live(message("inference.ServerLiveRequest")(), timeout=20).live


@pytest.mark.parametrize("frontends", ["1", "2"])
def test_connections_that_rest_do_not_hold_up_the_end_with_tls_either(certificate: tuple[Path, Path], tmp_path: Path, frontends: str) -> None:
    """The library that has TLS would wait half a minute for each of them to say goodbye."""
    folder = write_linear(tmp_path / "bundle")
    listener = folder / "aimass_serve/listener.py"
    code = listener.read_text()
    assert "GOODBYE_S = 3.0" in code
    listener.write_text(code.replace("GOODBYE_S = 3.0", "GOODBYE_S = 0.1"))
    rehash(folder)
    cert, key = certificate
    trusted = ssl.create_default_context(cafile=str(cert))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start(folder, grpc_port=None, arguments=("--tls-cert", str(cert), "--tls-key", str(key), "--frontends", frontends)))
        address = urlsplit(server.url)
        for _ in range(4):
            resting = http.client.HTTPSConnection(address.hostname or "", address.port, context=trusted, timeout=20)
            stack.callback(resting.close)
            resting.request("GET", "/v2/health/ready")
            assert resting.getresponse().read()
        assert server.stop(timeout_s=25) == 0  # it would have been killed else
        assert server.log == ""


def test_a_certificate_that_cannot_be_used_is_one_line(linear_folder: Path, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    from .test_serving_faults import run

    cert, key = certificate
    (tmp_path / "other.pem").write_text("no key\n")
    for arguments, text in (
        (("--tls-cert", str(cert)), "--tls-cert and --tls-key belong together"),
        (("--tls-cert", str(cert), "--tls-key", str(tmp_path / "other.pem")), "cannot use the certificate"),
        (("--tls-cert", str(tmp_path / "missing.pem"), "--tls-key", str(key)), "cannot use the certificate"),
    ):
        done = run(linear_folder, "serve", "--port", "0", "--grpc-port", "none", *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
        assert text in done.stderr
