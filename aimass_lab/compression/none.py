"""The model as it is: the A/A control that shows what a comparison calls a difference without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import TECHNIQUES, Technique

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..workload import Call


@TECHNIQUES.register("none")
@dataclass(frozen=True, kw_only=True)
class Unchanged(Technique):
    """Change nothing: an untouched copy beside the original, as a control."""

    changes: ClassVar[str] = "nothing"

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """No layer at all."""
        return ()

    def check(self, model: nn.Module, call: Call, device: torch.device) -> str | None:
        """Always possible."""
        return None

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the copy as it is."""
        return model

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """The one cause."""
        return ("nothing was changed: this is the control, whose interval shows what the comparison can resolve",)
