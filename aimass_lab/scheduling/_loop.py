"""The one loop that takes jobs through devices segment by segment, whether the devices are simulated or real.

A job is a chain of segments, such as the layers of a model: at the end of each the device can be given to another job. A lane is one
device, or one core, with its clock. The loop asks a lane for the time, to run a job's next segment, and to wait; it never looks
at a clock of its own. So the same decisions are made on simulated time, on the wall clock, and on the time that a device was busy.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..errors import InputError
from .base import Policy, Queue, Request


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way."""

    request: Request
    done: int = 0
    """Segments that were run."""
    used_s: float = 0.0
    """Device time that it has had."""
    begin_s: float = math.nan
    """When its first segment began; not a number: it never did."""
    finish_s: float = math.nan
    """When its last segment ended; not a number: it never did."""
    dropped: bool = False
    """Whether it was turned away when it arrived."""

    @property
    def latency_s(self) -> float:
        """Arrival to end."""
        return self.finish_s - self.request.arrival_s


class Turn(NamedTuple):
    """One bar of a Gantt chart: a job on a lane, from when it was chosen until it ended or made room."""

    lane: int
    job: int
    """Index of the request."""
    start_s: float
    end_s: float
    segments: int
    finished: bool
    """Whether the job ended with it."""


class Lane(Protocol):
    """One device or core, and its clock."""

    def now_s(self) -> float:
        """The time."""

    def wait_until(self, time_s: float) -> None:
        """Do nothing until `time_s`, if that is still to come."""

    def run(self, job: Job) -> tuple[float, bool]:
        """Run the next segment of `job`; return the device time that it took, and whether it was the last."""


