"""How predictions and their ledger are shown."""

from __future__ import annotations

from ...headlines import format_interval, format_number, headline
from ...records import Ledger, LedgerEntry, Number, Prediction
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of, where

NEWEST = 20


@lay_out.register
def _(record: Prediction) -> Page:
    rows: list[tuple[Cell, ...]] = [
        (p.batch_size, p.latency, format_interval(p.latency), p.throughput, p.peak_memory_bytes, p.basis, p.latency.method) for p in record.points
    ]
    technique = "" if record.technique == "none" else f" with {record.technique}"
    return Page(
        title=f"Prediction for {record.model.name}{technique} on {record.device}",
        headline=headline(record),
        facts=(
            ("largest batch", record.max_batch_size),
            ("memory there", record.memory_limit_bytes),
            ("predicted speed-up", record.speedup),
            ("weights of the copy", record.weight_bytes),
            ("measured on", where(record.environment) if record.environment else None),
        ),
        tables=(
            Table(title="By batch size", columns=("batch", "latency", "90 % band", "throughput", "peak memory", "basis", "how"), rows=tuple(rows)),
        ),
        notes=notes_of(record.notes),
    )  # fmt: skip


@lay_out.register
def _(record: Ledger) -> Page:
    kinds: list[tuple[Cell, ...]] = [
        (k.kind, k.scored, k.inside, share(k.coverage), share(k.median_error), share(k.p90_error), k.bias, k.open) for k in record.kinds
    ]
    return Page(
        title="Ledger of predictions" + (f" for {record.model}" if record.model else ""),
        headline=headline(record),
        tables=(
            Table(
                title="By kind",
                columns=("kind", "measured", "in the band", "coverage", "median error", "90 % below", "measured / predicted", "not measured yet"),
                rows=tuple(kinds),
            ),
            Table(
                title=f"The newest {min(NEWEST, len(record.entries))} of {len(record.entries)}",
                columns=("predicted at (UTC)", "model", "device", "technique", "batch", "kind", "predicted", "band", "measured", ""),
                rows=tuple(map(_entry_row, record.entries[:NEWEST])),
            ),
        ),
        notes=notes_of(record.notes),
    )


def _entry_row(entry: LedgerEntry) -> tuple[Cell, ...]:
    predicted = Number(value=entry.value, unit=entry.unit, source="estimated", method=entry.kind, interval=entry.interval, interval_kind="band as predicted")
    measured = None if entry.measured is None else Number(value=entry.measured, unit=entry.unit, source="measured", method=f"measured {entry.measured_at}")
    verdict = "" if entry.inside is None else "inside" if entry.inside else "outside"
    return (
        entry.predicted_at[:16].replace("T", " "),
        entry.model, entry.device, entry.technique, entry.batch_size, entry.kind, predicted, format_interval(predicted),
        measured and format_number(measured), verdict,
    )  # fmt: skip
