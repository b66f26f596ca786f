"""What was found before, and how two of them differ."""

from __future__ import annotations

from typing import Literal

import msgspec

from .number import Note, Number, Record


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the history."""

    id: int
    verb: str
    model: str
    model_digest: str
    taken_at: str
    summary: str


class Service(Record, frozen=True, kw_only=True, tag="service"):
    """A bundle that is being served."""

    folder: str
    url: str
    grpc_address: str | None
    pid: int


class History(Record, frozen=True, kw_only=True, tag="history"):
    """What was measured, newest first."""

    store: str
    runs: tuple[Run, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of two runs, side by side."""

    name: str
    before: Number
    after: Number
    ratio: Number | None
    """After over before; None when before is 0."""
    verdict: Literal["lower", "higher", "same within spread", "changed", "cannot tell"]
    """*cannot tell*: one of the two was taken while other work had the machine."""


class Comparison(Record, frozen=True, kw_only=True, tag="comparison"):
    """Two runs, side by side."""

    before: Run
    after: Run
    differences: tuple[Difference, ...]
    notes: tuple[Note, ...] = ()
