"""Many settings tried: what was found at each, which no other beats, and why the winner won."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record
from .trial import Setting, Verdict

Status = Literal["measured", "predicted", "failed"]
FailureKind = Literal["out of memory", "compile error", "not finite", "unsupported", "out of time", "error"]
ObjectiveName = Literal["throughput", "speedup", "latency", "latency_p99", "drop", "dissimilarity", "size", "memory", "cost"]
"""Throughput in items per second of all instances together; speed-up over the original at the same batch size, threads and instances; median
and 99th percentile of one call's latency; loss of the user's metric; without a metric, 1 less the mean cosine similarity of the outputs;
bytes on disk; bytes of weights in memory; price of an item."""


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a search makes large or small."""

    name: ObjectiveName
    goal: Literal["maximise", "minimise"]


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a setting may be at most, and what that costs."""

    name: ObjectiveName
    at_most: Number
    num_excluded: Number
    """Settings that are beyond it."""
    num_excluded_alone: Number
    """Of them, those that are within every other limit."""
    relaxed: int | None = None
    """Index of the candidate that would be best without this limit; None where the best stays the best."""
    text: str = ""
    """What giving this limit up would give."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting and what is known of it."""

    setting: Setting
    status: Status
    numbers: dict[ObjectiveName, Number] = {}
    """What was measured or is predicted of it; none where it failed."""
    verdict: Verdict | None = None
    """Beside the original at the same batch size, threads and instances; None where nothing was measured."""
    recommended: bool = False
    """Measured, equivalent, within every limit, and either the original itself or better than it beside it."""
    beyond: tuple[ObjectiveName, ...] = ()
    """Limits that it does not hold."""
    cause: str | None = None
    """Why it failed, or what its numbers rest on where they are predicted."""
    failure: FailureKind | None = None


class Pruned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that are not possible together, found before anything was tried."""

    num_points: Number
    cause: str


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a candidate is not the best."""

    candidate: int
    """Its index."""
    within_noise: bool
    """Whether the intervals overlap in what decided: another day it may win."""
    text: str


class SearchResult(Record, frozen=True, kw_only=True, tag="search"):
    """Many settings tried, best first."""

    model: ModelInfo
    environment: Environment
    sampler: str
    seed: int
    objectives: tuple[Objective, ...]
    """The first decides which is best."""
    limits: tuple[Limit, ...] = ()
    candidates: tuple[Candidate, ...]
    """Those recommended first, then those equivalent and within the limits, then the others; by the first objective within each, failures last."""
    front: tuple[int, ...]
    """Indices of the candidates within every limit that no other such beats in all objectives at once."""
    near_front: tuple[int, ...] = ()
    """Those that are beaten by less than their intervals leave open, and those measured on a machine too busy to tell."""
    best: int | None = None
    """The best recommended one; None where there is none."""
    runner_up: RunnerUp | None = None
    refused: RunnerUp | None = None
    """The one that is better by the first objective than the best, and why it is not recommended."""
    code: str | None = None
    """The best as Python."""
    num_points: Number
    """Settings of the space that are possible."""
    measured_share: Number
    """Of those, how many were tried here or by others on the same store."""
    pruned: tuple[Pruned, ...] = ()
    """Combinations that are not possible, the most frequent cause first."""
    stopped: str
    """Why the search ended."""
    notes: tuple[Note, ...] = ()
