"""Linear layers in 8-bit arithmetic, with activations rounded as they come."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..quiet import import_quietly
from ._linear_weights import LinearWeights, num_smaller
from ._processor import no_int8_products
from .base import TECHNIQUES, Context, computed_layers, linear_layers, make_technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

SMALL_LAYER = 512
"""Inputs or outputs below which rounding the activations of a linear layer costs about what the 8-bit product saves."""
CUBLAS_MULTIPLE, CUBLAS_MIN_ROWS = 8, 17
"""Sizes of products that ``torch._int_mm`` takes on a GPU."""


@TECHNIQUES.register("int8_dynamic")
@dataclass(frozen=True, kw_only=True)
class Int8Dynamic(LinearWeights):
    """Round linear weights to int8 once and activations at each call; products in 8-bit integers."""

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Not where no linear layer fits; who has weights of other kinds is told what rounds these, where that can be done."""
        from torch import nn

        lacking = super().check(model, context)
        others = [layer for layer in weight_layers(model).values() if not isinstance(layer, nn.modules.conv._ConvNd)]
        if lacking is None or self.unavailable(context) is not None or not others or computed_layers(model):  # which are to be folded first
            return lacking
        if make_technique("onnxruntime", {"quantize": "dynamic"}).check(model, context) is not None:
            return lacking
        return f"{lacking}; onnxruntime(quantize=dynamic) rounds the weights of matrix products, embeddings and recurrent layers, whatever holds them"

    def config(self, torchao: ModuleType, layer: nn.Linear) -> Any:
        """One scale a row of the weight, one a token; 7 bits on CPUs whose 8-bit products could overflow (without VNNI)."""
        reduce_range = import_quietly("torchao.utils").should_reduce_range(layer.weight.device)
        return torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=reduce_range)

    def detail(self, layer: nn.Linear) -> str:
        """The weight's new form."""
        return "int8 weight, one scale a row; inputs rounded at each call, one scale a token"

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """The cost of rounding on small layers, and as operations of their own; sizes that kernels do not take."""
        layers = {name: layer for name, layer in linear_layers(model).items() if name in self.eligible(model)}
        found = []
        if num_small := num_smaller(layers, SMALL_LAYER):
            found.append(
                f"{num_small} of {len(layers)} linear layers are smaller than {SMALL_LAYER} in one direction: "
                "rounding their activations costs about what 8-bit arithmetic saves"
            )
        found.append("run eagerly, rounding and rescaling are operations of their own; a step compile after it fuses them into the product")
        if device.type == "cpu":
            return tuple(filter(None, [*found, no_int8_products()]))
        unaligned = [n for n, layer in layers.items() if layer.in_features % CUBLAS_MULTIPLE or layer.out_features % CUBLAS_MULTIPLE]
        if unaligned:
            found.append(
                f"{len(unaligned)} of {len(layers)} linear layers ({unaligned[0]!r} first) are not multiples of {CUBLAS_MULTIPLE} in both directions: "
                "run eagerly, their products leave the GPU for the CPU"
            )
        if batch_size < CUBLAS_MIN_ROWS:
            found.append(
                f"at batch {batch_size} a layer that sees one row an item has fewer than {CUBLAS_MIN_ROWS} rows, for which the GPU has no 8-bit product: "
                "run eagerly, it is done in float32"
            )
        return tuple(found)
