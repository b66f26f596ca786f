"""How the resources that a rate asks for are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import ResourceDemand
from ..page import Page, Table, share
from .base import lay_out, notes_of


@lay_out.register
def _(record: ResourceDemand) -> Page:
    forms = tuple(
        ("→ " * (f.name == record.chosen) + f.name, f.time_per_request, f.busy_devices, f.replicas, *map(share, (f.held_out_error, f.network_error)))
        for f in record.forms
    )
    coefficients = tuple((c.family, c.alpha, c.beta, c.epsilon, share(c.held_out_error)) for c in record.coefficients)
    return Page(
        title=f"Resources for {record.model.name} at {record.requests_per_s.value:g} requests/s on {record.device}",
        headline=headline(record),
        facts=(
            ("compute, C", record.compute_flops_per_s),
            ("memory, S", record.memory_capacity_bytes),
            ("memory traffic, S", record.memory_bytes_per_s),
            ("network, N", record.network_bytes_per_s),
            ("operators launched", record.launches_per_s),
            ("γ", record.gamma),
            ("busy devices, R", record.busy_devices),
            ("highest utilization", share(record.utilization)),
            ("replicas, at least", record.replicas),
            ("δ per decision", record.decision_time),
            ("J", record.jobs),
            ("T_schedule, deciding", record.schedule_overhead),
            ("T_schedule, makespan", record.makespan),
        ),
        tables=(
            Table(
                title="Busy devices by form: R = α·C + β·S + γ·N + ε·launches",
                columns=("form", "per request", "busy", "replicas ≥", "error, operators", "error, networks"),
                rows=forms,
            ),
            Table(title="Coefficients", columns=("operators", "α", "β", "ε per launch", "held-out error"), rows=coefficients, folded=True),
        ),
        remarks=tuple(text for text in (record.difference, "Replicas are a lower bound: waiting and bursts ask for more; a plan simulates them.") if text),
        notes=notes_of(record.notes),
    )