class SimulatedLane:
    """A lane on which segments take the times of a table.

    Args:
        segments_s: Device time of every segment, by request.
        overhead_s: Time that every segment costs besides, for choosing it and handing the device over.
        resume_s: Device time that a segment costs besides when its job was interrupted before it: caches are cold.
    """

    def __init__(self, segments_s: Sequence[Sequence[float]], *, overhead_s: float = 0.0, resume_s: float = 0.0) -> None:
        self._segments_s = segments_s
        self._overhead_s = overhead_s
        self._resume_s = resume_s
        self._time_s = 0.0
        self._last: Job | None = None

    def now_s(self) -> float:
        """The simulated time."""
        return self._time_s

    def wait_until(self, time_s: float) -> None:
        """Jump to `time_s`."""
        if time_s > self._time_s:
            self._time_s = time_s

    def run(self, job: Job) -> tuple[float, bool]:
        """Let the time of the next segment pass."""
        times = self._segments_s[job.request.index]
        used = times[job.done]
        if self._last is not job:
            if job.done:
                used += self._resume_s
            self._last = job
        self._time_s += self._overhead_s + used
        return used, job.done + 1 == len(times)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is let in."""

    max_jobs: int | None = None
    """Most jobs that are waiting for a turn or running; further ones wait outside, in the policy's order. Requests that are parts of one
    job count once, from when the first is let in until all have ended."""
    quotas: Mapping[str, int] = field(default_factory=dict)
    """The same by tenant."""
    parallel: Mapping[str, int] = field(default_factory=dict)
    """Most parts of a job that are let in at once, by job; all of them if not given."""
    jobs_only: bool = False
    """Let in at once whatever is part of no job, such as calls of a model online, and do not count it."""
    max_waiting: int | None = None
    """Most requests outside; whoever arrives beyond is turned away. None: no limit."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """What happened."""

    jobs: Sequence[Job]
    """By request."""
    turns: Sequence[Turn]
    """In order of their ends."""
    segments: int
    """How many were run."""
    most_jobs: int
    """Largest number of jobs that were let in at once."""


def run_jobs(
    requests: Sequence[Request],
    policy: Policy,
    lanes: Sequence[Lane],
    *,
    needs: Mapping[int, Sequence[int]] | None = None,
    limits: Limits | None = None,
) -> Schedule:
    """Take every request through the lanes, which share one waiting line.

    Args:
        requests: Sorted by arrival, `index` counting from 0.
        policy: Who goes first, and who makes room.
        lanes: Devices or cores; one runs one segment at a time.
        needs: Requests that must have ended before a request can begin, by its index: the edges of fork-join graphs.
        limits: What is let in; everything if not given.

    Raises:
        InputError: nothing arrives, there is no lane, requests are not in order, or some need each other.
    """
    return _Loop(requests, policy, lanes, needs or {}, limits or Limits()).run()


class _Loop:
    def __init__(self, requests: Sequence[Request], policy: Policy, lanes: Sequence[Lane], needs: Mapping[int, Sequence[int]], limits: Limits) -> None:
        _check(requests, lanes, needs)
        self._requests = requests
        self._lanes = lanes
        self._queue = policy.queue()
        self._door = _Door(policy, limits, Counter(request.job for request in requests))
        self._jobs = [Job(request) for request in requests]
        self._missing = {index: len(set(wanted)) for index, wanted in needs.items() if wanted}
        self._wanted_by: defaultdict[int, list[int]] = defaultdict(list)
        for index, wanted in needs.items():
            for other in set(wanted):
                self._wanted_by[other].append(index)
        self._arrived = 0
        self._open = len(requests)
        self._turns: list[Turn] = []
        self._segments = 0
        self._running: list[_Running | None] = [None] * len(lanes)

    def run(self) -> Schedule:
        lanes, queue = self._lanes, self._queue
        busy = [(lane.now_s(), k) for k, lane in enumerate(lanes)]
        heapq.heapify(busy)
        idle: list[int] = []
        now = 0.0
        while self._open:
            due = self._next_arrival_s()
            if idle and (len(queue) or due <= (busy[0][0] if busy else math.inf)):
                if math.isinf(due) and not len(queue):
                    break  # what is left waits for jobs that were turned away
                k = idle.pop(0)
                lanes[k].wait_until(now if len(queue) else due)
                heapq.heappush(busy, (lanes[k].now_s(), k))
                continue
            if not busy:
                break
            _, k = heapq.heappop(busy)
            now = lanes[k].now_s()
            job = self._choose(k, now)
            if job is None:
                idle.append(k)
                continue
            self._segment(k, job)
            heapq.heappush(busy, (lanes[k].now_s(), k))
        return Schedule(self._jobs, self._turns, self._segments, self._door.most)

    def _next_arrival_s(self) -> float:
        return self._requests[self._arrived].arrival_s if self._arrived < len(self._requests) else math.inf

    def _choose(self, k: int, now: float) -> Job | None:
        """Settle what the lane's last segment came to; then say whose turn it is."""
        last = self._running[k]
        if last is not None and last.finished:
            self._finish(last.job, now)
        self._admit(now)
        if last is not None and not last.finished:
            job = last.job
            if not self._queue.should_yield(job.request, now, job.used_s, job.used_s - last.had_s):
                return job
            self._end_turn(k, last)
            self._queue.add(job.request, now, job.used_s)
        self._running[k] = None
        if not len(self._queue):
            return None
        job = self._jobs[self._queue.pop().index]
        self._running[k] = _Running(job, now, job.done, job.used_s)
        return job

    def _segment(self, k: int, job: Job) -> None:
        running = self._running[k]
        assert running is not None
        if not job.done:
            job.begin_s = running.start_s
        used, finished = self._lanes[k].run(job)
        job.done += 1
        job.used_s += used
        self._segments += 1
        self._queue.account(job.request, used)
        running.end_s = self._lanes[k].now_s()
        if finished:
            running.finished = True
            job.finish_s = running.end_s
            self._end_turn(k, running)

    def _end_turn(self, k: int, running: _Running) -> None:
        job = running.job
        self._turns.append(Turn(k, job.request.index, running.start_s, running.end_s, job.done - running.done, running.finished))

    def _finish(self, job: Job, now: float) -> None:
        self._open -= 1
        for request in self._door.leave(job.request):
            self._queue.add(request, now)
        for index in self._wanted_by.get(job.request.index, ()):
            self._missing[index] -= 1
            if not self._missing[index]:
                del self._missing[index]
                if self._requests[index].arrival_s <= now and index < self._arrived:
                    self._enter(self._requests[index], now)

    def _admit(self, now: float) -> None:
        requests = self._requests
        while self._arrived < len(requests) and requests[self._arrived].arrival_s <= now:
            request = requests[self._arrived]
            self._arrived += 1
            if request.index not in self._missing:
                self._enter(request, request.arrival_s)

    def _enter(self, request: Request, now: float) -> None:
        verdict = self._door.enter(request, now)
        if verdict == "in":
            self._queue.add(request, now)
        elif verdict == "away":
            self._jobs[request.index].dropped = True
            self._open -= 1


