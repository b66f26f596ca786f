"""What shares the devices: calls of models online and the parts of jobs, drawn as requests with the times of their segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from ..planning.queueing import Poisson, ServiceTimes
from ..planning.workloads import draw_until
from ..scheduling import Job, Request

if TYPE_CHECKING:
    import numpy as np

_Rest = tuple[int, int, float, float, str, float, str]
"""Of a request, what comes after its place and arrival."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Online:
    """Requests to one model, or to an ensemble; each is a call of its own, which nothing interrupts."""

    name: str
    times: ServiceTimes
    rate: float
    """Requests per second."""
    p99_s: float
    """Target, and where a policy goes by deadlines the deadline of each request."""
    tenant: str
    priority: int = 0
    weight: float = 1.0
    beside: tuple[ServiceTimes, ...] = ()
    """Further models that every request goes to at the same time, side by side where devices are free: it is answered when all have (fork-join)."""

    @property
    def members(self) -> tuple[ServiceTimes, ...]:
        """Times of all models that a request goes to."""
        return (self.times, *self.beside)

    @property
    def work_s(self) -> float:
        """Device time of one request."""
        return sum(times.mean_s(1) for times in self.members)

    @property
    def busy(self) -> float:
        """Devices that it keeps busy."""
        return self.rate * self.work_s

    def latencies_s(self, jobs: Sequence[Job]) -> list[tuple[float, float]]:
        """Arrival and latency of every request, of the jobs of all its calls in order of arrival."""
        count = len(self.members)
        answers = (jobs[k : k + count] for k in range(0, len(jobs), count))
        return [(calls[0].request.arrival_s, max(call.latency_s for call in calls)) for calls in answers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One job: parts that need not wait for each other, each a chain of calls between which it makes room."""

    name: str
    times: ServiceTimes
    batch: int
    parts: int
    calls: int
    """Of each part."""
    parallel: int
    at_s: float = 0.0
    by_s: float = math.inf
    after: tuple[str, ...] = ()
    tenant: str = ""
    priority: int = 1
    weight: float = 1.0
    shards: bool = False
    """Whether its parts are cut as devices are there for them, as those of a batch."""
    spreads: bool = False
    """Whether it takes as many devices as there are."""

    @property
    def call_s(self) -> float:
        """Mean time of one call."""
        return self.times.mean_s(self.batch)

    @property
    def work_s(self) -> float:
        """Device time of all of it."""
        return self.parts * self.calls * self.call_s

    def alone_s(self, devices: int) -> float:
        """Time that it takes where nobody else is: no schedule is faster."""
        rounds = math.ceil(self.parts / min(self.parallel, devices))
        return rounds * self.calls * self.call_s

    def on(self, devices: int) -> Task:
        """The same job on so many devices at most."""
        if self.shards:
            return replace(self, parts=devices, parallel=devices, calls=math.ceil(self.parts * self.calls / devices))
        return replace(self, parallel=min(devices, self.parts))

    def shortened(self, factor: float) -> tuple[int, int]:
        """Parts and calls of each, `factor` times less work; no fewer parts than run side by side, and calls as they are."""
        if factor <= 1:
            return self.parts, self.calls
        parts = min(self.parts, max(self.parallel, round(self.parts / factor)))
        return parts, max(1, round(self.parts * self.calls / factor / parts))


@dataclass(frozen=True)
class Mix:
    """One draw of everything that happens."""

    requests: list[Request]
    segments_s: list[list[float]]
    """By request."""
    needs: dict[int, list[int]]
    """Requests that must have ended before a request may begin."""
    source: list[str]
    """By request: its job, or its model."""

    def without_jobs(self) -> Mix:
        """The same calls alone."""
        kept = [k for k, request in enumerate(self.requests) if not request.job]
        requests = [_numbered(self.requests[k], i) for i, k in enumerate(kept)]
        return Mix(requests, [self.segments_s[k] for k in kept], {}, [self.source[k] for k in kept])


def draw_mix(online: Sequence[Online], tasks: Sequence[Task], *, span_s: float, factor: float, level: float, seed: Sequence[int]) -> Mix:
    """Draw calls within `span_s` and the parts of all jobs.

    Args:
        online: Models with their rates.
        tasks: Jobs.
        span_s: Seconds in which calls come, as they pass in the simulation.
        factor: How much shorter jobs are here than they really are, and how much sooner they come.
        level: Place within the intervals of all times: 0 the lower ends, 1 the upper ones.
        seed: Of everything random.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    found: list[tuple[float, _Rest, list[float], str]] = []
    for model in online:
        arrivals = draw_until(Poisson(model.rate), span_s, rng)
        took = [_draws(times.at_level(level).quantiles[1], len(arrivals), rng) for times in model.members]
        means = [times.mean_s(1) for times in model.members]
        for k, time in enumerate(arrivals.tolist()):
            for seconds, mean in zip(took, means, strict=True):
                found.append((time, (1, model.priority, time + model.p99_s, mean, model.tenant, model.weight, ""), [seconds[k]], model.name))
    for task in tasks:
        parts, calls = task.shortened(factor)
        row = task.times.at_level(level).quantiles[task.batch]
        rest = (1, task.priority, task.by_s / factor, calls * task.call_s, task.tenant, task.weight, task.name)
        found += [(task.at_s / factor, rest, _draws(row, calls, rng), task.name) for _ in range(parts)]
    found.sort(key=itemgetter(0))
    requests = [Request(k, time, *rest) for k, (time, rest, _, _) in enumerate(found)]
    source = [name for *_, name in found]
    return Mix(requests, [times for _, _, times, _ in found], _needs(requests, tasks), source)


def _numbered(r: Request, index: int) -> Request:
    """The same request at another place; ten thousands of them, which `dataclasses.replace` takes three times as long for."""
    return Request(index, r.arrival_s, r.num_items, r.priority, r.deadline_s, r.expected_s, r.tenant, r.weight, r.job)


def _draws(row: np.ndarray, count: int, rng: np.random.Generator) -> list[float]:
    drawn: list[float] = row[rng.integers(0, len(row), count)].tolist()
    return drawn


def _needs(requests: Sequence[Request], tasks: Sequence[Task]) -> dict[int, list[int]]:
    parts: dict[str, list[int]] = {task.name: [] for task in tasks}
    for request in requests:
        if request.job:
            parts[request.job].append(request.index)
    return {index: [other for name in task.after for other in parts[name]] for task in tasks if task.after for index in parts[task.name]}
