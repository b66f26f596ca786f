"""A short, careful training: the best epoch is kept, and nothing that goes wrong loses it."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn

from ..errors import DoesNotFitError, InputError, UnsupportedError
from ..preserve import preserved
from ..records import INTERRUPTED, Note
from ..units import format_bytes
from ..workload import Call, is_out_of_memory
from .batches import epoch_batches, groups, hold_out
from .best import Best
from .lessons import Lessons
from .losses import Loss
from .mixup import mix, why_not_mixed
from .optimise import Constraint, Stepper
from .report import FineTuneReport, Stopped
from .settings import FineTuneSettings
from .signals import mode

Progress = Callable[[float, str], None]
FEW_SAMPLES = 100
"""Fewer training samples than this are said to be few."""
TELL_EVERY_S = 0.5
"""Between reports of progress within an epoch."""
BACK_OFF_AFTER = 3
"""Epochs without improvement after which the learning rate is lowered."""
BACK_OFF_SHARE = 0.25
"""What is left of it."""
DEFAULTS = FineTuneSettings()


def fine_tune(
    student: nn.Module,
    teacher: nn.Module | None,
    samples: Call,
    labels: torch.Tensor | None = None,
    loss: Loss | None = None,
    settings: FineTuneSettings = DEFAULTS,
    *,
    constraints: Sequence[Constraint] = (),
    progress: Progress = lambda share, text: None,
    device: torch.device | None = None,
    seed: int = 0,
    frozen: Collection[str] = (),
) -> FineTuneReport:
    """Train `student` in place, from a teacher's outputs, from labels, or from both.

    It ends in eval mode with the values of the epoch that was best on samples held out; that may be the state from before. An interrupt by the
    user, a loss that is not finite and the end of the time all end it so. With the same seed the result is the same, on the CPU bit by bit.

    Args:
        student: What is trained: all its floating-point parameters, but `frozen` ones. Batch norm and dropout train as they are set;
            batch norm whose own parameters are frozen keeps its statistics.
        teacher: Run in eval mode and left as it was; None: labels alone teach.
        samples: Inputs to learn from, a part of which is held out.
        labels: One per sample.
        loss: ``loss(outputs, labels)``, a scalar: the mean over the items. Without one, labels and outputs have to suggest it.
        settings: How to train.
        constraints: Called on `student` after every step.
        progress: Called with the share done and what is being done.
        device: Where batches are moved; that of the student's parameters if not given.
        seed: Of the held-out part, the order of samples, dropout and mixup.
        frozen: Names of parameters that stay as they are.

    Raises:
        InputError: there is nothing to learn from, labels and outputs do not go together, or inputs cannot be mixed.
        UnsupportedError: the student's outputs have other shapes than the teacher's, or are not finite before training.
        ModelError: one of the models raised.
        DoesNotFitError: there is not enough memory.
    """
    if teacher is None and labels is None:
        raise InputError("there is neither a teacher nor a label to learn from", help="give one of them, or both")
    if settings.mixup and (cause := why_not_mixed(samples)) is not None:
        raise InputError(cause)
    trained = [p for name, p in student.named_parameters() if p.is_floating_point() and name not in frozen]
    if not trained:
        raise UnsupportedError("the model has no floating-point parameter to train that is not frozen")
    device = device or trained[0].device
    with preserved(nn.Identity() if teacher is None else teacher), _trainable(student, trained), torch.enable_grad():
        _seed(seed)
        train_rows, held_out_rows = hold_out(samples.batch_size, settings.holdout, seed)
        lessons = Lessons(student, teacher, samples, labels, loss, settings, device, train_rows[: settings.batch_size])
        return _Training(lessons, settings, constraints, progress, device, seed, trained, train_rows, held_out_rows).run()


@contextlib.contextmanager
def _trainable(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients be computed of `trained` and of nothing else; afterwards nothing holds one, and flags are as before."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.grad = None
            parameter.requires_grad_(flag)


def _seed(seed: int) -> None:
    """Seed whatever dropout and the models' own code draw from."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _Training:
    """One fine-tuning: what it works with and what it has seen."""

    def __init__(
        self, lessons: Lessons, settings: FineTuneSettings, constraints: Sequence[Constraint], progress: Progress, device: torch.device, seed: int,
        trained: Sequence[nn.Parameter], train_rows: torch.Tensor, held_out_rows: torch.Tensor,
    ) -> None:  # fmt: skip
        self.start_s = self.told_s = time.perf_counter()
        self.lessons = lessons
        self.model = lessons.student.model
        self.settings = settings
        self.device = device
        self.progress = progress
        self.train_rows = train_rows
        self.held_out_rows = held_out_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.lot = random.Random(seed)
        self.notes = list(lessons.notes)
        self._note_samples()
        self.still = self._still_norms(trained)
        num_batches = len(epoch_batches(train_rows, settings.batch_size, torch.Generator()))
        self.best = Best(self.model, trained)
        self.stepper = Stepper(self.model, trained, settings, settings.epochs * math.ceil(num_batches / settings.gradient_accumulation), constraints)
        self._check_memory()
        self.train_losses: list[float] = []
        self.losses: list[float] = []
        self.agreements: list[float] = []
        self.num_back_offs = 0
        self.backed_off_at = 0

    def _note(self, code: str, text: str) -> None:
        self.notes.append(Note(code=code, text=text))

    def _note_samples(self) -> None:
        if len(self.train_rows) < FEW_SAMPLES:
            self._note("W-FEW-SAMPLES", f"only {len(self.train_rows)} samples to train with: what is learnt may not hold for others")
        if not len(self.held_out_rows):
            why = "as asked" if self.settings.holdout == 0 else f"too few for a share of {self.settings.holdout:g}"
            self._note("W-NO-HOLDOUT", f"no samples were held out ({why}): epochs were judged on the samples trained with, which hides overfitting")

    def _still_norms(self, trained: Sequence[nn.Parameter]) -> tuple[nn.Module, ...]:
        """Batch norms that keep their statistics: those that are frozen, and all where batches hold a single item."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms and min(len(self.train_rows), self.settings.batch_size) == 1:
            self._note("W-BATCH-NORM", "batches hold a single item, so batch norm keeps the statistics it has; a larger batch_size lets it learn new ones")
            return tuple(norms)
        ids = {id(p) for p in trained}
        return tuple(m for m in norms if list(m.parameters()) and not any(id(p) in ids for p in m.parameters()))

    def _check_memory(self) -> None:
        from ..profiling.memory import free_bytes

        free = free_bytes(self.device)
        if self.stepper.num_bytes > free:
            raise DoesNotFitError(
                f"training needs {format_bytes(self.stepper.num_bytes)} for gradients and optimiser; {format_bytes(max(0, free))} are free on {self.device}",
                help="optimizer=sgd needs half as much beside the gradients",
            )

    # --- training ---------------------------------------------------------------------------

    def run(self) -> FineTuneReport:
        """Train until there is a reason to stop, and leave the student at its best."""
        with self.lessons.attached():
            self._judge()
            if not math.isfinite(self.losses[0]):
                raise UnsupportedError(
                    "the loss is not finite before training: the steps before, or the model itself, give values that are not finite",
                    help="train a milder change, or look at the outputs of the recipe without this step",
                )
            try:
                stopped = self._train()
            except KeyboardInterrupt:
                stopped = "interrupted"
            self.best.restore()
        self._note_end(stopped)
        return FineTuneReport(
            sources=self.lessons.sources, train_losses=tuple(self.train_losses), losses=tuple(self.losses), agreements=tuple(self.agreements),
            agreement_kind=self.lessons.agreement_kind, best_epoch=self.best.epoch, stopped=stopped, seconds=time.perf_counter() - self.start_s,
            num_train=len(self.train_rows), num_held_out=len(self.held_out_rows), notes=tuple(self.notes),
            num_bytes=self.stepper.num_bytes + self.best.num_bytes + self.lessons.num_bytes,
        )  # fmt: skip

    def _train(self) -> Stopped:
        for epoch in range(1, self.settings.epochs + 1):
            cut = self._train_epoch(epoch)
            if cut == "not finite":
                return cut
            improved = self._judge()
            self._tell(epoch / self.settings.epochs, epoch)
            if not math.isfinite(self.losses[-1]):
                return "not finite"
            if cut:
                return cut
            if not improved and self.settings.patience is not None and epoch - self.best.epoch >= self.settings.patience:
                return "no improvement"
            if self.settings.back_off and epoch < self.settings.epochs and epoch - max(self.best.epoch, self.backed_off_at) >= BACK_OFF_AFTER:
                self._back_off(epoch)
        return "all epochs done"

    def _back_off(self, epoch: int) -> None:
        """Go on from the best epoch so far with smaller steps."""
        self.best.restore()
        self.stepper.start_over(BACK_OFF_SHARE)
        self.num_back_offs += 1
        self.backed_off_at = epoch

    def _train_epoch(self, epoch: int) -> Stopped | None:
        """One pass over the samples; returns why it was cut short, or None."""
        batches = epoch_batches(self.train_rows, self.settings.batch_size, self.generator)
        total, num_items = 0.0, 0
        with mode(self.model, training=True, still=self.still):
            for group in groups(batches, self.settings.gradient_accumulation):
                value = self._accumulate(group)
                if not math.isfinite(value) or not self.stepper.step():
                    return "not finite"
                num_items += sum(len(rows) for rows in group)
                total += value * sum(len(rows) for rows in group)
                self.train_losses[epoch - 1 :] = [total / num_items]
                done = (epoch - 1 + num_items / len(self.train_rows)) / self.settings.epochs
                if self.settings.max_seconds is not None and time.perf_counter() - self.start_s > self.settings.max_seconds:
                    return "out of time"
                if time.perf_counter() - self.told_s > TELL_EVERY_S:
                    self._tell(done, epoch)
        return None

    def _accumulate(self, group: Sequence[torch.Tensor]) -> float:
        """Gradients of the mean loss over all items of `group`; returns that loss."""
        num_items = sum(len(rows) for rows in group)
        total = 0.0
        try:
            for rows in group:
                loss = self._batch_loss(rows) * (len(rows) / num_items)
                total += float(loss.detach())
                if not math.isfinite(total):
                    return total
                self.stepper.backward(loss)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFitError(
                f"out of memory while training with batches of {self.settings.batch_size}",
                help="use a smaller batch_size; gradient_accumulation makes up for it",
            ) from error
        return total

    def _batch_loss(self, rows: torch.Tensor) -> torch.Tensor:
        call, labels = self.lessons.part(rows)
        if not self.settings.mixup:
            return self.lessons.loss(rows, call, labels)
        mixed = mix(call, self.settings.mixup, self.generator, self.lot)
        return self.lessons.loss(rows, mixed.call, labels, mixed)

    # --- judging ----------------------------------------------------------------------------

    @torch.no_grad()
    def _judge(self) -> bool:
        """Loss and agreement on the held-out samples, or on those trained with; returns whether it is the best so far."""
        all_rows = self.held_out_rows if len(self.held_out_rows) else self.train_rows.sort().values
        total, agreeing, num_compared = 0.0, 0.0, 0
        with mode(self.model, training=False):
            for rows in all_rows.split(self.settings.batch_size):
                loss, same, compared = self.lessons.judge(rows)
                total, agreeing, num_compared = total + loss * len(rows), agreeing + same, num_compared + compared
        self.losses.append(total / len(all_rows))
        if num_compared:
            self.agreements.append(agreeing / num_compared)
        return self.best.offer(len(self.losses) - 1, self.losses[-1])

    def _tell(self, share: float, epoch: int) -> None:
        self.told_s = time.perf_counter()
        text = f"epoch {epoch} of {self.settings.epochs}, loss {self.train_losses[-1]:.3g}"
        judged = "held-out" if len(self.held_out_rows) else "training-sample"
        if self.agreements and self.lessons.agreement_kind == "agreement":
            text += f", {judged} agreement {100 * self.agreements[-1]:.1f} %"
        elif self.agreements:
            text += f", {judged} cosine {self.agreements[-1]:.4f}"
        else:
            text += f", {judged} loss {self.losses[-1]:.3g}"
        self.progress(share, text)

    def _note_end(self, stopped: Stopped) -> None:
        rate = self.settings.learning_rate
        if stopped == "not finite":
            self._note(
                "W-NAN", f"training stopped at a loss or gradient that is not finite, and the best epoch before was kept: learning_rate={rate:g} is too high"
            )
        elif stopped == "interrupted":
            self._note(INTERRUPTED, f"training was interrupted in epoch {len(self.losses)}; the best so far, epoch {self.best.epoch}, was kept")
        lowest = rate * BACK_OFF_SHARE**self.num_back_offs
        if self.num_back_offs and self.best.epoch > 0:
            self._note("W-LEARNING-RATE", f"learning_rate={rate:g} stopped bringing anything and was lowered to {lowest:g} on the way")
        elif self.best.epoch == 0 and stopped in ("all epochs done", "no improvement"):
            tried = f"learning rates from {rate:g} to {lowest:g}" if self.num_back_offs else f"learning_rate={rate:g}"
            self._note("W-NO-IMPROVEMENT", f"no epoch was better than before training, so nothing was changed; tried: {tried}")
