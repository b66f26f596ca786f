"""Simulates jobs beside models online under one scheduling policy, several times over."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..planning.simulate import Band, band_of, level_of
from ..scheduling import Job, Limits, Policy, Queue, Schedule, SimulatedLane, run_jobs
from .mix import Mix, Online, Task, draw_mix

REPLICATIONS = 9
MOST_SEGMENTS = 20_000
"""Of one simulation; where there are more, jobs are simulated shorter than they are."""
_ROOM = 1.3
"""Simulated time over what the work takes in what the models online leave."""
_FAR = 2.0
"""Deadlines are waited for up to this many times that."""
_LEAST_LEFT = 0.02
"""Share of the devices that jobs are taken to get at least, for the simulated time to have an end."""
_FEWEST = 20
"""Requests that a percentile is taken of at least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is to be simulated."""

    devices: int
    online: tuple[Online, ...]
    tasks: tuple[Task, ...]
    """Those that are let in."""
    max_jobs: int | None = None
    tenant_jobs: Mapping[str, int] = field(default_factory=dict)
    """Most jobs at once, by tenant."""
    seed: int = 0

    @property
    def limits(self) -> Limits:
        """As the loop takes them."""
        parallel = {task.name: task.parallel for task in self.tasks}
        return Limits(max_jobs=self.max_jobs, quotas=dict(self.tenant_jobs), parallel=parallel, jobs_only=True)

    @property
    def span_s(self) -> float:
        """Time that is simulated: all work in what is left of the devices, with room, and until the last deadline where that is not far beyond."""
        left = max(self.devices - sum(model.busy for model in self.online), _LEAST_LEFT * self.devices)
        share = left / self.devices
        spread = sum(task.work_s for task in self.tasks) / left
        longest = max(_chain_s(task, self) for task in self.tasks) / share
        due = max((task.by_s for task in self.tasks if math.isfinite(task.by_s)), default=0.0)
        needed = max(task.at_s for task in self.tasks) + _ROOM * (spread + longest)
        return max(needed, min(due, _FAR * needed))

    @property
    def factor(self) -> float:
        """How much shorter jobs are simulated than they are."""
        segments = self.span_s * sum(model.rate * len(model.members) for model in self.online) + sum(task.parts * task.calls for task in self.tasks)
        return max(1.0, segments / MOST_SEGMENTS)


@dataclass(frozen=True)
class Simulated:
    """What came of it, by replication."""

    begins_s: dict[str, list[float]]
    ends_s: dict[str, list[float]]
    """Infinity where a job did not end within the simulated time."""
    p99_s: dict[str, list[float]]
    """By model online, with jobs."""
    alone_s: dict[str, list[float]]
    """The same requests without."""
    utilization: list[float]

    def ended_s(self) -> list[float]:
        """When the last job ended, by replication."""
        return [max(row) for row in zip(*self.ends_s.values(), strict=True)]


def simulate(question: Question, policy: Policy, *, replications: int = REPLICATIONS, progress: Callable[[float], None] | None = None) -> Simulated:
    """Simulate all of it `replications` times, with other requests and times, each at another place within the intervals of the times.

    Jobs of more segments than one simulation can afford are simulated shorter: a job does an n-th of its work, comes n times as soon and is
    due n times as soon, while models online get the requests that they get. So devices are shared as they would be, and times of jobs are n
    times as long as in the simulation.

    Args:
        question: Devices, models, jobs and limits.
        policy: Who goes first.
        replications: How often.
        progress: Told the share done.
    """
    span_s, factor = question.span_s, question.factor
    faster = policy.sped_up(factor)
    result = Simulated({t.name: [] for t in question.tasks}, {t.name: [] for t in question.tasks}, {}, {}, [])
    for k in range(replications):
        if progress is not None:
            progress(k / replications)
        mix = draw_mix(question.online, question.tasks, span_s=span_s / factor, factor=factor, level=level_of(k, replications), seed=[question.seed, k])
        schedule = _run(mix, faster, question)
        last = _jobs(mix, schedule, question, span_s, factor, result)
        first = min(task.at_s for task in question.tasks) / factor
        _calls(mix, schedule, faster, question, (first, last), result)
    return result


def _run(mix: Mix, policy: Policy, question: Question) -> Schedule:
    lanes = [SimulatedLane(mix.segments_s) for _ in range(question.devices)]
    return run_jobs(mix.requests, policy, lanes, needs=mix.needs, limits=question.limits)


def _jobs(mix: Mix, schedule: Schedule, question: Question, span_s: float, factor: float, result: Simulated) -> float:
    """Note begins and ends; return when the last job ended, as time passes in the simulation."""
    begin: dict[str, float] = {task.name: math.inf for task in question.tasks}
    end: dict[str, float] = {task.name: 0.0 for task in question.tasks}
    for job in schedule.jobs:
        name = job.request.job
        if name:
            begin[name], end[name] = min(begin[name], job.begin_s), max(end[name], job.finish_s)
    last = max(end.values())
    for name in end:
        ended = end[name] * factor
        result.begins_s[name].append(begin[name] * factor)
        result.ends_s[name].append(ended if ended <= span_s else math.inf)
    used = sum(max(0.0, min(turn.end_s, last) - turn.start_s) for turn in schedule.turns if turn.start_s < last)
    result.utilization.append(min(1.0, used / (last * question.devices)))
    return min(last, span_s / factor)


def _calls(mix: Mix, schedule: Schedule, policy: Policy, question: Question, window: tuple[float, float], result: Simulated) -> None:
    """Note the p99 of requests that came while there were jobs, and of the same requests without."""
    import numpy as np

    if not question.online:
        return
    calm = mix.without_jobs()
    for into, found, of in ((result.p99_s, schedule.jobs, mix), (result.alone_s, alone(calm, policy, question.devices), calm)):
        for model in question.online:
            mine = [job for job, name in zip(found, of.source, strict=True) if name == model.name and not job.request.job]
            answers = model.latencies_s(mine)
            during = [latency for arrival, latency in answers if window[0] <= arrival <= window[1]]
            counted = during if len(during) >= _FEWEST else [latency for _, latency in answers]
            into.setdefault(model.name, []).append(float(np.percentile(counted, 99)) if counted else model.work_s)


def alone(calm: Mix, policy: Policy, devices: int) -> Sequence[Job]:
    """What becomes of calls that share the devices with no job.

    Each is one segment, which nothing interrupts: where the policy ranks none before an earlier one, they are served as they come, and the loop that
    asks it at every step, which takes many times as long, would come to the same.
    """
    if not calm.requests:
        return []
    ranks = [policy.key(request, request.arrival_s) for request in calm.requests]
    if type(policy.queue()) is not Queue or any(later < earlier for earlier, later in itertools.pairwise(ranks)):
        return run_jobs(calm.requests, policy, [SimulatedLane(calm.segments_s) for _ in range(devices)]).jobs
    free, jobs = [0.0] * devices, []
    for request, (seconds,) in zip(calm.requests, calm.segments_s, strict=True):
        begin = max(request.arrival_s, free[0])
        heapq.heapreplace(free, begin + seconds)
        jobs.append(Job(request, 1, seconds, begin, begin + seconds))
    return jobs


def _chain_s(task: Task, question: Question) -> float:
    """Time of a job alone, after all that must have ended before it."""
    by_name = {one.name: one for one in question.tasks}
    before = max((_chain_s(by_name[name], question) for name in task.after if name in by_name), default=0.0)
    return before + task.alone_s(question.devices)


def added(result: Simulated, model: str) -> Band:
    """What jobs add to a model's p99."""
    pairs = zip(result.p99_s[model], result.alone_s[model], strict=True)
    return band_of([round(after - before, 9) for after, before in pairs])  # clocks are sums, whose last digits differ
