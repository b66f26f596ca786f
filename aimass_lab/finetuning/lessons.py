"""What a student learns from: outputs and hidden states of its teacher, labels, or both; made ready once, asked for every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import InputError, UnsupportedError
from ..records import Note
from ..units import format_bytes
from ..workload import Call
from .hidden import PREFIX, Places, corresponding_places
from .losses import Loss, agreement, distillation_loss, find_label_loss
from .mixup import Mixed
from .settings import FineTuneSettings
from .signals import Observed, Signal, find_signals, mean_square, mode, token_mask
from .teacher import CACHE_BYTES, Teacher


class Lessons:
    """Student, teacher and labels, and the loss that they make together.

    Args:
        student: In eval mode, as it is before training.
        teacher: In eval mode, or None.
        samples: Inputs to learn from.
        labels: One per sample, or None.
        loss: The user's, or None.
        settings: How to learn.
        device: Where batches are moved.
        rows: Samples to try both models on.

    Raises:
        InputError: labels and outputs do not go together.
        UnsupportedError: the student's outputs have other shapes than the teacher's.
        ModelError: one of the models raised.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, samples: Call, labels: torch.Tensor | None, loss: Loss | None,
        settings: FineTuneSettings, device: torch.device, rows: torch.Tensor,
    ) -> None:  # fmt: skip
        self.student = Observed(student)
        self.notes: list[Note] = []
        self._samples = samples
        self._labels = labels
        self._settings = settings
        self._device = device
        self._teacher: Teacher | None = None
        self._signals: tuple[Signal, ...] = ()
        self._hidden: tuple[Signal, ...] = ()
        self._places: tuple[Places, ...] = ()
        self._label_loss: Loss | None = None
        self._weight = 0.0 if teacher is None else settings.distillation_weight if labels is not None else 1.0
        with mode(student, training=False):
            if teacher is not None:
                self._meet(teacher, rows)
            if labels is not None and self._weight < 1:
                self._find_label_loss(loss, rows)

    def part(self, rows: torch.Tensor) -> tuple[Call, torch.Tensor | None]:
        """The samples `rows`, with their labels where those are learnt from."""
        call = self._samples.take(rows).map(lambda tensor: tensor.to(self._device))
        return call, None if self._label_loss is None else self._labels_of(rows)

    def loss(self, rows: torch.Tensor, call: Call, labels: torch.Tensor | None, mixed: Mixed | None = None) -> torch.Tensor:
        """The loss to train with: of the teacher's outputs and the labels by their shares, and what hidden states add."""
        outputs, found = self.student(call)
        taught = self._teacher.outputs(rows, call) if self._teacher and (self._weight > 0 or self._hidden) else None
        loss = self._output_loss(outputs, found, taught, call, labels, mixed)
        if self._hidden and taught is not None:
            loss = loss + self._settings.hidden_weight * distillation_loss(self._hidden, found, taught, call, 1.0)
        return loss

    def judge(self, rows: torch.Tensor) -> tuple[float, float, int]:
        """Loss of the outputs alone, how much of what was compared agrees with the teacher, and how much was compared."""
        call, labels = self.part(rows)
        outputs, found = self.student(call)
        taught = self._teacher.outputs(rows, call) if self._teacher else None
        loss = float(self._output_loss(outputs, found, taught, call, labels, None))
        if taught is None:
            return loss, 0.0, 0
        name = self._signals[0].name
        return loss, *agreement(self._signals[0], found[name], taught[name], call)

    @property
    def agreement_kind(self) -> str:
        """``agreement`` or ``cosine``: what `judge` compares by."""
        return "cosine" if self._signals and self._signals[0].kind == "values" else "agreement"

    @property
    def sources(self) -> str:
        """What is learnt from, in words: ``the original's class scores 'logits' and labels``."""
        words = {"scores": "class scores", "probabilities": "class probabilities", "values": "values"}
        found = [f"{words[signal.kind]} {signal.name!r}" for signal in self._signals] if self._weight > 0 else []
        found += ["hidden states"] if self._hidden else []
        taught = [f"the original's {', '.join(found)}"] if found else []
        return " and ".join([*taught, *(["labels"] if self._label_loss else [])])

    @property
    def num_bytes(self) -> int:
        """Memory of the teacher's outputs that are kept."""
        return self._teacher.num_bytes if self._teacher else 0

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Read hidden states, where they are matched, in every run of the block."""
        with contextlib.ExitStack() as stack:
            for places in self._places:
                stack.enter_context(places.attached())
            yield

    def _output_loss(
        self, outputs: Any, found: dict[str, torch.Tensor], taught: dict[str, torch.Tensor] | None, call: Call, labels: torch.Tensor | None, mixed: Mixed | None
    ) -> torch.Tensor:
        terms = []
        if taught is not None and self._weight > 0:
            missing = [signal.name for signal in self._signals if signal.name not in found]
            if missing:
                raise UnsupportedError(f"in training mode the model does not return {missing[0]!r}, which it returns in eval mode")
            terms.append(self._weight * distillation_loss(self._signals, found, taught, call, self._settings.temperature))
        if self._label_loss is not None and labels is not None:
            value = mixed.loss(self._label_loss, outputs, labels) if mixed else self._label_loss(outputs, labels)
            terms.append((1 - self._weight) * value.reshape(()))
        return torch.stack(terms).sum()

    # --- made ready once --------------------------------------------------------------------

    def _meet(self, teacher: nn.Module, rows: torch.Tensor) -> None:
        """Find what the teacher's outputs offer, and that the student has the same."""
        probe, _ = self.part(rows)
        calls = [probe, self.part(rows[:-1])[0]] if probe.batch_size > 1 else [probe]
        observed = Observed(teacher)
        with torch.no_grad():
            self._signals = find_signals(observed, calls, self._settings.outputs)
            self._compare_shapes(observed, probe)
            if self._settings.hidden_weight:
                self._match_hidden(observed, probe)
            with self.attached():
                found = observed(probe)[1]
        names = [signal.name for signal in (*self._signals, *self._hidden)]
        keep = not self._settings.mixup
        self._teacher = Teacher(observed, {name: found[name] for name in names}, self._samples.batch_size, may_keep=keep)
        if not self._teacher.num_bytes:
            why = f"all of them would take more than {format_bytes(CACHE_BYTES)}" if keep else "mixed samples never come again"
            self._note("teacher:not-kept", f"the original's outputs are computed anew for every batch: {why}")

    def _compare_shapes(self, teacher: Observed, probe: Call) -> None:
        ours, theirs = self.student(probe)[1], teacher(probe)[1]
        for signal in self._signals:
            if signal.name not in ours:
                there_are = ", ".join(repr(name) for name in ours) or "nothing with one entry per item"
                raise UnsupportedError(f"the original returns {signal.name!r}, and the network to be trained {there_are}", help="both must return the same")
            if ours[signal.name].shape != theirs[signal.name].shape:
                shapes = f"{list(theirs[signal.name].shape)} and the network to be trained {list(ours[signal.name].shape)}"
                raise UnsupportedError(
                    f"for {probe.batch_size} items the output {signal.name!r} of the original has the shape {shapes}", help="they must be the same"
                )

    def _match_hidden(self, teacher: Observed, probe: Call) -> None:
        """Read hidden states of both where the shapes fit, and say where they do not."""
        theirs, ours = teacher.places, self.student.places = corresponding_places(teacher.model, self.student.model, probe)
        self._places = (theirs, ours)
        with self.attached():
            found, mine = teacher(probe)[1], self.student(probe)[1]
        names = [name for name in found if name.startswith(PREFIX)]
        fitting = {name for name in names if name in mine and mine[name].shape == found[name].shape}
        self._hidden = tuple(Signal(name, "values", mean_square(found[name], token_mask(probe, found[name]))) for name in names if name in fitting)
        for places in self._places:
            places.keep_only(fitting)
        unfit = [
            f"{n.removeprefix(PREFIX)} {list(found[n].shape[1:])} and {list(mine[n].shape[1:]) if n in mine else 'none'}" for n in names if n not in fitting
        ]
        text = f"hidden states are matched at {len(fitting)} of {len(names)} places"
        self._note("hidden", text + (f"; shapes do not fit at the others: {', '.join(unfit)}" if unfit else ""))

    def _find_label_loss(self, loss: Loss | None, rows: torch.Tensor) -> None:
        probe, _ = self.part(rows)
        try:
            self._label_loss = find_label_loss(loss, self.student(probe)[0], self._labels_of(rows), probe)
        except InputError as error:
            if loss is not None or self._teacher is None:
                raise
            self._weight = 1.0
            self._note("W-LABELS", f"the labels were not used: {error.message}; {error.help}")

    def _labels_of(self, rows: torch.Tensor) -> torch.Tensor:
        assert self._labels is not None
        return self._labels[rows.to(self._labels.device)].to(self._device)

    def _note(self, code: str, text: str) -> None:
        self.notes.append(Note(code=code, text=text))
