"""Simulations of one queue that were made, so that none is made twice: what changes from plan to plan is often little."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from .overhead import Overhead
from .queueing import Arrivals, ServiceTimes
from .simulate import Simulation, WaitPolicy, replicate

MOST_QUEUES = 4096
"""Kept; a simulation is a few hundred bytes."""


@dataclass(frozen=True)
class _Queue:
    """Everything that a simulation follows from, but for the largest batch; by value, so that a ladder that was read again is the same."""

    arrivals: Arrivals
    service: bytes
    overhead: bytes
    max_wait_s: float
    wait_policy: WaitPolicy
    num_requests: int
    num_replications: int
    seed: int


class Simulations:
    """Simulates queues of one worker and one kind of requests, first come first served; the same seeds give the same, so what is known is not run again.

    A limit on batches that no batch of a run has reached could as well have been higher: then that run is the answer for higher
    limits, too. At low rates, where batches are small, most limits differ in nothing.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[_Queue, dict[int, Simulation]] = OrderedDict()

    def run(
        self,
        arrivals: Arrivals,
        service: ServiceTimes,
        *,
        max_batch_size: int,
        max_wait_s: float,
        wait_policy: WaitPolicy,
        overhead: Overhead | None,
        num_requests: int,
        num_replications: int,
        seed: int,
    ) -> Simulation:
        """Return what `replicate` gives for the same arguments.

        Raises:
            InputError: as `replicate`.
        """
        digests = service.digest, b"" if overhead is None else overhead.digest
        held = max_wait_s if max_batch_size > 1 else 0.0
        queue = _Queue(arrivals, *digests, held, wait_policy, num_requests, num_replications, seed)
        known = self._known.setdefault(queue, {})
        self._known.move_to_end(queue)
        if max_batch_size not in known:
            known[max_batch_size] = _unlimited(known, arrivals, service, max_batch_size, queue) or replicate(
                arrivals,
                service,
                max_batch_size=max_batch_size,
                max_wait_s=max_wait_s,
                wait_policy=wait_policy,
                overhead=overhead,
                num_requests=num_requests,
                num_replications=num_replications,
                seed=seed,
            )
        if len(self._known) > MOST_QUEUES:
            self._known.popitem(last=False)
        return known[max_batch_size]


def _unlimited(known: dict[int, Simulation], arrivals: Arrivals, service: ServiceTimes, max_batch_size: int, queue: _Queue) -> Simulation | None:
    """A run with a lower limit that it did not reach, in which no queue grows: with this limit every batch would have been the same."""
    if queue.wait_policy == "always" and queue.max_wait_s:
        return None  # what it waits for is a full batch, whatever that is
    if arrivals.rate >= service.at_level(1.0).stable_rate(max_batch_size):
        return None
    for limit, found in known.items():
        if found.largest_batch_items < limit < max_batch_size and not found.num_growing:
            return replace(found, stable_rate=service.stable_rate(max_batch_size))
    return None
