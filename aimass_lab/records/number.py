"""A number that knows its unit, where it comes from, how sure it is and what it holds for; and the base of all records."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import msgspec

Source = Literal["measured", "user", "datasheet", "derived", "estimated", "assumed"]
"""Where a number comes from. *measured*: read off this machine; *user*: given by the person;
*datasheet*: a vendor's or standard's figure; *derived*: arithmetic on other numbers;
*estimated*: a model's prediction; *assumed*: a default that nobody checked."""

Unit = Literal[
    "s", "B", "B/s", "FLOP", "FLOP/s", "FLOP/B", "item", "item/s", "request", "request/s", "replica", "core", "device", "node",
    "worker", "parameter", "layer", "ratio", "Hz", "W", "J", "°C", "USD", "USD/h", "USD/month", "USD/GB", "USD/item", "point", "op", "op/s",
    "token", "token/s", "s/FLOP", "s/B",
]  # fmt: skip
"""Base units only; people's units are made in `aimass_lab.units`."""

Quality = Literal["ok", "noisy", "extrapolated"]

TRUST: tuple[Source, ...] = ("assumed", "estimated", "datasheet", "user", "measured")
"""From the least to the most trusted; a derived number takes the lowest of its inputs."""


class Number(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One value with its unit, its source and how sure it is.

    Raises:
        ValueError: the value is not finite, the interval is reversed, or a derived number
            does not say how far its inputs can be trusted.
    """

    value: int | float
    unit: Unit
    source: Source
    method: str
    """How it was obtained, in a few words: ``"median of 31 calls"``."""
    interval: tuple[float, float] | None = None
    """Lower and upper end of the spread or of the prediction band."""
    interval_kind: str | None = None
    """What the interval is: ``"95 % bootstrap of the median"``, ``"p5-p95"``, ``"90 % band"``."""
    n: int | None = None
    """How many observations stand behind it."""
    environment: str | None = None
    """The `Environment.id` it holds for."""
    trust: Source | None = None
    """Derived numbers only: the source of the weakest input."""
    inputs: tuple[str, ...] = ()
    """Derived numbers only: names of the numbers it was computed from."""
    quality: Quality = "ok"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a Number must be finite, got {self.value} {self.unit} ({self.method})")
        if self.interval is not None:
            low, high = self.interval
            if not (low <= high and math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"interval {self.interval} of {self.method!r} is not an interval")
        if (self.source == "derived") != (self.trust is not None):
            raise ValueError(f"{self.method!r}: a derived number, and only such, states its trust")

    @property
    def ends(self) -> tuple[float, float]:
        """Its interval; the value twice where it has none."""
        return self.interval or (self.value, self.value)

    @property
    def weakest_source(self) -> Source:
        """How far it can be trusted: its own source, or that of its weakest input."""
        return self.trust or self.source


def derived(
    value: float,
    unit: Unit,
    method: str,
    inputs: Iterable[tuple[str, Number]],
    *,
    interval: tuple[float, float] | None = None,
    interval_kind: str | None = None,
) -> Number:
    """Make a number computed from others; it is only as trusted as the weakest of them.

    Args:
        value: The result of the computation.
        unit: Its unit.
        method: The computation in a few words.
        inputs: Name and number of everything that went in; at least one.
        interval: The band, where the computation gives one.
        interval_kind: What the band is.
    """
    pairs = list(inputs)
    trust = min((number.weakest_source for _, number in pairs), key=TRUST.index)
    worst: Quality = "ok"
    for quality in get_args(Quality):  # in order of severity
        if any(number.quality == quality for _, number in pairs):
            worst = quality
    environments = {number.environment for _, number in pairs if number.environment}
    return Number(
        value=value,
        unit=unit,
        source="derived",
        method=method,
        interval=interval,
        interval_kind=interval_kind,
        trust=trust,
        inputs=tuple(name for name, _ in pairs),
        environment=environments.pop() if len(environments) == 1 else None,
        quality=worst,
    )


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", forbid_unknown_fields=True):
    """Base of everything that is stored, sent or printed as JSON."""

    def __str__(self) -> str:
        """As a front-end has it, once one said how: see `read_as`; all fields otherwise."""
        return _words(self)


_words: Callable[[Record], str] = repr


def read_as(words: Callable[[Record], str]) -> None:
    """Say what `print` makes of a record: front-ends stand above this room, and so come to it."""
    global _words
    _words = words


def digest_of(record: Record) -> str:
    """Digest of a record's canonical JSON, without the exporter that it was asked for: every export carries it."""
    content = msgspec.structs.replace(record, export_format="")
    read_back = msgspec.json.decode(msgspec.json.encode(content), type=type(record))  # 4 becomes 4.0 where a float belongs
    return "sha256:" + hashlib.sha256(msgspec.json.encode(read_back, order="deterministic")).hexdigest()


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something the reader of a result must know: a reading that is missing and why, a doubt, a remedy."""

    code: str
    """Stable and machine readable: ``"W-NOISY"``, ``"missing:power"``."""
    text: str


INTERRUPTED = "W-INTERRUPTED"
"""Code of the note on a result that the user cut short."""


def was_interrupted(notes: Iterable[Note]) -> bool:
    """Whether the result that has these notes was cut short by the user."""
    return any(note.code == INTERRUPTED for note in notes)
