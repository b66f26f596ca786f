"""Finds how many replicas, how full a batch and how long a wait meet a latency target.

Works on plain numbers by simulation; `plan` gives them their names and sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..records import Experience
from ..scheduling import Policy
from .overhead import Overhead
from .queueing import Arrivals, ServiceTimes
from .simulate import RequestClass, Simulation, WaitPolicy, replicate
from .simulations import Simulations

_PATIENCE = 8
"""Replicas tried beyond the fewest where waiting for a full batch alone breaks the target."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked, as plain numbers."""

    arrivals: Arrivals
    """At the whole service; its rate includes the headroom."""
    latency_p99_s: float
    """The target."""
    overhead: Overhead | None = None
    """What the server itself adds to every request."""
    experience: Experience | None = None
    """How earlier plans fared."""
    policy: Policy | None = None
    mix: tuple[RequestClass, ...] = ()
    seed: int = 0

    @property
    def items_per_request(self) -> float:
        """Mean."""
        return sum(kind.share * kind.num_items for kind in self.mix) if self.mix else 1.0

    @property
    def items_per_s(self) -> float:
        """Items that arrive per second at the whole service."""
        return self.arrivals.rate * self.items_per_request

    @property
    def server_requests_per_s(self) -> float:
        """Most that the server of one replica takes, whatever its model could do."""
        return self.overhead.requests_per_s if self.overhead else math.inf


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a replica."""

    device: str
    service: ServiceTimes = field(compare=False)
    max_batch_size: int
    max_wait_s: float
    wait_policy: WaitPolicy = "adaptive"
    price: float | None = None
    """Of one replica, per hour."""

    def fewest_replicas(self, load: Load) -> int:
        """Number of replicas below which the queue grows without bound."""
        return math.floor(load.arrivals.rate / self.stable_rate(load)) + 1

    def stable_rate(self, load: Load) -> float:
        """Requests per second from which on the queue of one replica grows, at its model or at its server."""
        return min(self.service.stable_rate(self.max_batch_size) / load.items_per_request, load.server_requests_per_s)

    def alone_s(self) -> float:
        """p99 of a request that meets an idle server; the upper end of its interval."""
        import numpy as np

        held = self.max_wait_s if self.wait_policy == "always" and self.max_batch_size > 1 else 0.0
        return held + float(np.quantile(self.service.at_level(1.0).quantiles[1], 0.99))

    def weight(self, replicas: int) -> float:
        """What is made small: the cost where a price is known, else the replicas."""
        return replicas * (self.price if self.price is not None else 1.0)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A candidate with a number of replicas, and what the simulation says about one of them."""

    candidate: Candidate
    replicas: int
    simulation: Simulation | None
    """None: ruled out before it was simulated."""
    below: Simulation | None = None
    """The same with one replica less, where that was simulated and does not meet the target."""
    meets: bool = False
    reason: str = ""


