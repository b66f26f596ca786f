"""What the casts to 16-bit floating point have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Context, Form, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class SixteenBits(Technique):
    """A cast of weights, inputs and activations; the outputs come back in the type they had."""

    stage: ClassVar[Stage] = Stage.PRECISION
    gives: ClassVar[Form | None] = "cast"

    dtype_name: ClassVar[str]
    """torch's word for the type."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that is cast to."""
        import torch

        return getattr(torch, self.dtype_name)

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Layers with a weight of another floating-point type."""

        def differs(layer: nn.Module) -> bool:
            return any(p.is_floating_point() and p.dtype != self.dtype for p in layer.parameters(recurse=False))

        return tuple(name for name, layer in weight_layers(model).items() if differs(layer))

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Not where the weights are of this type already, or are no plain tensors."""
        from torch import nn

        if weight_layers(model) and not self.eligible(model):
            return f"all weights of the model are {self.dtype_name} already"
        for name, parameter in model.named_parameters():
            if type(parameter) is not nn.Parameter:
                return f"the parameter {name!r} is a {type(parameter).__name__}, which cannot be cast: the model is quantized or scripted already"
        return super().check(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Cast the copy; callers go on passing and getting the types they did."""
        from ._cast import cast_model_

        layers = weight_layers(model)
        for name in self.eligible(model):
            kinds = sorted({str(p.dtype).removeprefix("torch.") for p in layers[name].parameters(recurse=False) if p.is_floating_point()} - {self.dtype_name})
            context.changed[name] = f"{self.dtype_name} instead of {' and '.join(kinds)}"
        return cast_model_(model, self.dtype)
