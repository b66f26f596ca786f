"""A serving bundle, its promises and their proof."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Dimension, ModelInfo
from .number import Note, Number, Record
from .spec import Finding


class Bundle(Record, frozen=True, kw_only=True, tag="bundle"):
    """A serving bundle that was written."""

    folder: str
    name: str
    version: str
    model: ModelInfo
    format: str
    size_bytes: Number
    num_files: int
    runtimes: tuple[RuntimeTrial, ...] = ()
    """How its format was chosen: what was measured beside torch, and what was left out."""
    dimensions: tuple[Dimension, ...] = ()
    """Sizes that a request may choose, besides the number of items."""
    sizes: tuple[SizePoint, ...] = ()
    """What a call takes at other sizes than those of the example inputs, which everything else is measured at."""
    promises: tuple[Promise, ...]
    digest: str
    """Of the manifest, which holds the hash of every other file."""
    notes: tuple[Note, ...] = ()


class RuntimeTrial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One format that a bundle could have shipped."""

    format: str
    runtime: str
    """What runs it, as people call it."""
    chosen: bool
    speedups: tuple[Speedup, ...] = ()
    left_out: str | None = None
    """Why it was not tried, or not taken; None where it was measured."""


class Speedup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A runtime beside torch, at one batch size."""

    batch_size: int
    ratio: Number
    """Time of torch over that of the runtime, side by side with as many threads: above 1, the runtime is faster."""


class SizePoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call with one item, at one choice of the sizes that a request may choose."""

    sizes: dict[str, int]
    """By dimension."""
    latency_p50: Number


class Promise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that a bundle promises and its own `verify` measures."""

    name: str
    relation: Literal["<=", ">=", "=="]
    limit: Number
    measured: Number | None = None
    """By the last proof, or when the bundle was written; None where it was not started then."""
    passed: bool | None = None
    """None until a proof was run, and where other work kept the machine too busy to judge it."""


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure beside what it was in an earlier result."""

    name: str
    before: Number
    after: Number
    ratio: Number | None
    """Now over before, with the interval that both spreads leave; None where it was 0."""
    lower_is_better: bool
    verdict: Literal["better", "same", "worse", "not judged"]
    """*same*: no change beyond both spreads, or a loss within the tolerance; *not judged*: a change that may be another machine's, or other work's."""


class Check(Record, frozen=True, kw_only=True, tag="check"):
    """A spec or bundle, verified."""

    subject: str
    passed: bool | None
    """None: nothing failed, but other work kept the machine too busy to judge every promise."""
    promises: tuple[Promise, ...] = ()
    findings: tuple[Finding, ...] = ()
    baseline: str | None = None
    """What it was compared with: a file, or a run of the history."""
    changes: tuple[Change, ...] = ()
    """By figure that both have."""