class Allocator:
    """Searches the candidates for the cheapest allocation that meets the target.

    Every request picks one of the replicas at random, as behind a load balancer without
    memory, so one queue at its share of the rate stands for all. The same seeds serve every
    candidate, so that they differ by what they are and not by luck.

    Args:
        load: What is asked.
        quick: Requests and replications of a simulation during the search.
        thorough: Those of the answer's own simulation.
        known: What was simulated before, for other plans.
    """

    def __init__(self, load: Load, *, quick: tuple[int, int], thorough: tuple[int, int], known: Simulations) -> None:
        self.load = load
        self.quick = quick
        self.thorough = thorough
        self.known = known

    def simulate(self, candidate: Candidate, replicas: int, *, thorough: bool = False, arrivals: Arrivals | None = None) -> Simulation:
        """Simulate one of `replicas` replicas."""
        load = self.load
        requests, replications = self.thorough if thorough else self.quick
        at_one = (arrivals or load.arrivals).split(replicas)
        asked = {
            "max_batch_size": candidate.max_batch_size,
            "max_wait_s": candidate.max_wait_s,
            "wait_policy": candidate.wait_policy,
            "overhead": load.overhead,
            "num_requests": requests,
            "num_replications": replications,
            "seed": load.seed,
        }
        if load.policy is None and not load.mix:
            found = self.known.run(at_one, candidate.service, **asked)  # type: ignore[arg-type]
        else:
            found = replicate(at_one, candidate.service, **asked, policy=load.policy, mix=load.mix)  # type: ignore[arg-type]
        learnt = load.experience
        if learnt is None:
            return found
        p50, p99 = found.latency_p50_s.corrected(*learnt.p50), found.latency_p99_s.corrected(*learnt.p99)
        return replace(found, latency_p50_s=p50.reaching(*learnt.p50_reach), latency_p99_s=p99.reaching(*learnt.p99_reach))

    def meets(self, simulation: Simulation) -> bool:
        """Whether the upper end of the band of p99 is within the target."""
        return simulation.latency_p99_s.high <= self.load.latency_p99_s

    def smallest(self, candidate: Candidate, at_most: float) -> Allocation:
        """Find the fewest replicas of `candidate` that meet the target.

        Args:
            candidate: How a replica is run.
            at_most: Stop once more replicas than this are needed, because another candidate is better.
        """
        fewest = candidate.fewest_replicas(self.load)
        alone = candidate.alone_s() + (self.load.overhead.least_s if self.load.overhead else 0.0)
        if alone - candidate.max_wait_s > self.load.latency_p99_s or (alone > self.load.latency_p99_s and candidate.wait_policy == "adaptive"):
            return Allocation(candidate=candidate, replicas=fewest, simulation=None, reason="alone")
        if fewest > at_most:
            return Allocation(candidate=candidate, replicas=fewest, simulation=None, reason="throughput")
        held_back = alone > self.load.latency_p99_s
        limit = int(min(at_most, fewest + _PATIENCE if held_back else fewest * 1024 + 1024))
        runs: dict[int, Simulation] = {}

        def works(replicas: int) -> bool:
            if replicas not in runs:
                runs[replicas] = self.simulate(candidate, replicas)
            return self.meets(runs[replicas])

        low, high, step = fewest - 1, fewest, 1
        if not works(fewest) and not held_back and not works(limit):
            high = limit  # where the far end does not do, nothing between does, unless batches that fill sooner are what is needed
        while not works(high):
            if high >= limit:
                return Allocation(candidate=candidate, replicas=high, simulation=runs[high], reason="latency")
            low, high, step = high, min(high + step, limit), step * 2
        while high - low > _grain(high):
            middle = (low + high) // 2
            low, high = (low, middle) if works(middle) else (middle, high)
        return Allocation(candidate=candidate, replicas=high, simulation=runs[high], below=runs.get(high - 1), meets=True)

    def all(self, candidates: Sequence[Candidate], most: Callable[[str], int], progress: Callable[[float], None]) -> list[Allocation]:
        """Search every candidate, the most promising first; those that cannot win are cut short.

        Args:
            candidates: Ways to run a replica.
            most: Replicas that are allowed, by device. Beyond, what matters is the cheapest alone, which an answer of what it would take names.
            progress: Told the share done.
        """
        ordered = sorted(candidates, key=lambda c: (c.weight(c.fewest_replicas(self.load)), c.max_wait_s, c.max_batch_size))
        found: list[Allocation] = []
        best = beyond = math.inf
        for k, candidate in enumerate(ordered):
            progress(k / len(ordered))
            one, allowed = candidate.weight(1), most(candidate.device)
            at_most = min(best / one, max(beyond / one, allowed)) if one else math.inf
            found.append(self.smallest(candidate, max(math.floor(at_most + 1e-9), 0) if math.isfinite(at_most) else math.inf))
            if found[-1].meets:
                weight = candidate.weight(found[-1].replicas)
                best, beyond = (min(best, weight), beyond) if found[-1].replicas <= allowed else (best, min(beyond, weight))
        return found

    def confirm(self, allocation: Allocation) -> Allocation:
        """Simulate the answer at length; where that tells against it, add replicas until it holds."""
        runs: dict[int, Simulation] = {}

        def works(replicas: int) -> bool:
            runs[replicas] = self.simulate(allocation.candidate, replicas, thorough=True)
            return self.meets(runs[replicas])

        low = high = allocation.replicas
        step = _grain(high)
        while not works(high):
            if high > 2 * allocation.replicas + 2:
                return Allocation(candidate=allocation.candidate, replicas=high, simulation=runs[high], below=runs.get(low))
            low, high, step = high, high + step, 2 * step
        while high - low > _grain(high):
            middle = (low + high) // 2
            low, high = (low, middle) if works(middle) else (middle, high)
        below = runs[low] if low < high else allocation.below
        return Allocation(candidate=allocation.candidate, replicas=high, simulation=runs[high], below=below, meets=True)

    def highest_rate(self, candidate: Candidate, replicas: int, make: Callable[[float], Arrivals]) -> float:
        """Find the highest rate that `replicas` replicas carry within the target, to 1 %; 0 if none.

        Args:
            candidate: How a replica is run.
            replicas: How many.
            make: The law of arrivals of a given rate.
        """
        low = 0.0
        high = replicas * candidate.stable_rate(self.load)
        while high - low > 0.01 * high:
            middle = (low + high) / 2
            works = self.meets(self.simulate(candidate, replicas, arrivals=make(middle)))
            low, high = (middle, high) if works else (low, middle)
            if high < 1e-6:
                return 0.0
        return low


def _grain(replicas: int) -> int:
    """Replicas that one more or less of is no answer: one, and of hundreds a hundredth."""
    return max(1, replicas // 100)
