"""Request rate and latency target in; device, replicas, batching and predicted latency out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..errors import InputError
from ..interrupts import sparing_imports
from ..records import BatchPoint, Experience, ModelInfo, Number, Plan, Target
from ..scheduling import read_policy
from ..units import format_bytes
from .allocation import Allocation, Allocator
from .answer import feasible_plan, infeasible_plan
from .overhead import Overhead
from .problem import Problem, check_problem
from .simulate import RequestClass, WaitPolicy
from .simulations import Simulations

_DOUBT = 0.05
"""Share by which p99s may differ and still be nearly the same."""


@sparing_imports
def make_plan(
    model: ModelInfo,
    service_time: Mapping[str, Sequence[BatchPoint]],
    target: Target,
    *,
    prices: Mapping[str, float] | None = None,
    max_wait_s: Sequence[float] = (0.0, 0.002, 0.005),
    wait_policy: WaitPolicy = "adaptive",
    policy: str = "fcfs",
    mix: Sequence[RequestClass] = (),
    memory_limit: Mapping[str, Number] | None = None,
    overhead: Overhead | None = None,
    experience: Experience | None = None,
    burstiness: float | None = None,
    seed: int = 0,
    known: Simulations | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Plan:
    """Find the cheapest allocation whose simulated p99 stays within the target.

    Every batch limit (powers of two up to the largest in the ladder) and every waiting time is
    tried on every device. An allocation meets the target when the upper end of the 90 % band
    of its p99 does. A replica is one worker with its own queue; requests are spread over the
    replicas at random, as a Kubernetes Service spreads them.

    Args:
        model: What is served.
        service_time: Batch ladder by device.
        target: Rate, latency, and the most replicas.
        prices: USD per hour and replica by device. Where every device has one, the cheapest
            allocation is chosen, else the one with the fewest replicas. A budget needs one for each.
        max_wait_s: Times to try for which a batch is held back at most; 0 is natural batching.
        wait_policy: What a batch that is held back waits for: ``"adaptive"``, as a bundle's server
            does unless told otherwise, or ``"always"`` for a full one; see `simulate`.
        policy: Which waiting requests go first: see `scheduling.read_policy`.
        mix: Kinds of requests; empty: one item each, all alike.
        memory_limit: Memory of a device by name; batches whose measured peak is above it are left out.
        overhead: Time that the server adds to every request besides queue and model; None: latencies are without it, and say so.
        experience: How earlier plans fared: what p50 and p99 are corrected and their bands widened by.
        burstiness: Rate of bursts over the rate between them; None or 1: Poisson arrivals.
        seed: Of everything random; the same seed gives the same plan.
        known: What was simulated for earlier plans; what is simulated for this one is added.
        progress: Called with the share done and what is being done.

    Raises:
        InputError: no device, no ladder, or a value out of range.
        UnknownNameError: there is no such policy.
    """
    check_problem(service_time, target, prices, max_wait_s, burstiness)
    problem = Problem(model, service_time, target, prices or {}, read_policy(policy), tuple(mix), memory_limit or {}, overhead, experience, burstiness)
    tell = progress or (lambda share, text: None)
    allocator = Allocator(problem.load(seed), **problem.effort(), known=known or Simulations())
    candidates = problem.candidates(max_wait_s, wait_policy)
    if not candidates:
        raise InputError("no batch fits the memory of any device", help=f"limits: {_limits(memory_limit or {})}")
    found = allocator.all(candidates, problem.most, lambda share: tell(0.8 * share, f"simulating {len(candidates)} allocations"))
    tell(0.8, "confirming the best")
    winner, found = _winner(found, allocator, problem.allows)
    plan = feasible_plan(problem, winner, found, allocator) if winner else infeasible_plan(problem, found, allocator)
    tell(1.0, "planned")
    return plan


def _winner(found: list[Allocation], allocator: Allocator, allows: Callable[[Allocation], bool]) -> tuple[Allocation | None, list[Allocation]]:
    """Confirm the best by a long simulation; when that costs it its place, confirm the next best.

    Ties in cost go to the lower p99; where that is nearly the same, to natural batching and to the
    larger batch: it costs nothing while traffic is low, lets a burst through, and takes requests
    of several items. Not to one that alone takes half of the target.
    """

    def rank(allocation: Allocation) -> tuple[float, float]:
        assert allocation.simulation is not None
        weight = allocation.candidate.weight(allocation.replicas)
        candidate = allocation.candidate
        items_per_s = candidate.service.stable_rate(candidate.max_batch_size)
        slack = allocation.replicas * items_per_s / allocator.load.items_per_s
        blocks = candidate.max_batch_size / items_per_s > allocator.load.latency_p99_s / 2
        credit = 0.0 if blocks else _DOUBT / 5 * math.log2(max(1.0, slack))
        penalty = _DOUBT * (candidate.max_wait_s > 0) + _DOUBT * blocks + 2 * _DOUBT * max(0, 2 - slack) - credit
        return weight, allocation.simulation.latency_p99_s.value * (1 + penalty)

    confirmed: set[int] = set()
    while True:
        open_ = [k for k, a in enumerate(found) if a.meets and allows(a)]
        if not open_:
            return None, found
        best = min(open_, key=lambda k: rank(found[k]))
        if best in confirmed:
            return found[best], found
        found[best] = allocator.confirm(found[best])
        confirmed.add(best)


def _limits(memory_limit: Mapping[str, Number]) -> str:
    return ", ".join(f"{device} {format_bytes(limit.value)}" for device, limit in memory_limit.items()) or "none given"
