"""Single weights set to zero, the least important first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options import Share
from ._importance import Criterion, importance
from ._masks import Scope, ZeroingTechnique, least, refuse, set_zeros
from .base import TECHNIQUES, Context, weight_layers

if TYPE_CHECKING:
    from torch import nn


@TECHNIQUES.register("unstructured_pruning")
@dataclass(frozen=True, kw_only=True)
class UnstructuredPruning(ZeroingTechnique):
    """Set the least important weights to zero, wherever they are; smaller on disk, as fast as before."""

    sparsity: Share = 0.5
    """Share of the weights that becomes zero."""
    scope: Scope = "global"
    """Least important of the whole model (global), or the same share of each layer (local), which costs more accuracy."""
    criterion: Criterion = "magnitude"
    """What makes a weight important: its size, its effect on the loss (gradient), or its size times what flows into it (activation); on your samples."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Zero the least important weights of every layer that can be scored."""
        scores = importance(model, context, self.criterion)
        if not scores:
            refuse("unstructured_pruning", "no layer was called that activations could be measured at", help="use criterion=magnitude")
        zeros = least(scores, self.sparsity, self.scope)
        if not any(bool(where.any()) for where in zeros.values()):
            refuse("unstructured_pruning", f"sparsity {self.sparsity:g} of {sum(s.numel() for s in scores.values())} weights rounds to none")
        parameters = dict(model.named_parameters())
        scored = {id(parameters[name]) for name in scores}
        for name, layer in weight_layers(model).items():
            if not any(id(p) in scored for p in layer.parameters(recurse=False)):
                context.left[name] = f"criterion=activation needs the inputs of a layer, and those of this {type(layer).__name__} cannot be seen"
        set_zeros(model, zeros, context)
        return model
