"""One recipe on a copy of the model, beside the original."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record
from .recipe import Recipe, Step

Speed = Literal["faster", "no gain", "slower", "cannot tell"]
"""``cannot tell``: others had the machine meanwhile, and what was measured beside them shows nothing, however clear it looks."""
Verdict = Literal["faster", "no gain", "slower", "mixed", "cannot tell", "not equivalent"]
"""``mixed``: not the same at every batch size; ``cannot tell``: at one of them or more."""
Clock = Literal["wall", "processor"]
"""``processor``: time that the cores spent on this process, which other processes lengthen less."""


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The point that one trial tries."""

    recipe: Recipe = Recipe()
    batch_size: int | None = None
    """Items per call; as many as the example inputs hold if None."""
    threads: int | None = None
    """Of one call, on the CPU; as many as torch is set to if None."""
    instances: int = 1
    """Callers at the same time, each with `threads` of its own."""
    device: str | None = None
    """A device that is not here, for which speed is predicted; the model's own if None."""


class LayerChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one step did to one layer that holds weights."""

    name: str
    type: str
    """The class of the layer: ``Linear``."""
    changed: bool
    detail: str
    """What was made of it, or why it was left: ``rank 12 instead of 64``, ``in_features 50 is not a multiple of 32``."""


class StepReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one step of a recipe did."""

    step: Step
    num_changed_layers: Number
    num_layers: Number
    """Layers that held weights before the step."""
    weight_share: Number
    """Of the elements of all weights, those in changed layers."""
    apply_time: Number
    peak_memory: Number | None = None
    """Above what the process held before the step; None where that cannot be read."""
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[Note, ...] = ()


class TrialPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speed at one batch size, original and variant side by side."""

    batch_size: int
    verdict: Speed
    speedup: Number
    """Time per call of the original over that of the variant, by the clock that decides: above 1 is faster. What the verdict rests on."""
    clock: Clock = "wall"
    """The clock that decides: wall time, which is what a user gets, unless other work takes the cores away from it."""
    wall_speedup: Number | None = None
    """The ratio of wall times, whichever clock decides."""
    processor_speedup: Number | None = None
    """The ratio of processor times of all threads of this process, whichever clock decides; None on a GPU."""
    one_thread_speedup: Number | None = None
    """The ratio of processor times with a single thread: measured where other work disturbs several, to say what one would do."""
    latency_original: Number
    """Median of the calls' wall times; with several callers, while all of them call."""
    latency_variant: Number
    latency_p99_original: Number | None = None
    latency_p99_variant: Number | None = None
    throughput_original: Number
    """Of all callers together."""
    throughput_variant: Number
    compile_time: Number | None = None
    """What the variant's first call at this size took more than later ones; None where nothing is compiled."""


class WorstSample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sample whose outputs differ more than those of most others."""

    index: int
    """Among the samples that outputs are compared on: the labelled data where there is some, else the example inputs."""
    relative_error: float
    cosine: float
    same_class: bool | None = None
    """Whether the largest score is the same; None where outputs are not scores of classes."""
    class_original: int | None = None
    """Index of the original's largest score."""
    class_variant: int | None = None


class TrialResult(Record, frozen=True, kw_only=True, tag="trial"):
    """One recipe on a copy of the model, beside the original."""

    model: ModelInfo
    environment: Environment
    setting: Setting
    verdict: Verdict
    recommended: bool
    """Faster, or smaller and no slower, and equivalent: what `plan` and `bundle` take without being told to."""
    recommendation: str = ""
    """Why it is recommended or refused, in words."""
    reasons: tuple[str, ...]
    points: tuple[TrialPoint, ...]
    """One per batch size that was asked for, in that order."""
    size_bytes: Number
    """What the variant's weights take in memory."""
    size_original_bytes: Number
    stored_bytes: Number
    """What the variant's weights take on disk: packed without loss, see `storage`."""
    stored_original_bytes: Number
    fidelity: Number
    """Mean cosine similarity of the outputs, sample by sample."""
    relative_error: Number
    """L2 norm of the outputs' difference over that of the original's outputs."""
    divergence: Number | None = None
    """Mean Kullback-Leibler divergence of the variant's class probabilities from the original's, nats; None where outputs are not scores of classes."""
    agreement: Number | None = None
    """Share of samples whose largest output is the same; None where outputs are not scores of classes."""
    worst_samples: tuple[WorstSample, ...] = ()
    """Largest relative error first, at most ten."""
    metric_original: Number | None = None
    metric_variant: Number | None = None
    metric_drop: Number | None = None
    """The original's metric less the variant's, on the same items."""
    steps: tuple[StepReport, ...] = ()
    apply_time: Number
    """Copying the model and changing the copy."""
    peak_memory: Number | None = None
    """Most memory that applying took above what the process held before; None where that cannot be read."""
    notes: tuple[Note, ...] = ()

    @property
    def speedup(self) -> Number:
        """At the first batch size."""
        return self.points[0].speedup

    @property
    def batch_size(self) -> int:
        """The first one that was asked for."""
        return self.points[0].batch_size


class HeldVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A copy that is in memory, to be called like the model."""

    name: str
    """Its recipe's: what `Study.variant` and `Study.release` take."""
    recipe: Recipe
    memory: Number
    """What its weights take."""
    apply_time: Number
    """What it costs to make it anew."""
    verdict: Verdict | None = None
    """Of the newest trial; None where it was only served."""


class HeldVariants(Record, frozen=True, kw_only=True, tag="variants"):
    """The copies of a model that are in memory, oldest first."""

    model: str
    items: tuple[HeldVariant, ...]
    memory: Number
    """Of all of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the copies, oldest first."""
        return tuple(item.name for item in self.items)
