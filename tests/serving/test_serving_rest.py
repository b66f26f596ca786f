"""REST: the Open Inference Protocol v2 answers as specified, and everything malformed gets a clean 4xx."""

from __future__ import annotations

import contextlib
import gc
import gzip
import http.client
import json
import socket
import struct
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from aimass_lab.serving.launch import Server

from .servers import TYPES, WEIGHT, call, infer, metric

INFER = "/v2/models/net/infer"
ROW = [[1.0, 2.0, 3.0, 4.0]]
GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW[0]}


def given(**changes: Any) -> dict[str, Any]:
    """A request whose only input is changed; None removes a key."""
    return {"inputs": [{key: value for key, value in (GOOD | changes).items() if value is not None}]}


def test_infer_gives_the_models_outputs(linear: Server) -> None:
    answer = infer(linear, [*ROW, [0.5, 0, 0, 0]], id="abc")
    assert answer.status == 200
    assert {key: answer.json[key] for key in ("model_name", "model_version", "id")} == {"model_name": "net", "model_version": "1", "id": "abc"}
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 3])
    expected = np.float32([*ROW, [0.5, 0, 0, 0]]) @ WEIGHT
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), expected, rtol=1e-5)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "aimass_serve", "version": "1", "extensions": ["binary_tensor_data", "model_repository", "promises", "sample"]}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"live": True, "ready": True}),
        ("/v2/models/net/ready", {"name": "net", "ready": True}),
        ("/v2/models/net/versions/1/ready", {"name": "net", "ready": True}),
        (
            "/v2/models/net",
            {
                "name": "net",
                "versions": ["1"],
                "platform": "onnx_onnxv1",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
            },
        ),
    ],
)
def test_metadata_and_health(linear: Server, path: str, slash: str, expected: dict[str, Any]) -> None:
    answer = call(linear, "GET", path + slash)
    assert (answer.status, answer.json) == (200, expected)


def test_predict_is_the_plain_form(linear: Server) -> None:
    for body in ({"inputs": {"x": ROW}}, {"inputs": ROW}, ROW):
        answer = call(linear, "POST", "/predict", body)
        assert answer.status == 200
        np.testing.assert_allclose(answer.json["outputs"]["y"], np.float32(ROW) @ WEIGHT, rtol=1e-5)


def test_head_has_no_body(linear: Server) -> None:
    answer = call(linear, "HEAD", "/v2/health/ready")
    assert (answer.status, answer.body) == (200, b"")


def test_home_lists_the_addresses(linear: Server) -> None:
    text = call(linear, "GET", "/").body.decode()
    assert "POST /v2/models/net/infer" in text
    assert "x: FP32 [-1, 4]" in text


def test_metrics_count_by_code(linear: Server) -> None:
    before = metric(linear, "aimass_requests_total")
    infer(linear, ROW)
    call(linear, "POST", INFER, b"")
    assert metric(linear, "aimass_requests_total") == before + 2
    assert b'aimass_requests_total{code="400",protocol="rest"}' in call(linear, "GET", "/metrics").body


# --- binary tensors ----------------------------------------------------------------------


def binary(document: dict[str, Any], *parts: bytes) -> tuple[bytes, dict[str, str]]:
    header = json.dumps(document).encode()
    return header + b"".join(parts), {"Inference-Header-Content-Length": str(len(header))}


def test_binary_in_and_out(linear: Server) -> None:
    data = np.float32(ROW).tobytes()
    document = given(data=None, parameters={"binary_data_size": len(data)}) | {"parameters": {"binary_data_output": True}}
    answer = call(linear, "POST", INFER, *binary(document, data))
    length = int(answer.headers["Inference-Header-Content-Length"])
    header = json.loads(answer.body[:length])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert header["outputs"][0]["parameters"] == {"binary_data_size": 12}
    np.testing.assert_allclose(np.frombuffer(answer.body[length:], np.float32), (np.float32(ROW) @ WEIGHT)[0], rtol=1e-5)


def test_raw_body_is_one_item(linear: Server) -> None:
    answer = call(linear, "POST", INFER, np.float32(ROW).tobytes(), {"Inference-Header-Content-Length": "0"})
    length = int(answer.headers["Inference-Header-Content-Length"])
    np.testing.assert_allclose(np.frombuffer(answer.body[length:], np.float32), (np.float32(ROW) @ WEIGHT)[0], rtol=1e-5)


