"""Linear layers with 8-bit floating-point weights, and on recent GPUs 8-bit floating-point arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ._linear_weights import LinearWeights, device_name, num_smaller
from .base import TECHNIQUES, Context, linear_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

CAPABILITY = (8, 9)
"""Compute capability from which NVIDIA's tensor cores multiply 8-bit floats."""
AMD_ARCHITECTURES = ("gfx94", "gfx95")
"""AMD's from MI300 on."""
MULTIPLE = 16
"""Of inputs and outputs that 8-bit floating-point products take (``torch._scaled_mm``)."""
SMALL_LAYER = 1024
"""Inputs or outputs below which rounding the activations of a linear layer costs about what the 8-bit product saves on a GPU."""


@TECHNIQUES.register("fp8")
@dataclass(frozen=True, kw_only=True)
class Fp8(LinearWeights):
    """Round linear weights to 8-bit floats (e4m3: 4 bits of exponent, 3 of fraction); a wider range than int8, fewer digits."""

    activations: Literal["none", "dynamic"] = "none"
    """none: the weights only, and arithmetic stays as it was, on any device; dynamic: inputs are rounded at each call, and products
    are done in 8 bits, which needs an NVIDIA GPU of compute capability 8.9 or an AMD MI300."""

    def unavailable(self, context: Context) -> str | None:
        """8-bit floating-point products need a GPU that has them."""
        lacking = super().unavailable(context)
        return lacking if lacking is not None or self.activations == "none" else _no_products(context.device)

    def misfit(self, layer: nn.Linear) -> str | None:
        """8-bit products take multiples of 16."""
        if self.activations == "dynamic":
            for name, size in (("in_features", layer.in_features), ("out_features", layer.out_features)):
                if size % MULTIPLE:
                    return f"{name} {size} is not a multiple of {MULTIPLE}, which 8-bit floating-point products need"
        return super().misfit(layer)

    def detail(self, layer: nn.Linear) -> str:
        """The weight's new form."""
        if self.activations == "none":
            return "fp8 weight, one scale a row"
        scale = "one scale a row; inputs rounded at each call, one scale a token"
        return f"fp8 weight, {scale if _by_rows(layer) else 'one scale; inputs rounded at each call, one scale'}"

    def config(self, torchao: ModuleType, layer: nn.Linear) -> Any:
        """One scale a row where torch's product takes that: weights only, or bfloat16."""
        if self.activations == "none":
            return torchao.Float8WeightOnlyConfig(set_inductor_config=False)
        granularity = torchao.PerRow() if _by_rows(layer) else torchao.PerTensor()
        return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=granularity, set_inductor_config=False)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Widening at each call, or the cost of rounding."""
        if self.activations == "none":
            where = "no CPU multiplies 8-bit floats, so" if device.type == "cpu" else "with activations=none"
            return (f"{where} the weights are widened again at every call, which costs more than reading fewer bytes saves on all but large layers",)
        layers = {name: layer for name, layer in linear_layers(model).items() if name in self.eligible(model)}
        found = ["run eagerly, rounding and rescaling are operations of their own; a step compile after it fuses them into the product"]
        if num_small := num_smaller(layers, SMALL_LAYER):
            found.append(
                f"{num_small} of {len(layers)} linear layers are smaller than {SMALL_LAYER} in one direction: "
                "rounding their activations costs about what 8-bit arithmetic saves"
            )
        if batch_size < MULTIPLE:
            found.append(f"at batch {batch_size} there may be too few rows to fill a tile of the tensor cores")
        return tuple(found)


def _by_rows(layer: nn.Linear) -> bool:
    """Whether torch's 8-bit product takes one scale a row: its outputs are bfloat16 then."""
    import torch

    return layer.weight.dtype == torch.bfloat16


def _no_products(device: torch.device) -> str | None:
    import torch

    needs = "activations=dynamic needs 8-bit floating-point products (NVIDIA compute capability 8.9, AMD MI300)"
    if device.type != "cuda":
        return f"{needs}, and the model is on {device_name(device)}; activations=none runs there"
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName
        return None if architecture.startswith(AMD_ARCHITECTURES) else f"{needs}, and {device_name(device)} is an {architecture}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) >= CAPABILITY else f"{needs}, and {device_name(device)} has {major}.{minor}; activations=none runs there"
