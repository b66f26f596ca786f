"""Simulates all models of an allocation together, as they would run: each replica alone, or in turns with its neighbours on a device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..planning.queueing import ServiceTimes
from ..planning.simulate import Band, band_of, level_of, replicate
from .problem import Problem, Solution
from .ways import Ladder, Way, law

if TYPE_CHECKING:
    from ..planning.queueing import Array

REQUESTS, REPLICATIONS = 10_000, 11
SHARED_REQUESTS = 3_000
"""Of each replica on a device that is shared in turns, where every event counts."""
SHARED_EVENTS = 50_000
"""Of all replicas of such a device together, at most."""
_WARM_UP = 0.05
_OTHER_SEED = 1_000_003
"""Arrivals here are others than those that the rate of a replica was found with."""


@dataclass(frozen=True)
class Outcome:
    """What the simulation says of one model."""

    latency_p50_s: Band
    latency_p99_s: Band
    utilization: float
    """Share of time that a replica computes or waits for its turn."""


@dataclass(frozen=True)
class Stream:
    """The requests of one replica on a device that is shared in turns."""

    arrival_s: Sequence[float]
    service: ServiceTimes
    """On the whole device."""
    max_batch_size: int


def simulate_jointly(problem: Problem, solution: Solution, *, burst: float, seed: int, progress: Callable[[str], None]) -> list[Outcome | None]:
    """Simulate every model at the rate that it is served at; None for those that are not served.

    Replicas that have cores, a device or an instance of it for themselves are alike, and one stands for all of a model. MPS caps what a
    replica may use, so its neighbours change nothing. Where replicas take turns, their device is simulated with all of them: while n have
    work, each goes on at an n-th of the speed (processor sharing).

    Args:
        problem: The question.
        solution: Its answer.
        burst: Rate of bursts over the rate between them.
        seed: Of everything random.
        progress: Told what is being simulated.
    """
    outcomes: list[Outcome | None] = []
    for i, o in enumerate(solution.chosen):
        if o is None:
            outcomes.append(None)
            continue
        progress(f"simulating {problem.clients[i].name} with all others")
        way: Way = problem.options[o].tag
        rate = _rate(problem, solution, i)
        if way.share.kind == "time_slice":
            outcomes.append(_in_turns(problem, solution, i, burst, seed))
        else:
            outcomes.append(alone(way.ladder, way.candidate.max_batch_size, rate, burst, seed))
    return outcomes


def _rate(problem: Problem, solution: Solution, i: int) -> float:
    """Requests per second at one replica."""
    return problem.clients[i].rate * solution.shares[i] / solution.replicas[i]


@functools.lru_cache(maxsize=50_000)
def alone(ladder: Ladder, batch: int, rate: float, burst: float, seed: int) -> Outcome:
    """One replica that nobody disturbs.

    Args:
        ladder: Latencies by batch size.
        batch: Most items in a batch.
        rate: Requests per second.
        burst: Rate of bursts over the rate between them.
        seed: Of everything random.
    """
    service = ServiceTimes.from_points(ladder)
    found = replicate(
        law(rate, burst), service, max_batch_size=batch, num_requests=REQUESTS, num_replications=REPLICATIONS, seed=seed + _OTHER_SEED
    )  # fmt: skip
    return Outcome(found.latency_p50_s, found.latency_p99_s, min(1.0, found.utilization))


def _in_turns(problem: Problem, solution: Solution, i: int, burst: float, seed: int) -> Outcome:
    """All devices that replicas of model `i` are on, each with everything that is on it."""
    import numpy as np

    devices = [_device(solution, p, o, device) for p, placed in enumerate(solution.placed) for o, device, _ in placed.replicas if o == solution.chosen[i]]
    alike = list(dict.fromkeys(devices))  # devices with the same replicas are one
    rows = []
    for k in range(REPLICATIONS):
        latencies, busy = [], []
        for options in alike:
            rng = np.random.default_rng([seed + _OTHER_SEED, k])
            together = sum(_rate(problem, solution, problem.options[o].model) for o in options)
            span = min(SHARED_REQUESTS / _rate(problem, solution, i), SHARED_EVENTS / together)
            streams = [_stream(problem, solution, o, span, k, burst, rng) for o in options]
            for o, stream, (finish, worked) in zip(options, streams, take_turns(streams, seed=[seed, k]), strict=True):
                if o == solution.chosen[i] and len(stream.arrival_s):
                    latencies.append((finish - np.asarray(stream.arrival_s))[int(_WARM_UP * len(finish)) :])
                    busy.append(worked / max(span, float(finish[-1])))
        every = np.concatenate(latencies)
        rows.append((float(np.percentile(every, 50)), float(np.percentile(every, 99)), float(np.mean(busy))))
    p50, p99, share = zip(*rows, strict=True)
    return Outcome(band_of(p50), band_of(p99), min(1.0, float(np.median(share))))


def _device(solution: Solution, p: int, option: int, device: int) -> tuple[int, ...]:
    """Options of all replicas on a device."""
    return tuple(o for o, d, count in solution.placed[p].replicas if d == device for _ in range(count))


def _stream(problem: Problem, solution: Solution, o: int, span: float, k: int, burst: float, rng: object) -> Stream:
    from ..planning.workloads import draw_until

    way: Way = problem.options[o].tag
    rate = _rate(problem, solution, problem.options[o].model)
    times = draw_until(law(rate, burst), span, rng)  # type: ignore[arg-type]
    service = ServiceTimes.from_points(way.variant.ladder).at_level(level_of(k, REPLICATIONS))
    return Stream(times.tolist(), service, way.candidate.max_batch_size)


def take_turns(streams: Sequence[Stream], *, seed: Sequence[int]) -> list[tuple[Array, float]]:
    """Serve streams on one device that gives every replica with work an equal part of its speed.

    A replica that is free takes what waits for it, up to a batch, at once.

    Args:
        streams: Requests of each replica.
        seed: Of service times.

    Returns:
        By stream: when each request was answered, and the seconds in which the replica had work.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    rows = [stream.service.quantiles[: stream.max_batch_size + 1].tolist() for stream in streams]
    times = [[*stream.arrival_s, math.inf] for stream in streams]
    taken, batch = [0] * len(streams), [0] * len(streams)
    left = [math.inf] * len(streams)
    """Seconds of the whole device that its batch still needs."""
    finish = [np.zeros(len(stream.arrival_s)) for stream in streams]
    worked = [0.0] * len(streams)
    now, working = 0.0, 0
    while True:
        ends = min(left)
        soonest = left.index(ends)
        due = now + ends * working if working else math.inf
        arrival = min((times[j][taken[j]] for j in range(len(streams)) if not batch[j]), default=math.inf)
        until = min(due, arrival)
        if math.isinf(until):
            return list(zip(finish, worked, strict=True))
        if working:
            done = (until - now) / working
            for j, size in enumerate(batch):
                if size:
                    left[j] -= done
                    worked[j] += until - now
        now = until
        for j, stream in enumerate(streams):
            if batch[j] and (left[j] <= 0 or (until == due and j == soonest)):
                finish[j][taken[j] - batch[j] : taken[j]] = now
                left[j], batch[j], working = math.inf, 0, working - 1
            if not batch[j] and times[j][taken[j]] <= now:
                first = taken[j]
                while taken[j] - first < stream.max_batch_size and times[j][taken[j]] <= now:
                    taken[j] += 1
                batch[j], working = taken[j] - first, working + 1
                left[j] = rows[j][batch[j]][int(rng.integers(0, len(rows[j][0])))]
