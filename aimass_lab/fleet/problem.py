"""What is to be allocated, as plain numbers: node types, ways to run a replica, models with their rates, and limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Resource = Literal["replicas", "devices", "cores", "memory"]
"""What a tenant's quota counts; memory is that of nodes, in bytes."""
Objective = Literal["cost", "value"]
WHOLE = "whole"
"""The lot of replicas that have a device for themselves."""
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Node:
    """One type of node; a capacity that is unknown binds nothing and is infinite."""

    name: str
    cores: float = math.inf
    memory: float = math.inf
    """Bytes of the host."""
    devices: int = 0
    """Accelerators in one node."""
    price: float = 1.0
    """USD per hour, or 1 where nodes are counted."""
    count: int = 1_000_000
    """Most nodes of this type."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run replicas of one model."""

    model: int
    node: int
    """Place of its node type."""
    cores: float = 0.0
    memory: float = 0.0
    """Bytes of the host."""
    lot: str = ""
    """How it takes a device: replicas share one only with others of the same lot. Empty: it needs none."""
    compute: float = 0.0
    """Part of one device's compute."""
    device_memory: float = 0.0
    """Part of one device's memory."""
    rate: float
    """Requests per second that one replica carries within its model's target."""
    tag: Any = field(default=None, compare=False)
    """What it stands for outside of the program."""

    @property
    def device(self) -> float:
        """Part of a device that it takes, by what it takes most of."""
        return max(self.compute, self.device_memory) if self.lot else 0.0

    def use(self, resource: Resource) -> float:
        """What one replica takes of `resource`."""
        return {"replicas": 1.0, "devices": self.device, "cores": self.cores, "memory": self.memory}[resource]


@dataclass(frozen=True, kw_only=True)
class Client:
    """One model with what is asked of it."""

    name: str
    rate: float
    """Requests per second, headroom included."""
    value: float = 1.0
    """What attaining its whole rate is worth."""
    tenant: str = ""
    """Empty: it stands for itself."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """Most that one tenant may hold."""

    tenant: str
    resource: Resource
    limit: float


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The whole question."""

    nodes: tuple[Node, ...]
    clients: tuple[Client, ...]
    options: tuple[Option, ...]
    budget: float = math.inf
    """USD per hour."""
    max_jobs: float = math.inf
    """Most replicas of all models together."""
    quotas: tuple[Quota, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    """Of tenants, or models without one, where not everything fits; 1 if not given."""
    objective: Objective = "cost"

    def full(self, option: int) -> int:
        """Replicas of an option that carry its model's whole rate."""
        return self._full[option]

    @cached_property
    def _full(self) -> list[int]:
        return [max(1, math.ceil(self.clients[o.model].rate / o.rate - EPS)) for o in self.options]

    def most(self, options: Iterable[int]) -> int:
        """Replicas of all models together, with none but these options, that are never too few; nodes neither: one a replica."""
        most: dict[int, int] = {}
        for o in options:
            model = self.options[o].model
            most[model] = max(most.get(model, 0), self.full(o))
        return sum(most.values())

    def groups(self) -> list[tuple[str, list[int], float]]:
        """Who shares fairly: name, models and weight of each tenant; a model without one is its own."""
        names = [client.tenant or client.name for client in self.clients]
        kinds = [(bool(client.tenant), name) for client, name in zip(self.clients, names, strict=True)]
        return [(name, [i for i, kind in enumerate(kinds) if kind == (tenant, name)], self.weights.get(name, 1.0)) for tenant, name in dict.fromkeys(kinds)]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One node and the replicas on it."""

    node: int
    replicas: tuple[tuple[int, int, int], ...]
    """Option, device of the node (-1 where none is needed) and how many, in that order."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Which option each model takes, with how many replicas, and where they are."""

    chosen: tuple[int | None, ...]
    """Place of its option by model; None: it is not served."""
    replicas: tuple[int, ...]
    shares: tuple[float, ...]
    """Share of its rate that each model gets, by model."""
    placed: tuple[Placed, ...]
    cost: float
    elastic: bool
    """Not every model gets its whole rate."""
    bound: float
    """What no allocation can be better than: least cost, or where that was not asked for the largest attained value."""
    exact: bool
    """Proven: neither nodes nor replicas can be arranged better."""

    def value(self, problem: Problem) -> float:
        """Attained value: of each model what it is worth times its share."""
        return sum(client.value * share for client, share in zip(problem.clients, self.shares, strict=True))


def cost_of(problem: Problem, placed: Sequence[Placed]) -> float:
    """What these nodes cost, in USD per hour."""
    return sum(problem.nodes[p.node].price for p in placed)


def shares_of(problem: Problem, chosen: Sequence[int | None], replicas: Sequence[int]) -> tuple[float, ...]:
    """Share of its rate that each model gets."""
    served = zip(problem.clients, chosen, replicas, strict=True)
    return tuple(0.0 if o is None else min(1.0, count * problem.options[o].rate / client.rate) for client, o, count in served)
