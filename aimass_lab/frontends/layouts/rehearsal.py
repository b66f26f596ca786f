"""How rehearsals are shown: what was planned, predicted and measured, and what the error is made of."""

from __future__ import annotations

from ...headlines import headline
from ...records import Rehearsal
from ...units import format_count
from ..page import Page, Table, share
from .base import ladder_table, lay_out, notes_of, rehearsed_table, where

VERDICTS = {
    "measured": "measured",
    "starved": "not judged: other work, or too few cores, was in the figures",
    "interrupted": "ended early",
}


@lay_out.register
def _(record: Rehearsal) -> Page:
    missed = record.verdict == "measured" and not all(metric.inside for metric in record.metrics)
    tables = [rehearsed_table(record.metrics), _errors(record), ladder_table(record.service_time, "Batches in the server under load")]
    if record.recoveries:
        tables.append(_recoveries(record))
    planned = "" if record.planned_replicas is None else f" of {record.planned_replicas} planned"
    return Page(
        title=f"{record.bundle} at {record.requests_per_s.value:.4g} requests/s, {record.pattern}",
        headline=headline(record),
        tone="bad" if record.num_failed else "plain" if record.verdict == "starved" else "warn" if missed else "good",
        facts=(
            ("verdict", VERDICTS[record.verdict]),
            ("replicas run", f"{record.replicas}{planned}"),
            ("each", f"{format_count(record.workers, 'worker')} of {format_count(record.threads, 'thread')}, {record.format}"),
            ("batch limit", record.max_batch_size),
            ("waits for a batch", record.max_wait),
            ("requests", f"{record.num_requests:,} over {record.span.value:.3g} s, {record.num_failed:,} failed"),
            ("server's own time", record.server_time.typical),
            ("front end, by request", record.front_end),
            ("answers in full batches", record.capacity),
            ("start-up", record.startup),
            ("start-up of a worker", record.worker_startup),
            ("measured on", where(record.environment)),
        ),
        tables=tuple(tables),
        remarks=(
            "Replayed: the simulation given the arrivals and the batch times of the run; what is left is the mechanism's error. "
            "Times: what batches and server took otherwise than just before. Arrivals: what these very ones did otherwise than their law does on average.",
        ),
        notes=notes_of(record.notes),
    )


def _errors(record: Rehearsal) -> Table:
    rows = tuple((m.name, *map(share, (m.error, m.mechanism_error, m.service_error, m.arrivals_error, m.planned_error))) for m in record.metrics)
    columns = ("figure", "error", "of it mechanism", "of it times", "of it arrivals", "error of the plan")
    return Table(title="What the error is made of", columns=columns, rows=rows)


def _recoveries(record: Rehearsal) -> Table:
    rows = tuple((r.ended_at, r.handed_on, r.failed, r.ready_after) for r in record.recoveries)
    return Table(title="Workers that ended", columns=("at", "requests handed on", "requests failed", "another ready after"), rows=rows)
