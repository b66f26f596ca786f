"""How searches are shown: what won and why, what the limits cost, and every setting that was tried."""

from __future__ import annotations

from ...headlines import format_number, headline
from ...records import Candidate, ObjectiveName, SearchResult
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of, where

COLUMNS: dict[ObjectiveName, str] = {
    "throughput": "throughput", "speedup": "speed-up", "latency": "latency", "latency_p99": "p99", "drop": "metric lost", "dissimilarity": "dissimilarity",
    "size": "on disk", "memory": "in memory", "cost": "cost",
}  # fmt: skip
SHOWN = 12
"""Settings of the first table that are neither on the front nor the best; the others are folded away."""


@lay_out.register
def _(record: SearchResult) -> Page:
    names = _columns(record)
    known = [(i, c) for i, c in enumerate(record.candidates) if c.status != "failed"]
    chosen = {record.best, *record.front} | {i for i, _ in known[:SHOWN]}
    tables = [
        _table("Best first", record, names, [(i, c) for i, c in known if i in chosen]),
        _table("Further settings", record, names, [(i, c) for i, c in known if i not in chosen], folded=True),
        _failures(record),
        Table(title="Combinations that are not possible", columns=("settings", "why"), rows=tuple((p.num_points, p.cause) for p in record.pruned), folded=True),
    ]
    return Page(
        title=f"Search on {record.model.name} ({record.sampler})",
        headline=headline(record),
        tone="good" if record.best is not None else "warn",
        facts=(
            ("settings possible", record.num_points),
            ("share measured", share(record.measured_share)),
            ("on the front", len(record.front)),
            ("ended because", record.stopped),
            ("measured on", where(record.environment)),
        ),
        tables=tuple(table for table in tables if table.rows),
        remarks=_remarks(record),
        notes=notes_of(record.notes),
        listing=() if record.code is None else (("the best as code", record.code),),
    )


def _columns(record: SearchResult) -> list[ObjectiveName]:
    """Objectives first, then limits, then what else was measured of speed, quality and size."""
    asked: list[ObjectiveName] = [o.name for o in record.objectives] + [limit.name for limit in record.limits]
    known = {name for c in record.candidates for name in c.numbers}
    also: list[ObjectiveName] = ["speedup", "latency", "size"]
    quality: list[ObjectiveName] = ["drop"] if "drop" in known else ["dissimilarity"]
    return [name for name in dict.fromkeys([*asked, *also, *quality]) if name in known]


def _table(title: str, record: SearchResult, names: list[ObjectiveName], rows: list[tuple[int, Candidate]], *, folded: bool = False) -> Table:
    settings = _setting_columns(record)
    columns = (*settings, "verdict", *(COLUMNS[name] for name in names), "")
    body = tuple((*_setting(c, settings), c.verdict or c.status, *(c.numbers.get(name) for name in names), _mark(record, i, c)) for i, c in rows)
    return Table(title=title, columns=columns, rows=body, folded=folded)


def _setting_columns(record: SearchResult) -> tuple[str, ...]:
    """What tells settings apart; what is the same in all of them stands in the headline."""
    varied = [name for name in ("threads", "instances") if len({getattr(c.setting, name) for c in record.candidates}) > 1]
    return ("recipe", "batch", *varied)


def _setting(candidate: Candidate, columns: tuple[str, ...]) -> tuple[Cell, ...]:
    setting = candidate.setting
    device = f" on {setting.device}" if setting.device else ""
    cells: dict[str, Cell] = {
        "recipe": f"{setting.recipe.name}{device}", "batch": setting.batch_size, "threads": setting.threads, "instances": setting.instances
    }  # fmt: skip
    return tuple(cells[name] for name in columns)


def _mark(record: SearchResult, index: int, candidate: Candidate) -> str:
    words = ["best"] if index == record.best else []
    words += ["front"] if index in record.front else ["near the front"] if index in record.near_front else []
    words += ["predicted"] if candidate.status == "predicted" else []
    words += [f"beyond {COLUMNS[name]}" for name in candidate.beyond]
    return ", ".join(words)


def _failures(record: SearchResult) -> Table:
    settings = _setting_columns(record)
    rows = tuple((*_setting(c, settings), c.failure, c.cause) for c in record.candidates if c.status == "failed")
    return Table(title="Failed", columns=(*settings, "kind", "cause"), rows=rows, folded=True)


def _remarks(record: SearchResult) -> tuple[str, ...]:
    remarks = [f"Not as good: {record.runner_up.text}."] if record.runner_up else []
    remarks += [f"Not recommended: {record.refused.text}."] if record.refused else []
    for limit in record.limits:
        count = int(limit.num_excluded.value)
        excluded = f"{count or 'no'} setting{' is' if count == 1 else 's are'} beyond {COLUMNS[limit.name]} {format_number(limit.at_most)}"
        alone = f", {limit.num_excluded_alone.value:g} of them beyond nothing else" if count else ""
        remarks.append(f"{excluded}{alone}; {limit.text}.")
    return tuple(remarks)
