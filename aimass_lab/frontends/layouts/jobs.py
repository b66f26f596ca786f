"""How plans of jobs beside models online are shown: when each job ends, what it costs, and what it costs the others."""

from __future__ import annotations

from ...headlines import describe_policy, format_measured, headline
from ...records import JobPlan, JobPolicyRun, JobsRun, Number, PlannedJob
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of

JOB = ("job", "ends", "deadline", "on time", "begins", "cost", "")
ONLINE = ("model", "p99 without jobs", "p99 beside them", "added", "target", "holds")


@lay_out.register
def _(record: JobPlan) -> Page:
    chosen = record.chosen
    tables = [
        Table(title=f"Jobs under {describe_policy(chosen)}", columns=JOB, rows=tuple(_outcomes(record, chosen))),
        Table(title="Models online, while there are jobs", columns=ONLINE, rows=tuple(_online(record, chosen))),
        Table(title="Policies", columns=("policy", "everything holds", "late jobs", "models beyond their target", "last job ends", "busy"), rows=tuple(
            map(_policy, record.runs)
        )),
        *((_ran(record.ran),) if record.ran else ()),
        Table(title="Less strict limits, simulated", columns=("change", "then everything holds"), rows=tuple(
            (remedy.change, "yes" if remedy.feasible else "no") for remedy in record.remedies
        )),
        Table(title="What was asked", columns=(
            "job", "kind", "of", "calls or steps", "items of each", "takes each", "device time", "devices at most", "tenant", "priority", "after",
        ), rows=tuple(map(_asked, record.jobs)), folded=True),
        Table(title="Models online", columns=("name", "models", "asked", "takes each", "tenant", "priority"), rows=tuple(
            (o.name, " + ".join(m.name for m in o.models), o.requests_per_s, o.call_time, o.tenant, o.priority) for o in record.online
        ), folded=True),
        *(
            Table(title=f"Under {describe_policy(run)}", columns=JOB, rows=tuple(_outcomes(record, run)), folded=True)
            for run in record.runs if run is not chosen
        ),
    ]  # fmt: skip
    return Page(
        title=f"{len(record.jobs)} job{'s' if len(record.jobs) > 1 else ''} on {record.devices} × {record.device}",
        headline=headline(record),
        tone="good" if record.feasible else "bad",
        facts=(
            ("last job ends", chosen.all_ended),
            ("devices busy until then", share(chosen.utilization)),
            ("device time of all jobs", None if len(record.jobs) < 2 else _total(record)),
            ("price of a device", record.price),
            ("jobs at once, at most", record.max_jobs),
            ("simulated time", record.span),
        ),
        tables=tuple(tables),
        remarks=(record.binding,),
        notes=notes_of(record.notes),
    )


def _ran(run: JobsRun) -> Table:
    columns = ("of", "figure", "measured", "predicted", "replayed", "error", "of it mechanism", "of it times of calls")
    rows = tuple(
        (m.model, m.name, m.measured, format_measured(m.predicted), m.replayed, share(m.error), share(m.mechanism_error), share(m.service_error))
        for m in run.metrics
    )
    length = "whole" if run.shortened.value == 1 else f"{run.shortened.value:.3g} times shorter"
    title = f"Run here under {describe_policy(run)}, {length}, beside {run.num_requests} requests: predicted, run, replayed"
    return Table(title=title, columns=columns, rows=rows)


def _outcomes(record: JobPlan, run: JobPolicyRun) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for job, outcome in zip(record.jobs, run.jobs, strict=True):
        ends = None if outcome.ends is None else format_measured(outcome.ends)
        rows.append((job.name, ends, job.deadline, share(outcome.on_time), outcome.begins, outcome.cost, outcome.text))
    return rows


def _online(record: JobPlan, run: JobPolicyRun) -> list[tuple[Cell, ...]]:
    return [
        (o.model, o.latency_p99_alone, format_measured(o.latency_p99), format_measured(o.added), model.latency_target, "yes" if o.meets else "no")
        for model, o in zip(record.online, run.online, strict=True)
    ]


def _policy(run: JobPolicyRun) -> tuple[Cell, ...]:
    late, beyond = sum(job.meets is False for job in run.jobs), sum(not model.meets for model in run.online)
    return describe_policy(run), "yes" if run.feasible else "no", late, beyond, run.all_ended, share(run.utilization)


def _asked(job: PlannedJob) -> tuple[Cell, ...]:
    return (
        job.name, job.kind, job.model.name, job.calls, job.batch_size, job.call_time, job.work, job.parallel, job.tenant, job.priority,
        ", ".join(job.after) or None,
    )  # fmt: skip


def _total(record: JobPlan) -> Number:
    from ...records import derived

    return derived(sum(job.work.value for job in record.jobs), "s", "sum over jobs", [(job.name, job.work) for job in record.jobs])
