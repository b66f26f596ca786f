"""Simulates a server that batches dynamically: requests in, latencies out.

One queue feeds one or more workers. A worker that is free takes what waits, up to
`max_batch_size` items. With ``max_wait_s=0`` it does so at once (natural batching: requests
gather while it is busy); otherwise it holds a batch back until the oldest request in it has
waited `max_wait_s`, or enough items wait: a full batch (wait policy ``"always"``), or as many
as the last batch had, if that was of several requests (``"adaptive"``). That is what a
bundle's server does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from ..scheduling import Policy, Queue, Request, make_policy
from .forms import Loop
from .overhead import Overhead
from .queueing import Arrivals, ServiceTimes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .queueing import Array

WaitPolicy = Literal["adaptive", "always"]

BAND_KIND = "90 % band over independent replications"
_WARM_UP = 0.05
"""Share of the requests left out at the start, where the queue is still filling."""
_BACKLOG = 0.05
"""More than this share of the requests waiting when the last one arrives: the queue grows."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What happened to every request of one simulated run."""

    arrival_s: Array
    finish_s: Array
    """By request, in order of arrival."""
    batch_start_s: Array
    batch_service_s: Array
    batch_items: Array
    """By batch, in order of dispatch."""

    @property
    def latency_s(self) -> Array:
        """Arrival to answer, by request."""
        return self.finish_s - self.arrival_s

    def utilization(self, num_workers: int) -> float:
        """Share of the time that a worker computes."""
        span = float(self.finish_s.max() - self.arrival_s[0])
        return float(self.batch_service_s.sum()) / (num_workers * span)


def simulate_fcfs(
    arrival_s: Sequence[float] | Array,
    service: ServiceTimes,
    *,
    max_batch_size: int,
    max_wait_s: float = 0.0,
    wait_policy: WaitPolicy = "adaptive",
    num_workers: int = 1,
    seed: int | Sequence[int] = 0,
) -> Trajectory:
    """Serve requests of one item each in the order of arrival, one step a batch.

    A batch starts at ``max(worker free, min(arrival that makes it enough, oldest arrival +
    max_wait_s))`` and has all that arrived by then; so no other event needs a step.

    Args:
        arrival_s: Sorted arrival times.
        service: Times by batch size; drawn anew for every batch.
        max_batch_size: Most items in a batch.
        max_wait_s: How long a batch is held back at most.
        wait_policy: What is waited for: see the top of this file.
        num_workers: Workers that share the queue.
        seed: Of the draws of service times.

    Raises:
        InputError: nothing arrives, or a limit is out of range.
    """
    import numpy as np

    arrivals = np.asarray(arrival_s, dtype=float)
    count = len(arrivals)
    _check(count, service, max_batch_size, max_wait_s, num_workers)
    if max_batch_size == num_workers == 1:
        return _one_by_one(arrivals, service.quantiles[1][_draws(service, count, seed)])
    form = _serve.form(count)
    ahead = np.full(max_batch_size, math.inf)  # so that looking ahead needs no test for the end
    draws = _draws(service, count, seed)
    starts, sizes = form.room(count, 0.0), form.room(count, 0)
    num_batches = form.run(
        form.numbers(np.concatenate([arrivals, ahead])), count, form.numbers(service.quantiles[: max_batch_size + 1]), form.numbers(draws),
        max_batch_size, float(max_wait_s), wait_policy == "always", num_workers, starts, sizes,
    )  # fmt: skip
    batch_start, batch_items = np.asarray(starts[:num_batches]), np.asarray(sizes[:num_batches])
    batch_service = service.quantiles[batch_items, draws[:num_batches]]
    return Trajectory(arrivals, np.repeat(batch_start + batch_service, batch_items), batch_start, batch_service, batch_items)


def _one_by_one(arrivals: Array, took: Array) -> Trajectory:
    """One worker without batches, where nothing waits but for the one before: the same times, with less to look at."""
    import numpy as np

    form = _serve_singly.form(len(arrivals))
    starts = form.room(len(arrivals), 0.0)
    form.run(form.numbers(arrivals), form.numbers(took), starts)
    batch_start = np.asarray(starts)
    return Trajectory(arrivals, batch_start + took, batch_start, took, np.ones(len(arrivals), dtype=np.int64))


