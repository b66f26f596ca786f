"""How plans and specs are shown."""

from __future__ import annotations

from ...headlines import format_number, headline
from ...records import Number, Plan, ServingSpec
from ..page import Cell, Page, Table, share
from .base import ladder_table, lay_out, notes_of, rehearsed_table

TOP_OPTIONS = 8


@lay_out.register
def _(record: Plan) -> Page:
    options: list[tuple[Cell, ...]] = [
        (o.device, o.replicas, o.max_batch_size, o.max_wait, o.latency_p99, share(o.utilization), o.cost, o.reason) for o in record.options[:TOP_OPTIONS]
    ]
    shown = "Considered" if len(record.options) <= TOP_OPTIONS else f"Considered (the best {TOP_OPTIONS} of {len(record.options)})"
    return Page(
        title=f"Plan for {record.model.name}: {format_number(record.target.requests_per_s)}, p99 under {format_number(record.target.latency_p99)}",
        headline=headline(record),
        tone="warn" if record.replicas.quality == "noisy" else "good" if record.feasible else "bad",
        facts=(
            ("device", record.device),
            ("replicas", record.replicas),
            ("batch limit", record.max_batch_size),
            ("waits for a batch", record.max_wait),
            ("latency p50", record.latency_p50),
            ("latency p99", record.latency_p99),
            ("utilization", share(record.utilization)),
            ("grows unstable at", record.throughput_limit),
            ("server's own time, in it", record.server_time.typical if record.server_time else None),
            ("cost", record.cost),
            ("budget", record.target.budget),
            ("bursts", f"{record.burst:g} times the rate between them" if record.burst > 1 else None),
            ("policy", record.scheduling_policy),
            ("served", "the original" if record.technique == "none" else record.technique),
        ),
        tables=(
            Table(title=shown, columns=("device", "replicas", "batch limit", "wait", "p99", "utilization", "cost", ""), rows=tuple(options)),
            ladder_table(record.service_time, "Latencies the simulation ran on"),
            Table(
                title="One replica at other loads",
                columns=("at one replica", "p99", "utilization"),
                rows=tuple((point.requests_per_s, point.latency_p99, share(point.utilization)) for point in record.by_load),
                folded=True,
            ),
        ),
        remarks=() if record.binding in headline(record) else (record.binding,),
        notes=notes_of(record.notes),
    )


@lay_out.register
def _(record: ServingSpec) -> Page:
    from ...export import read_exporter  # every format, which nothing else that is shown needs

    fields = ((name.replace("_", " "), getattr(record, name)) for name in record.__struct_fields__)
    numbers = [(name, share(value) if name == "utilization" else value) for name, value in fields if isinstance(value, Number)]
    return Page(
        title=f"Resource spec of {record.name}",
        headline=headline(record),
        facts=(*numbers, ("image", record.image), ("digest", record.digest)),
        tables=(rehearsed_table(record.rehearsed),) if record.rehearsed else (),
        notes=notes_of(record.notes),
        listing=tuple(read_exporter(record.export_format).export(record).items()),
    )
