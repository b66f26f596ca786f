"""The resource spec: what to run, with how much, and where each number comes from."""

from __future__ import annotations

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record, digest_of
from .recipe import Recipe
from .rehearsal import RehearsalMetric


class ServingSpec(Record, frozen=True, kw_only=True, tag="serving_spec"):
    """The resource spec: what to run, with how much, and where each number comes from."""

    api_version: str = "aimass.dev/v1"
    name: str
    """DNS label: lower-case letters, digits and hyphens."""
    model: ModelInfo
    recipe: Recipe
    environment: Environment | None = None
    device: str
    accelerators: Number
    """Per replica; 0 on a CPU."""
    resource: str | None = None
    """Name under which a cluster offers the device, where the device's table gives one."""
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)
    """Labels of the nodes that have the device, as the device's table gives them."""
    replicas: Number
    min_replicas: Number
    max_replicas: Number
    cpu_cores: Number
    """Per replica."""
    memory_bytes: Number
    """Per replica: request and limit."""
    max_batch_size: Number
    max_wait: Number
    scheduling_policy: str = "fcfs"
    scale_at: Number
    """Requests per second and replica at which one more replica is wanted."""
    startup_time: Number
    requests_per_s: Number
    latency_p99_target: Number
    latency_p99: Number | None
    utilization: Number
    cost: Number | None = None
    image: str
    """Container image; the bundle's Dockerfile builds it."""
    export_format: str = "kubernetes"
    """The exporter it was asked for; no part of what is promised, so not of the digest."""
    rehearsed: tuple[RehearsalMetric, ...] = ()
    """What the plan's bundle did at the planned load, beside what was planned; empty: it was not run."""
    notes: tuple[Note, ...] = ()

    @property
    def digest(self) -> str:
        """Of the canonical JSON; every export carries it."""
        return digest_of(self)


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing a check found."""

    code: str
    """``"E-..."`` is an error, ``"W-..."`` a warning."""
    path: str
    """JSON pointer or file the finding is about."""
    text: str
