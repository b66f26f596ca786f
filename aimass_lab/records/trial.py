"""One setting on a copy of the model, and many of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record

Verdict = Literal["faster", "no gain", "slower", "not equivalent"]


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The point that one trial tries."""

    technique: str
    options: dict[str, bool | int | float | str | None] = {}
    """Fields of the technique that differ from its defaults."""
    batch_size: int | None = None


class TrialResult(Record, frozen=True, kw_only=True, tag="trial"):
    """One setting on a copy of the model, beside the original."""

    model: ModelInfo
    environment: Environment
    setting: Setting
    batch_size: int
    verdict: Verdict
    reasons: tuple[str, ...]
    speedup: Number
    """Latency of the original over that of the variant: above 1 is faster."""
    latency_original: Number
    latency_variant: Number
    size_bytes: Number
    """Weights of the variant."""
    size_original_bytes: Number
    fidelity: Number
    """Mean cosine similarity of the outputs, sample by sample."""
    relative_error: Number
    """L2 norm of the outputs' difference over that of the original's outputs."""
    agreement: Number | None = None
    """Share of samples whose largest output is the same; None where outputs are not scores of classes."""
    metric_original: Number | None = None
    metric_variant: Number | None = None
    num_changed_layers: Number
    num_eligible_layers: Number
    """Layers that hold weights."""
    apply_time: Number
    """Copying the model and changing the copy."""
    compile_time: Number | None = None
    """What the variant's first call took more than later ones; None where nothing is compiled."""
    notes: tuple[Note, ...] = ()


class SearchResult(Record, frozen=True, kw_only=True, tag="search"):
    """Many settings tried, best first."""

    model: ModelInfo
    sampler: str
    trials: tuple[TrialResult, ...]
    failures: tuple[Note, ...] = ()
    """Settings that could not be tried: code is the technique, text the cause."""
    front: tuple[int, ...]
    """Indices of the trials that no other beats in speed and fidelity at once."""
    best: int | None = None
    stopped: str
    """Why the search ended."""
