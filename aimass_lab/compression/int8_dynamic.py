"""Linear layers in 8-bit arithmetic, with activations rounded as they come."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..quiet import import_quietly
from ._linear_int8 import LinearInt8
from .base import TECHNIQUES, linear_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

SMALL_LAYER = 512
"""Inputs or outputs below which rounding the activations of a linear layer costs about what the 8-bit product saves."""


@TECHNIQUES.register("int8_dynamic")
@dataclass(frozen=True, kw_only=True)
class Int8Dynamic(LinearInt8):
    """Round linear weights to int8 once and activations at each call; products in 8-bit integers."""

    def config(self, torchao: ModuleType, device: torch.device) -> Any:
        """One scale a row of the weight, one a token; 7 bits on CPUs whose 8-bit products could overflow (without VNNI)."""
        reduce_range = import_quietly("torchao.utils").should_reduce_range(device)
        return torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=reduce_range)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """The cost of rounding on small layers, and as operations of their own."""
        layers = linear_layers(model).values()
        num_small = sum(min(layer.in_features, layer.out_features) < SMALL_LAYER for layer in layers)
        found = []
        if num_small:
            found.append(
                f"{num_small} of {len(layers)} linear layers are smaller than {SMALL_LAYER} in one direction: "
                "rounding their activations costs about what 8-bit arithmetic saves"
            )
        if not self.compile:
            found.append("rounding and rescaling run as operations of their own; the option compile=true fuses them into the product")
        return tuple(found)
