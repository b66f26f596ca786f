"""What a scheduling policy is, and the waiting queue that any of them orders."""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from ..errors import InputError
from ..registry import Registry


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the server sees it when it arrives."""

    index: int
    """Its place in the order of arrival."""
    arrival_s: float
    num_items: int = 1
    """Rows it adds to a batch."""
    priority: int = 0
    """0 is the most urgent."""
    deadline_s: float = math.inf
    """Point in time by which its answer is wanted."""


class Policy(ABC):
    """The order in which waiting requests are served.

    A policy is a frozen dataclass; its fields are its options. It never delays work:
    when a batch starts is the server's business, a policy only says who is in it.
    """

    name: ClassVar[str]

    @abstractmethod
    def key(self, request: Request, now_s: float) -> float:
        """Return the request's rank, lower first, asked once, when it starts to wait.

        Ties go to the earlier arrival.

        Args:
            request: The request that starts to wait.
            now_s: The time at which it does.
        """


POLICIES: Registry[type[Policy]] = Registry("scheduling policy", "aimass_lab.scheduling")


def make_policy(name: str, **options: float) -> Policy:
    """Return the policy called `name`, with its options set.

    Raises:
        UnknownNameError: there is no such policy.
        InputError: it has no such option, or the option's value is out of range.
    """
    member = POLICIES[name]
    known = [field.name for field in fields(member)]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"scheduling policy {name!r} has no option {unknown[0]!r}", help=f"its options are: {', '.join(known) or 'none'}")
    return member(**options)


class Queue:
    """The requests that wait at one replica, in the order of a policy.

    Args:
        policy: Who goes first.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[float, int, Request]] = []
        self._arrivals: list[tuple[float, int]] = []
        self._waiting: set[int] = set()
        self.num_items = 0
        """Items of all requests that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest_arrival_s(self) -> float:
        """When the request that has waited longest arrived; infinity when nothing waits."""
        while self._arrivals and self._arrivals[0][1] not in self._waiting:
            heapq.heappop(self._arrivals)
        return self._arrivals[0][0] if self._arrivals else math.inf

    def add(self, request: Request, now_s: float) -> None:
        """Let `request` wait."""
        heapq.heappush(self._heap, (self._policy.key(request, now_s), request.index, request))
        heapq.heappush(self._arrivals, (request.arrival_s, request.index))
        self._waiting.add(request.index)
        self.num_items += request.num_items

    def take(self, max_items: int) -> list[Request]:
        """Remove and return the next batch: in order, until the next one would not fit.

        The first is taken in any case, as nothing else could ever serve it.
        """
        batch: list[Request] = []
        room = max_items
        while self._heap and (not batch or self._heap[0][2].num_items <= room):
            request = heapq.heappop(self._heap)[2]
            room -= request.num_items
            self.num_items -= request.num_items
            self._waiting.remove(request.index)
            batch.append(request)
        return batch
