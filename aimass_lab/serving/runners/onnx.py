"""ONNX in ONNX Runtime: one self-contained file, looked through before it is loaded."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import ServingConfig, TensorSpec
from ..errors import BundleError

if TYPE_CHECKING:
    import onnxruntime

PLATFORM = "onnx_onnxv1"
DEVICES = ("cpu", "cuda")
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""Else ONNX Runtime keeps a database in the user's home, and a thread that sends its maker what is in it."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""What ONNX Runtime calls what computes on a device."""

ONNX_TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8", "INT16": "int16",
    "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float", "FP64": "double", "BYTES": "string",
}  # fmt: skip

MESSAGES = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Where tensors can stand in a `ModelProto`: message -> field number -> message, as in onnx.proto (IR version 10 and before)."""
EXTERNAL_DATA, DATA_LOCATION = 13, 14
MAX_DEPTH = 100


class OnnxRunner:
    """An inference session."""

    def __init__(self, session: onnxruntime.InferenceSession, config: ServingConfig) -> None:
        self._session = session
        self._inputs = [spec.name for spec in config.inputs]
        self._outputs = [spec.name for spec in config.outputs]

    def run(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Compute all outputs."""
        return self._session.run(self._outputs, {name: _usable(array) for name, array in zip(self._inputs, inputs, strict=True)})


def load(path: Path, config: ServingConfig) -> OnnxRunner:
    """Check and load an ONNX file.

    Raises:
        BundleError: it refers to other files, is not ONNX, or has another signature than the config; or the device is not there.
    """
    refuse_external_data(path)
    os.environ.setdefault(*NO_TELEMETRY)
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # its errors reach us as exceptions; a request's own mistake is no log line
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = config.threads_per_worker
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning threads take the front end's core
    wanted, there = PROVIDERS[config.device], onnxruntime.get_available_providers()
    if wanted not in there:
        raise BundleError(f"ONNX Runtime computes on {config.device} with {wanted}, and has {', '.join(there)} here: pip install onnxruntime-gpu")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys((wanted, PROVIDERS["cpu"]))))
    except Exception as error:
        raise BundleError(f"{path.name} does not load in ONNX Runtime: {str(error)[:500]}") from None
    if wanted not in session.get_providers():  # it goes on without, and says so in a log only
        raise BundleError(f"ONNX Runtime could not start {wanted}: no such device is there, or its driver or libraries are missing")
    _check_signature("input", config.inputs, session.get_inputs())
    _check_signature("output", config.outputs, session.get_outputs())
    return OnnxRunner(session, config)


def _usable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """ONNX Runtime reads an array where it lies; texts it takes as `str`."""
    if array.dtype == object:
        return np.array([element.decode() for element in array.ravel().tolist()], object).reshape(array.shape)
    return np.require(array, requirements=["C", "A"])


def _check_signature(kind: str, specs: Sequence[TensorSpec], nodes: Sequence[Any]) -> None:
    found = {node.name: node for node in nodes}
    for spec in specs:
        node = found.pop(spec.name, None)
        if node is None:
            raise BundleError(f"the model has no {kind} {spec.name!r}; it has {', '.join(n.name for n in nodes)}")
        if node.type != f"tensor({ONNX_TYPES[spec.datatype]})":
            raise BundleError(f"{kind} {spec.name!r} is a {node.type} in the model and {spec.datatype} in serving.json")
        sizes = [size if isinstance(size, int) else -1 for size in node.shape]
        if len(sizes) != len(spec.shape) or any(-1 not in (a, b) and a != b for a, b in zip(sizes, spec.shape, strict=True)):
            raise BundleError(f"{kind} {spec.name!r} has shape {sizes} in the model and {list(spec.shape)} in serving.json")
    if found and kind == "input":
        raise BundleError(f"the model has an input {next(iter(found))!r} that serving.json does not name")


def refuse_external_data(path: Path) -> None:
    """Walk through the file without building it, and refuse a tensor whose data lie in another file.

    Raises:
        BundleError: there is such a tensor, or the file is not protobuf.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with its last view, which an exception may hold
        _walk(memoryview(mapped), "model", 0)
    except (IndexError, ValueError, OSError) as error:
        raise BundleError(f"{path.name} is not an ONNX file: {error}") from None


def _walk(view: memoryview, message: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for number, value in _fields(view):
        if message == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
            raise BundleError("the model refers to data in another file; it must be one file")
        inner = MESSAGES.get(message, {}).get(number)
        if isinstance(value, memoryview) and inner is not None:
            _walk(value, inner, depth + 1)


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one protobuf message; a nested message is a view."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(view, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(view, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > len(view):
            raise ValueError("a field reaches beyond its message")
        if wire == 2:
            yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
