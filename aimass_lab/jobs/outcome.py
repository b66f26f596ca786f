"""What a simulation says of every job and every model online, in numbers with bands and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..options import changed_options
from ..planning.plan import SIMULATION
from ..planning.simulate import BAND_KIND, Band, band_of
from ..records import JobOutcome, JobPolicyRun, Number, OnlineModel, OnlineOutcome, PlannedJob, Unit, derived
from ..scheduling import Policy
from ..units import format_seconds
from .mix import Online
from .simulate import Simulated, added


@dataclass(frozen=True)
class Run:
    """One policy, and by what it is compared with others."""

    record: JobPolicyRun
    broken: int
    """Promises that do not hold: jobs that are late, models online beyond their targets."""
    strain: float
    """Sum of the models' p99 over their targets, and of the jobs' ends over their deadlines; of jobs without one over the work."""


def policy_run(policy: Policy, result: Simulated, planned: Sequence[PlannedJob], online: Sequence[tuple[Online, OnlineModel]], price: Number | None) -> Run:
    """Sum up one policy."""
    jobs = tuple(_job(job, result, price) for job in planned)
    models = tuple(_model(model, shown, result) for model, shown in online)
    broken = sum(job.meets is False for job in jobs) + sum(not model.meets for model in models) + sum(job.refused is not None for job in planned)
    never = sum(job.ends is None and job.meets is None and plan.refused is None for job, plan in zip(jobs, planned, strict=True))
    strain = sum(m.latency_p99.value / shown.latency_target.value for m, (_, shown) in zip(models, online, strict=True))
    for job in planned:
        if job.refused is None:
            end = band_of(result.ends_s[job.name]).value
            strain += end / (job.deadline.value if job.deadline else job.work.value)
    of = [*((job.name, job.work) for job in planned), ("simulation", SIMULATION)]
    ended = band_of(result.ended_s())
    record = JobPolicyRun(
        policy=policy.name,
        options=changed_options(policy),
        feasible=not broken and not never,
        jobs=jobs,
        online=models,
        all_ended=_number(ended, "s", "end of the last job", of),
        utilization=derived(band_of(result.utilization).value, "ratio", "device time of calls and jobs over the devices' time until the last job ended", of),
    )
    return Run(record, broken + never, strain)


def _job(job: PlannedJob, result: Simulated, price: Number | None) -> JobOutcome:
    if job.refused is not None:
        return JobOutcome(job=job.name, begins=None, ends=None, on_time=None, meets=False if job.deadline else None, text=f"not let in: {job.refused}")
    inputs = [("work", job.work), ("submitted", job.submitted), ("simulation", SIMULATION)]
    ends = result.ends_s[job.name]
    band = band_of(ends)
    cost = None
    if price is not None:
        cost = derived(job.work.value / 3600 * price.value, "USD", "its device time x price", [("work", job.work), ("price", price)],
                       interval=_scaled(job.work, price.value / 3600), interval_kind=job.work.interval_kind)  # fmt: skip
    if job.deadline is None:
        return JobOutcome(
            job=job.name, begins=_begin(result, job, inputs), ends=_number(band, "s", "end of its last call", inputs), cost=cost, text=_ends_at_all(ends)
        )  # fmt: skip
    inputs.append(("deadline", job.deadline))
    by = job.deadline.value
    share = sum(end <= by for end in ends) / len(ends)
    return JobOutcome(
        job=job.name,
        begins=_begin(result, job, inputs),
        ends=_number(band, "s", "end of its last call", inputs),
        on_time=derived(share, "ratio", f"share of {len(ends)} simulations", inputs),
        meets=share == 1,
        cost=cost,
        text=_against(band, share, by, len(ends)),
    )


def _begin(result: Simulated, job: PlannedJob, inputs: Sequence[tuple[str, Number]]) -> Number | None:
    return _number(band_of(result.begins_s[job.name]), "s", "when it is first given a device", inputs)


def _ends_at_all(ends: Sequence[float]) -> str:
    late = sum(map(math.isinf, ends))
    return "" if not late else f"does not end within the simulated time in {late} of {len(ends)} simulations"


def _against(band: Band, share: float, by: float, count: int) -> str:
    if share == 1:
        return f"{format_seconds(by - band.high)} before its deadline, or more"
    if share == 0:
        return f"late by {format_seconds(band.low - by)} or more" if math.isfinite(band.low) else "not within the simulated time"
    return f"late in {count - round(share * count)} of {count} simulations"


def _model(model: Online, shown: OnlineModel, result: Simulated) -> OnlineOutcome:
    inputs = [("rate", shown.requests_per_s), ("call_time", shown.call_time), ("simulation", SIMULATION)]
    p99 = band_of(result.p99_s[model.name])

    def number(band: Band, method: str) -> Number:
        return derived(band.value, "s", method, inputs, interval=(band.low, band.high), interval_kind=BAND_KIND)

    return OnlineOutcome(
        model=model.name,
        latency_p99_alone=number(band_of(result.alone_s[model.name]), "simulated with the other models online, no job"),
        latency_p99=number(p99, "simulated beside the jobs"),
        added=number(added(result, model.name), "p99 beside the jobs less p99 without, the same requests"),
        meets=p99.high <= model.p99_s,
    )


def _number(band: Band, unit: Unit, method: str, inputs: Sequence[tuple[str, Number]]) -> Number | None:
    if not math.isfinite(band.high):
        return None
    return derived(band.value, unit, method, inputs, interval=(band.low, band.high), interval_kind=BAND_KIND)


def _scaled(number: Number, factor: float) -> tuple[float, float] | None:
    return None if number.interval is None else (number.interval[0] * factor, number.interval[1] * factor)
