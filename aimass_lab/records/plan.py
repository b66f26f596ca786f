"""Devices, replicas and batching for a request rate under a latency target."""

from __future__ import annotations

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record
from .profile import BatchPoint
from .rehearsal import Experience, ServerTime


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the service."""

    requests_per_s: Number
    latency_p99: Number
    max_replicas: int = 1000
    headroom: float = 0.0
    """Spare share of the rate: 0.2 plans for 1.2 times `requests_per_s`."""
    budget: Number | None = None
    """USD per hour that is never exceeded."""


class PlanOption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One allocation that was considered."""

    device: str
    replicas: Number
    max_batch_size: Number
    max_wait: Number
    latency_p99: Number | None
    """None where the queue grows without bound, or where `reason` ruled it out before a simulation."""
    utilization: Number | None
    """Share of time a replica computes; None as for `latency_p99`."""
    cost: Number | None = None
    feasible: bool
    reason: str
    """Why it is not the answer, or that it is."""


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one replica of a plan does at one load."""

    requests_per_s: Number
    """At this replica."""
    latency_p99: Number | None
    """None where the queue grows without bound."""
    utilization: Number


class Plan(Record, frozen=True, kw_only=True, tag="plan"):
    """Devices, replicas and batching for a request rate under a latency target."""

    model: ModelInfo
    technique: str = "none"
    """What is served instead of the original; ``"none"`` is the original."""
    target: Target
    burst: float = 1.0
    """Rate of bursts over the rate between them that it was made for; 1 is a Poisson stream."""
    feasible: bool
    device: str
    replicas: Number
    max_batch_size: Number
    max_wait: Number
    scheduling_policy: str
    latency_p50: Number | None
    latency_p99: Number | None
    """None where the queue grows without bound."""
    utilization: Number
    """Share of time a replica computes; 1 where the queue grows without bound."""
    throughput_limit: Number
    """Requests per second at which the queue of these replicas starts to grow without bound."""
    cost: Number | None = None
    binding: str
    """What binds; for an infeasible plan also what would be feasible."""
    service_time: tuple[BatchPoint, ...] = ()
    """The latencies by batch size that the simulation ran on."""
    server_time: ServerTime | None = None
    """What the server adds to every request, in the latencies above; None: they are without it."""
    experience: Experience | None = None
    """What the latencies above were corrected by; None: nothing."""
    options: tuple[PlanOption, ...] = ()
    by_load: tuple[LoadPoint, ...] = ()
    """The same batching at other loads, by rate: what follows from it for another rate, target or number of replicas."""
    notes: tuple[Note, ...] = ()
