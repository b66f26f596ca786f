"""How trials and searches are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import SearchResult, TrialResult
from ..page import Cell, Page, Table
from .base import lay_out, notes_of, where

_TONES = {"faster": "good", "no gain": "warn", "slower": "bad", "not equivalent": "bad"}


@lay_out.register
def _(record: TrialResult) -> Page:
    options = ", ".join(f"{k}={v}" for k, v in record.setting.options.items())
    return Page(
        title=f"Trial of {record.setting.technique}{f' ({options})' if options else ''} on {record.model.name}",
        headline=headline(record).partition(": ")[2],
        tone="warn" if record.speedup.quality == "noisy" else _TONES[record.verdict],
        facts=(
            ("speed-up", record.speedup),
            ("latency, original", record.latency_original),
            ("latency, variant", record.latency_variant),
            ("weights, original", record.size_original_bytes),
            ("weights, variant", record.size_bytes),
            ("cosine similarity", record.fidelity),
            ("relative error", record.relative_error),
            ("same top class", record.agreement),
            ("metric, original", record.metric_original),
            ("metric, variant", record.metric_variant),
            ("layers changed", record.num_changed_layers),
            ("layers eligible", record.num_eligible_layers),
            ("time to apply", record.apply_time),
            ("time to compile", record.compile_time),
            ("measured on", where(record.environment)),
        ),
        remarks=record.reasons,
        notes=notes_of(record.notes),
    )


@lay_out.register
def _(record: SearchResult) -> Page:
    front = set(record.front)
    rows: list[tuple[Cell, ...]] = [
        (t.setting.technique, t.batch_size, t.verdict, t.speedup, t.size_bytes, t.fidelity, "best" if i == record.best else "front" if i in front else "")
        for i, t in enumerate(record.trials)
    ]
    return Page(
        title=f"Search on {record.model.name} ({record.sampler})",
        headline=headline(record),
        tone="good" if record.best is not None else "warn",
        tables=(Table(title="Tried", columns=("technique", "batch", "verdict", "speed-up", "weights", "similarity", ""), rows=tuple(rows)),),
        notes=notes_of(record.failures),
    )
