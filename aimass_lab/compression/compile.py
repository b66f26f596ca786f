"""torch.compile: the same arithmetic in fewer, fused kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ._torch_compile import compile_model, why_not_compile
from .base import TECHNIQUES, Technique

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..workload import Call


@TECHNIQUES.register("compile")
@dataclass(frozen=True, kw_only=True)
class Compile(Technique):
    """Compile the model with torch.compile; the first call of each shape takes seconds to minutes."""

    changes: ClassVar[str] = "how the whole model is run"

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """What to optimise for: reduce-overhead uses CUDA graphs, max-autotune tries many kernels and takes much longer."""
    dynamic: bool = False
    """Compile once for all shapes instead of once for each: slower code, fewer compilations."""

    @property
    def compiles(self) -> bool:
        """Always."""
        return True

    def check(self, model: nn.Module, call: Call, device: torch.device) -> str | None:
        """Not without a compiler."""
        return why_not_compile(device)

    def apply(self, model: nn.Module) -> nn.Module:
        """Wrap the copy; the compilation itself happens at the first call."""
        return compile_model(model, mode=self.mode, dynamic=self.dynamic)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """What compiling leaves alone."""
        return ("compiling fuses the small operations between matrix products and convolutions, and leaves those themselves as they were",)
