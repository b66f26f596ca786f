"""Bundles that tests serve, the real servers of them, and the ways to ask."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from aimass_lab.serving.launch import Server, start

RUNTIME = Path(__file__).parents[2] / "aimass_lab" / "serving"


RUN = """\
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from aimass_serve.__main__ import main

if __name__ == "__main__":
    sys.exit(main(HERE))
"""


FAULTY = '''
"""Twice the input; the first column can ask for an accident, the second for seconds of work."""
import os, signal, time
PLATFORM = "test"
RAISE, DIE, HANG, NAN, SHORT = 101, 102, 103, 104, 105

def load(path, config):
    return Faulty()

class Faulty:
    def run(self, inputs):
        (x,) = inputs
        asked = set(x[:, 0].tolist())
        time.sleep(float(x[:, 1].max()))
        if RAISE in asked:
            raise ValueError("asked to raise")
        if DIE in asked:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in asked:
            time.sleep(3600)
        y = x * 2
        if NAN in asked:
            y[x[:, 0] == NAN] = float("nan")
        return [y[1:] if SHORT in asked else y]
'''


def promise(name: str, relation: str, value: float, unit: str) -> dict[str, Any]:
    limit = {"value": value, "unit": unit, "source": "user", "method": "asked for in a test"}
    return {"name": name, "relation": relation, "limit": limit}


PROMISES = [
    promise("errors", "==", 0, "request"),
    promise("fidelity", "<=", 1e-4, "ratio"),
    promise("latency_p50", "<=", 5.0, "s"),
    promise("latency_p99", "<=", 5.0, "s"),
    promise("memory", "<=", 1e9, "B"),
    promise("startup", "<=", 60.0, "s"),
]


def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def rehash(folder: Path) -> None:
    """Write a manifest that fits the files as they are."""
    files = {
        path.relative_to(folder).as_posix(): "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and "__pycache__" not in path.parts
    }
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "name": "test", "version": "1", "files": files}))


def write_bundle(
    folder: Path,
    model: bytes,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    vectors: dict[str, Any],
    *,
    promises: list[dict[str, Any]] | None = None,
    rate: float = 100.0,
    extra_runner: str | None = None,
    **settings: Any,
) -> Path:
    """Write a whole bundle folder; `settings` go to serving.json."""
    (folder / "model/net/1").mkdir(parents=True)
    (folder / "model/net/1/model.onnx").write_bytes(model)
    base: dict[str, Any] = {
        "schema": 1, "name": "net", "version": "1", "format": "onnx", "model_file": "model/net/1/model.onnx", "inputs": inputs,
        "outputs": outputs, "batched": True, "max_batch_size": 16, "max_wait_s": 0.002, "workers": 1, "threads_per_worker": 1,
        "max_queue_items": 1024, "request_timeout_s": 30.0, "max_body_bytes": 2**20,
    }  # fmt: skip
    (folder / "serving.json").write_text(json.dumps(base | settings))
    np.savez(folder / "vectors.npz", **vectors)
    scenario = {"requests_per_s": rate, "duration_s": 1.0, "items_per_request": 1, "seed": 0}
    (folder / "promises.json").write_text(json.dumps({"schema": 1, "scenario": scenario, "promises": promises or PROMISES}))
    (folder / "run.py").write_text(RUN)
    shutil.copytree(RUNTIME, folder / "aimass_serve", ignore=shutil.ignore_patterns("__pycache__"))
    if extra_runner:
        (folder / "aimass_serve/runners/faulty.py").write_text(extra_runner)
    rehash(folder)
    return folder


WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def onnx_bytes(nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any] | None = None) -> bytes:
    helper = pytest.importorskip("onnx").helper
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers or [])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())


def linear_onnx(weight: np.ndarray[Any, Any] = WEIGHT) -> bytes:
    """``y = x @ weight``."""
    import onnx
    from onnx import helper, numpy_helper

    return onnx_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )


def write_linear(folder: Path, **settings: Any) -> Path:
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    vectors = {"input.x": x, "output.y": x @ WEIGHT}
    return write_bundle(folder, linear_onnx(), [tensor("x", "FP32", -1, 4)], [tensor("y", "FP32", -1, 3)], vectors, **settings)


TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BYTES": np.str_,
}  # fmt: skip


def write_identity(folder: Path, **settings: Any) -> Path:
    """One input and one output of each datatype, of any length: every output is its input."""
    import onnx
    from onnx import helper

    nodes, inputs, outputs, vectors = [], [], [], {}
    for datatype, kind in TYPES.items():
        proto = onnx.TensorProto.STRING if datatype == "BYTES" else helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        nodes.append(helper.make_node("Identity", [f"in_{datatype}"], [f"out_{datatype}"]))
        inputs.append(helper.make_tensor_value_info(f"in_{datatype}", proto, ["n", "k"]))
        outputs.append(helper.make_tensor_value_info(f"out_{datatype}", proto, ["n", "k"]))
        vectors[f"input.in_{datatype}"] = vectors[f"output.out_{datatype}"] = np.ones((2, 3)).astype(kind)
    model = onnx_bytes(nodes, inputs, outputs)
    signature = [[tensor(f"{side}_{datatype}", datatype, -1, -1) for datatype in TYPES] for side in ("in", "out")]
    return write_bundle(folder, model, *signature, vectors, **settings)


def write_faulty(folder: Path, **settings: Any) -> Path:
    """A model that raises, dies, hangs or takes its time when asked to."""
    x = np.ones((4, 2), np.float32) * [[1, 0]]
    vectors = {"input.x": x.astype(np.float32), "output.y": (2 * x).astype(np.float32)}
    settings = {"format": "faulty", "extra_runner": FAULTY} | settings
    return write_bundle(folder, b"none", [tensor("x", "FP32", -1, 2)], [tensor("y", "FP32", -1, 2)], vectors, **settings)


class Answer:
    """Status, headers and body of an HTTP answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30) -> Answer:
    """Send one request over a connection of its own; a body that is not bytes travels as JSON."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def infer(server: Server, rows: list[list[float]], **more: Any) -> Answer:
    """Ask a model with one FP32 input `x` for its outputs, in JSON."""
    entry = {"name": "x", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": rows}
    return call(server, "POST", "/v2/models/net/infer", {"inputs": [entry]} | more)


def metric(server: Server, name: str) -> float:
    """Value of a metric, summed over its labels."""
    lines = call(server, "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def wait_for(condition: Callable[[], bool], timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def guarded_server(folder: Path) -> Iterator[Server]:
    """A server that asks for the token ``secret``, of a bundle in `folder`."""
    (folder / "tokens").write_text("secret alice\n")
    with start(write_linear(folder / "bundle"), grpc_port=None, arguments=("--token-file", str(folder / "tokens"))) as server:
        yield server
        assert server.exit_code is None, server.log
