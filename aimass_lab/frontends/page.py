"""A result laid out once, for every way of showing it: facts, tables and remarks, without markup."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Number


@dataclass(frozen=True)
class Share:
    """A number that is a part of a whole, or an error relative to one: shown in percent."""

    number: Number


def share(number: Number | None) -> Share | None:
    """`number` as a share; None stays None."""
    return None if number is None else Share(number)


Cell = Number | Share | str | int | None


def number_in(cell: Cell) -> Number | None:
    """What a cell shows, if that is a number."""
    return cell.number if isinstance(cell, Share) else cell if isinstance(cell, Number) else None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of numbers and words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    bar: int | None = None
    """Column of shares that are drawn as bars where the medium can."""
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
