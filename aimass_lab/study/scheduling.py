"""The verb that plans batch, training and search jobs beside models online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import InputError
from ..records import Environment, JobPlan, JobTenant, Note, Number, OnlineModel, PlannedJob, Unit, derived
from ..targets import make_target
from ..units import parse_rate, parse_seconds
from ..verbs import Model, Seconds, verb
from .allocating import Allocating
from .base import StudyState
from .rotating import read_pairs, whole

if TYPE_CHECKING:
    from ..jobs import JobsFile, JobTable, Online, Task
    from ..planning.queueing import ServiceTimes
    from ..records import BatchPoint

POLICIES = ("fcfs", "priority(ageing_s=inf)", "weighted_fair", "edf")
STEP_PACE = (0.7, 1.3, 2.5)
"""Time of a training step over what its FLOPs take at the forward pass's rate: least, taken, most. On one core of a processor four small
models took 1.7 to 2.3, where steps are measured anyway; on the devices that this is for, nobody checked it."""

STEADY = Number(value=1, unit="ratio", source="estimated", method="every call of a job takes what such calls took before")
"""An input of all that a job will take: however well a call was measured, what follows from it is a prediction."""


class Scheduling(Allocating):
    """The verb that plans batch, training and search jobs beside models online."""

    @verb
    def schedule(
        self,
        *,
        jobs: str | None = None,
        job: dict[str, str] | None = None,
        beside: tuple[Model, ...] | None = None,
        rate: dict[str, str] | None = None,
        p99: dict[str, str] | None = None,
        ensemble: dict[str, str] | None = None,
        policy: tuple[str, ...] | None = None,
        device: str | None = None,
        devices: int = 1,
        price: float | None = None,
        max_jobs: int | None = None,
        tenant: dict[str, str] | None = None,
        priority: dict[str, str] | None = None,
        seconds: Seconds = 1.0,
        format: str = "kubernetes",
        out: str | None = None,
        seed: int = 0,
    ) -> JobPlan:
        """Plan batch, training and search jobs beside models online on the same devices: when each ends, its cost, and what it costs the others.

        All is simulated under each policy, with other arrivals every time and within the bands of all times. Calls are measured where the
        device is attached, else predicted; so are training steps. What binds is said, and which limit would have to be less strict.

        Args:
            jobs: TOML file with a table [jobs.NAME] for each job (kind batch, training or search; model, items, steps, trials, batch, time,
                parallel, at, by, after, tenant, priority, cores, memory, image, command) and [tenants.NAME] (models, weight, max_jobs, device_seconds).
            job: A job in one line instead, as name=kind(field=value, ...), such as nightly='batch(items=20000, by=10min)'; may be repeated.
            beside: Further model that is online or that a job is of; may be repeated.
            rate: Requests per second of a model online, as model=rate; may be repeated.
            p99: Latency that 99 % of such a model's requests must stay under, as model=50ms; may be repeated.
            ensemble: Models that answer as one, when all have, as name=model+model; with a rate and a p99 under that name; may be repeated.
            policy: Who goes first and who makes room, such as 'priority(ageing_s=60)'; may be repeated.
                First come first served, strict priority, weighted fair share and earliest deadline if not given.
            device: An attached device or a name of the catalogue; where the model is if not given.
            devices: How many of it there are.
            price: USD per hour of one device.
            max_jobs: Most jobs at once, of all tenants.
            tenant: Whom a model online belongs to, as model=tenant; may be repeated.
            priority: Priority of a model online, as model=number, 0 the most urgent; jobs have 1 if their table does not say; may be repeated.
            seconds: Time to spend on measuring training steps of one size.
            format: What to write the jobs for: kubernetes or kueue, with options in brackets where wanted.
            out: Folder for a cluster's manifests of the jobs; nothing is written if not given.
            seed: Of everything random.
        """
        from ..devices import load_devices
        from ..export.files import write_files
        from ..export.jobs import job_exporter_text, read_job_exporter
        from ..jobs import Given, Terms, plan_jobs, read_jobs

        exporter = read_job_exporter(format)
        table = read_jobs(Path(jobs) if jobs else None, job)
        policies = [_policy(text) for text in policy or POLICIES]
        on = device or self._environment_device()
        terms = Terms(device=on, devices=devices, price=price, tenants=_tenants(table), max_jobs=max_jobs, seed=seed)
        bench = _Bench({s.workload.name: s for s in (self, *map(self._study_of, beside or ()))}, on, parse_seconds(seconds))
        owners = {model: name for name, one in table.tenants.items() for model in one.models} | dict(tenant or {})
        online = _online(bench, rate, p99, _ensembles(ensemble, list(bench.studies)), owners, priority, table)
        asked = [bench.job(name, one, devices, table) for name, one in table.jobs.items()]
        given = Given(online=online, jobs=asked, environment=bench.environment, notes=tuple(bench.notes.values()))
        plan = plan_jobs(self.workload.name, given, policies, terms, progress=self.progress)
        entry = load_devices().get(bench.device)
        named = {"resource": entry.resource, "node_selector": entry.node_selector} if entry else {}
        plan = msgspec.structs.replace(plan, export_format=job_exporter_text(exporter), **named)
        if out is not None:
            write_files(Path(out), exporter.export(plan))
        return self._keep("schedule", plan)


def _policy(text: str) -> Any:
    from ..options import read_call
    from ..scheduling import make_policy

    name, options = read_call(text, what="is no scheduling policy", help="for example 'priority(ageing_s=60)'")
    return make_policy(name, options)


def _tenants(table: JobsFile) -> tuple[JobTenant, ...]:
    def limit(value: float | str | None) -> Number | None:
        return None if value is None else Number(value=parse_seconds(value), unit="s", source="user", method="device time given for the tenant")

    return tuple(
        JobTenant(name=name, weight=one.weight, max_jobs=one.max_jobs, device_seconds=limit(one.device_seconds)) for name, one in table.tenants.items()
    )


def _ensembles(given: Mapping[str, str] | None, models: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every name that can be online, and the models behind it."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in models}
    for name, text in (given or {}).items():
        members = tuple(member.strip() for member in text.split("+"))
        unknown = [member for member in members if member not in models]
        if unknown or name in models or len(members) < 2:
            what = f"no model here is called {unknown[0]!r}" if unknown else "it needs a name of its own and two models at least"
            raise InputError(f"ensemble {name}={text}: {what}", help=f"models: {', '.join(models)}; for example --ensemble vote={'+'.join(models)}")
        found[name] = members
    return found


def _online(
    bench: _Bench,
    rate: Mapping[str, str] | None,
    p99: Mapping[str, str] | None,
    members: Mapping[str, tuple[str, ...]],
    owners: Mapping[str, str],
    priority: Mapping[str, str] | None,
    table: JobsFile,
) -> list[tuple[Online, OnlineModel]]:
    names = list(members)
    rates, targets = read_pairs("rate", rate, names, parse_rate), read_pairs("p99", p99, names, parse_seconds)
    priorities = read_pairs("priority", priority, names, whole)
    for one, other, missing in (("rate", targets, rates), ("p99", rates, targets)):
        if lacking := [name for name in other if name not in missing]:
            raise InputError(f"there is no {one} for {', '.join(lacking)}", help=f"a model online has both: --{one} {lacking[0]}=...")
    read_pairs("tenant", dict(owners), names, str)
    return [bench.online(name, members[name], rates[name], targets[name], owners.get(name, name), priorities.get(name, 0), table) for name in rates]


@dataclass
class _Bench:
    """Where times come from: measured on the attached device, predicted for another."""

    studies: Mapping[str, StudyState]
    device: str
    seconds: float
    environment: Environment | None = None
    notes: dict[str, Note] = field(default_factory=dict)

    def online(self, name: str, members: Sequence[str], rate: float, p99: float, tenant: str, priority: int, table: JobsFile) -> tuple[Online, OnlineModel]:
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

        low, high = call_time.interval or (call_time.value, call_time.value)
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

    def _here(self, study: StudyState) -> bool:
        return self.device == study._environment_device()

    def _ladder(self, study: StudyState, technique: str) -> tuple[BatchPoint, ...]:
        technique = study._recipe(technique).name
        if not self._here(study):
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
        if self._here(study):
            from ..profiling.steps import time_training_step

            step = time_training_step(study.workload, batch_size=batch, budget_s=self.seconds)
            self.environment = self.environment or step.environment
            self.notes |= {note.code: note for note in step.notes}
            self.notes["assumes:step"] = Note(code="assumes:step", text="training steps are AdamW's on a plain loss; loading of data is not in them")
            low, high = step.latency_p50.interval or (step.latency_p50.value,) * 2
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
        low, high = forward.interval or (forward.value, forward.value)
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
    low, high = (sum((call.interval or (call.value, call.value))[end] for call in calls) for end in (0, 1))
    total = sum(call.value for call in calls)
    return derived(total, "s", "sum over models", list(zip(members, calls, strict=True)), interval=(low, high), interval_kind="sum of those of the models")
