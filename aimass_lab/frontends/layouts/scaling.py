"""How comparisons of fixed replicas and autoscalers are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import ScaleOption, ScalePlan
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of

TOP_OPTIONS = 10


@lay_out.register
def _(record: ScalePlan) -> Page:
    ordered = sorted(
        record.options, key=lambda o: (o is not record.options[record.recommended], not o.meets, o.replicas.value if o.meets else -o.attainment.value)
    )
    columns = ("kind", "autoscaler", "aims at", "from", "mean replicas", "cost", "attained", "held out", "p99", "no answer", "")
    tables = [Table(title="Best first", columns=columns, rows=tuple(map(_row, ordered[:TOP_OPTIONS])))]
    if ordered[TOP_OPTIONS:]:
        tables.append(Table(title="Further ones", columns=columns, rows=tuple(map(_row, ordered[TOP_OPTIONS:])), folded=True))
    return Page(
        title=f"Replicas of {record.model.name} under a load that changes",
        headline=headline(record),
        tone="good" if record.feasible else "bad",
        facts=(
            ("arrivals", record.load),
            ("to be answered within", record.latency_target),
            ("of all requests", share(record.attainment_target)),
            ("batch limit", record.max_batch_size),
            ("start-up of a replica", record.startup_time),
            ("between failures of a replica", record.failures),
            ("one replica is unstable from", record.replica_limit),
            ("all of them are unstable from", record.unstable_from),
            ("served", "the original" if record.technique == "none" else record.technique),
        ),
        tables=tuple(tables),
        remarks=(record.binding,),
        notes=notes_of(record.notes),
    )


def _row(option: ScaleOption) -> tuple[Cell, ...]:
    target = share(option.target) if option.target and option.target.unit == "ratio" else option.target
    return (
        option.kind, option.scaler, target, option.min_replicas, option.replicas, option.cost, share(option.attainment), share(option.held_out),
        option.latency_p99, share(option.dropped), option.reason,
    )  # fmt: skip