def values_of(datatype: str) -> Any:
    extremes = {"BOOL": [True, False, True], "BYTES": ["", "é\n", "x" * 300], "FP16": [0.5, -2, 65504]}
    if datatype in extremes:
        return extremes[datatype]
    kind = np.dtype(TYPES[datatype])
    if kind.kind == "f":
        return [0.5, -1.25, float(str(np.finfo(kind).max))]
    return [int(np.iinfo(kind).min), 1, int(np.iinfo(kind).max)]


def wire(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    return np.array(values, TYPES[datatype]).tobytes()


@pytest.mark.parametrize("as_binary", [False, True])
def test_every_datatype_comes_back_as_it_went(identity: Server, as_binary: bool) -> None:
    """JSON and binary tensors mixed in one request, where `as_binary` says what the outputs and most inputs are."""
    inputs, parts, outputs = [], [], []
    for datatype in TYPES:
        values = values_of(datatype)
        entry: dict[str, Any] = {"name": f"in_{datatype}", "datatype": datatype, "shape": [1, 3]}
        if datatype == "FP16" or as_binary:
            parts.append(wire(datatype, values))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = [values]
        inputs.append(entry)
        outputs.append({"name": f"out_{datatype}", "parameters": {"binary_data": datatype == "FP16" or as_binary}})
    answer = call(identity, "POST", INFER, *binary({"inputs": inputs, "outputs": outputs}, *parts))
    assert answer.status == 200, answer.body
    length = int(answer.headers["Inference-Header-Content-Length"])
    header, tail = json.loads(answer.body[:length]), answer.body[length:]
    for output, datatype in zip(header["outputs"], TYPES, strict=True):
        assert (output["name"], output["datatype"], output["shape"]) == (f"out_{datatype}", datatype, [1, 3])
        if "data" in output:
            assert output["data"] == values_of(datatype)
        else:
            size = output["parameters"]["binary_data_size"]
            assert tail[:size] == wire(datatype, values_of(datatype))
            tail = tail[size:]
    assert tail == b""


def test_outputs_are_selected_and_ordered(identity: Server) -> None:
    inputs = [{"name": f"in_{datatype}", "datatype": datatype, "shape": [1, 3], "data": values_of(datatype)} for datatype in TYPES if datatype != "FP16"]
    half = np.float16([1, 2, 3]).tobytes()
    inputs.append({"name": "in_FP16", "datatype": "FP16", "shape": [1, 3], "parameters": {"binary_data_size": 6}})
    wanted = [{"name": "out_INT8"}, {"name": "out_BOOL"}]
    answer = call(identity, "POST", INFER, *binary({"inputs": inputs, "outputs": wanted}, half))
    assert [output["name"] for output in answer.json["outputs"]] == ["out_INT8", "out_BOOL"]
    everything = call(identity, "POST", INFER, *binary({"inputs": inputs}, half))
    assert everything.status == 400
    assert "FP16" in everything.json["error"]


# --- what is refused ---------------------------------------------------------------------

BAD_BODIES: dict[str, tuple[Any, str]] = {
    "empty": (b"", "empty"),
    "truncated": (b'{"inputs": [', "character 12"),
    "not UTF-8": (b'{"id": "\xff"}', "not JSON"),
    "not an object": ([1, 2], "object"),
    "null": (b"null", "object"),
    "deep nesting": (b'{"inputs":' + b"[" * 100_000, "not JSON"),
    "no inputs": ({}, "inputs"),
    "inputs not a list": ({"inputs": {"x": 1}}, "inputs"),
    "no input given": ({"inputs": []}, "'x' is missing"),
    "input not an object": ({"inputs": [1]}, "object"),
    "unknown input": (given(name="z"), "no input called 'z'"),
    "input without name": (given(name=None), "no input"),
    "input twice": ({"inputs": [GOOD, GOOD]}, "twice"),
    "unknown output": ({"inputs": [GOOD], "outputs": [{"name": "q"}]}, "no output called 'q'"),
    "output twice": ({"inputs": [GOOD], "outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
    "outputs not a list": ({"inputs": [GOOD], "outputs": {"name": "y"}}, "list"),
    "too few elements": (given(data=[1, 2, 3]), "takes 4 elements, got 3"),
    "other shape": (given(shape=[1, 3], data=[1, 2, 3]), "the model wants [-1, 4]"),
    "other rank": (given(shape=[4]), "the model wants [-1, 4]"),
    "nested otherwise": (given(data=[[1, 2], [3, 4]]), "nested"),
    "ragged": (given(shape=[2, 4], data=[[1, 2, 3, 4], [5, 6, 7]]), "nested"),
    "nested too deep": (given(data=[[[1, 2, 3, 4]]]), "nested"),
    "nested and flat mixed": (given(data=[[1, 2], 3, 4]), "nested"),
    "negative size": (given(shape=[-1, 4]), "positive"),
    "zero size": (given(shape=[0, 4], data=[]), "positive"),
    "float size": (given(shape=[1.0, 4]), "positive"),
    "bool size": (given(shape=[True, 4]), "positive"),
    "size of 2**63": (given(shape=[2**63, 4]), "positive"),
    "product overflow": (given(shape=[2**62, 4]), "elements"),
    "billion rows": (given(shape=[10**9, 4]), "elements"),
    "shape missing": (given(shape=None), "shape"),
    "shape a string": (given(shape="14"), "shape"),
    "too many items": (given(shape=[17, 4], data=[0] * 68), "at most 16 items"),
    "other datatype": (given(datatype="INT64"), "the model wants FP32"),
    "unknown datatype": (given(datatype="FP31"), "the model wants FP32"),
    "datatype missing": (given(datatype=None), "datatype"),
    "null element": (given(data=[1, None, 3, 4]), "null"),
    "string element": (given(data=[1, "2", 3, 4]), "str"),
    "bool element": (given(data=[1, True, 3, 4]), "bool"),
    "object element": (given(data=[1, {}, 3, 4]), "dict"),
    "NaN": (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[NaN,1,2,3]}]}', "not JSON"),
    "Infinity": (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[Infinity,1,2,3]}]}', "not JSON"),
    "float overflow": (given(data=[1e39, 1, 2, 3]), "out of range"),
    "data missing": (given(data=None), "neither"),
    "data not a list": (given(data="1234"), "list"),
    "id not a string": ({"inputs": [GOOD], "id": 7}, "id"),
    "parameters not an object": ({"inputs": [GOOD], "parameters": [1]}, "object"),
    "parameter not a scalar": ({"inputs": [GOOD], "parameters": {"p": []}}, "'p'"),
    "shared memory": (given(parameters={"shared_memory_region": "r"}), "extension"),
    "timeout not a number": ({"inputs": [GOOD], "parameters": {"timeout": "soon"}}, "timeout"),
    "binary size without header": (given(data=None, parameters={"binary_data_size": 16}), "Inference-Header-Content-Length"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_body(linear: Server, case: str) -> None:
    body, text = BAD_BODIES[case]
    began = time.monotonic()
    answer = call(linear, "POST", INFER, body)
    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert text in answer.json["error"]
    assert time.monotonic() - began < 5
    assert infer(linear, ROW).status == 200


def test_product_that_overflows_64_bits(identity: Server) -> None:
    entry = {"name": "in_INT8", "datatype": "INT8", "shape": [2**40, 2**40], "data": [1]}
    answer = call(identity, "POST", INFER, {"inputs": [entry]})
    assert (answer.status, "takes 1208925819614629174706176 elements" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT8", -129), ("UINT8", -1), ("UINT64", 2**64), ("INT64", 1.0), ("BOOL", 1)])
def test_value_that_the_datatype_does_not_hold(identity: Server, datatype: str, value: Any) -> None:
    entry = {"name": f"in_{datatype}", "datatype": datatype, "shape": [1, 1], "data": [value]}
    answer = call(identity, "POST", INFER, {"inputs": [entry]})
    assert answer.status == 400
    assert datatype in answer.json["error"]


def test_fp16_has_no_json_form(identity: Server) -> None:
    entry = {"name": "in_FP16", "datatype": "FP16", "shape": [1, 1], "data": [1.0]}
    assert "FP16 has no JSON form" in call(identity, "POST", INFER, {"inputs": [entry]}).json["error"]


@pytest.mark.parametrize(
    "data", [b"\x05\0\0\0abc", b"\x01\0\0", b"\xff\xff\xff\xffabc", b"\x01\0\0\0a" * 2, b""], ids=["beyond", "cut length", "huge", "two", "none"]
)
def test_malformed_bytes_tensor(identity: Server, data: bytes) -> None:
    entry = {"name": "in_BYTES", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(data)}}
    assert call(identity, "POST", INFER, *binary({"inputs": [entry]}, data)).status == 400


@pytest.mark.parametrize("as_binary", [False, True])
def test_a_text_that_is_no_utf_8_is_the_clients_mistake(identity: Server, as_binary: bool) -> None:
    """Also where the output is wanted as bytes: the model is one of texts."""
    inputs, parts = [], []
    for datatype in TYPES:
        parts.append(wire(datatype, values_of(datatype)) if datatype != "BYTES" else b"\1\0\0\0a" + b"\3\0\0\0ab\xff" + b"\2\0\0\0\xc3\xa9")
        inputs.append({"name": f"in_{datatype}", "datatype": datatype, "shape": [1, 3], "parameters": {"binary_data_size": len(parts[-1])}})
    outputs = [{"name": "out_BYTES", "parameters": {"binary_data": as_binary}}]
    answer = call(identity, "POST", INFER, *binary({"inputs": inputs, "outputs": outputs}, *parts))
    assert (answer.status, answer.json["error"]) == (400, "input 'in_BYTES': element 1 is no text in UTF-8: invalid start byte at its byte 2")


@pytest.mark.parametrize("length", ["-1", "abc", "99999", "", "1e2", "1" * 500, "٣"])
def test_bad_header_length(linear: Server, length: str) -> None:
    body, _ = binary(given())
    headers = {"Inference-Header-Content-Length": length.encode("utf-8").decode("latin-1")}
    answer = call(linear, "POST", INFER, body, headers)
    assert answer.status == 400


@pytest.mark.parametrize(("announced", "sent"), [(16, 15), (16, 17), (15, 16), (20, 16), (-1, 16), (2**70, 16), ("16", 16), (16.0, 16), (True, 1)])
def test_binary_sizes_that_do_not_add_up(linear: Server, announced: Any, sent: int) -> None:
    answer = call(linear, "POST", INFER, *binary(given(data=None, parameters={"binary_data_size": announced}), bytes(sent)))
    assert answer.status == 400


def test_data_and_binary_data_together(linear: Server) -> None:
    answer = call(linear, "POST", INFER, *binary(given(parameters={"binary_data_size": 16}), bytes(16)))
    assert (answer.status, "both" in answer.json["error"]) == (400, True)


def test_binary_bool_must_be_0_or_1(identity: Server) -> None:
    entry = {"name": "in_BOOL", "datatype": "BOOL", "shape": [1, 1], "parameters": {"binary_data_size": 1}}
    assert "neither 0 nor 1" in call(identity, "POST", INFER, *binary({"inputs": [entry]}, b"\x02")).json["error"]


def test_binary_nan_is_the_clients_wish(linear: Server) -> None:
    data = np.float32([[np.nan, 1, 2, 3]]).tobytes()
    document = given(data=None, parameters={"binary_data_size": 16})
    answer = call(linear, "POST", INFER, *binary(document | {"parameters": {"binary_data_output": True}}, data))
    assert answer.status == 200
    assert np.isnan(np.frombuffer(answer.body[-12:], np.float32)).all()
    in_json = call(linear, "POST", INFER, *binary(document, data))
    assert (in_json.status, "binary_data" in in_json.json["error"]) == (400, True)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/other/infer", "/v2/models/net/versions/2/infer", "/v2/models/..%2fnet/infer", "/v2/models/%00/infer", "/v3", "/v2/models",
        "/v2/models/" + "n" * 10_000 + "/infer", "/v2/models/net/nonsense", "/v2/models/net/versions", "/v2/health", "/v2/models//infer",
    ],
)  # fmt: skip
def test_unknown_address(linear: Server, path: str) -> None:
    answer = call(linear, "POST", path, given())
    assert (answer.status, list(answer.json)) == (404, ["error"])


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", INFER, "POST"), ("POST", "/v2", "GET"), ("DELETE", "/v2/models/net", "GET")])
def test_wrong_method(linear: Server, method: str, path: str, allowed: str) -> None:
    answer = call(linear, method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_body(linear: Server, encoding: str) -> None:
    assert call(linear, "POST", INFER, gzip.compress(bytes(10_000_000)), {"Content-Encoding": encoding}).status == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit(linear: Server, chunked: bool) -> None:
    size = 8 * 2**20
    body: Any = (bytes(2**16) for _ in range(size // 2**16)) if chunked else bytes(size)
    connection_headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    address = urlsplit(linear.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    connection.request("POST", INFER, body, connection_headers, encode_chunked=chunked)
    response = connection.getresponse()
    assert (response.status, "longer than 1048576" in json.loads(response.read())["error"]) == (413, True)
    connection.close()
    assert infer(linear, ROW).status == 200


def raw(server: Server, data: bytes, timeout: float = 10) -> bytes:
    """Send bytes, and read until the server closes."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=timeout) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def test_tiny_chunks_are_a_normal_request(linear: Server) -> None:
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in json.dumps(given()).encode()) + b"0\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(linear, head.encode() + chunks).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: -5",
        "Content-Length: 5x", "Bad Name: x",
    ],
)  # fmt: skip
def test_ambiguous_http(linear: Server, headers: str) -> None:
    assert raw(linear, f"POST {INFER} HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\nabcde".encode()).startswith(b"HTTP/1.1 400")


def test_endless_headers(linear: Server) -> None:
    answer = raw(linear, b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(200)))
    assert answer.startswith(b"HTTP/1.1 431")


HEAD = f"POST {INFER} HTTP/1.1\r\nHost: a\r\n"


def whole(more: str = "") -> bytes:
    body = json.dumps(given()).encode()
    return f"{HEAD}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(linear: Server) -> None:
    """As clients of Java and .NET ask by themselves; and the next request on that connection, whether it comes at once or later."""
    wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    last = whole("Connection: close\r\n")
    assert raw(linear, whole(wish) + b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + wish.encode() + b"\r\n" + last).count(b"HTTP/1.1 200") == 3
    address = urlsplit(linear.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head, _, body = whole(wish).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n" + body[:9])
        time.sleep(0.1)  # so that the rest is read apart; the answer is the same if it is not
        connection.sendall(body[9:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(last)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    for target in ("a:80", f"http://a{INFER}"):
        assert raw(linear, f"CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")


def chunked(trailers: bytes) -> bytes:
    body = json.dumps(given()).encode()
    return f"{HEAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)


def test_what_stands_behind_the_body_is_no_header(linear: Server, guarded: Server) -> None:
    answer = raw(linear, chunked(b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 3\r\nX-Request-Id: behind\r\n"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"behind" not in answer
    assert raw(guarded, chunked(b"Authorization: Bearer secret\r\n")).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("piece", [b"X-A: %s\r\n" % (b"a" * 1000), b"a" * 1000], ids=["many", "one"])
def test_endless_headers_behind_the_body(linear: Server, piece: bytes) -> None:
    address = urlsplit(linear.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\n{\r\n0\r\nX-B: b")
        connection.settimeout(0.01)
        for _ in range(2000):  # until there is an answer; all of it would be 16 MB
            with contextlib.suppress(TimeoutError):
                connection.sendall(piece * 8)
                if connection.recv(1, socket.MSG_PEEK):
                    break
        connection.settimeout(30)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431")


def test_error_text_cannot_break_out(linear: Server) -> None:
    answer = call(linear, "POST", INFER, given(name='z"\r\nSet-Cookie: a=b\ud800'))
    assert answer.status == 400
    assert answer.headers["Set-Cookie"] is None


def test_tritonclient_http(linear: Server) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    client = triton.InferenceServerClient(linear.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("net", "1")
    assert client.get_server_metadata()["name"] == "aimass_serve"
    assert client.get_model_metadata("net")["inputs"][0]["shape"] == [-1, 4]
    x = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    for binary_in in (False, True):
        for binary_out in (False, True):
            given_x = triton.InferInput("x", [5, 4], "FP32")
            given_x.set_data_from_numpy(x, binary_data=binary_in)
            wanted = triton.InferRequestedOutput("y", binary_data=binary_out)
            result = client.infer("net", [given_x], outputs=[wanted], request_id="17", timeout=10_000_000)
            np.testing.assert_allclose(result.as_numpy("y"), x @ WEIGHT, rtol=1e-5)
            assert result.get_response()["id"] == "17"
    with pytest.raises(triton.InferenceServerException, match="no model 'other'"):
        client.infer("other", [given_x])
    client.close()
    del client
    gc.collect()  # the client closes once more when it is collected, which it can only do in this thread
