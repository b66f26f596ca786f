"""Linear weights kept in 8 bits, arithmetic in the type of the input."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ._linear_int8 import LinearInt8
from .base import TECHNIQUES, linear_layers

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("int8_weight_only")
@dataclass(frozen=True, kw_only=True)
class Int8WeightOnly(LinearInt8):
    """Round linear weights to int8: a quarter of the bytes of float32; arithmetic stays as it was."""

    group_size: int | None = None
    """Weights that share one scale; none: one scale a row."""

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise InputError(f"group_size {self.group_size} is not a positive number of weights")

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Linear layers whose rows can be cut into whole groups."""
        return tuple(n for n, layer in linear_layers(model).items() if self.group_size is None or layer.in_features % self.group_size == 0)

    def config(self, torchao: ModuleType, device: torch.device) -> Any:
        """One scale a row or a group."""
        granularity = torchao.PerRow() if self.group_size is None else torchao.PerGroup(self.group_size)
        return torchao.Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Weights are widened again at each call."""
        return ("the weights are widened again at every call: that pays where reading weights binds, not where arithmetic does",)
