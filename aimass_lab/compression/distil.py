"""A smaller network in the model's place, taught by it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from ..errors import ModelError
from ..options import Positive
from ..records import Note
from ..units import format_count
from ._learner import Learner
from .base import TECHNIQUES, Context, Stage, weight_layers

if TYPE_CHECKING:
    from torch import nn


@TECHNIQUES.register("distil")
@dataclass(frozen=True, kw_only=True)
class Distil(Learner):
    """Train a smaller network, which you give, to answer as the model does, and put it in the model's place."""

    stage: ClassVar[Stage] = Stage.ARCHITECTURE

    student: str | None = None
    """Which of the students, by its name; none: the only one there is."""
    epochs: Positive = 60
    """Times that every training sample is seen, at most: a student may start from nothing."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 3e-3
    """At its highest. 3e-3 suits small networks; large pretrained ones want 2e-5 to 1e-4."""

    def unavailable(self, context: Context) -> str | None:
        """Without samples, or without a student that is meant."""
        names = ", ".join(context.students)
        if not names:
            return "it trains a smaller network, and none was given: Study(model, x, train=..., students={'small': network})"
        if self.student is None and len(context.students) > 1:
            return f"there are several students, {names}: say which, distil(student={next(iter(context.students))})"
        if self.student is not None and self.student not in context.students:
            return f"there is no student {self.student!r}; there are: {names}"
        return super().unavailable(context)

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """The student, not trained."""
        name = self.student or next(iter(context.students))
        return _own_copy(context.students[name], name).to(context.device)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train a copy of the student and return it; what earlier steps asked training to hold to went with the model."""
        name = self.student or next(iter(context.students))
        student = _own_copy(context.students[name], name).to(context.device)
        frozen = frozenset() if self.train_all else frozenset(n for n, p in student.named_parameters() if not p.requires_grad)
        context.constraints.clear()
        self.train("distil", student, context, frozen)
        before, after = (sum(p.numel() for p in network.parameters()) for network in (context.original, student))
        share = f", {100 * after / before:.3g} % of the original's {before:,}" if before else ""
        context.notes.insert(0, Note(code="distil:student", text=f"the student {name!r} has {format_count(after, 'parameter')}{share}"))
        context.changed.update(dict.fromkeys(weight_layers(model), f"replaced by the student {name!r}"))
        return student


def _own_copy(student: nn.Module, name: str) -> nn.Module:
    """A copy in eval mode, so that the user's network stays as it is."""
    try:
        duplicate = copy.deepcopy(student)
    except Exception as error:
        raise ModelError(f"the student {name!r} cannot be copied: {error}", help="copy.deepcopy(student) must work") from error
    for module in duplicate.modules():
        module.__dict__["training"] = False  # by attribute, because a model may override train() to do more than set the flag
    return duplicate
