"""What a fine-tuning can be told: the options of every technique that learns, and so what a search may vary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from ..options import Positive, check_bounds

_Above0 = Annotated[float, msgspec.Meta(gt=0)]
_From0 = Annotated[float, msgspec.Meta(ge=0)]
_Part = Annotated[float, msgspec.Meta(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """How to train, from what, and when to stop.

    Raises:
        InputError: a value that cannot be used.
    """

    epochs: Positive = 20
    """Times that every training sample is seen, at most."""
    learning_rate: _Above0 = 1e-3
    """At its highest. 1e-3 suits small networks; large pretrained ones want 2e-5 to 1e-4."""
    batch_size: Positive = 32
    """Items per forward and backward pass."""
    gradient_accumulation: Positive = 1
    """Batches whose gradients make one step: the memory of one batch, the step of several."""
    back_off: bool = True
    """After three epochs without improvement, go on from the best one with a quarter of the learning rate."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` with momentum needs half the memory beside the weights."""
    momentum: _Part = 0.9
    """Of sgd."""
    weight_decay: _From0 = 0.0
    """Share by which weights shrink per unit of learning rate and step."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """``cosine``: the learning rate rises over the warm-up and falls to 0 over the rest; ``constant``: it stays."""
    warmup: _Part = 0.1
    """Share of the steps over which the learning rate of the cosine schedule rises."""
    temperature: _Above0 = 2.0
    """What scores are divided by before the original's probabilities are matched: higher shows more of the classes that are not largest."""
    distillation_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Share of the original's outputs in the loss, against the labels' share; without labels all of it."""
    outputs: Literal["auto", "scores", "values"] = "auto"
    """What outputs are: ``scores`` of classes, matched as probabilities, or ``values``, matched as numbers; ``auto`` goes by names and shapes."""
    hidden_weight: _From0 = 0.0
    """Weight of matching hidden states too: the outputs of blocks, and what enters the last layer, where the shapes are the same."""
    mixup: _From0 = 0.0
    """Alpha of the Beta distribution by which pairs of samples are mixed; 0: none. Inputs must be floating point, not token ids."""
    gradient_clip: _Above0 | None = 1.0
    """Largest norm of the gradient of a step; none: any."""
    holdout: _Part = 0.1
    """Share of the training samples that is not trained with: it picks the best epoch and stops early."""
    patience: Positive | None = 8
    """Epochs without improvement on the held-out samples after which to stop; none: never."""
    max_seconds: _Above0 | None = None
    """Time to stop after, with the best so far; none: no limit. With one, a result depends on how fast the machine was."""

    def __post_init__(self) -> None:
        check_bounds(self, lambda: "a fine-tuning")
