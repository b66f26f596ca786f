"""A short training that makes good what the steps before lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._learner import Learner, frozen_parameters, trained_layers
from .base import TECHNIQUES, Context, Stage

if TYPE_CHECKING:
    from torch import nn


@TECHNIQUES.register("recover")
@dataclass(frozen=True, kw_only=True)
class Recover(Learner):
    """Train the copy as earlier steps left it, with the original as teacher and labels where there are some; zeros and shared weights stay."""

    stage: ClassVar[Stage] = Stage.ANY

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Training leaves shapes as they are."""
        return model

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train `model`; the epoch that was best on held-out training samples stays, be it the state from before."""
        frozen = frozenset() if self.train_all else frozen_parameters(model, context.original)
        report = self.train("recover", model, context, frozen)
        for name, trained in trained_layers(model, frozen).items():
            if not trained:
                context.left[name] = "frozen in the model, and train_all=false"
            elif report.best_epoch == 0:
                context.left[name] = "no epoch of training was better than before it"
            else:
                context.changed[name] = "trained"
        return model
