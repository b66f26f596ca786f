"""What torchao's techniques for the weights of linear layers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ..quiet import import_quietly
from ._ties import tied_layers
from .base import COMPUTED, Context, Form, Stage, Technique, computed_layers, linear_layers, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

NUM_REASONS = 3
"""Layers whose reasons are named where none can be changed."""


@dataclass(frozen=True, kw_only=True)
class LinearWeights(Technique):
    """Linear layers whose weights are kept as a kind of tensor of their own."""

    requires: ClassVar[tuple[str, ...]] = ("torchao",)
    changes: ClassVar[str] = "linear layers (nn.Linear)"
    stage: ClassVar[Stage] = Stage.PRECISION
    takes: ClassVar[frozenset[Form]] = frozenset({"weights", "cast"})
    gives: ClassVar[Form | None] = "quantized"

    def config(self, torchao: ModuleType, layer: nn.Linear) -> Any:
        """Make torchao's configuration for `layer`; `torchao` is the module ``torchao.quantization``."""
        raise NotImplementedError

    def detail(self, layer: nn.Linear) -> str:
        """What is made of `layer`, not yet changed."""
        raise NotImplementedError

    def misfit(self, layer: nn.Linear) -> str | None:
        """Why the weight of `layer` cannot be changed, or None."""
        import torch

        if layer.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"its weight is of type {str(layer.weight.dtype).removeprefix('torch.')}, and torchao's formats are made from 32 or 16 bits"
        if layer.weight.shape[1] == 1:
            return "it has one input: every row would be a scale and nothing to scale"
        return None

    def reasons(self, model: nn.Module) -> dict[str, str]:
        """Linear layer -> why it is left as it is, for those that are."""
        linear, ties = linear_layers(model), tied_layers(model)
        found = {}
        for name, layer in linear.items():
            others = [other for other in ties.get(name, ()) if other not in linear or linear[other].weight is not layer.weight]
            reason = self.misfit(layer)
            if reason is None and others:
                reason = f"it shares its weight with {others[0]!r}, which cannot be changed alike: changed alone, the two would be cut apart"
            if reason is not None:
                found[name] = reason
        return found

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """The linear layers of fitting shape and type; of layers that share a weight, all or none."""
        left = self.reasons(model)
        return tuple(name for name in linear_layers(model) if name not in left)

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Not where no linear layer fits."""
        left = self.reasons(model)
        lacking = super().check(model, context)
        if lacking is None or not left or self.unavailable(context) is not None:
            return lacking
        shown = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in list(left.items())[:NUM_REASONS])
        more = f"; and {len(left) - NUM_REASONS} more" if len(left) > NUM_REASONS else ""
        return f"0 of {len(weight_layers(model))} layers would be changed: {shown}{more}"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace the weights of the eligible layers; layers that shared one go on sharing it."""
        context.left.update(self.reasons(model))
        names = self.eligible(model)
        changed: dict[int, nn.Parameter] = {}
        kept = []  # an id is that of one object only as long as the object lives
        for i, name in enumerate(names):
            context.progress(i / len(names), f"rounding {name}")
            layer = model.get_submodule(name)
            weight = layer.weight
            context.changed[name] = self.detail(layer)  # type: ignore[arg-type]
            if id(weight) in changed:
                layer.weight = changed[id(weight)]
                continue
            self.change_layer_(layer)  # type: ignore[arg-type]
            kept.append(weight)
            changed[id(weight)] = layer.weight  # type: ignore[assignment]
        return model

    def change_layer_(self, layer: nn.Linear) -> None:
        """Replace the weight of one layer that fits."""
        torchao = import_quietly("torchao.quantization")
        torchao.quantize_(layer, self.config(torchao, layer), filter_fn=lambda module, _: module is layer)

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Its kind, or what its weight lacks."""
        from torch import nn

        if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "nn.MultiheadAttention hands this weight straight to a fused kernel"
        if "" in computed_layers(layer):
            return COMPUTED
        if isinstance(layer, nn.Linear):
            return self.misfit(layer) or "its weight is a kind of tensor of its own already"
        return super().why_left(name, layer)


def num_smaller(layers: dict[str, nn.Linear], size: int) -> int:
    """How many of `layers` have fewer inputs or outputs than `size`."""
    return sum(min(layer.in_features, layer.out_features) < size for layer in layers.values())


def device_name(device: torch.device) -> str:
    """What to call `device` in a sentence."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU" if device.type == "cpu" else f"the device {device}"
