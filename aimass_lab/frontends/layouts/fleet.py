"""How allocations on a fleet are shown: what each model gets, on which nodes, what binds, and the formula's first cut beside it."""

from __future__ import annotations

from ...headlines import format_measured, format_number, headline
from ...records import FleetAllocation, FleetModel, FleetNode
from ...units import format_count, format_share
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of

TOP = 40
"""Rows of a table; of more, the rest is folded away."""
MODEL = ("model", "asked", "p99 at most", "served", "variant", "on", "replicas", "batch limit", "p99, all together", "busy", "")
NODE = ("nodes", "type", "replicas on each", "cores used", "memory used")


@lay_out.register
def _(record: FleetAllocation) -> Page:
    tables = [
        *_cut("Models", MODEL, list(map(_model, record.models))),
        *_cut("Nodes", NODE, list(map(_node, record.nodes))),
        Table(title="Limits", columns=("limit", "used", "of", "binds", "more of it", "buys", ""), rows=tuple(
            (limit.name, limit.used, limit.limit, "yes" if limit.binds else "no", limit.more, limit.gain, limit.text) for limit in record.limits
        )),
        Table(title="Formula and answer", columns=("model", "busy by the formula", "its replicas", "of the answer", "why they differ"), rows=tuple(
            (m.model.name, m.formula_busy, m.formula_replicas, m.replicas, m.formula_difference) for m in record.models if m.formula_difference
        )),
        Table(title="One replica", columns=("model", "carries", "cores", "memory", "device memory", "isolation"), rows=tuple(
            (m.model.name, m.capacity, m.cores, m.memory, m.device_memory, m.isolation) for m in record.models if m.replicas is not None
        ), folded=True),
        Table(title="Types of nodes", columns=("type", "device", "devices", "cores", "memory", "price", "at most", "used", "boot"), rows=tuple(
            (t.name, t.device, t.devices, t.cores, t.memory, t.price, t.count, t.used, t.boot) for t in record.node_types
        ), folded=True),
    ]  # fmt: skip
    missed = any(not m.meets for m in record.models if m.replicas is not None)
    return Page(
        title=f"{format_count(len(record.models), 'model')} on one fleet",
        headline=headline(record),
        tone="bad" if record.status == "not all served" else "warn" if missed else "good",
        facts=(
            ("aim", {"cost": "serve everybody at the least cost", "value": "the most value within the limits"}[record.objective]),
            ("cost", record.cost),
            ("distance to the best", share(record.gap)),
            ("least share served", share(record.least_share)),
            ("fairness (Jain)", record.fairness),
            ("least share after losing one node", share(record.node_loss)),
            ("bursts", f"{record.burst:g} times the rate between them" if record.burst > 1 else "none"),
            ("headroom", f"{format_share(record.headroom)}"),
            ("time to choose", record.solve_time),
        ),
        tables=tuple(tables),
        remarks=(record.binding,),
        notes=notes_of(record.notes),
    )


def _cut(title: str, columns: tuple[str, ...], rows: list[tuple[Cell, ...]]) -> list[Table]:
    first = Table(title=title, columns=columns, rows=tuple(rows[:TOP]))
    return [first] if len(rows) <= TOP else [first, Table(title=f"{title}, further ones", columns=columns, rows=tuple(rows[TOP:]), folded=True)]


def _model(m: FleetModel) -> tuple[Cell, ...]:
    name = f"{m.model.name} ({m.tenant})" if m.tenant else m.model.name
    where = None if m.node_type is None else m.node_type + (f", {m.device_share}" if m.device_share not in (None, "whole") else "")
    p99 = None if m.latency_p99 is None else format_measured(m.latency_p99)
    variant = "the original" if m.technique == "none" else m.technique
    return name, m.requests_per_s, m.latency_target, share(m.share), variant, where, m.replicas, m.max_batch_size, p99, share(m.utilization), m.reason


def _node(node: FleetNode) -> tuple[Cell, ...]:
    held = ", ".join(f"{r.count} × {r.model}" + ("" if r.device is None else f" on device {r.device}") for r in node.replicas)
    return node.count, node.node_type, held, node.cores_used, format_number(node.memory_used) if node.memory_used else None
