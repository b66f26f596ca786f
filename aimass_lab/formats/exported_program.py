"""The exported program of torch.export, a .pt2 archive: torch's own kernels, called as the graph says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..workload import Call
from .base import FORMATS, Format, Runner
from .signature import Signature

if TYPE_CHECKING:
    from torch import nn


@FORMATS.register("exported_program")
class ExportedProgram(Format):
    """`torch.export.save`, without example inputs, so that no member of the archive is a pickle."""

    name: ClassVar[str] = "exported_program"
    file_name: ClassVar[str] = "model.pt2"
    runtime: ClassVar[str] = "torch.export"
    runs_on: ClassVar[tuple[str, ...]] = ("torch",)
    safety: ClassVar[str] = (
        "torch's own loader unpickles, evaluates texts and looks up any function by name, so the archive is looked through before it is loaded, "
        "in the worker: no pickle, no text but arithmetic, no operator but torch's own"
    )
    on_request: ClassVar[str | None] = "torch runs it with the kernels that safetensors also calls, and its loader has to be guarded"

    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        import torch

        from ..quiet import quiet_export
        from ._export import export_program, without_subclasses

        program = export_program(without_subclasses(model), call, signature)
        program._example_inputs = None
        program._guards_code = []  # such as that all inputs hold equally many items: stored as Python to be run, and known to every server
        with quiet_export(), path.open("wb") as file:
            torch.export.save(program, file)

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Load the file, which this process wrote, into torch."""
        import torch

        from ..quiet import quiet_export
        from ._torch_runner import torch_runner

        with quiet_export(), path.open("rb") as file:
            return torch_runner(torch.export.load(file).module())
