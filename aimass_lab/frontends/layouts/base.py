"""Decides what of each record is shown, and in which order; the files beside this one hold one kind of record each."""

from __future__ import annotations

from functools import singledispatch

from ...headlines import format_measured
from ...records import BatchPoint, Environment, Note, Number, Record, RehearsalMetric
from ..page import Cell, Page, Table


@singledispatch
def lay_out(record: Record) -> Page:
    """Lay out `record`."""
    raise TypeError(f"no layout for {type(record).__name__}")


def notes_of(notes: tuple[Note, ...]) -> tuple[tuple[str, str], ...]:
    """Codes and texts, as a page has them."""
    return tuple((note.code, note.text) for note in notes)


def where(environment: Environment) -> str:
    """The machine in a few words."""
    return f"{environment.device_name}, {environment.threads} threads of {environment.cpu_cores:g} cores, torch {environment.torch}"


def ladder_table(points: tuple[BatchPoint, ...], title: str = "By batch size") -> Table:
    """Latency, throughput and memory by batch size."""
    rows = tuple((p.batch_size, p.latency_p50, _tail(p.latency_p95), _tail(p.latency_p99), p.throughput, p.peak_memory_bytes) for p in points)
    return Table(title=title, columns=("batch", "p50", "p95", "p99", "throughput", "peak memory"), rows=rows)


def _tail(number: Number) -> Cell:
    """A high percentile; of one observation it would be that observation once more."""
    return "seen once" if number.n == 1 else number


def rehearsed_table(metrics: tuple[RehearsalMetric, ...]) -> Table:
    """Each figure of a run as planned, predicted, measured and replayed."""
    rows: list[tuple[Cell, ...]] = []
    for m in metrics:
        planned = None if m.planned is None else format_measured(m.planned)
        rows.append((m.name, m.measured, format_measured(m.predicted), "inside" if m.inside else "outside", planned, m.replayed))
    return Table(title="Predicted, run, replayed", columns=("figure", "measured", "predicted", "its band", "planned", "replayed"), rows=tuple(rows))
