"""Malformed requests by the thousand, the same for the same seed: REST bodies, HTTP itself, gRPC messages; and what may come back."""

from __future__ import annotations

import copy
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np

from aimass_lab.serving.grpc_messages import INFERENCE_SERVICE, message
from aimass_lab.serving.launch import Server

from .servers import TYPES, call

Rng = random.Random

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    16,
    17,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    1e39,
    -0.0,
    1.5,
    1e-320,
    "",
    "x",
    "\0",
    "é" * 70,
    "\ud800",
    "a" * 5000,
    "FP32",
    "BYTES",
    [],
    {},
    [[]],
    [None],
    [1, [2]],
    {"a": {"b": []}},
    [0] * 68,
)
"""What a field can be set to that it should not be, and some that it may."""
ODD_NAMES = (
    "inputs",
    "outputs",
    "id",
    "parameters",
    "name",
    "shape",
    "datatype",
    "data",
    "binary_data_size",
    "binary_data_output",
    "timeout",
    "priority",
    "classification",
)
NASTY_BYTES = (b"\0", b"\xff", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"[" * 3000, b"{" * 300, b'"', b"\\u0000", b"NaN", b"-", b"1e999", b"9" * 400)


def rest_requests(seed: int, *, datatypes: tuple[str, ...]) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies and headers: a request that is right, changed in its structure, in its bytes, or in both."""
    rng = random.Random(seed)
    while True:
        document, parts = valid_document(rng, datatypes)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            change_document(rng, document)
        header = json.dumps(document).encode()
        tail = b"".join(parts)
        length = str(len(header)) if parts or rng.random() < 0.2 else None
        if rng.random() < 0.3:
            tail = change_bytes(rng, tail)
        if rng.random() < 0.3:
            header = change_bytes(rng, header)
        if rng.random() < 0.3:
            length = rng.choice((None, "", "0", "-1", "1e3", "0x10", "9" * 30, " 5", str(len(header) - 1), str(len(header) + 1), str(rng.randrange(10_000))))
        yield header + tail, {} if length is None else {"Inference-Header-Content-Length": length}


def valid_document(rng: Rng, datatypes: tuple[str, ...]) -> tuple[dict[str, Any], list[bytes]]:
    """A request for the identity model that it answers, tensors in JSON or in binary."""
    inputs, parts, rows = [], [], rng.randint(1, 3)
    for datatype in datatypes:
        values = _values(rng, datatype, rows * 2)
        entry: dict[str, Any] = {"name": f"in_{datatype}", "datatype": datatype, "shape": [rows, 2]}
        if datatype == "FP16" or rng.random() < 0.5:
            part = b"".join(struct.pack("<I", len(v)) + v.encode() for v in values) if datatype == "BYTES" else np.array(values, TYPES[datatype]).tobytes()
            entry["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            entry["data"] = values
        inputs.append(entry)
    return {"inputs": inputs, "id": str(rng.random()), "parameters": {"binary_data_output": True}}, parts


def _values(rng: Rng, datatype: str, count: int) -> list[Any]:
    if datatype == "BYTES":
        return ["".join(rng.choices("abc", k=rng.randint(0, 5))) for _ in range(count)]
    if datatype == "BOOL":
        return [rng.random() < 0.5 for _ in range(count)]
    return [rng.randint(0, 100) for _ in range(count)]


def change_document(rng: Rng, document: Any) -> None:
    """Set, add, remove or double something somewhere in it."""
    places = list(_places(document))
    owner, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0 and isinstance(owner, dict):
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[rng.choice(ODD_NAMES)] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif kind == 2 and isinstance(owner, list):
        owner.insert(rng.randrange(len(owner) + 1), copy.deepcopy(owner[key]))
    elif kind == 3 and isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool):
        owner[key] += rng.choice((-1, 1, 2**31, -(2**31), 0.5))
    else:
        owner[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def change_bytes(rng: Rng, data: bytes) -> bytes:
    """Flip, cut, repeat, move or put in some bytes."""
    if not data:
        return rng.choice(NASTY_BYTES)
    at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    kind = rng.randrange(5)
    if kind == 0:
        position = rng.randrange(len(data))
        return data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[end:]
    if kind == 3:
        return data[:end] + data[at:]
    return data[:at] + rng.choice(NASTY_BYTES) + data[at:]


def http_requests(seed: int) -> Iterator[bytes]:
    """HTTP requests as bytes, of which few are quite right; each asks for its connection to be closed."""
    rng = random.Random(seed)
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
    while True:
        headers = [b"Host: a", b"Connection: close", rng.choice((b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked", b"Content-Length: 1", b""))]
        headers += rng.choices(
            (
                b"Content-Length: 7",
                b"Content-Length: -1",
                b"Content-Length: 99999999999999999999",
                b"Transfer-Encoding: gzip",
                b"Expect: 100-continue",
                b"X: " + b"a" * 9000,
                b"Bad Header",
                b": empty",
                b"X:\0",
                b"Upgrade: websocket",
                b"Connection: upgrade",
                b"Authorization: Bearer \xff",
                b"Content-Encoding: br",
                b"Inference-Header-Content-Length: \xb2",
                b"X-Request-Id: a\tb",
            ),
            k=rng.randint(0, 2),
        )
        method = rng.choice((b"POST", b"POST", b"GET", b"PUT", b"OPTIONS", b"CONNECT", b"PRI", b"po st", b"\x16\x03\x01"))
        path = rng.choice(
            (
                b"/v2/models/net/infer",
                b"/v2/models/net/infer",
                b"/predict",
                b"*",
                b"/%ff%00",
                b"//",
                b"http://b/v2",
                b"/v2/models/" + b"%2e%2e%2f" * 9,
                b"/\xff",
            )
        )
        version = rng.choice((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""))
        sent = b"\r\n".join([b" ".join((method, path, version)), *filter(None, headers), b"", b""])
        if b"chunked" in sent:
            sent += rng.choice(
                (
                    b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
                    b"ffffffffffffffff\r\n",
                    b"-1\r\n",
                    b"1\r\nab\r\n0\r\n\r\n",
                    b"5;" + b"x" * 99 + b"\r\n12345\r\n0\r\n\r\n",
                )
            )
        else:
            sent += body
        yield change_bytes(rng, sent) if rng.random() < 0.5 else sent


def grpc_requests(seed: int) -> Iterator[bytes]:
    """Serialized ModelInferRequests, changed in a field, in their bytes, or in both."""
    rng = random.Random(seed)
    while True:
        made = message("inference.ModelInferRequest")(model_name="net", id=str(rng.random()))
        made.inputs.add(name="x", datatype="FP32", shape=[rng.randint(1, 3), 4])
        count = 4 * made.inputs[0].shape[0]
        raw = rng.random() < 0.5
        if raw:
            made.raw_input_contents.append(np.arange(count, dtype=np.float32).tobytes())
        else:
            made.inputs[0].contents.fp32_contents.extend(range(count))
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            _change_message(rng, made)
        data = made.SerializeToString()
        yield change_bytes(rng, data) if rng.random() < 0.5 else data


def _change_message(rng: Rng, made: Any) -> None:
    changes: list[Callable[[], Any]] = [
        lambda: setattr(made, "model_name", rng.choice(("", "net", "other", "a" * 5000, "../net", "\0"))),
        lambda: setattr(made, "model_version", rng.choice(("1", "2", "x" * 500))),
        lambda: made.inputs.add(name=rng.choice(("x", "", "z")), datatype=rng.choice(("FP32", "INT8", "")), shape=[1, 4]),
        lambda: made.inputs[0].shape.append(rng.choice((0, -1, 1, 2**62))) if made.inputs else None,
        lambda: made.inputs[0].contents.bytes_contents.append(b"\xff") if made.inputs else None,
        lambda: made.inputs[0].contents.int_contents.extend([2**31 - 1] * 4) if made.inputs else None,
        lambda: setattr(made.inputs[0], "datatype", rng.choice(("FP64", "BYTES", "fp32", "é"))) if made.inputs else None,
        lambda: made.raw_input_contents.append(rng.randbytes(rng.randrange(40))),
        lambda: made.ClearField("raw_input_contents"),
        lambda: made.outputs.add(name=rng.choice(("y", "q", ""))),
        lambda: setattr(made.parameters[rng.choice(("timeout", "priority", "shared_memory_region", "p"))], "int64_param", rng.choice((0, -1, 3, 2**63 - 1))),
        lambda: setattr(made.parameters["priority"], "string_param", "first"),
        lambda: made.inputs.pop() if made.inputs else None,
    ]
    rng.choice(changes)()


# --- sending -----------------------------------------------------------------------------


def send_rest(server: Server, requests: Iterator[tuple[bytes, dict[str, str]]], count: int) -> Counter[str]:
    """What came back, and how often."""
    found: Counter[str] = Counter()
    for _, (body, headers) in zip(range(count), requests, strict=False):
        answer = call(server, "POST", "/v2/models/net/infer", body, headers, timeout=60)
        if answer.status != 200:
            assert list(answer.json) == ["error"], (answer.status, answer.body, body, headers)
        assert answer.status < 500, (answer.body, body, headers)
        found[str(answer.status)] += 1
    return found


def send_http(server: Server, requests: Iterator[bytes], count: int) -> Counter[str]:
    """The statuses that came back; a sender that has nothing more to say closes its side, so that nobody waits for the rest."""
    found: Counter[str] = Counter()
    address = urlsplit(server.url)
    for _, data in zip(range(count), requests, strict=False):
        received = b""
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    received += chunk
            except ConnectionError:
                pass  # the server had enough
        status = received.split(b" ", 2)[1].decode() if received.startswith(b"HTTP/1.") else "closed"
        assert not status.startswith("5") or status == "505", (received, data)
        found[status] += 1
    return found


def send_grpc(server: Server, requests: Iterator[bytes], count: int) -> Counter[str]:
    """The codes that came back."""
    found: Counter[str] = Counter()
    answer = message("inference.ModelInferResponse")
    with grpc.insecure_channel(server.grpc_address) as channel:
        infer = channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer", lambda data: data, answer.FromString)
        for _, data in zip(range(count), requests, strict=False):
            code, text = "OK", None
            try:
                infer(data, timeout=60)
            except grpc.RpcError as error:
                code, text = error.code().name, error.details()
            assert code not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS"), (code, text, data)
            found[code] += 1
    return found


def send_generated(server: Server, described: Any, count: int) -> Counter[str]:
    """Requests that the OpenAPI document allows, and ones that it does not, half each; the same ones every time."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    found: Counter[str] = Counter()
    positive, negative = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    operations = [result.ok() for result in schemathesis.openapi.from_dict(described).get_all_operations()]
    held = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    for operation in operations:
        options = settings(
            max_examples=-(-count // len(operations)),
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        @options
        @given(case=operation.as_strategy(generation_mode=positive) | operation.as_strategy(generation_mode=negative))
        def ask(case: Any) -> None:
            found[str(case.call_and_validate(base_url=server.url, checks=held).status_code)] += 1

        ask()
    return found
