"""The verb that plans batch, training and search jobs beside models online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import InputError
from ..records import JobPlan, JobTenant, Note, Number, OnlineModel
from ..units import parse_latency, parse_rate, parse_seconds
from ..verbs import Amount, Count, Model, Seconds, Seed, verb
from .allocating import Allocating
from .bench import JobBench
from .rotating import read_pairs, whole

if TYPE_CHECKING:
    from ..jobs import JobsFile, Online

POLICIES = ("fcfs", "priority(ageing_s=inf)", "weighted_fair", "edf")


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
        devices: Count = 1,
        price: Amount | None = None,
        max_jobs: Count | None = None,
        tenant: dict[str, str] | None = None,
        priority: dict[str, str] | None = None,
        seconds: Seconds = 1.0,
        run: Seconds | None = None,
        format: str = "kubernetes",
        out: str | None = None,
        seed: Seed = 0,
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
            run: Device time for which it is also run here with the real models, under the policy that is recommended, shortened; not if not given.
            format: What to write the jobs for: kubernetes or kueue, with options in brackets where wanted.
            out: Folder for a cluster's manifests of the jobs; nothing is written if not given.
            seed: Of everything random.
        """
        from ..devices import load_devices
        from ..export.files import check_folder, write_files
        from ..export.jobs import job_exporter_text, read_job_exporter
        from ..jobs import Given, Terms, plan_jobs, question_of, read_jobs
        from ..rotation.jobs import run_for_real
        from ..scheduling import read_policy

        exporter = read_job_exporter(format)
        folder = None if out is None else Path(out).expanduser()
        if folder is not None:
            check_folder(folder)
        table = read_jobs(Path(jobs) if jobs else None, job)
        policies = [read_policy(text) for text in policy or POLICIES]
        on = device or self._environment_device()
        terms = Terms(device=on, devices=devices, price=price, tenants=_tenants(table), max_jobs=max_jobs, seed=seed)
        bench = JobBench({s.workload.name: s for s in (self, *map(self._study_of, beside or ()))}, on, parse_seconds(seconds))
        owners = {model: name for name, one in table.tenants.items() for model in one.models} | dict(tenant or {})
        if run is not None and not all(map(bench.is_here, bench.studies.values())):
            raise InputError(f"{on} is not what the models are on, so nothing can be run there", help="leave run out, or plan for the device that they are on")
        members = _ensembles(ensemble, list(bench.studies))
        online = _online(bench, rate, p99, members, owners, priority, table)
        asked = [bench.job(name, one, devices, table) for name, one in table.jobs.items()]
        given = Given(online=online, jobs=asked, environment=bench.environment, notes=tuple(bench.notes.values()))
        plan = plan_jobs(self.workload.name, given, policies, terms, progress=self.progress)
        if run is not None:
            chosen = policies[plan.recommended]
            with bench.real_calls(table, plan, {model.name: members[model.name] for model, _ in online}) as calls:
                ran = run_for_real(question_of(given, terms)[1], chosen, calls, self.workload.torch_device, seconds=parse_seconds(run), progress=self.progress)
            plan = msgspec.structs.replace(plan, ran=ran, notes=(*plan.notes, *_thread_notes(plan)))
        entry = load_devices().get(bench.device)
        named = {"resource": entry.resource, "node_selector": entry.node_selector} if entry else {}
        plan = msgspec.structs.replace(plan, export_format=job_exporter_text(exporter), **named)
        if folder is not None:
            write_files(folder, exporter.export(plan))
        return self._keep("schedule", plan)


def _thread_notes(plan: JobPlan) -> tuple[Note, ...]:
    """Where the plan and its run did not compute alike."""
    threads = plan.environment.threads if plan.environment else 1
    if threads == 1:
        return ()
    text = f"the run has one thread a call, and the times of the plan were measured with {threads}: its own profile, not the plan, is what it is held against"
    return (Note(code="one-thread", text=text),)


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
    bench: JobBench,
    rate: Mapping[str, str] | None,
    p99: Mapping[str, str] | None,
    members: Mapping[str, tuple[str, ...]],
    owners: Mapping[str, str],
    priority: Mapping[str, str] | None,
    table: JobsFile,
) -> list[tuple[Online, OnlineModel]]:
    names = list(members)
    rates, targets = read_pairs("rate", rate, names, parse_rate), read_pairs("p99", p99, names, parse_latency)
    priorities = read_pairs("priority", priority, names, whole)
    for one, other, missing in (("rate", targets, rates), ("p99", rates, targets)):
        if lacking := [name for name in other if name not in missing]:
            raise InputError(f"there is no {one} for {', '.join(lacking)}", help=f"a model online has both: --{one} {lacking[0]}=...")
    read_pairs("tenant", dict(owners), names, str)
    return [bench.online(name, members[name], rates[name], targets[name], owners.get(name, name), priorities.get(name, 0), table) for name in rates]
