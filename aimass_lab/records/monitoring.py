"""A running server, watched for a while: what it answered and how soon, what waited, how busy it was, and what is left of its error budget."""

from __future__ import annotations

import msgspec

from .number import Note, Number, Record


class MonitorPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One look; rates and times are of the stretch since the one before."""

    at_s: float
    """From the first look."""
    requests_per_s: float
    failed_per_s: float
    """Answered with 4xx or 5xx."""
    latency_p50_s: float | None
    """None where nothing was answered."""
    latency_p99_s: float | None
    queue_items: float
    """That wait for a worker, at this moment."""
    utilization: float
    """Share of the time that a ready worker had a batch."""
    workers_ready: float
    restarts: float


class ErrorBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the service level objective lets fail, and how much of that was used."""

    latency: Number
    """Within which requests should be answered."""
    attainment_target: float
    """Share of all requests that should be."""
    attained: Number
    spent: Number
    """Share of the budget that this stretch used up: above 1, the objective was missed."""


class Monitoring(Record, frozen=True, kw_only=True, tag="monitoring"):
    """One server, watched for a while by its own metrics."""

    url: str
    models: tuple[str, ...]
    """Name and version of each."""
    span: Number
    requests: Number
    failed: Number
    throughput: Number
    latency_p50: Number | None
    """In the server, the way to the client left out; None where nothing was answered."""
    latency_p99: Number | None
    batch_size: Number | None
    """Mean items."""
    queue: Number
    """Items that wait, mean of the looks."""
    utilization: Number
    restarts: Number
    budget: ErrorBudget | None = None
    """None where no latency was given and none is promised."""
    points: tuple[MonitorPoint, ...]
    notes: tuple[Note, ...] = ()