@Loop
def _serve_singly(times, took, starts):  # type: ignore[no-untyped-def]
    """Write when each request starts: Lindley's recursion (1952)."""
    free = 0.0
    for i, (start, seconds) in enumerate(zip(times, took)):  # noqa: B905  # numba knows no strict
        if free > start:
            start = free
        starts[i] = start
        free = start + seconds


@Loop
def _serve(times, count, rows, draws, max_batch_size, max_wait_s, always, num_workers, starts, sizes):  # type: ignore[no-untyped-def]
    """Write when each batch starts and how many it has; return how many batches there are."""
    free = [0.0] * num_workers
    soonest = 0.0
    size = max_batch_size if always else 1
    i = batches = 0
    while i < count:
        start = times[i] + max_wait_s
        enough = times[i + (max_batch_size if always else size) - 1]
        if enough < start:
            start = enough
        if soonest > start:
            start = soonest
        stop, most = i + 1, i + max_batch_size
        while times[stop] <= start and stop < most:
            stop += 1
        size = stop - i
        soonest = start + rows[size][draws[batches]]
        if num_workers > 1:
            heapq.heapreplace(free, soonest)
            soonest = free[0]
        starts[batches] = start
        sizes[batches] = size
        batches += 1
        i = stop
    return batches


def simulate_queue(
    requests: Sequence[Request],
    service: ServiceTimes,
    policy: Policy,
    *,
    max_batch_size: int,
    max_wait_s: float = 0.0,
    wait_policy: WaitPolicy = "adaptive",
    num_workers: int = 1,
    seed: int | Sequence[int] = 0,
    took: Callable[[int, float], float] | None = None,
) -> Trajectory:
    """Serve requests of any number of items in the order of a policy, event by event.

    Args:
        requests: Sorted by arrival, `index` counting from 0.
        service: Times by number of items in the batch.
        policy: Which waiting requests go first.
        max_batch_size: Most items in a batch.
        max_wait_s: How long a batch is held back at most.
        wait_policy: What is waited for: see the top of this file.
        num_workers: Workers that share the queue.
        seed: Of the draws of service times.
        took: Seconds of a batch of so many items that starts at such a time, for a replay; drawn from `service` if not given.

    Raises:
        InputError: nothing arrives, a request alone is larger than a batch, or a limit is out of range.
    """
    import numpy as np

    _check(len(requests), service, max_batch_size, max_wait_s, num_workers)
    largest = max(request.num_items for request in requests)
    if largest > max_batch_size:
        raise InputError(f"a request of {largest} items is larger than a batch of {max_batch_size}", help="raise max_batch_size")
    rows: list[list[float]] = service.quantiles[: max_batch_size + 1].tolist()
    draws: list[int] = _draws(service, len(requests), seed).tolist()
    free = [0.0] * num_workers
    finish = np.zeros(len(requests))
    batches: list[tuple[float, float, int]] = []
    queue = policy.queue()
    arrived, last_items = 0, 1
    while arrived < len(requests) or len(queue):
        enough = max_batch_size if wait_policy == "always" else last_items
        start, arrived = _gather(requests, arrived, queue, free[0], enough, max_wait_s)
        batch = queue.take(max_batch_size)
        items = sum(request.num_items for request in batch)
        seconds = took(items, start) if took else rows[items][draws[len(batches)]]
        heapq.heapreplace(free, start + seconds)
        finish[[request.index for request in batch]] = start + seconds
        for request in batch:
            queue.account(request, seconds * request.num_items / items)
        batches.append((start, seconds, items))
        last_items = items if len(batch) > 1 else 1
    starts, services, sizes = (np.array(column) for column in zip(*batches, strict=True))
    return Trajectory(np.array([request.arrival_s for request in requests]), finish, starts, services, sizes)


def _gather(requests: Sequence[Request], arrived: int, queue: Queue, free_s: float, enough: int, max_wait_s: float) -> tuple[float, int]:
    """Let requests wait until the next batch starts; return when it does, and how many have arrived by then."""
    now = free_s if len(queue) else max(free_s, requests[arrived].arrival_s)
    while True:
        while arrived < len(requests) and requests[arrived].arrival_s <= now:
            queue.add(requests[arrived], requests[arrived].arrival_s)
            arrived += 1
        due = max(now, queue.oldest_arrival_s + max_wait_s)
        if queue.num_items >= enough:
            return now, arrived
        if arrived < len(requests) and requests[arrived].arrival_s <= due:
            now = requests[arrived].arrival_s
        else:
            return due, arrived


