"""How a server that was watched is shown."""

from __future__ import annotations

from ...headlines import format_number, headline
from ...records import Monitoring
from ...units import format_seconds, format_share
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of

MOST_ROWS = 60


@lay_out.register
def _(record: Monitoring) -> Page:
    budget = record.budget
    slo: tuple[tuple[str, Cell], ...] = ()
    if budget is not None:
        slo = (
            (
                "should be answered within",
                f"{format_number(budget.latency)}, {format_share(budget.attainment_target, decimals=2)} of all ({budget.latency.method})",
            ),
            ("were", budget.attained),
            ("error budget spent", share(budget.spent)),
        )
    missed = budget is not None and budget.spent.value > 1
    return Page(
        title=f"{', '.join(record.models)} at {record.url}",
        headline=headline(record),
        tone="bad" if missed else "warn" if record.failed.value or record.restarts.value else "good" if budget else "plain",
        facts=(
            ("watched for", record.span),
            ("answered", record.requests),
            ("failed", record.failed),
            ("throughput", record.throughput),
            ("latency p50, in the server", record.latency_p50),
            ("latency p99, in the server", record.latency_p99),
            ("batch size", record.batch_size),
            ("waiting", record.queue),
            ("utilization", share(record.utilization)),
            ("workers restarted", record.restarts),
            *slo,
        ),
        tables=(_points(record),),
        notes=notes_of(record.notes),
    )


def _points(record: Monitoring) -> Table:
    shown = record.points[-MOST_ROWS:]
    rows: list[tuple[Cell, ...]] = []
    for p in shown:
        ends = [None if end is None else f"≤ {format_seconds(end)}" for end in (p.latency_p50_s, p.latency_p99_s)]
        rates = f"{p.requests_per_s:.4g}", f"{p.failed_per_s:.3g}"
        rows.append((f"{p.at_s:.1f} s", *rates, *ends, f"{p.queue_items:g}", format_share(p.utilization), f"{p.workers_ready:g}", f"{p.restarts:g}"))
    title = "Looks" if len(shown) == len(record.points) else f"The last {len(shown)} of {len(record.points)} looks"
    columns = ("at", "requests/s", "failed/s", "p50", "p99", "waiting", "busy", "workers", "restarted")
    return Table(title=title, columns=columns, rows=tuple(rows), folded=True)
