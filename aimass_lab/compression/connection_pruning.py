"""Whole connections between channels set to zero: kernels of convolutions, blocks of linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..options import Positive, Share
from ._importance import Criterion, importance
from ._masks import Scope, ZeroingTechnique, least, refuse, refuse_unscored, set_zeros
from .base import TECHNIQUES, Context, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("connection_pruning")
@dataclass(frozen=True, kw_only=True)
class ConnectionPruning(ZeroingTechnique):
    """Cut the least important connections from an input channel to an output channel; smaller on disk, as fast as before."""

    changes: ClassVar[str] = "convolutions, and linear layers whose sizes are multiples of block_size"

    ratio: Share = 0.5
    """Share of the connections that is cut."""
    block_size: Positive = 4
    """Inputs and outputs of a linear layer that make one connection: a block of so many by so many weights."""
    scope: Scope = "local"
    """The same share of each layer (local), or the least important of the whole model (global): that spares large blocks, whose means vary less."""
    criterion: Criterion = "magnitude"
    """What makes a weight important: its size, its effect on the loss (gradient), or its size times what flows into it (activation); on your samples."""

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Convolutions, and linear layers that are whole blocks."""
        return tuple(name for name, layer in weight_layers(model).items() if self._why_left(layer) is None)

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Of another kind, or no whole blocks."""
        return self._why_left(layer) or super().why_left(name, layer)

    def _why_left(self, layer: nn.Module) -> str | None:
        from torch import nn

        if isinstance(layer, nn.modules.conv._ConvNd):
            return None
        if not isinstance(layer, nn.Linear):
            return f"a {type(layer).__name__} has no connections between channels that could be cut"
        for option, size in (("in_features", layer.in_features), ("out_features", layer.out_features)):
            if size % self.block_size:
                return f"{option} {size} is not a multiple of {self.block_size}"
        return None

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Zero the kernels and blocks with the smallest mean score."""
        scores, means = importance(model, context, self.criterion), {}
        for name in self.eligible(model):
            if f"{name}.weight" in scores:
                means[f"{name}.weight"] = self._per_connection(scores[f"{name}.weight"])
            else:
                context.left[name] = "it shares its weight with a layer before, or was not called"
        if not means:
            refuse_unscored("connection_pruning", self.eligible(model), context)
        cut = least(means, self.ratio, self.scope)
        if not any(bool(where.any()) for where in cut.values()):
            refuse("connection_pruning", f"ratio {self.ratio:g} of {sum(m.numel() for m in means.values())} connections rounds to none")
        set_zeros(model, {name: self._per_weight(where, scores[name]) for name, where in cut.items()}, context)
        for name, text in context.changed.items():
            where = cut.get(f"{name}.weight")
            if where is None:  # its weight is another layer's, which tells
                continue
            kind = "kernels" if scores[f"{name}.weight"].dim() > 2 else f"blocks of {self.block_size} x {self.block_size}"
            context.changed[name] = f"{int(where.sum())} of {where.numel()} {kind} are zero; {text}"
        return model

    def _per_connection(self, score: torch.Tensor) -> torch.Tensor:
        """Mean score of each kernel or block, two-dimensional."""
        if score.dim() > 2:
            return score.flatten(2).mean(2)
        size = self.block_size
        return score.view(score.shape[0] // size, size, score.shape[1] // size, size).mean((1, 3))

    def _per_weight(self, where: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """The connections' mask, spread over their weights."""
        if score.dim() > 2:
            return where.view(*where.shape, *(1,) * (score.dim() - 2)).expand(score.shape)
        return where.repeat_interleave(self.block_size, 0).repeat_interleave(self.block_size, 1)
