"""Runs jobs beside models online for real, on the device's clock, and holds the run against what was foretold for it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..environment import LoadMeter, read_environment
from ..errors import InputError
from ..jobs import Question, draw_mix
from ..options import changed_options
from ..planning.queueing import ServiceTimes
from ..records import JobsRun, Number, Unit
from ..scheduling import Job, Policy, Schedule, SimulatedLane, run_jobs
from .figures import metric_of
from .lanes import DeviceLane, Pace, reader

if TYPE_CHECKING:
    import torch

    from ..jobs import Mix

PREDICTIONS = 20
PROFILE_SHARE = 0.3
"""Of the run's time, for the profile that its prediction rests on."""
MIN_ROUNDS = 8
ROOM = 1.3
"""Time in which requests come over that in which the jobs should end."""

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What really runs; each function is one call or step."""

    online: Mapping[str, Sequence[Call]]
    """By model online: one for each model that a request goes to."""
    jobs: Mapping[str, Call]


def run_for_real(
    question: Question, policy: Policy, calls: Calls, device: torch.device, *, seconds: float, progress: Callable[[float, str], None] | None = None
) -> JobsRun:
    """Run the jobs and the requests of `question` with the real models, shortened to about `seconds` of device time; one thread a call.

    Time is what the device worked, so other work on the machine counts little. What is predicted rests on a profile of the same calls in
    turn, taken just before; replayed is the simulation with the times of the run. Several devices have clocks of their own, and their calls
    are run one after another: what they take from each other is not in it.

    Args:
        question: Devices, models, jobs and limits.
        policy: Who goes first.
        calls: What runs for each of them.
        device: Where the models are.
        seconds: Of device time, about.
        progress: Told the share done and what is being done.

    Raises:
        InputError: there is nothing to run for a job, or the time is not above 0.
    """
    import torch

    if not seconds > 0:
        raise InputError(f"the time of a run must be above 0, got {seconds}")
    missing = [task.name for task in question.tasks if task.name not in calls.jobs]
    if missing:
        raise InputError(f"{' and '.join(missing)} cannot be run: the time of a call was given, and no model computes it", help="leave time out, or run out")
    tell = progress or (lambda share, text: None)
    read = reader(device, "device")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with LoadMeter() as meter:
            tell(0.0, "profiling the calls in turn")
            profiled = _with_profile(question, calls, read, PROFILE_SHARE * seconds)
            factor, span_s = _extent(profiled, seconds)
            mix = draw_mix(profiled.online, profiled.tasks, span_s=span_s, factor=factor, level=0.5, seed=[question.seed, 0])
            tell(0.3, f"running {len(mix.requests)} requests and parts of jobs")
            real, segments, overhead_s = _run(profiled, mix, policy.sped_up(factor), calls, read)
            meter.update()
    finally:
        torch.set_num_threads(threads)
    tell(0.9, "replaying")
    environment = read_environment(device, load=meter)
    outcome = _Outcome(profiled, mix, policy.sped_up(factor), factor, environment.id, real)
    return outcome.record(policy, segments, overhead_s, environment.device_name)


def _with_profile(question: Question, calls: Calls, read: Callable[[], float], budget_s: float) -> Question:
    """The same question with the times of a profile: every call in random order, until the time is up."""
    every: list[tuple[tuple[str, int], Call]] = [((f"job {name}", 0), call) for name, call in calls.jobs.items()]
    every += [((f"online {name}", k), call) for name, members in calls.online.items() for k, call in enumerate(members)]
    samples: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    shuffle, spent, rounds = random.Random(question.seed), 0.0, 0
    while rounds <= MIN_ROUNDS or spent < budget_s:
        shuffle.shuffle(every)
        for key, call in every:
            began = read()
            call()
            samples[key].append(read() - began)
            spent += samples[key][-1]
        rounds += 1

    def times(key: str, k: int, batch: int) -> ServiceTimes:
        return ServiceTimes.from_samples({batch: samples[key, k][1:]})  # the first warms up

    return replace(
        question,
        tasks=tuple(replace(task, times=times(f"job {task.name}", 0, task.batch)) for task in question.tasks),
        online=tuple(
            replace(model, times=times(f"online {model.name}", 0, 1), beside=tuple(times(f"online {model.name}", k + 1, 1) for k in range(len(model.beside))))
            for model in question.online
        ),
    )


def _extent(question: Question, seconds: float) -> tuple[float, float]:
    """How much shorter jobs are run than they are, and for how long requests come."""
    left = question.devices - sum(model.busy for model in question.online)
    if left <= 0:
        raise InputError(f"the models online alone keep more than {question.devices} devices busy, so a run would not end", help="lower a rate, or add devices")
    takes_s = max(task.at_s for task in question.tasks) + max(
        sum(task.work_s for task in question.tasks) / left, max(task.alone_s(task.parallel) for task in question.tasks)
    )
    factor = max(1.0, takes_s * question.devices / seconds)
    return factor, ROOM * takes_s / factor


class _Lane(DeviceLane):
    """A device on which whole calls run."""

    def __init__(self, mix: Mix, functions: Sequence[Call], pace: Pace, read: Callable[[], float]) -> None:
        super().__init__(pace)
        self._mix, self._functions, self._read = mix, functions, read

    def run(self, job: Job) -> tuple[float, bool]:
        index = job.request.index
        overhead = self._pace.lap()
        began = self._read()
        self._functions[index]()
        used = self._read() - began
        self._pace.lap()
        self._ran(job, used, overhead)
        return used, job.done + 1 == len(self._mix.segments_s[index])


def _run(question: Question, mix: Mix, policy: Policy, calls: Calls, read: Callable[[], float]) -> tuple[Schedule, list[list[float]], float]:
    """What happened, the times of calls by request, and the mean time between two of them."""
    asked: Counter[str] = Counter()
    functions = []
    for request, name in zip(mix.requests, mix.source, strict=True):
        if request.job:
            functions.append(calls.jobs[name])
        else:
            members = calls.online[name]
            functions.append(members[asked[name] % len(members)])
            asked[name] += 1
    pace = Pace()
    lanes = [_Lane(mix, functions, pace, read) for _ in range(question.devices)]
    schedule = run_jobs(mix.requests, policy, lanes, needs=mix.needs, limits=question.limits)
    segments: list[list[tuple[int, float]]] = [[] for _ in mix.requests]
    for lane in lanes:
        for index, pairs in lane.segments_s.items():
            segments[index] += pairs
    overheads = [seconds for lane in lanes for seconds in lane.overheads_s]
    return schedule, [[used for _, used in sorted(pairs)] for pairs in segments], sum(overheads) / len(overheads)


@dataclass(frozen=True)
class _Outcome:
    question: Question
    mix: Mix
    policy: Policy
    factor: float
    environment: str
    real: Schedule

    def record(self, policy: Policy, segments: Sequence[Sequence[float]], overhead_s: float, where: str) -> JobsRun:
        replayed = self._simulate(segments, overhead_s)
        predicted = [self._simulate(self._redrawn(k), overhead_s) for k in range(PREDICTIONS)]
        figures = [self._figures(schedule) for schedule in (self.real, replayed, *predicted)]
        metrics = tuple(
            metric_of(
                name, subject, "s", count, figures[0][name, subject][0], figures[1][name, subject][0], [one[name, subject][0] for one in figures[2:]],
                self._measured, text,
            )
            for (name, subject), (_, count, text) in figures[0].items()
        )  # fmt: skip
        return JobsRun(
            policy=policy.name,
            options=changed_options(policy),
            device=where,
            environment=self.environment,
            shortened=Number(value=self.factor, unit="ratio", source="derived", method="device time of the whole over that of the run", trust="estimated"),
            num_requests=sum(not request.job for request in self.mix.requests),
            metrics=metrics,
        )

    def _measured(self, value: float, unit: Unit, method: str, n: int) -> Number:
        return Number(value=value, unit=unit, source="measured", method=method, n=n, environment=self.environment)

    def _simulate(self, segments: Sequence[Sequence[float]], overhead_s: float) -> Schedule:
        lanes = [SimulatedLane(segments, overhead_s=overhead_s) for _ in range(self.question.devices)]
        return run_jobs(self.mix.requests, self.policy, lanes, needs=self.mix.needs, limits=self.question.limits)

    def _redrawn(self, k: int) -> list[list[float]]:
        """Times of the profile once more, for the same requests."""
        chance = random.Random(f"{self.question.seed} {k}")
        rows = {f"job {task.name}": [task.times.quantiles[task.batch].tolist()] for task in self.question.tasks}
        rows |= {f"online {model.name}": [times.quantiles[1].tolist() for times in model.members] for model in self.question.online}
        asked: Counter[str] = Counter()
        drawn = []
        for request, name, times in zip(self.mix.requests, self.mix.source, self.mix.segments_s, strict=True):
            of = rows[f"job {name}" if request.job else f"online {name}"]
            row = of[asked[name] % len(of)] if not request.job else of[0]
            asked[name] += not request.job
            drawn.append(chance.choices(row, k=len(times)))
        return drawn

    def _figures(self, schedule: Schedule) -> dict[tuple[str, str], tuple[float, int, str]]:
        """Name and subject -> value, how many stand behind it, and what it is."""
        import numpy as np

        found: dict[tuple[str, str], tuple[float, int, str]] = {}
        last = 0.0
        for task in self.question.tasks:
            mine = [job for job in schedule.jobs if job.request.job == task.name]
            end = max(job.finish_s for job in mine)
            last = max(last, end)
            found["end", task.name] = (end * self.factor, sum(job.done for job in mine), "end of its last call, times how much it was shortened")
        for model in self.question.online:
            of = [job for job, name in zip(schedule.jobs, self.mix.source, strict=True) if name == model.name and not job.request.job]
            latencies = [latency for _, latency in model.latencies_s(of)]
            for name, value in (("mean latency", np.mean), ("p99 latency", lambda values: np.percentile(values, 99))):
                if latencies:
                    found[name, model.name] = (float(value(latencies)), len(latencies), "from arrival to answer")
        return found
