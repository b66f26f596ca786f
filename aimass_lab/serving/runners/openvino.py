"""ONNX in OpenVINO: the file is looked through as for ONNX Runtime, and compiled for the processor as it is loaded; no telemetry."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ServingConfig, TensorSpec
from ..errors import BundleError
from ._torch import require
from .onnx import refuse_external_data

PLATFORM = "openvino"

TYPES = {
    "BOOL": "boolean", "UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "UINT64": "u64", "INT8": "i8", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "FP16": "f16", "FP32": "f32", "FP64": "f64", "BYTES": "string",
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 wherever the processor can, and no longer what was compared
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
}


class OpenVinoRunner:
    """A compiled model on the CPU."""

    def __init__(self, compiled: Any, config: ServingConfig) -> None:
        self._request = compiled.create_infer_request()
        used = {name for port in compiled.inputs for name in port.names}
        self._inputs = [spec.name if spec.name in used else None for spec in config.inputs]
        self._outputs = [next(i for i, port in enumerate(compiled.outputs) if spec.name in port.names) for spec in config.outputs]

    def run(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Compute all outputs."""
        feeds = {name: np.require(array, requirements=["C", "A"]) for name, array in zip(self._inputs, inputs, strict=True) if name is not None}
        results = list(self._request.infer(feeds, share_inputs=True).values())
        return [results[i] for i in self._outputs]


def load(path: Path, config: ServingConfig) -> OpenVinoRunner:
    """Check and compile an ONNX file.

    Raises:
        BundleError: it refers to other files, OpenVINO does not take it, or it has another signature than the config.
    """
    refuse_external_data(path)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import would send a message to its maker
    openvino: Any = require("openvino", "openvino")
    try:
        core = _core(openvino)
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", SETTINGS | {"INFERENCE_NUM_THREADS": config.threads_per_worker})
    except Exception as error:  # its exceptions have no common base class
        raise BundleError(f"{path.name} does not load in OpenVINO: {str(error)[:500]}") from None
    _check_signature("input", config.inputs, compiled.inputs)
    _check_signature("output", config.outputs, compiled.outputs)
    return OpenVinoRunner(compiled, config)


@functools.cache
def _core(openvino: Any) -> Any:
    """The one of this process: of two that go in the order of their coming, the second leaves the thread a signal stack that the first has freed."""
    return openvino.Core()


def _check_signature(kind: str, specs: Sequence[TensorSpec], ports: Sequence[Any]) -> None:
    found = {name: port for port in ports for name in port.names}
    for spec in specs:
        port = found.get(spec.name)
        if port is None:
            if kind == "input":
                continue  # one that the graph does not use is not among its inputs
            raise BundleError(f"the model has no {kind} {spec.name!r}; it has {', '.join(sorted(found))}")
        type_name = port.element_type.get_type_name()
        if type_name != TYPES[spec.datatype]:
            raise BundleError(f"{kind} {spec.name!r} is {type_name} in the model and {spec.datatype} in serving.json")
        sizes = [size.get_length() if size.is_static else -1 for size in port.partial_shape]
        if len(sizes) != len(spec.shape) or any(-1 not in (a, b) and a != b for a, b in zip(sizes, spec.shape, strict=True)):
            raise BundleError(f"{kind} {spec.name!r} has shape {sizes} in the model and {list(spec.shape)} in serving.json")
    named = {spec.name for spec in specs}
    foreign = [sorted(port.names) for port in ports if not port.names & named]
    if foreign and kind == "input":
        raise BundleError(f"the model has an input {foreign[0][0]!r} that serving.json does not name")
