"""Weights that share a few values: a codebook, and for each weight its place in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from ..options import Positive
from .base import TECHNIQUES, Context, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_CLUSTERS = 256


@TECHNIQUES.register("clustering")
@dataclass(frozen=True, kw_only=True)
class Clustering(Technique):
    """Round the weights of each layer to a few shared values (k-means): smaller on disk, as fast as before."""

    num_clusters: Annotated[int, msgspec.Meta(ge=2, le=MOST_CLUSTERS)] = 16
    """Different values in each weight tensor: 16 take 4 bits a weight on disk, 256 take 8."""
    init: Literal["k-means++", "linear", "density"] = "k-means++"
    """Where the search for the values starts: drawn with probability by distance, the best of four; evenly over the range; or evenly over the weights."""
    keep_zeros: bool = True
    """Where weights are exactly zero, as pruning leaves them, one of the values is zero."""
    min_size: Positive = 256
    """Weight tensors with fewer elements are left: a codebook would save nothing."""

    stage: ClassVar[Stage] = Stage.VALUES
    changes: ClassVar[str] = "weights of two or more dimensions"

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Other values in the same places."""
        return model

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Layers with a weight that is large enough."""
        return tuple(name for name, layer in weight_layers(model).items() if any(self._misfit(weight) is None for weight in _weights(layer).values()))

    def why_left(self, name: str, layer: nn.Module) -> str:
        """What its weights lack."""
        return "; ".join(reason for weight in _weights(layer).values() if (reason := self._misfit(weight))) or super().why_left(name, layer)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Round the weights, and tell training to keep them together."""
        from ._kmeans import SharedValues

        names = self.eligible(model)
        shared = SharedValues({})
        done: dict[int, str] = {}
        for i, name in enumerate(names):
            context.progress(i / len(names), f"clustering {name}")
            details, reasons = [], []
            for key, weight in _weights(model.get_submodule(name)).items():
                reason = self._misfit(weight)
                if reason is None:
                    if id(weight) not in done:
                        members, may_move, done[id(weight)] = self._round_(weight, context.seed)
                        shared.clusters[name, key] = members, may_move
                    details.append(done[id(weight)])
                else:
                    reasons.append(f"{key}: {reason}")
            context.changed[name] = "; ".join(details + reasons)
        context.constraints.append(shared)
        return model

    def _misfit(self, weight: torch.Tensor) -> str | None:
        """Why a weight is not rounded, or None."""
        import torch

        if type(weight) not in (torch.nn.Parameter, torch.Tensor):
            return "a kind of tensor of its own already"
        if weight.numel() < self.min_size:
            return f"{weight.numel()} weights, fewer than {self.min_size} (min_size): a codebook would save nothing"
        if not weight.isfinite().all():
            return "not all of its values are finite"
        return None

    def _round_(self, weight: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Change one weight; give the cluster of each element, which centres may move, and what was done in words."""
        import torch

        from ._kmeans import assign, cluster

        zero = self.keep_zeros and bool((weight == 0).any())
        centres = cluster(weight, self.num_clusters, init=self.init, zero=zero, seed=seed).centres
        members = assign(weight.detach(), centres)
        rounded = centres.to(weight.dtype)[members]
        error = float((rounded - weight).double().norm() / weight.double().norm().clamp_min(torch.finfo(torch.float64).tiny))
        with torch.no_grad():
            weight.copy_(rounded)
        width = (len(centres) - 1).bit_length()
        text = f"{len(centres)} values{', one of them zero' if zero else ''}, {width} bits each; {error:.2g} of the weight's norm lost"
        return members.to(torch.uint8), (centres != 0) if zero else torch.ones_like(centres, dtype=torch.bool), text

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Kernels read plain weights."""
        return ("the weights have fewer different values and the arithmetic is the same: the gain is on disk, time and memory stay as they were",)


def _weights(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in layer.named_parameters(recurse=False) if p.dim() >= 2 and p.is_floating_point()}
