"""OpenVINO: the same ONNX file, compiled by OpenVINO as it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UnsupportedError, first_line
from .base import FORMATS, Arrays, Runner
from .onnx import Onnx

if TYPE_CHECKING:
    import numpy as np


@FORMATS.register("openvino")
class OpenVino(Onnx):
    """OpenVINO reads ONNX itself: one file in place of the two of its own format, looked through in the same way, and nothing to convert."""

    name: ClassVar[str] = "openvino"
    runtime: ClassVar[str] = "OpenVINO"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime", "openvino")
    runs_on: ClassVar[tuple[str, ...]] = ("openvino",)
    preference: ClassVar[int] = 1
    same_file_as: ClassVar[str | None] = "onnx"
    safety: ClassVar[str] = "loading it runs no code of the file's; it is looked through for references to other files first. OpenVINO's telemetry is kept out"

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Compile the file for the processor, in float32 as the model is.

        Raises:
            UnsupportedError: OpenVINO has no kernel for an operator or a dtype of the file.
        """
        from ._openvino import SETTINGS, core

        try:
            compiled = core().compile_model(core().read_model(str(path)), "CPU", SETTINGS | {"INFERENCE_NUM_THREADS": threads})
        except Exception as error:  # its exceptions have no common base class
            raise UnsupportedError(f"OpenVINO cannot run the exported model: {first_line(error)}", help="serve it as onnx") from error
        request = compiled.create_infer_request()
        wanted = {name for port in compiled.inputs for name in port.names}  # an input that the graph does not use is not among its inputs
        names = [port.names for port in compiled.outputs]

        def runner(inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
            results = request.infer({name: array for name, array in inputs.items() if name in wanted}, share_inputs=True)
            return {name: array for some, array in zip(names, results.values(), strict=True) for name in some}

        return runner
