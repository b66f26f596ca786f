"""Several models on one fleet: which variant of each runs where, with how many replicas, on which nodes, and what binds."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record

FleetStatus = Literal["all served", "not all served"]
FleetObjective = Literal["cost", "value"]


class FleetNodeType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One type of node; None: unknown, so it binds nothing, or for `count` without a limit."""

    name: str
    device: str
    devices: int
    """Accelerators in one node; 0 where replicas compute on its cores."""
    cores: Number | None = None
    memory: Number | None = None
    device_memory: Number | None = None
    price: Number | None = None
    boot: Number
    """From asking for a node until it can run something."""
    count: int | None = None
    used: int
    """Nodes of this type in the answer."""


class FleetModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model: what is asked, and what it gets; where it is not served, all that describes its replicas is None."""

    model: ModelInfo
    tenant: str = ""
    value: float = 1.0
    """What attaining its whole rate is worth."""
    requests_per_s: Number
    latency_target: Number
    share: Number
    """Share of its rate that is served within the target; the rest has to be turned away."""
    technique: str | None = None
    node_type: str | None = None
    device_share: str | None = None
    """``"whole"``, ``"mig/2"``, ``"mps/4"``, ``"time_slice/4"``; None too where replicas compute on a node's cores."""
    isolation: str | None = None
    """What its replicas have for themselves, in words."""
    replicas: Number | None = None
    max_batch_size: int | None = None
    capacity: Number | None = None
    """Requests per second that one replica carries within the target."""
    cores: Number | None = None
    """Of one replica."""
    memory: Number | None = None
    """Of the host, for one replica."""
    device_memory: Number | None = None
    latency_p50: Number | None = None
    latency_p99: Number | None = None
    """Of the simulation of all models together; None as well where a queue grows without bound."""
    utilization: Number | None = None
    """Share of time that a replica is at work, its neighbours' turns included."""
    meets: bool = False
    """Whether the upper end of the simulated p99 is within the target."""
    formula_busy: Number | None = None
    """R_alloc at the rate that is served: devices (or cores) that are busy on average."""
    formula_replicas: Number | None = None
    """The formula's first cut."""
    formula_difference: str | None = None
    """Why the answer has another number of replicas, or why there is no first cut."""
    options: int
    """Ways to run it that were weighed."""
    reason: str


class FleetReplicas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas of one model on one node."""

    model: str
    count: int
    device: int | None = None
    """Number of the node's accelerator; None: they need none."""


class FleetNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes that hold the same."""

    node_type: str
    count: int
    replicas: tuple[FleetReplicas, ...]
    cores_used: Number
    memory_used: Number | None = None
    """None where a replica's memory is unknown."""


class FleetLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One limit: how much of it is used, and what more of it would buy."""

    name: str
    limit: Number
    used: Number
    binds: bool
    """Whether more of it makes the answer better."""
    more: Number | None = None
    """By how much it was raised to see; None where there is room left anyway."""
    gain: Number | None = None
    """What that buys: cost saved, or requests per second served in addition."""
    text: str


class FleetAllocation(Record, frozen=True, kw_only=True, tag="fleet_allocation"):
    """Which variant of each model runs on which nodes with how many replicas, and what binds."""

    status: FleetStatus
    objective: FleetObjective
    models: tuple[FleetModel, ...]
    node_types: tuple[FleetNodeType, ...]
    nodes: tuple[FleetNode, ...]
    cost: Number | None = None
    """None where a type of node has no price: then nodes are counted."""
    gap: Number | None = None
    """How far the answer may be from the best there is, as a share of it; 0 is proven."""
    least_share: Number
    fairness: Number
    """Jain's index of the tenants' shares over their weights: 1 is in proportion."""
    node_loss: Number
    """Least share that any model still gets when one node is lost, whichever it is, before anything is moved."""
    burst: float = 1.0
    headroom: float = 0.0
    binding: str
    limits: tuple[FleetLimit, ...] = ()
    solve_time: Number
    notes: tuple[Note, ...] = ()

    def model(self, name: str) -> FleetModel:
        """What the model of this name gets.

        Raises:
            KeyError: there is none.
        """
        for model in self.models:
            if model.model.name == name:
                return model
        raise KeyError(name)
