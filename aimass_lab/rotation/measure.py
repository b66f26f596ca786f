"""Predicts a rotation, runs it with the real models, replays it with the times of the run, and sets the three side by side."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..environment import LoadMeter, read_environment
from ..errors import InputError, ModelError
from ..options import changed_options
from ..outputs import output_tensors
from ..preserve import preserved
from ..records import Environment, Note, Number, Quality, RotatedModel, Rotation, RotationRun, Unit
from ..scheduling import Limits, Policy, Request, Schedule, SimulatedLane, make_policy, run_jobs
from ..timing import percentile_interval
from ..workload import call_model
from .figures import Outcome, compare, fairness, gantt
from .lanes import Clock, Crew, ModelLane, Pace, reader
from .segments import Pieces
from .tasks import Stream, make_requests, rates_for

if TYPE_CHECKING:
    import torch

MAX_BARS = 2000
"""Turns of each chart that a record keeps."""
MOST_LANES = 1024
MOST_CALLS = 5_000_000
PREDICTIONS = 40
"""Simulations with segment times drawn anew; their spread is the band."""
MOST_PREDICTED = 100_000
"""Calls of all these simulations together, where five of them have not more."""
PROFILE_SHARE = 0.5
"""Of the time of one policy's run, for the profile that the prediction rests on."""
MIN_ROUNDS, MAX_ROUNDS = 8, 200

Progress = Callable[[float, str], None]


