"""What calls and steps of planned jobs take, and what really runs for them: measured on the attached device, predicted for another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import Environment, JobPlan, Note, Number, OnlineModel, PlannedJob, Unit, derived
from ..targets import make_target
from .base import StudyState

if TYPE_CHECKING:
    from ..jobs import JobsFile, JobTable, Online, Task
    from ..planning.queueing import ServiceTimes
    from ..records import BatchPoint
    from ..rotation.jobs import Calls
    from ..workload import Workload

STEP_PACE = (0.7, 1.3, 2.5)
"""Time of a training step over what its FLOPs take at the forward pass's rate: least, taken, most. On one core of a processor four small
models took 1.7 to 2.3, where steps are measured anyway; on the devices that this is for, nobody checked it."""

STEADY = Number(value=1, unit="ratio", source="estimated", method="every call of a job takes what such calls took before")
"""An input of all that a job will take: however well a call was measured, what follows from it is a prediction."""


@dataclass
class JobBench:
    """Where times come from: measured on the attached device, predicted for another."""

    studies: Mapping[str, StudyState]
    device: str
    seconds: float
    environment: Environment | None = None
    notes: dict[str, Note] = field(default_factory=dict)

    def online(self, name: str, members: Sequence[str], rate: float, p99: float, tenant: str, priority: int, table: JobsFile) -> tuple[Online, OnlineModel]:
        """A model or ensemble online, as it is simulated and as it is shown."""
        from ..jobs import Online
        from ..planning.queueing import ServiceTimes

        ladders = [self._ladder(self.studies[member], "none") for member in members]
        times = [ServiceTimes.from_points(ladder) for ladder in ladders]
        target = make_target(rate, p99)
        model = Online(
            name=name, times=times[0], beside=tuple(times[1:]), rate=rate, p99_s=p99, tenant=tenant, priority=priority, weight=_weight(tenant, table)
        )  # fmt: skip
        calls = [_call_time(one, 1, ladder) for one, ladder in zip(times, ladders, strict=True)]
        shown = OnlineModel(
            name=name, models=tuple(self.studies[member].workload.info() for member in members), tenant=tenant, priority=priority,
            requests_per_s=target.requests_per_s, latency_target=target.latency_p99,
            call_time=calls[0] if len(calls) == 1 else _together(members, calls),
        )  # fmt: skip
        return model, shown

    def job(self, name: str, asked: JobTable, devices: int, table: JobsFile) -> tuple[Task, PlannedJob]:
        """A job, as it is simulated and as it is shown.

        Raises:
            InputError: it is of a model that is not here, or its steps cannot be made.
            UnsupportedError: nothing says what its calls take on the device.
        """
        from ..jobs import Task, times_of

        study = self._study(name, asked)
        given = times_of(name, asked)
        batch, times, call_time, memory = self._times(study, asked, given.call_s, devices)
        parts, calls, parallel = _shape(asked, batch, devices)
        tenant = asked.tenant or name
        task = Task(
            name=name, times=times, batch=batch, parts=parts, calls=calls, parallel=parallel, at_s=given.at_s, by_s=given.by_s, after=asked.after,
            tenant=tenant, priority=asked.priority, weight=_weight(tenant, table), shards=asked.kind == "batch",
            spreads=asked.kind != "training" and asked.parallel is None,
        )  # fmt: skip

        def user(value: float, unit: Unit) -> Number:
            return Number(value=value, unit=unit, source="user", method="given for the job")

        low, high = call_time.ends
        total = parts * calls
        shown = PlannedJob(
            name=name, kind=asked.kind, model=study.workload.info(), tenant=tenant, priority=asked.priority, batch_size=batch, calls=total, parts=parts,
            parallel=parallel, call_time=call_time,
            work=derived(total * call_time.value, "s", "calls x time of one", [("call_time", call_time), ("steady", STEADY)],
                         interval=(total * low, total * high), interval_kind=call_time.interval_kind or "as that of a call"),
            submitted=user(given.at_s, "s"), deadline=None if asked.by is None else user(given.by_s, "s"), after=asked.after,
            cores=user(asked.cores, "core") if asked.cores else self._cores(),
            memory_bytes=user(given.memory_bytes, "B") if given.memory_bytes else memory,
            accelerators=int(not self._on_processor), image=asked.image, command=asked.command,
        )  # fmt: skip
        return task, shown

    def _study(self, name: str, asked: JobTable) -> StudyState:
        wanted = asked.model or next(iter(self.studies))
        if wanted not in self.studies:
            raise InputError(f"job {name!r} is of the model {wanted!r}, which is not here", help=f"models: {', '.join(self.studies)}; --beside adds one")
        return self.studies[wanted]

    @contextlib.contextmanager
    def real_calls(self, table: JobsFile, plan: JobPlan, members: Mapping[str, Sequence[str]]) -> Iterator[Calls]:
        """What runs for the models online, and for every job whose calls were not given a time; the models are as they were afterwards."""
        from ..preserve import preserved
        from ..profiling.steps import training_steps
        from ..rotation.jobs import Calls

        with contextlib.ExitStack() as stack:
            quiet: set[int] = set()

            def forward(workload: Workload, batch: int) -> Callable[[], object]:
                if id(workload.model) not in quiet:
                    quiet.add(id(workload.model))
                    stack.enter_context(preserved(workload.model))
                return _without_gradients(workload, batch)

            jobs: dict[str, Callable[[], object]] = {}
            for job in plan.jobs:
                asked = table.jobs[job.name]
                study = self._study(job.name, asked)
                if asked.time is not None or job.refused is not None:
                    continue
                if job.kind == "batch":
                    jobs[job.name] = forward(study._served(study._recipe(asked.technique).name), job.batch_size)
                else:
                    jobs[job.name] = stack.enter_context(training_steps(study.workload, batch_size=job.batch_size))
            yield Calls(jobs=jobs, online={name: [forward(self.studies[one].workload, 1) for one in ones] for name, ones in members.items()})

    def is_here(self, study: StudyState) -> bool:
        """Whether the study's model is on the device that is planned for."""
        return self.device == study._environment_device()

    def _ladder(self, study: StudyState, technique: str) -> tuple[BatchPoint, ...]:
        technique = study._recipe(technique).name
        if not self.is_here(study):
            return study._estimated_ladder(technique, self.device)
        profile = study._measured_profile(technique)
        self.environment = self.environment or profile.environment
        return profile.ladder

    def _times(self, study: StudyState, asked: JobTable, call_s: float | None, devices: int) -> tuple[int, ServiceTimes, Number, Number | None]:
        """Batch size, times of a call or step, its mean as a number, and the memory of one worker."""
        from ..planning.queueing import ServiceTimes

        own = study.workload.call.batch_size
        if call_s is not None:
            batch = asked.batch or own
            number = Number(value=call_s, unit="s", source="user", method="time of a call or step, given for the job")
            return batch, ServiceTimes.from_values({batch: call_s}), number, None
        if asked.kind == "batch":
            ladder = self._ladder(study, asked.technique)
            batch = asked.batch or min(ladder, key=lambda p: p.latency_p50.value / p.batch_size).batch_size
            times = ServiceTimes.from_points(ladder, max(batch, max(p.batch_size for p in ladder)))
            return batch, times, _call_time(times, batch, ladder), self._batch_memory(study, asked.technique, ladder, batch)
        return self._step(study, asked.batch or own)

    def _step(self, study: StudyState, batch: int) -> tuple[int, ServiceTimes, Number, Number | None]:
        from ..demand import estimate_demand
        from ..planning.queueing import ServiceTimes

        training = estimate_demand(study.workload, batch_size=batch, device=self.device, training=True).training
        assert training is not None  # it was asked for
        memory = self._with_runtime(training.driver_bytes)
        if self.is_here(study):
            from ..profiling.steps import time_training_step

            step = time_training_step(study.workload, batch_size=batch, budget_s=self.seconds)
            self.environment = self.environment or step.environment
            self.notes |= {note.code: note for note in step.notes}
            self.notes["assumes:step"] = Note(code="assumes:step", text="training steps are AdamW's on a plain loss; loading of data is not in them")
            low, high = step.latency_p50.ends
            scale = (low / step.latency_p50.value, high / step.latency_p50.value)
            times = ServiceTimes.from_samples({batch: step.samples_s}, scale=scale)
            mean = times.mean_s(batch)
            number = derived(mean, "s", f"mean of {len(step.samples_s)} training steps", [("p50", step.latency_p50)],
                             interval=(mean * scale[0], mean * scale[1]), interval_kind="as the median's 95 % interval")  # fmt: skip
            return batch, times, number, memory
        ladder = self._ladder(study, "none")
        forward = _call_time(ServiceTimes.from_points(ladder, max(batch, max(p.batch_size for p in ladder))), batch, ladder)
        ratio = (training.forward_flops.value + training.backward_flops.value) / max(training.forward_flops.value, 1)
        pace = Number(
            value=ratio * STEP_PACE[1], unit="ratio", source="assumed", method=f"FLOPs of a step over those of a call ({ratio:.3g}) x {STEP_PACE[1]:g}",
            interval=(ratio * STEP_PACE[0], ratio * STEP_PACE[2]), interval_kind="bounds that nobody checked",
        )  # fmt: skip
        low, high = forward.ends
        assert pace.interval is not None
        number = derived(
            forward.value * pace.value, "s", "time of a call x what a step takes of it", [("call", forward), ("pace", pace)],
            interval=(low * pace.interval[0], high * pace.interval[1]), interval_kind="both bands together",
        )  # fmt: skip
        assert number.interval is not None
        scale = (number.interval[0] / number.value, number.interval[1] / number.value)
        return batch, ServiceTimes.from_samples({batch: [number.value]}, scale=scale), number, memory

    def _batch_memory(self, study: StudyState, technique: str, ladder: Sequence[BatchPoint], batch: int) -> Number | None:
        from ..spec import replica_memory

        known = [p.peak_memory_bytes for p in ladder if p.peak_memory_bytes and p.batch_size >= batch]
        if not known or not self._on_processor:
            return None
        return replica_memory(min(known, key=lambda n: n.value), study._served(technique).info().weight_bytes)

    @property
    def _on_processor(self) -> bool:
        from ..devices import load_devices

        entry = load_devices().get(self.device)
        return entry.kind == "cpu" if entry else self.device == "cpu"

    def _with_runtime(self, peak: Number | None) -> Number | None:
        """Host memory of a worker: what the process grows by on a processor; beside an accelerator nothing says how much."""
        from ..spec import SERVER_MEMORY_BYTES

        if peak is None or not self._on_processor:
            return None
        runtime = Number(value=SERVER_MEMORY_BYTES, unit="B", source="assumed", method="interpreter and runtime without a model")
        return derived(peak.value + runtime.value, "B", "peak of a step + runtime", [("peak", peak), ("runtime", runtime)])

    def _cores(self) -> Number | None:
        if not self._on_processor:
            return Number(value=1, unit="core", source="assumed", method="one core feeds the device")
        if self.environment is None:
            return None
        return Number(value=self.environment.threads, unit="core", source="measured", method="threads that calls were measured with")


