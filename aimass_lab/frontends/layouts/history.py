"""How the history and comparisons are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import Comparison, History
from ..page import Cell, Page, Table
from .base import lay_out, notes_of


@lay_out.register
def _(record: History) -> Page:
    rows = tuple((str(r.id), r.taken_at[:16].replace("T", " "), r.verb, r.model, r.summary) for r in record.runs)
    return Page(
        title="History", headline=headline(record), tables=(Table(title="Runs", columns=("run", "taken at (UTC)", "verb", "model", "found"), rows=rows),)
    )


@lay_out.register
def _(record: Comparison) -> Page:
    rows: list[tuple[Cell, ...]] = [(d.name, d.before, d.after, d.ratio, d.verdict) for d in record.differences]
    return Page(
        title=f"Run {record.before.id} and run {record.after.id} of {record.after.model}",
        headline=headline(record),
        tables=(Table(title="Side by side", columns=("number", "before", "after", "after / before", ""), rows=tuple(rows)),),
        notes=notes_of(record.notes),
    )
