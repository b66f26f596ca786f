"""What the techniques that train have in common: their options, and how a training is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..finetuning.settings import FineTuneSettings
from ..records import Note
from .base import Context, Form, Technique, weight_layers

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from ..finetuning.report import FineTuneReport


@dataclass(frozen=True, kw_only=True)
class Learner(Technique, FineTuneSettings):
    """A technique whose options are the settings of a fine-tuning."""

    learns: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0
    takes: ClassVar[frozenset[Form]] = frozenset({"weights"})

    train_all: bool = True
    """Train every weight, those too that the model has frozen (requires_grad=False); false: frozen ones stay, where no earlier step changed them."""

    def unavailable(self, context: Context) -> str | None:
        """Without samples, and with mixup of inputs that are no numbers."""
        lacking = super().unavailable(context)
        if lacking is None and self.mixup and context.train is not None:
            from ..finetuning.mixup import why_not_mixed

            lacking = why_not_mixed(context.train[0])
        return lacking

    def train(self, name: str, student: nn.Module, context: Context, frozen: Collection[str]) -> FineTuneReport:
        """Train `student` in place, all but the parameters `frozen`, and write into `context` how it went."""
        from ..finetuning.loop import fine_tune

        assert context.train is not None
        samples, labels = context.train
        report = fine_tune(
            student, context.original, samples, labels, context.loss, self, constraints=context.constraints, device=context.device, seed=context.seed,
            frozen=frozen, progress=lambda share, text: context.progress(share, f"{name}: {text}"),
        )  # fmt: skip
        context.notes.extend(Note(code="training", text=text) for text in report.sentences())
        context.notes.extend(report.notes)
        return report


def frozen_parameters(model: nn.Module, before: nn.Module) -> frozenset[str]:
    """Names of parameters that ask for no gradient and are what they were in `before`."""
    import torch

    known = dict(before.named_parameters())

    def untouched(name: str, parameter: nn.Parameter) -> bool:
        return name in known and known[name].shape == parameter.shape and torch.equal(known[name], parameter)

    return frozenset(name for name, p in model.named_parameters() if not p.requires_grad and untouched(name, p))


def trained_layers(model: nn.Module, frozen: Collection[str]) -> dict[str, bool]:
    """Layer with weights -> whether any of its parameters is trained."""
    kept = {id(p) for name, p in model.named_parameters() if name in frozen}
    return {name: any(id(p) not in kept for p in layer.parameters(recurse=False)) for name, layer in weight_layers(model).items()}
