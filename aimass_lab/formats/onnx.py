"""ONNX: one protobuf file with graph and weights, run by ONNX Runtime; reading it unpickles nothing and runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..workload import Call
from .base import FORMATS, Arrays, Format, Runner
from .signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from ._runtime import Runtime


@FORMATS.register("onnx")
class Onnx(Format):
    """Export through `torch.export`, single file; standard operators only, unless ONNX Runtime itself quantised the model."""

    name: ClassVar[str] = "onnx"
    file_name: ClassVar[str] = "model.onnx"
    runtime: ClassVar[str] = "ONNX Runtime"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    runs_on: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    preference: ClassVar[int] = 0
    safety: ClassVar[str] = "loading it runs no code of the file's; it is looked through for references to other files first"

    def carries(self, model: Runtime) -> bool:
        """Whether ONNX Runtime runs it."""
        from ._onnx_module import OnnxModule

        return isinstance(model, OnnxModule)

    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        from ._onnx_module import OnnxModule
        from ._protobuf import write

        if isinstance(model, OnnxModule):
            path.write_bytes(model.file.numpy().data)
        else:
            write(_exported(model, call, signature), path)

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Load the file into ONNX Runtime on the CPU.

        Raises:
            UnsupportedError: ONNX Runtime has no kernel for an operator or a dtype of the file.
        """
        from ._onnx_module import open_session

        session = open_session(str(path), threads)
        names = [output.name for output in session.get_outputs()]
        wanted = {node.name for node in session.get_inputs()}

        def runner(inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
            # an input that the graph does not use is not among its inputs
            results = session.run(names, {name: array for name, array in inputs.items() if name in wanted})
            return dict(zip(names, results, strict=True))

        return runner


def onnx_bytes(model: nn.Module, call: Call, signature: Signature) -> torch.Tensor:
    """What a file of `model` consists of, uint8[n]: of one that ONNX Runtime runs already, the very bytes that it runs.

    Raises:
        UnsupportedError: ONNX cannot express it.
    """
    from ._onnx_module import OnnxModule
    from ._protobuf import serialize

    return model.file if isinstance(model, OnnxModule) else serialize(_exported(model, call, signature))


def _exported(model: nn.Module, call: Call, signature: Signature) -> Any:
    from ._interface import Flat
    from ._onnx_export import export_graph

    return export_graph(Flat(model, call), call, signature)
