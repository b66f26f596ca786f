"""Plans jobs beside models online: who is let in, what becomes of it under each policy, what binds, and what would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from ..errors import InputError
from ..headlines import describe_policy
from ..records import Environment, JobPlan, JobRemedy, JobTenant, Note, Number, OnlineModel, PlannedJob, derived
from ..scheduling import Policy
from ..units import format_seconds
from .mix import Online, Task
from .outcome import policy_run
from .simulate import MOST_SEGMENTS, Question, simulate

MOST_DEVICES = 10_000
QUICK = 3
"""Replications of what is only tried to see whether it would help."""
MOST_DEVICES_MORE = 4
_POLICIES = 0.7
"""Share of the work that the policies are; looking for remedies is the rest, where there is any to look for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """What is given for all of it."""

    device: str
    devices: int
    price: float | None = None
    """USD per hour and device."""
    tenants: tuple[JobTenant, ...] = ()
    max_jobs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise InputError(f"the number of devices must be at least 1, got {self.devices}")
        if self.devices > MOST_DEVICES:
            raise InputError(f"{self.devices} devices are more than the {MOST_DEVICES:,} that are simulated one by one", help="plan for a part of them")
        if self.max_jobs is not None and self.max_jobs < 1:
            raise InputError(f"max_jobs must be at least 1, got {self.max_jobs}")
        if self.price is not None and not (math.isfinite(self.price) and self.price >= 0):
            raise InputError(f"the price must be at least 0 USD per hour, got {self.price}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Models online and jobs, each as it is simulated and as it is shown."""

    online: Sequence[tuple[Online, OnlineModel]]
    jobs: Sequence[tuple[Task, PlannedJob]]
    environment: Environment | None = None
    notes: tuple[Note, ...] = field(default=())


def plan_jobs(name: str, given: Given, policies: Sequence[Policy], terms: Terms, *, progress: Callable[[float, str], None] | None = None) -> JobPlan:
    """Simulate the jobs under each policy beside the models online, and recommend the policy that breaks the fewest promises.

    Args:
        name: What to call the plan.
        given: Models online and jobs.
        policies: Who goes first; several are compared.
        terms: Devices, tenants and limits.
        progress: Told the share done and what is being done.

    Raises:
        InputError: no policy, no job that is let in, or a tenant that nobody belongs to.
    """
    _check(given, policies, terms)
    tell = progress or (lambda share, text: None)
    planned, question = question_of(given, terms)
    price = None if terms.price is None else Number(value=terms.price, unit="USD/h", source="user", method="given for the device")
    runs = []
    what = f"{len(question.tasks)} job{'s' if len(question.tasks) > 1 else ''}"
    for k, policy in enumerate(policies):

        def share(done: float, k: int = k, policy: Policy = policy) -> None:
            tell(_POLICIES * (k + done) / len(policies), f"simulating {what} under {policy.name}")

        runs.append(policy_run(policy, simulate(question, policy, progress=share), planned, given.online, price))
    best = min(range(len(runs)), key=lambda k: (runs[k].broken, runs[k].strain))
    record = runs[best].record
    remedies = () if record.feasible else tuple(_remedies(question, policies[best], planned, given, price, tell))
    return JobPlan(
        name=name,
        device=terms.device,
        devices=terms.devices,
        price=price,
        environment=given.environment,
        online=tuple(shown for _, shown in given.online),
        jobs=tuple(planned),
        tenants=terms.tenants,
        max_jobs=terms.max_jobs,
        span=derived(question.span_s, "s", "time in which requests come", [(job.name, job.work) for job in planned]),
        runs=tuple(run.record for run in runs),
        recommended=best,
        feasible=record.feasible,
        binding=_binding(question, planned, remedies, feasible=record.feasible, policy=describe_policy(record)),
        remedies=remedies,
        notes=(*given.notes, *_notes(question)),
    )


def question_of(given: Given, terms: Terms) -> tuple[list[PlannedJob], Question]:
    """All jobs, each let in or refused, and what is to be simulated of them.

    Raises:
        InputError: none is let in.
    """
    planned = _admit([job for _, job in given.jobs], {tenant.name: tenant for tenant in terms.tenants})
    let_in = tuple(task for (task, _), job in zip(given.jobs, planned, strict=True) if job.refused is None)
    if not let_in:
        raise InputError(f"no job is let in: {planned[0].refused}", help="raise the tenant's device_seconds")
    question = Question(
        devices=terms.devices,
        online=tuple(model for model, _ in given.online),
        tasks=let_in,
        max_jobs=terms.max_jobs,
        tenant_jobs={tenant.name: tenant.max_jobs for tenant in terms.tenants if tenant.max_jobs is not None},
        seed=terms.seed,
    )
    return planned, question


def _admit(jobs: Sequence[PlannedJob], tenants: Mapping[str, JobTenant]) -> list[PlannedJob]:
    """Refuse jobs whose device time would exceed what their tenant may have; in order of priority and submission, as a queue would let them in."""
    left = {name: tenant.device_seconds.value for name, tenant in tenants.items() if tenant.device_seconds is not None}
    refused: dict[str, str] = {}
    for job in sorted(jobs, key=lambda job: (job.priority, job.submitted.value)):
        most = job.work.ends[1]
        if job.tenant not in left:
            continue
        if most > left[job.tenant] * (1 + 1e-9):
            may = f"{format_seconds(left[job.tenant])} of device time are left to {job.tenant}"
            refused[job.name] = f"{may}, and it may take {format_seconds(most)}"
        else:
            left[job.tenant] -= most
    for _ in jobs:  # whoever comes after a job that never runs never runs either
        for job in jobs:
            lost = next((other for other in job.after if other in refused), None)
            if lost is not None and job.name not in refused:
                refused[job.name] = f"it comes after {lost}, which is not let in"
    return [_with_refusal(job, refused.get(job.name)) for job in jobs]


def _with_refusal(job: PlannedJob, why: str | None) -> PlannedJob:
    """The job, let in or not."""
    return msgspec.structs.replace(job, refused=why)


def _remedies(
    question: Question, policy: Policy, planned: Sequence[PlannedJob], given: Given, price: Number | None, tell: Callable[[float, str], None]
) -> list[JobRemedy]:
    """Limits less strict than they are, one at a time, the cheap ones first; then devices are added until it is enough."""
    if any(job.refused for job in planned):
        return []  # what would let them in is said, and nothing else would

    changes, looked = _less_strict(question), 0

    def works(text: str, changed: Question) -> bool:
        nonlocal looked

        def share(done: float) -> None:
            tell(_POLICIES + (1 - _POLICIES) * (looked + done) / (len(changes) + MOST_DEVICES_MORE), f"whether it would hold with {text}")

        run = policy_run(policy, simulate(changed, policy, replications=QUICK, progress=share), planned, given.online, price)
        looked += 1
        return run.record.feasible

    tried = [JobRemedy(change=text, feasible=works(text, changed)) for text, changed in changes]
    if any(remedy.feasible for remedy in tried):
        return tried
    for more in range(1, MOST_DEVICES_MORE + 1):
        wider, text = question.devices + more, f"{more} more device{'s' if more > 1 else ''}"
        enough = works(text, replace(question, devices=wider, tasks=tuple(task.on(wider) if task.spreads else task for task in question.tasks)))
        if enough or more == MOST_DEVICES_MORE:
            tried.append(JobRemedy(change=text, feasible=enough))
        if enough:
            break
    return tried


def _less_strict(question: Question) -> list[tuple[str, Question]]:
    """What a user could allow without paying for it."""
    changes = []
    held = [task for task in question.tasks if task.parallel < question.devices and (task.shards or task.parts > task.parallel)]
    if held:
        freed = tuple(task.on(question.devices) if task in held else task for task in question.tasks)
        changes.append((f"no limit on how many devices {' and '.join(task.name for task in held)} may use at once", replace(question, tasks=freed)))
    if question.max_jobs is not None:
        changes.append(("no limit on jobs at once", replace(question, max_jobs=None)))
    for tenant in question.tenant_jobs:
        others = {name: most for name, most in question.tenant_jobs.items() if name != tenant}
        changes.append((f"no limit on the jobs of {tenant} at once", replace(question, tenant_jobs=others)))
    return changes


def _binding(question: Question, planned: Sequence[PlannedJob], remedies: Sequence[JobRemedy], *, feasible: bool, policy: str) -> str:
    if feasible:
        return f"nothing binds under {policy}: every job ends in time, and the models online keep their targets"
    said = [f"{job.name} is not let in: {job.refused}" for job in planned if job.refused]
    for task in question.tasks:
        alone = task.at_s + task.alone_s(question.devices)
        if alone > task.by_s:
            using = min(task.parallel, question.devices, task.parts)
            on = f"on {using} device{'s' if using > 1 else ''}"
            said.append(f"{task.name} ends after {format_seconds(alone)} {on} where nobody else is, and is due by {format_seconds(task.by_s)}")
    busy = sum(model.busy for model in question.online)
    if busy >= question.devices:
        said.append(f"the models online alone keep {busy:.3g} devices busy, of {question.devices}")
    if not said:
        said.append(f"no policy tried lets everything hold on {question.devices} device{'s' if question.devices > 1 else ''}; {policy} comes nearest")
    helps = [remedy.change for remedy in remedies if remedy.feasible]
    none = ", ".join(remedy.change for remedy in remedies)
    said.append(f"it would hold with {' or with '.join(helps)}" if helps else f"not enough by itself: {none}" if none else "")
    return "; ".join(filter(None, said))


def _notes(question: Question) -> list[Note]:
    notes = [Note(code="assumes:calls", text="requests online are not batched, and a job makes room between two of its calls or steps only")]
    if question.devices > 1:
        text = "devices share one waiting line; moving a job from one to another, and what neighbours take of each other's memory bandwidth, cost nothing here"
        notes.append(Note(code="assumes:free-moves", text=text))
    if question.factor > 1:
        text = (
            f"jobs were simulated {question.factor:.3g} times shorter than they are, so that a simulation has about {MOST_SEGMENTS:,} calls and steps; "
            f"their times are that much longer again, and no finer than {format_seconds(question.factor * max(task.call_s for task in question.tasks))}"
        )
        notes.append(Note(code="shortened", text=text))
    return notes


def _check(given: Given, policies: Sequence[Policy], terms: Terms) -> None:
    if not policies:
        raise InputError("jobs need a policy at least")
    there = {job.tenant for _, job in given.jobs} | {model.tenant for model, _ in given.online}
    for tenant in terms.tenants:
        if tenant.name not in there:
            raise InputError(f"nobody belongs to the tenant {tenant.name!r}", help=f"tenants of jobs and models: {', '.join(sorted(there))}")
