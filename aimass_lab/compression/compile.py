"""torch.compile: the same arithmetic in fewer, fused kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .base import TECHNIQUES, Context, Form, Stage, Technique

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("compile")
@dataclass(frozen=True, kw_only=True)
class Compile(Technique):
    """Compile the model with torch.compile; the first call of each shape takes seconds to minutes."""

    changes: ClassVar[str] = "how the whole model is run"
    stage: ClassVar[Stage] = Stage.RUNTIME
    takes: ClassVar[frozenset[Form]] = frozenset({"weights", "cast", "quantized", "graph"})
    gives: ClassVar[Form | None] = "compiled"
    compiles: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """What to optimise for: reduce-overhead uses CUDA graphs, max-autotune tries many kernels and takes much longer."""
    dynamic: bool = False
    """Compile once for all shapes instead of once for each: slower code, fewer compilations."""
    fullgraph: bool = False
    """Refuse a model that cannot be compiled in one piece, instead of cutting it into several."""
    freezing: bool | None = None
    """Fold the weights into the code, packed as its kernels like them: faster on CPUs, and held twice; none: for int8_static, which needs it."""

    def unavailable(self, context: Context) -> str | None:
        """Not without a compiler."""
        from ._torch_compile import why_not_compile

        return why_not_compile(context.device)

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Any model will do, with or without weights, that is not compiled in the same way already."""
        if context.compiled and model is context.original and self == Compile():
            return "the model runs through torch.compile already: put other steps before it, whose copy is then compiled, too, or give it options"
        return self.unavailable(context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Wrap the copy; the compilation itself happens at the first call."""
        from ..formats.base import has_quantised_operators
        from ._torch_compile import CompiledModule

        freezing = has_quantised_operators(model) if self.freezing is None else self.freezing
        return CompiledModule(model, mode=self.mode, dynamic=self.dynamic, fullgraph=self.fullgraph, freezing=freezing)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """What compiling leaves alone."""
        from ..formats.base import has_quantised_operators

        found = ["compiling fuses the small operations between matrix products and convolutions, and leaves those themselves as they were"]
        if device.type == "cpu" and self.mode != "default":
            found.append(f"mode={self.mode} is made for GPUs: CUDA graphs and a choice of kernels that CPUs mostly lack")
        if device.type == "cpu" and not self.freezing and not (self.freezing is None and has_quantised_operators(model)):
            found.append("weights are packed anew at each call; freezing=true packs them once")
        return tuple(found)
