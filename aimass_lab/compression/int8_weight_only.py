"""Linear weights kept in 8 bits, arithmetic in the type of the input."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..options import Positive
from ._linear_weights import LinearWeights
from .base import TECHNIQUES

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("int8_weight_only")
@dataclass(frozen=True, kw_only=True)
class Int8WeightOnly(LinearWeights):
    """Round linear weights to int8: a quarter of the bytes of float32; arithmetic stays as it was."""

    group_size: Positive | None = None
    """Weights that share one scale; none: one scale a row."""

    def config(self, torchao: ModuleType, layer: nn.Linear) -> Any:
        """One scale a row or a group."""
        granularity = torchao.PerRow() if self.group_size is None else torchao.PerGroup(self.group_size)
        return torchao.Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)

    def detail(self, layer: nn.Linear) -> str:
        """The weight's new form."""
        return "int8 weight, one scale a row" if self.group_size is None else f"int8 weight, one scale for {self.group_size} weights"

    def misfit(self, layer: nn.Linear) -> str | None:
        """Rows must be cut into whole groups."""
        if self.group_size is not None and layer.in_features % self.group_size:
            return f"in_features {layer.in_features} is not a multiple of group_size {self.group_size}"
        return super().misfit(layer)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Weights are widened again at each call."""
        found = ["the weights are widened again at every call: that pays where reading weights binds, not where arithmetic does"]
        if batch_size >= 8:
            found.append(f"at batch {batch_size} a weight that was read is used often, so arithmetic binds rather than reading")
        if self.group_size is not None:
            found.append("with a scale for each group the whole weight is widened before the product; one scale a row is applied after it, and costs less")
        return tuple(found)