def _draws(service: ServiceTimes, count: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Which of a row's equally likely times each batch takes: one draw a batch, in order of dispatch."""
    import numpy as np

    levels = service.quantiles.shape[1]
    return np.zeros(count, dtype=np.int64) if levels == 1 else np.random.default_rng(seed).integers(0, levels, count)


def _check(count: int, service: ServiceTimes, max_batch_size: int, max_wait_s: float, num_workers: int) -> None:
    if count == 0:
        raise InputError("nothing arrives", help="give at least one arrival")
    if not 1 <= max_batch_size <= service.max_batch_size:
        raise InputError(f"max_batch_size must lie between 1 and {service.max_batch_size} (the table's end), got {max_batch_size}")
    if not (math.isfinite(max_wait_s) and max_wait_s >= 0):
        raise InputError(f"max_wait_s must be a finite time of at least 0, got {max_wait_s}")
    if num_workers < 1:
        raise InputError(f"num_workers must be at least 1, got {num_workers}")


# --- replications ------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """A simulated quantity: the median of the replications, and their 5 % and 95 % points."""

    value: float
    low: float
    high: float

    def corrected(self, factor: float, stretch: float) -> Band:
        """Move it by a factor, and make it wider by a power: the logarithms of its ends over its value are multiplied by `stretch`."""
        if not (math.isfinite(self.value) and self.low > 0):
            return self
        down, up = (self.value / self.low) ** stretch, (self.high / self.value) ** stretch
        return Band(self.value * factor, self.value * factor / down, self.value * factor * up)

    def reaching(self, ratio: float, added: float) -> Band:
        """Let it reach further: down by a ratio, as times do that were taken too long, and up by a sum, as by what holds up all requests alike."""
        return Band(self.value, self.low * ratio, self.high + added)


@dataclass(frozen=True)
class RequestClass:
    """One kind of request in a mix."""

    share: float
    """Share of all requests; the shares of a mix add up to 1."""
    num_items: int = 1
    priority: int = 0
    relative_deadline_s: float = math.inf
    """Deadline, counted from the arrival."""
    tenant: str = ""
    weight: float = 1.0
    """Of the tenant."""


@dataclass(frozen=True)
class Simulation:
    """What independent replications of the same law say together."""

    latency_p50_s: Band
    latency_p99_s: Band
    mean_latency_s: Band
    utilization: float
    throughput: float
    """Requests answered per second."""
    mean_batch_items: float
    largest_batch_items: int
    """In any replication: a limit above it was never reached."""
    num_growing: int
    """Replications in which the queue grows."""
    stable_rate: float
    """Items per second from which on the queue grows without bound."""
    unstable: bool
    """The queue grows without bound, so that latencies depend on when one stops: infinite here."""
    num_requests: int
    """Of each replication, warm-up included."""
    num_replications: int


def replicate(
    arrivals: Arrivals,
    service: ServiceTimes,
    *,
    max_batch_size: int,
    max_wait_s: float = 0.0,
    wait_policy: WaitPolicy = "adaptive",
    num_workers: int = 1,
    policy: Policy | None = None,
    mix: Sequence[RequestClass] = (),
    overhead: Overhead | None = None,
    num_requests: int = 20_000,
    num_replications: int = 21,
    seed: int = 0,
) -> Simulation:
    """Simulate one queue several times, each with its own arrivals and service times.

    Replications also spread evenly over the uncertainty of the service times' scale
    (`ServiceTimes.at_level`) and of the server's own time, each in an order of its own,
    so that the band holds what the measurements left open.

    Args:
        arrivals: The law of arrivals at this queue.
        service: Times by batch size.
        max_batch_size: Most items in a batch.
        max_wait_s: How long a batch is held back at most.
        wait_policy: What is waited for: see the top of this file.
        num_workers: Workers that share the queue.
        policy: Who goes first; None: first come, first served.
        mix: Kinds of requests; empty: one item each, all alike.
        overhead: What the server adds to every request; None: nothing.
        num_requests: Requests of one replication.
        num_replications: How many.
        seed: Of everything random.

    Raises:
        InputError: as `simulate_fcfs`, or the shares of `mix` do not add up to 1.
    """
    import numpy as np

    if mix and not math.isclose(sum(kind.share for kind in mix), 1, abs_tol=1e-6):
        raise InputError(f"the shares of the request mix add up to {sum(kind.share for kind in mix)}, not to 1")
    items = sum(kind.share * kind.num_items for kind in mix) if mix else 1.0
    stable_rate = service.stable_rate(max_batch_size, num_workers)
    rows = []
    for k in range(num_replications):
        rng = np.random.default_rng([seed, k])
        times = arrivals.times_s(num_requests, rng)
        moved = service.at_level(level_of(k, num_replications))
        limits = {"max_batch_size": max_batch_size, "max_wait_s": max_wait_s, "wait_policy": wait_policy, "num_workers": num_workers}
        if policy is None and not mix:
            run = simulate_fcfs(times, moved, **limits, seed=[seed, k, 1])  # type: ignore[arg-type]
        else:
            run = simulate_queue(_requests(times, mix, rng), moved, policy or make_policy("fcfs"), **limits, seed=[seed, k, 1])  # type: ignore[arg-type]
        grows = arrivals.rate * items >= moved.stable_rate(max_batch_size, num_workers) or _backlog_grows(run, max_batch_size * num_workers)
        added = overhead.draw(len(times), rng, level_of(_other_order(k, num_replications), num_replications)) if overhead else None
        rows.append((*_summary(run, num_workers, grows, added), int(run.batch_items.max()), grows))
    p50, p99, mean, busy, rate, size, largest, growing = (list(column) for column in zip(*rows, strict=True))
    return Simulation(
        latency_p50_s=band_of(p50),
        latency_p99_s=band_of(p99),
        mean_latency_s=band_of(mean),
        utilization=float(np.median(busy)),
        throughput=float(np.median(rate)),
        mean_batch_items=float(np.median(size)),
        largest_batch_items=int(max(largest)),
        num_growing=int(sum(growing)),
        stable_rate=stable_rate,
        unstable=math.isinf(band_of(p99).value),
        num_requests=num_requests,
        num_replications=num_replications,
    )


def level_of(k: int, num_replications: int) -> float:
    """Replication k's place within the intervals: evenly spaced, a single one in the middle."""
    return 0.5 if num_replications == 1 else k / (num_replications - 1)


def _other_order(k: int, count: int) -> int:
    """A permutation of the replications without much of a trend, so that two uncertainties do not always meet at the same end."""
    step = next(step for step in range(max(1, round(0.618 * count)), count + 2) if math.gcd(step, count) == 1)
    return k * step % count


def _requests(times: Array, mix: Sequence[RequestClass], rng: np.random.Generator) -> list[Request]:
    kinds = mix or (RequestClass(share=1.0),)
    chosen = rng.choice(len(kinds), len(times), p=[kind.share for kind in kinds]).tolist()
    return [_request(k, time, kinds[c]) for k, (time, c) in enumerate(zip(times.tolist(), chosen, strict=True))]


def _request(index: int, time: float, kind: RequestClass) -> Request:
    return Request(index, time, kind.num_items, kind.priority, time + kind.relative_deadline_s, None, kind.tenant, kind.weight)


def _backlog_grows(run: Trajectory, one_round: int) -> bool:
    """Whether more waits at the last arrival than chance leaves there."""
    waiting = int((run.finish_s > run.arrival_s[-1]).sum())
    return waiting > max(_BACKLOG * len(run.arrival_s), 10 * one_round)


def _summary(run: Trajectory, num_workers: int, grows: bool, added: Array | None) -> tuple[float, float, float, float, float, float]:
    import numpy as np

    latencies = (math.inf,) * 3
    if not grows:
        latency = (run.latency_s if added is None else run.latency_s + added)[int(_WARM_UP * len(run.arrival_s)) :]
        p50, p99 = np.percentile(latency, [50, 99])
        latencies = (float(p50), float(p99), float(latency.mean()))
    span = float(run.finish_s.max() - run.arrival_s[0])
    return (*latencies, run.utilization(num_workers), len(run.arrival_s) / span, float(run.batch_items.mean()))


def band_of(values: Sequence[float]) -> Band:
    """The band over replications; infinite values are those of queues that grow."""
    import numpy as np

    ordered = np.sort(values)
    return Band(
        value=float(np.quantile(ordered, 0.5, method="inverted_cdf")),
        low=float(np.quantile(ordered, 0.05, method="lower")),
        high=float(np.quantile(ordered, 0.95, method="higher")),
    )
