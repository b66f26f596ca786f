"""TorchScript, a .pt archive: what torch served models with before torch.export; deprecated, and still asked for."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..workload import Call
from .base import FORMATS, Format, Runner
from .signature import Signature

if TYPE_CHECKING:
    from torch import nn

LEFT_OUT = ("debug_pkl", "traced_inputs.pkl")
"""Ends of members that hold the paths of this machine, and the example inputs."""


@FORMATS.register("torchscript")
class TorchScript(Format):
    """The calls that the model makes on its example inputs, traced and frozen."""

    name: ClassVar[str] = "torchscript"
    file_name: ClassVar[str] = "model.pt"
    runtime: ClassVar[str] = "TorchScript"
    runs_on: ClassVar[tuple[str, ...]] = ("torch",)
    safety: ClassVar[str] = (
        "its code is torch's own small language, which can also read and write files, and its tables are pickles: "
        "both are looked through before it is loaded, in the worker"
    )
    on_request: ClassVar[str | None] = "torch deprecates it"

    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        import torch

        from ..errors import UnsupportedError
        from ..quiet import quiet_export
        from ..tracing.trace import decides_by_values as has_ways
        from ._export import cause_of, decides_by_values, repack, without_subclasses
        from ._interface import Flat

        if has_ways(model, call):  # the trace would hold the way of the example inputs, for all inputs
            raise decides_by_values(f"TorchScript does not take {type(model).__name__}")
        flat = Flat(without_subclasses(model), call)
        with tempfile.TemporaryDirectory(prefix="aimass-") as folder, quiet_export():
            traced = Path(folder) / "model.pt"
            try:
                script = torch.jit.freeze(torch.jit.trace(flat.eval(), tuple(call.tensors()), strict=False, check_trace=False))
                torch.jit.save(script, str(traced))
            except Exception as error:
                raise UnsupportedError(f"TorchScript does not take {type(model).__name__}: {cause_of(error)}") from error
            repack(traced, path, lambda name: not name.endswith(LEFT_OUT) and "/traced_inputs/" not in name)

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Load the file, which this process wrote, into torch."""
        import torch

        from ._torch_runner import torch_runner

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch_runner(torch.jit.load(str(path)))