def _shape(asked: JobTable, batch: int, devices: int) -> tuple[int, int, int]:
    """Parts, calls of each, and how many parts at once."""
    if asked.kind == "training":
        assert asked.steps is not None
        return 1, asked.steps, 1
    parallel = min(asked.parallel or devices, devices)
    if asked.kind == "search":
        assert asked.trials is not None
        return asked.trials, asked.steps or 1, min(parallel, asked.trials)
    assert asked.items is not None
    calls = -(-asked.items // batch)
    parallel = min(parallel, calls)
    return parallel, -(-calls // parallel), parallel


def _without_gradients(workload: Workload, batch: int) -> Callable[[], object]:
    import torch

    from ..workload import call_model

    call = workload.call.with_batch(batch)

    def forward() -> object:
        with torch.inference_mode():
            return call_model(workload.model, call)

    return forward


def _weight(tenant: str, table: JobsFile) -> float:
    return table.tenants[tenant].weight if tenant in table.tenants else 1.0


def _call_time(times: ServiceTimes, batch: int, ladder: Sequence[BatchPoint]) -> Number:
    """Mean time of a call of `batch` items."""
    mean = times.mean_s(batch)
    inputs = [(f"batch {p.batch_size}", p.latency_p50) for p in ladder]
    ends = (mean * float(times.low[batch]), mean * float(times.high[batch]))
    return derived(mean, "s", f"mean of a call of {batch}", inputs, interval=ends, interval_kind="as that of the median")


def _together(members: Sequence[str], calls: Sequence[Number]) -> Number:
    """Device time of a request that goes to several models."""
    low, high = (sum(call.ends[end] for call in calls) for end in (0, 1))
    total = sum(call.value for call in calls)
    return derived(total, "s", "sum over models", list(zip(members, calls, strict=True)), interval=(low, high), interval_kind="sum of those of the models")
