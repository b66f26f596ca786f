"""Weights as safetensors, and beside them the model's graph as Python that people can read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UnsupportedError
from ..workload import Call
from .base import FORMATS, Format, Runner
from .signature import Signature

if TYPE_CHECKING:
    from torch import nn


@FORMATS.register("safetensors")
class Safetensors(Format):
    """``model.safetensors`` and ``model.py``.

    The code is that of the exported program, one call of an operator a line, and not the user's class by its import path: the class would
    bring all that its module imports, which no hash of this bundle covers and no look at it can judge. Of the graph, every line can be checked
    to be a call of one of torch's operators, so that loading it can compute and do nothing else.
    """

    name: ClassVar[str] = "safetensors"
    file_name: ClassVar[str] = "model.safetensors"
    runtime: ClassVar[str] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("safetensors",)
    runs_on: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    preference: ClassVar[int] = 2
    safety: ClassVar[str] = "weights hold no code; the code beside them is refused unless each line of it calls one of torch's operators and nothing else"

    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        from safetensors.torch import save_file

        from ._export import export_program, without_subclasses
        from ._graph_code import graph_code

        program = export_program(without_subclasses(model), call, signature)
        code, weights = graph_code(program, type(model).__name__)
        path.with_suffix(".py").write_text(code, encoding="utf-8")
        try:
            save_file(weights, path)
        except Exception as error:  # of a Rust library, without a common base class
            raise UnsupportedError(f"the weights of {type(model).__name__} cannot be stored as safetensors: {error}", help="serve it as onnx") from error

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Run the code, which this process wrote, with the weights."""
        from safetensors.torch import load_file

        from ._torch_runner import torch_runner

        code = path.with_suffix(".py")
        names: dict[str, Any] = {}
        exec(compile(code.read_text(encoding="utf-8"), code.name, "exec"), names)
        forward, weights = names["forward"], load_file(path)
        return torch_runner(lambda *inputs: forward(weights, *inputs))
