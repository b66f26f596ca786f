"""How rotations are shown: what each policy did, how well it was foretold, and what the error is made of."""

from __future__ import annotations

from ...headlines import describe_policy, format_measured, headline
from ...records import Rotation, RotationMetric, RotationRun
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of, where


@lay_out.register
def _(record: Rotation) -> Page:
    tables = [_policies(record), _errors(record), _models(record), *(_by_model(run) for run in record.runs if len(record.models) > 1)]
    return Page(
        title=f"{', '.join(m.model.name for m in record.models)} in turn on {record.environment.device_name}",
        headline=headline(record),
        facts=(
            ("clock", {"device": "time that the device worked", "wall": "the wall's"}[record.clock]),
            ("lanes", record.lanes),
            ("load", share(record.load)),
            ("calls arrive over", record.span),
            ("measured on", where(record.environment)),
        ),
        tables=tuple(tables),
        remarks=("The mechanism's error is that of the simulation given the segment times of the run; the rest is that segments took otherwise.",),
        notes=notes_of(record.notes),
    )


def _policies(record: Rotation) -> Table:
    columns = ("policy", "calls", "mean", "p50", "p99", "mean slowdown", "longest wait", "interruptions", "fairness", "busy")
    rows: list[tuple[Cell, ...]] = []
    for run in record.runs:
        shown = [run.metric(name).measured for name in ("mean latency", "p50 latency", "p99 latency", "mean slowdown")]
        rows.append((describe_policy(run), run.num_jobs, *shown, run.longest_wait, run.interruptions, run.fairness, share(run.utilization)))
    return Table(title="Measured", columns=columns, rows=tuple(rows))


def _errors(record: Rotation) -> Table:
    columns = ("policy", "figure", "measured", "predicted", "replayed", "error", "of it mechanism", "of it segment times")
    rows = [(describe_policy(run), *_error(metric)) for run in record.runs for metric in run.metrics if not metric.model]
    return Table(title="Predicted, run, replayed", columns=columns, rows=tuple(rows))


def _models(record: Rotation) -> Table:
    columns = ("model", "batch", "segments", "device time of a call", "rate", "priority", "weight", "deadline")
    rows = tuple((m.model.name, m.batch_size, m.segments, m.service_time, m.rate, m.priority, f"{m.weight:g}", m.deadline) for m in record.models)
    return Table(title="Models", columns=columns, rows=rows)


def _by_model(run: RotationRun) -> Table:
    columns = ("model", "figure", "measured", "predicted", "replayed", "error", "of it mechanism", "of it segment times")
    return Table(title=f"{describe_policy(run)}, by model", columns=columns, rows=tuple((m.model, *_error(m)) for m in run.metrics if m.model), folded=True)


def _error(metric: RotationMetric) -> tuple[Cell, ...]:
    predicted = format_measured(metric.predicted)
    return metric.name, metric.measured, predicted, metric.replayed, share(metric.error), share(metric.mechanism_error), share(metric.service_error)
