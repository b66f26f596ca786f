"""Images with their channels innermost, the order in which convolution kernels like to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import TECHNIQUES, Context, Form, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("channels_last")
@dataclass(frozen=True, kw_only=True)
class ChannelsLast(Technique):
    """Store convolution weights and images in NHWC order; the values stay as they are."""

    stage: ClassVar[Stage] = Stage.LAYOUT
    takes: ClassVar[frozenset[Form]] = frozenset({"weights", "cast"})
    changes: ClassVar[str] = "2-d convolutions (nn.Conv2d, nn.ConvTranspose2d)"

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """The 2-d convolutions."""
        from torch import nn

        return tuple(name for name, layer in weight_layers(model).items() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Reorder the weights, and the inputs as they arrive."""
        import torch

        from ._layout import inputs_channels_last

        for name in self.eligible(model):
            model.get_submodule(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.register_forward_pre_hook(inputs_channels_last, with_kwargs=True)
        return model

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """CPU kernels reorder by themselves."""
        if device.type == "cpu":
            return ("torch's CPU convolutions reorder their inputs by themselves, so the order given to them matters little",)
        return ("the GPU kernels that gain from this order are those for 16-bit types",)
