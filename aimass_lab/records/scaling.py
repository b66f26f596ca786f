"""Replicas under a load that changes: a fixed number, an autoscaler, or a floor with an autoscaler above it, on the same arrivals."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record

AllocationKind = Literal["static", "dynamic", "hybrid"]
"""*static*: a fixed number. *dynamic*: an autoscaler from the fewest that are possible. *hybrid*: a floor, and an autoscaler above it."""


class ScaleOption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to follow the load."""

    kind: AllocationKind
    scaler: str
    """Name of the autoscaler; ``"none"`` for a fixed number."""
    target: Number | None = None
    """What the autoscaler aims at for one replica."""
    min_replicas: int
    max_replicas: int
    replicas: Number
    """Mean over time, those still starting included."""
    cost: Number | None = None
    attainment: Number
    """Share of all requests that are answered within the target; those that are not answered count as missed."""
    held_out: Number | None
    """The same on arrivals that nothing was chosen by; None where it does not meet the target anyway."""
    latency_p99: Number | None
    """Of the requests that were answered; None where none was."""
    dropped: Number
    """Share of the requests that got no answer."""
    meets: bool
    """Whether the lower end of the attainment is at least what is asked."""
    reason: str


class ScaleSeries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of the recommended option."""

    time_s: tuple[float, ...] = ()
    requests_per_s: tuple[float, ...] = ()
    wanted: tuple[int, ...] = ()
    ready: tuple[int, ...] = ()
    under_way: tuple[int, ...] = ()
    """Requests, waiting ones included."""


class ScalePlan(Record, frozen=True, kw_only=True, tag="scale_plan"):
    """How replicas should follow a load: what each way costs and attains on the same arrivals."""

    model: ModelInfo
    technique: str = "none"
    device: str
    load: str
    """The arrivals in words."""
    requests_per_s: Number
    """Mean."""
    latency_target: Number
    attainment_target: Number
    max_batch_size: int
    startup_time: Number
    failures: Number | None = None
    """Mean time between failures of a replica, where failures were asked for."""
    replica_limit: Number
    """Requests per second from which on the queue of one replica grows without bound."""
    unstable_from: Number
    """Requests per second from which on the queue of the most replicas grows without bound."""
    feasible: bool
    recommended: int
    """Place in `options`: the cheapest that meets the target; where none does, the one that attains most."""
    binding: str
    options: tuple[ScaleOption, ...]
    series: ScaleSeries
    notes: tuple[Note, ...] = ()
