"""What torchao's 8-bit techniques for linear layers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ..quiet import import_quietly
from ._torch_compile import compile_model, why_not_compile
from .base import Technique, linear_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..workload import Call


@dataclass(frozen=True, kw_only=True)
class LinearInt8(Technique):
    """Linear layers with weights in 8 bits."""

    requires: ClassVar[tuple[str, ...]] = ("torchao",)
    changes: ClassVar[str] = "linear layers (nn.Linear)"

    compile: bool = False
    """Also compile the model, so that rounding and matrix product become one kernel."""

    @property
    def compiles(self) -> bool:
        """As the option says."""
        return self.compile

    def config(self, torchao: ModuleType, device: torch.device) -> Any:
        """Make torchao's configuration; `torchao` is the module ``torchao.quantization``."""
        raise NotImplementedError

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """The linear layers."""
        return tuple(linear_layers(model))

    def check(self, model: nn.Module, call: Call, device: torch.device) -> str | None:
        """Not without a linear layer, nor compiled without a compiler."""
        return super().check(model, call, device) or (why_not_compile(device) if self.compile else None)

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the weights of the eligible layers."""
        torchao = import_quietly("torchao.quantization")
        names = set(self.eligible(model))
        device = next(model.parameters()).device
        torchao.quantize_(model, self.config(torchao, device), filter_fn=lambda _, name: name in names)
        return compile_model(model) if self.compile else model
