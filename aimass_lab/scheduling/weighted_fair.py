"""Weighted fair share: tenants get the device in proportion to their weights."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Queue, Request, require_positive


@POLICIES.register("weighted_fair")
@dataclass(frozen=True, kw_only=True)
class WeightedFair(Policy):
    """Serve the tenant that has had least for its weight; within a tenant, in the order of arrival.

    What counts is the device time that was really used, so expected times need not be right. A tenant that had nothing to do
    starts level with the others: unused time is not saved up (start-time fair queueing, Goyal, Vin and Cheng 1997).
    """

    name: ClassVar[str] = "weighted_fair"

    quantum_s: float = 0.005
    """Device time after which a running job makes room for a tenant that has had less."""

    def __post_init__(self) -> None:
        if not math.isinf(self.quantum_s):
            require_positive("quantum_s", self.quantum_s)

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The time of arrival: the order within a tenant."""
        return request.arrival_s

    def queue(self) -> Queue:
        """A new, empty waiting line with a queue for each tenant."""
        return _FairQueue(self)


class _FairQueue(Queue):
    """One queue a tenant, and how much each tenant has had for its weight: its virtual time."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._tenants: dict[str, Queue] = {}
        self._had: defaultdict[str, float] = defaultdict(float)
        self._level = 0.0
        """Virtual time of the tenant that was served last."""

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    @property
    def oldest_arrival_s(self) -> float:
        """When the request that has waited longest arrived; infinity when nothing waits."""
        return min((line.oldest_arrival_s for line in self._tenants.values()), default=math.inf)

    def add(self, request: Request, now_s: float, used_s: float = 0.0) -> None:
        """Let `request` wait."""
        line = self._tenants.get(request.tenant)
        if line is None:
            line = self._tenants[request.tenant] = Queue(self.policy)
        if not len(line):
            self._had[request.tenant] = max(self._had[request.tenant], self._level)
        line.add(request, now_s, used_s)
        self.num_items += request.num_items

    def head(self) -> Request:
        """Whoever is next: of the tenant that has had least."""
        return min((line.head() for line in self._tenants.values() if len(line)), key=lambda r: (self._had[r.tenant], r.arrival_s, r.index))

    def pop(self) -> Request:
        """Remove and return whoever is next."""
        request = self.head()
        self._tenants[request.tenant].pop()
        self._level = self._had[request.tenant]
        self.num_items -= request.num_items
        return request

    def take(self, max_items: int) -> list[Request]:
        """Remove and return the next batch; tenants take turns within it, as if every item took equally long."""
        batch: list[Request] = []
        had, level, room = dict(self._had), min(map(self._had.__getitem__, self._tenants)), max_items
        while len(self) and (not batch or self.head().num_items <= room):
            batch.append(self.pop())
            room -= batch[-1].num_items
            self._had[batch[-1].tenant] += batch[-1].work / batch[-1].weight
        self._had.update(had)  # what they really had is told afterwards, to `account`
        self._level = level
        return batch

    def account(self, request: Request, used_s: float) -> None:
        """Charge the tenant."""
        self._had[request.tenant] += used_s / request.weight

    def should_yield(self, request: Request, now_s: float, used_s: float, turn_s: float) -> bool:
        """After a quantum, if another tenant has had less."""
        if turn_s < self.policy.quantum_s or not len(self):
            return False
        return self._had[self.head().tenant] < self._had[request.tenant]