@dataclass(slots=True)
class _Running:
    """A turn that is not over yet."""

    job: Job
    start_s: float
    done: int
    """Segments that the job had behind it."""
    had_s: float
    """Device time that it had had."""
    end_s: float = math.nan
    finished: bool = False


class _Door:
    """Keeps the number of jobs that were let in within the limits."""

    def __init__(self, policy: Policy, limits: Limits, parts: Counter[str]) -> None:
        self._policy = policy
        self._limits = limits
        self._inside = 0
        self._of_tenant: Counter[str] = Counter()
        self._left = parts
        """Parts that have not ended, by job."""
        self._parts_inside: Counter[str] = Counter()
        self._begun: set[str] = set()
        """Jobs of which a part was let in and not all have ended."""
        self._outside: dict[tuple[str, str], Queue] = {}
        """By tenant and job, as each has a limit of its own."""
        self.most = 0

    def enter(self, request: Request, now: float) -> str:
        """``"in"``, ``"wait"`` or ``"away"``."""
        if self._room(request):
            self._let_in(request)
            return "in"
        waiting = sum(map(len, self._outside.values()))
        if self._limits.max_waiting is not None and waiting >= self._limits.max_waiting:
            self._end(request)
            return "away"
        self._outside.setdefault((request.tenant, request.job), Queue(self._policy)).add(request, now)
        return "wait"

    def leave(self, request: Request) -> list[Request]:
        """Note that a request ended; return those that come in for it."""
        if self._is_free(request):
            return []
        self._parts_inside[request.job] -= 1
        if not request.job:
            self._inside -= 1
            self._of_tenant[request.tenant] -= 1
        self._end(request)
        entered: list[Request] = []
        while heads := [head for line in self._outside.values() if len(line) and self._room(head := line.head())]:
            first = min(heads, key=lambda r: (self._policy.key(r, r.arrival_s), r.index))
            self._outside[first.tenant, first.job].pop()
            self._let_in(first)
            entered.append(first)
        return entered

    def _end(self, request: Request) -> None:
        """Note that nothing more comes of a request; a job ends with its last part."""
        self._left[request.job] -= 1
        if request.job in self._begun and not self._left[request.job]:
            self._begun.remove(request.job)
            self._inside -= 1
            self._of_tenant[request.tenant] -= 1

    def _is_free(self, request: Request) -> bool:
        return self._limits.jobs_only and not request.job

    def _room(self, request: Request) -> bool:
        limits, job = self._limits, request.job
        if self._is_free(request):
            return True
        if job and self._parts_inside[job] >= limits.parallel.get(job, math.inf):
            return False
        if job in self._begun:
            return True
        if limits.max_jobs is not None and self._inside >= limits.max_jobs:
            return False
        return request.tenant not in limits.quotas or self._of_tenant[request.tenant] < limits.quotas[request.tenant]

    def _let_in(self, request: Request) -> None:
        if self._is_free(request):
            return
        self._parts_inside[request.job] += 1
        if request.job in self._begun:
            return
        if request.job:
            self._begun.add(request.job)
        self._inside += 1
        self._of_tenant[request.tenant] += 1
        self.most = max(self.most, self._inside)


def _check(requests: Sequence[Request], lanes: Sequence[Lane], needs: Mapping[int, Sequence[int]]) -> None:
    if not requests:
        raise InputError("nothing arrives", help="give at least one request")
    if not lanes:
        raise InputError("there is no lane to run on", help="give at least one")
    if any(request.index != k for k, request in enumerate(requests)):
        raise InputError("the indices of the requests do not count from 0")
    if any(later.arrival_s < earlier.arrival_s for earlier, later in itertools.pairwise(requests)):
        raise InputError("the requests are not sorted by arrival")
    unknown = {other for wanted in needs.values() for other in wanted} | set(needs)
    if any(not 0 <= index < len(requests) for index in unknown):
        raise InputError(f"a request needs one that is not there: {sorted(unknown)[-1]} of {len(requests)}")
    open_, left = {index: set(wanted) for index, wanted in needs.items()}, -1
    while open_ and left != len(open_):
        left = len(open_)
        open_ = {index: wanted & set(open_) for index, wanted in open_.items() if wanted & set(open_)}
    if open_:
        raise InputError(f"requests need each other: {sorted(open_)[:4]}", help="a graph of requests must have no circle")