def rotate(
    streams: Sequence[Stream],
    policies: Sequence[Policy],
    *,
    load: float = 0.7,
    seconds: float = 5.0,
    clock: Clock = "device",
    lanes: int = 1,
    burst: float = 1.0,
    limits: Limits | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Rotation:
    """Run the models of `streams` in turn under each policy, beside the prediction made before.

    Every policy gets the same arrivals. A lane is one core, and a call uses one thread; on a GPU a lane is the GPU. Further lanes
    have clocks of their own, but their segments are run one after another: what lanes take from each other is not in it.

    Args:
        streams: Models with the rates, priorities, weights and deadlines of their calls; all on the same device.
        policies: Who goes first, and who makes room.
        load: Share of the lanes' time that the calls should take, for the streams without a rate.
        seconds: Time over which calls arrive, by the clock that is used.
        clock: ``"device"`` or ``"wall"``; see `lanes.Clock`.
        lanes: Cores that share one waiting line; one only by the clock on the wall.
        burst: Rate of bursts over the rate between them; 1: Poisson arrivals.
        limits: What is let in; everything if not given.
        seed: Of arrivals and predictions.
        progress: Told the share done and what is being done.

    Raises:
        InputError: no stream or policy, two models of one name, models on several devices, or a value out of range.
        ModelError: a model raised, or does not compute in segments what it computes at once.
    """
    device = _check(streams, policies, load, seconds, clock, lanes, burst)
    tell = progress or (lambda share, text: None)
    read = reader(device, clock)
    with contextlib.ExitStack() as stack:
        for model in {id(s.workload.model): s.workload.model for s in streams}.values():
            stack.enter_context(preserved(model))
        meter = stack.enter_context(LoadMeter())
        crew = stack.enter_context(Crew(read))
        tell(0.0, "cutting the models into segments")
        pieces = [stack.enter_context(_cut(stream, crew, read)) for stream in streams]
        bench = _Bench(pieces, crew, clock, lanes)
        tell(0.05, "profiling the models in turn")
        profile = _profile(bench, PROFILE_SHARE * seconds, random.Random(seed))
        service_s = [_median(list(map(sum, vectors))) for vectors in profile.vectors]
        rates = rates_for(streams, service_s, load, lanes)
        if not sum(rates) * seconds <= MOST_CALLS:
            raise InputError(f"{sum(rates) * seconds:.3g} calls are more than the {MOST_CALLS:,} that are kept", help="give a shorter time, or less load")
        requests, stream_of = make_requests(streams, rates, service_s, seconds=seconds, burst=burst, seed=seed)
        outcomes = []
        for k, policy in enumerate(policies):
            tell(0.1 + 0.9 * k / len(policies), f"running {len(requests)} calls under {policy.name}")
            outcomes.append(_run(bench, profile, policy, requests, stream_of, limits, seed))
        meter.update()
    tell(1.0, "compared")
    environment = read_environment(device, load=meter)
    task = _Task(streams, pieces, profile, rates, environment, "noisy" if meter.noisy and clock == "wall" else "ok", clock, lanes, load, seconds)
    return task.record(policies, outcomes, meter)


@dataclass(frozen=True)
class _Bench:
    """The models, ready to run in segments."""

    pieces: Sequence[Pieces]
    crew: Crew
    clock: Clock
    lanes: int

    def run(
        self, requests: Sequence[Request], stream_of: Sequence[int], policy: Policy, limits: Limits | None = None
    ) -> tuple[Schedule, list[list[float]], list[float]]:
        """What happened, the segment times by request, and the overheads by segment."""
        pace = Pace()
        lanes = [ModelLane(self.pieces, stream_of, self.crew, clock=self.clock, pace=pace) for _ in range(self.lanes)]
        schedule = run_jobs(requests, policy, lanes, limits=limits)
        segments: list[list[tuple[int, float]]] = [[] for _ in requests]
        for lane in lanes:
            for index, pairs in lane.segments_s.items():
                segments[index] += pairs
        return schedule, [[used for _, used in sorted(pairs)] for pairs in segments], [o for lane in lanes for o in lane.overheads_s]


@dataclass(frozen=True)
class _Profile:
    """What segments take, found with the models in turn."""

    vectors: list[list[list[float]]]
    """By stream: segment times of each call."""
    overhead_s: float
    """Mean, by segment."""
    resume_s: float
    """What a segment takes longer after its call was interrupted."""

    def stretch(self, chance: random.Random) -> Callable[[int], list[float]]:
        """Draw calls from one stretch of the profile: what disturbs a machine lasts, so a run is as fast as some stretch, not as the mean of all."""
        rounds = min(map(len, self.vectors))
        length = max(5, rounds // 5)
        start = chance.randrange(max(1, rounds - length + 1))
        return lambda stream: chance.choice(self.vectors[stream][start : start + length])


def _cut(stream: Stream, crew: Crew, read: Callable[[], float]) -> Pieces:
    """Choose where to cut, and make sure that cutting changes nothing."""
    import torch

    pieces = Pieces(stream.workload)
    with torch.inference_mode():
        whole = [t.clone() for _, t in output_tensors(call_model(stream.workload.model, stream.workload.call))]
        again = [t.clone() for _, t in output_tensors(call_model(stream.workload.model, stream.workload.call))]
    finder = crew.worker(-1, lambda: pieces.find(read))
    while not finder.finished:
        finder.step()
    crew.release(-1)
    with pieces:
        worker = crew.worker(-1, pieces.call)
        while not worker.finished:
            worker.step()
        cut = [t for _, t in output_tensors(worker.result)]
        crew.release(-1)
    steady = all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    if steady and not all(_alike(a, b) for a, b in zip(whole, cut, strict=True)):
        text = f"{stream.name} computes something else when its call is interrupted"
        raise ModelError(text, help="its forward depends on the thread that it runs in, or on time: it cannot take turns safely")
    return pieces


def _alike(whole: torch.Tensor, cut: torch.Tensor) -> bool:
    """Equal but for the order of sums, which the number of threads changes."""
    import torch

    if not whole.is_floating_point():
        return torch.equal(whole, cut)
    return torch.allclose(whole, cut, rtol=1e-2, atol=1e-3 * float(whole.abs().max() if whole.numel() else 0), equal_nan=True)


def _profile(bench: _Bench, budget_s: float, shuffle: random.Random) -> _Profile:
    """Call every model in random order, to the end and in turns of one segment, until the time is up."""
    from ..timing import stopwatch

    count = len(bench.pieces)
    vectors: list[list[list[float]]] = [[] for _ in range(count)]
    turned: list[list[list[float]]] = [[] for _ in range(count)]
    overheads: list[float] = []
    with stopwatch() as elapsed:
        for round_number in range(MAX_ROUNDS):
            order = list(range(count))
            shuffle.shuffle(order)
            in_turns = round_number % 4 == 3
            policy = make_policy("round_robin", quantum_s=1e-9) if in_turns else make_policy("fcfs")
            _, segments, found = bench.run([Request(k, 0.0) for k in range(count)], order, policy)
            for index, times in enumerate(segments):
                (turned if in_turns else vectors)[order[index]].append(times)
            overheads += found
            if round_number + 1 >= MIN_ROUNDS and elapsed() > budget_s:
                break
    # The first round warms the models up.
    vectors = [of[1:] for of in vectors]
    return _Profile(vectors, sum(overheads) / len(overheads), _resume_cost(vectors, turned) if count > 1 else 0.0)


def _resume_cost(vectors: list[list[list[float]]], turned: list[list[list[float]]]) -> float:
    """Mean over streams of what a segment that is not the first takes longer when others ran before it."""
    costs = []
    for whole, interrupted in zip(vectors, turned, strict=True):
        usual = Counter(map(len, whole)).most_common(1)[0][0]
        if usual < 2:
            continue
        plain = _median([sum(times[1:]) / (usual - 1) for times in whole if len(times) == usual])
        after = [sum(times[1:]) / (usual - 1) for times in interrupted if len(times) == usual]
        if after:
            costs.append(_median(after) - plain)
    return max(0.0, sum(costs) / len(costs)) if costs else 0.0


def _run(bench: _Bench, profile: _Profile, policy: Policy, requests: Sequence[Request], stream_of: Sequence[int], limits: Limits | None, seed: int) -> Outcome:
    """Predict, run, replay."""

    def simulate(segments: Sequence[Sequence[float]], overhead_s: float, resume_s: float) -> Schedule:
        lanes = [SimulatedLane(segments, overhead_s=overhead_s, resume_s=resume_s) for _ in range(bench.lanes)]
        return run_jobs(requests, policy, lanes, limits=limits)

    predicted = []
    for k in range(min(PREDICTIONS, max(5, MOST_PREDICTED // len(requests)))):
        vectors = profile.stretch(random.Random(f"{seed} {k}"))
        predicted.append(simulate([vectors(stream) for stream in stream_of], profile.overhead_s, profile.resume_s))
    real, segments, overheads = bench.run(requests, stream_of, policy, limits)
    mean_overhead = sum(overheads) / len(overheads)
    for index, times in enumerate(segments):
        if not times:  # turned away in the run; the replay may let it in
            segments[index] = profile.vectors[stream_of[index]][-1]
    return Outcome(stream_of, real, simulate(segments, mean_overhead, 0.0), predicted, overheads)


@dataclass(frozen=True)
class _Task:
    """What was asked, and what the record needs besides the outcomes."""

    streams: Sequence[Stream]
    pieces: Sequence[Pieces]
    profile: _Profile
    rates: Sequence[float]
    environment: Environment
    quality: Quality
    clock: Clock
    lanes: int
    load: float
    seconds: float

    def record(self, policies: Sequence[Policy], outcomes: Sequence[Outcome], meter: LoadMeter) -> Rotation:
        models = tuple(self._model(k) for k in range(len(self.streams)))
        return Rotation(
            models=models,
            environment=self.environment,
            clock=self.clock,
            lanes=self.lanes,
            load=Number(value=self.load, unit="ratio", source="user", method="asked for"),
            span=Number(value=self.seconds, unit="s", source="user", method="asked for"),
            runs=tuple(self._policy_run(policy, outcome) for policy, outcome in zip(policies, outcomes, strict=True)),
            notes=self._notes(models, outcomes, meter),
        )

    def _measured(self, value: float, unit: Unit, method: str, n: int | None = None, interval: tuple[float, float] | None = None) -> Number:
        kind = None if interval is None else "95 % interval of the median"
        return Number(
            value=value, unit=unit, source="measured", method=method, n=n, interval=interval, interval_kind=kind, environment=self.environment.id,
            quality=self.quality,
        )  # fmt: skip

    def _model(self, k: int) -> RotatedModel:
        stream, vectors = self.streams[k], self.profile.vectors[k]
        totals = [sum(times) for times in vectors]
        segments = Counter(map(len, vectors)).most_common(1)[0][0]
        given = stream.rate is not None
        return RotatedModel(
            model=stream.workload.info(),
            batch_size=stream.workload.call.batch_size,
            segments=segments,
            service_time=self._measured(_median(totals), "s", f"median device time of {len(totals)} calls", len(totals), percentile_interval(totals, 50)),
            rate=Number(value=self.rates[k], unit="request/s", source="user" if given else "assumed", method="asked for" if given else "chosen for the load"),
            priority=stream.priority,
            weight=stream.weight,
            deadline=None if math.isinf(stream.deadline_s) else Number(value=stream.deadline_s, unit="s", source="user", method="asked for"),
        )

    def _policy_run(self, policy: Policy, outcome: Outcome) -> RotationRun:
        real = outcome.real
        used = sum(job.used_s for job in real.jobs)
        end = max(turn.end_s for turn in real.turns)
        waits = [job.begin_s - job.request.arrival_s for job in real.jobs if not job.dropped]
        overheads = outcome.overheads_s
        return RotationRun(
            policy=policy.name,
            options=changed_options(policy),
            num_jobs=len(real.jobs),
            metrics=compare(outcome, [s.name for s in self.streams], lambda value, unit, method, n: self._measured(value, unit, method, n)),
            interruptions=self._measured(sum(not turn.finished for turn in real.turns), "request", "counted"),
            utilization=self._measured(min(1.0, used / end / self.lanes), "ratio", "device time of all segments over the time of the lanes"),
            overhead=self._measured(sum(overheads) / len(overheads), "s", f"mean of {len(overheads)} segments", len(overheads)),
            fairness=self._measured(fairness(outcome, [s.weight for s in self.streams]), "ratio", "Jain's index of device time over weight and demand"),
            longest_wait=self._measured(max(waits), "s", "longest of all calls", len(waits)),
            real=gantt(real, outcome.stream_of, MAX_BARS),
            replayed=gantt(outcome.replayed, outcome.stream_of, MAX_BARS),
            predicted=gantt(outcome.predicted[0], outcome.stream_of, MAX_BARS),
        )

    def _notes(self, models: Sequence[RotatedModel], outcomes: Sequence[Outcome], meter: LoadMeter) -> tuple[Note, ...]:
        notes = []
        for one in models:
            if one.segments == 1:
                text = f"{one.model.name} is one segment (too short, or without submodules to pause at): it makes room between calls only"
                notes.append(Note(code="W-SINGLE-SEGMENT", text=text))
        if self.lanes > 1:
            text = "lanes have clocks of their own and take turns on one core: what they take from each other, such as memory bandwidth, is not in it"
            notes.append(Note(code="assumes:independent-lanes", text=text))
        if any(len(outcome.real.turns) > MAX_BARS for outcome in outcomes):
            notes.append(Note(code="cut:chart", text=f"charts show the first {MAX_BARS} turns of a policy"))
        if any(job.dropped for outcome in outcomes for job in outcome.real.jobs):
            notes.append(Note(code="dropped", text="calls that were turned away are in no latency"))
        if meter.noisy:
            effect = "waiting for a core is in the latencies" if self.clock == "wall" else "the device's clock leaves out waiting for a core, not shared caches"
            notes += [Note(code=note.code, text=f"{note.text}; {effect}") for note in meter.notes()]
        return tuple(notes)


def _median(values: Sequence[float]) -> float:
    from statistics import median

    return median(values)


def _check(streams: Sequence[Stream], policies: Sequence[Policy], load: float, seconds: float, clock: Clock, lanes: int, burst: float) -> torch.device:
    if not streams or not policies:
        raise InputError("a rotation needs a model and a policy at least")
    twice = [name for name, count in Counter(s.name for s in streams).items() if count > 1]
    if twice:
        raise InputError(f"two models are called {twice[0]!r}", help="give them names: Study(model, x, name=...)")
    devices = sorted({str(s.workload.torch_device) for s in streams})
    if len(devices) > 1 or devices[0] == "meta":
        raise InputError(f"the models are on {' and '.join(devices)}", help="models take turns on one device: move them there with their inputs")
    for name, value in (("load", load), ("seconds", seconds)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be above 0, got {value}")
    if not (math.isfinite(burst) and burst >= 1):
        raise InputError(f"burst must be at least 1, got {burst}", help="1 is a Poisson stream; 4 has bursts of four times the rate")
    if lanes > MOST_LANES:
        raise InputError(f"{lanes} lanes are more than the {MOST_LANES} that can be run here one after another")
    if lanes < 1 or (lanes > 1 and clock == "wall"):
        raise InputError(f"{lanes} lanes cannot be run by the clock {clock!r}", help="several lanes have the device's clock: clock=device")
    return streams[0].workload.torch_device
