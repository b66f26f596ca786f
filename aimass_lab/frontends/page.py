"""A result laid out once, for every way of showing it: facts, tables and remarks, without markup."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Number

Cell = Number | str | int | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of numbers and words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    bar: int | None = None
    """Column whose numbers are shares, drawn as bars where the medium can."""
    folded: bool = False
    """Detail that is shown when asked for, where the medium can fold it away."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One result."""

    title: str
    headline: str
    tone: str = "plain"
    """What the headline means: ``"good"``, ``"bad"``, ``"warn"`` or ``"plain"``."""
    facts: tuple[tuple[str, Cell], ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()
    """Sentences that belong to the result."""
    notes: tuple[tuple[str, str], ...] = ()
    """Code and text of what the reader must know."""
    listing: tuple[tuple[str, str], ...] = ()
    """Name and text of files, shown as they are."""
