"""What a fine-tuning did, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..records import Note
from ..units import format_bytes, format_seconds

Stopped = Literal["all epochs done", "no improvement", "out of time", "not finite", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class FineTuneReport:
    """History, and which epoch the model was left at."""

    sources: str
    """What was learnt from: ``the original's class scores 'logits' and labels``."""
    train_losses: tuple[float, ...]
    """Of each epoch, the mean over its samples as they were trained with; the last one may have been cut short."""
    losses: tuple[float, ...]
    """On the held-out samples, in eval mode and without hidden states: before training, then after each epoch."""
    agreements: tuple[float, ...]
    """With the teacher, on the same samples and at the same times; empty without one."""
    agreement_kind: str
    """``agreement``: the share with the same largest score; ``cosine``: the mean cosine similarity."""
    best_epoch: int
    """The one whose values the model has now; 0: those from before."""
    stopped: Stopped
    seconds: float
    num_train: int
    """Samples trained with."""
    num_held_out: int
    """Samples held out; 0 where there are too few, and those trained with were judged on."""
    num_bytes: int
    """Memory taken beside weights and activations: gradients, optimiser, best epoch, kept outputs of the teacher."""
    notes: tuple[Note, ...] = ()

    @property
    def judged_on(self) -> str:
        """The samples that losses and agreement are of."""
        return f"{self.num_held_out} held-out samples" if self.num_held_out else f"the {self.num_train} samples trained with"

    def sentences(self) -> tuple[str, ...]:
        """What a reader of the step wants to know, in a few sentences."""
        before, after = self.losses[0], self.losses[self.best_epoch]
        found = [
            f"learnt from {self.sources}",
            f"{len(self.train_losses)} epochs of {self.num_train} samples in {format_seconds(self.seconds)}, then {self.stopped}; best epoch {self.best_epoch}",
            f"loss {before:.4g} before and {after:.4g} after, on {self.judged_on}",
        ]
        if self.agreements:
            kind = "agreement with the original" if self.agreement_kind == "agreement" else "cosine similarity to the original"
            found.append(
                f"{kind} {_share(self.agreements[0], self.agreement_kind)} before and {_share(self.agreements[self.best_epoch], self.agreement_kind)} after"
            )
        return (*found, f"it took {format_bytes(self.num_bytes)} beside weights and activations, given back since")


def _share(value: float, kind: str) -> str:
    return f"{100 * value:.1f} %" if kind == "agreement" else f"{value:.4f}"
