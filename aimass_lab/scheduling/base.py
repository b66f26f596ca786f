"""What a scheduling policy is, and the waiting line that it orders."""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import InputError
from ..options import changed_options, read_call, read_options, write_call
from ..registry import Registry


@dataclass(frozen=True, slots=True)
class Request:
    """One request, or one job, as it is known when it arrives."""

    index: int
    """Its place in the order of arrival."""
    arrival_s: float
    num_items: int = 1
    """Rows it adds to a batch."""
    priority: int = 0
    """0 is the most urgent."""
    deadline_s: float = math.inf
    """Point in time by which its answer is wanted."""
    expected_s: float | None = None
    """Device time that it is expected to take; None: not known, and its items stand for it."""
    tenant: str = ""
    """On whose behalf."""
    weight: float = 1.0
    """The tenant's weight: under load its share of the device, relative to the others'."""
    job: str = ""
    """The job that it is a part of, such as one trial of a search; empty: it stands for itself."""

    @property
    def work(self) -> float:
        """How much it asks for: expected device time where it is known, else items."""
        return self.num_items if self.expected_s is None else self.expected_s


class Policy(ABC):
    """The order in which waiting requests are served, and when a running one makes room.

    A policy is a frozen dataclass; its fields are its options. It never delays work: when a batch starts is the server's
    business, a policy says who is in it. What has begun can make room only at the end of a segment, and only where work is cut
    into segments: see `run_jobs`. A server that runs whole batches asks for the order alone.
    """

    name: ClassVar[str]
    preemptive: bool = False
    """Whether a running job makes room for one that ranks before it."""
    quantum_s: float = math.inf
    """Device time after which a running job makes room for whoever waits."""

    @property
    def text(self) -> str:
        """What `read_policy` makes it of: its name, and the options that differ from their defaults."""
        return write_call(self.name, changed_options(self))

    @abstractmethod
    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """Return the request's rank, lower first, asked whenever it starts to wait, and while it runs.

        Ties go to the earlier arrival. While a request waits, its rank must keep its place among the others.

        Args:
            request: The request.
            now_s: The time at which it starts to wait, or at which its turn is looked at.
            used_s: Device time that it has had.
        """

    def queue(self) -> Queue:
        """A new, empty waiting line in this order."""
        return Queue(self)

    def sped_up(self, factor: float) -> Policy:
        """The policy for a simulation that lets `factor` seconds pass in one, with segments as long as they are."""
        return self


POLICIES: Registry[type[Policy]] = Registry("scheduling policy", "aimass_lab.scheduling")


def make_policy(name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Policy:
    """Return the policy called `name`, with its options set.

    Args:
        name: Of `POLICIES`.
        options: Option -> value, or the value's text.
        more: The same as keywords.

    Raises:
        UnknownNameError: there is no such policy.
        InputError: it has no such option, or the option's value is out of range.
    """
    member = POLICIES[name]
    return member(**read_options(member, f"the scheduling policy {name!r}", {**(options or {}), **more}))


def read_policy(text: str) -> Policy:
    """Make the policy that a text names, with its options in brackets: ``"priority(ageing_s=60)"``.

    Raises:
        UnknownNameError: there is no such policy.
        InputError: the text has another form, or the policy no such option or value.
    """
    name, options = read_call(text, what="is no scheduling policy", help="give its name, with options in brackets: 'priority(ageing_s=60)'")
    return make_policy(name, options)


def require_positive(name: str, value: float) -> None:
    """Check an option that is a time.

    Raises:
        InputError: it is not a positive, finite time.
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive time, got {value}", help=f"give seconds, for example {name}=0.01")


def require_share(name: str, value: float) -> None:
    """Check an option that must be finite and at least 0.

    Raises:
        InputError: it is not.
    """
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} must be a finite number of at least 0, got {value}")


class Queue:
    """Those who wait for one device, in the order of a policy.

    Args:
        policy: Who goes first.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
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

    def add(self, request: Request, now_s: float, used_s: float = 0.0) -> None:
        """Let `request` wait, for the first time or again after it has had `used_s` of the device."""
        heapq.heappush(self._heap, (self.policy.key(request, now_s, used_s), request.index, request))
        heapq.heappush(self._arrivals, (request.arrival_s, request.index))
        self._waiting.add(request.index)
        self.num_items += request.num_items

    def head(self) -> Request:
        """Whoever is next; something must wait."""
        return self._heap[0][2]

    def pop(self) -> Request:
        """Remove and return whoever is next; something must wait."""
        request = heapq.heappop(self._heap)[2]
        self._waiting.remove(request.index)
        self.num_items -= request.num_items
        return request

    def take(self, max_items: int) -> list[Request]:
        """Remove and return the next batch: in order, until the next one would not fit.

        The first is taken in any case, as nothing else could ever serve it.
        """
        batch: list[Request] = []
        room = max_items
        while self._waiting and (not batch or self.head().num_items <= room):
            request = self.pop()
            room -= request.num_items
            batch.append(request)
        return batch

    def account(self, request: Request, used_s: float) -> None:
        """Note that `request` was served for `used_s`; most policies do not need to know."""

    def should_yield(self, request: Request, now_s: float, used_s: float, turn_s: float) -> bool:
        """Whether a running request makes room at the end of a segment.

        Args:
            request: The one that runs.
            now_s: The time.
            used_s: Device time that it has had.
            turn_s: The part of it since it was last chosen.
        """
        if not self._waiting:
            return False
        if turn_s >= self.policy.quantum_s:
            return True
        return self.policy.preemptive and self._heap[0][0] < self.policy.key(request, now_s, used_s)
