"""The figures of a rotation: measured, predicted and replayed, and what each error is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..records import Gantt, Number, RotationMetric, Unit
from ..scheduling import Job, Schedule

BAND_KIND = "90 % band over redrawn segment times, same arrivals"

Measured = Callable[[float, Unit, str, int], Number]


@dataclass(frozen=True, eq=False)
class Outcome:
    """One policy, run and simulated."""

    stream_of: Sequence[int]
    """By request."""
    real: Schedule
    replayed: Schedule
    predicted: Sequence[Schedule]
    overheads_s: Sequence[float]


def _summary(jobs: Sequence[Job]) -> dict[str, float]:
    import numpy as np

    latency = np.array([job.latency_s for job in jobs])
    p50, p99 = np.percentile(latency, [50, 99])
    figures = {"mean latency": float(latency.mean()), "p50 latency": float(p50), "p99 latency": float(p99)}
    figures["mean slowdown"] = float((latency / np.array([job.used_s for job in jobs])).mean())
    due = [job for job in jobs if math.isfinite(job.request.deadline_s)]
    if due:
        figures["deadlines met"] = sum(job.finish_s <= job.request.deadline_s for job in due) / len(due)
    return figures


METHODS = {
    "mean latency": "mean of {n} calls, from arrival to end",
    "p50 latency": "p50 of {n} calls",
    "p99 latency": "p99 of {n} calls",
    "mean slowdown": "latency over own device time, mean of {n} calls",
    "deadlines met": "share of {n} calls",
}


def compare(outcome: Outcome, names: Sequence[str], measured: Measured) -> tuple[RotationMetric, ...]:
    """Every figure, of all calls and by model.

    Args:
        outcome: One policy.
        names: Of the models, by stream.
        measured: Makes a measured number of a value, its unit, its method and the count of calls.
    """
    metrics = []
    for name, stream in (("", None), *((name, k) for k, name in enumerate(names))):
        chosen = [k for k, of in enumerate(outcome.stream_of) if stream in (None, of)]
        answered = [k for k in chosen if not outcome.real.jobs[k].dropped]
        if not answered or (stream is not None and len(names) == 1):
            continue
        real, replayed = (_summary([schedule.jobs[k] for k in answered if not schedule.jobs[k].dropped]) for schedule in (outcome.real, outcome.replayed))
        predicted = [_summary([s.jobs[k] for k in chosen if not s.jobs[k].dropped]) for s in outcome.predicted]
        metrics += [
            metric_of(
                key, name, "s" if key.endswith("latency") else "ratio", len(answered), real[key], replayed[key], [p[key] for p in predicted], measured,
                METHODS[key].format(n=len(answered)),
            )
            for key in real
        ]  # fmt: skip
    return tuple(metrics)


def metric_of(
    name: str, model: str, unit: Unit, n: int, real: float, replayed: float, predicted: Sequence[float], measured: Measured, method_of: str
) -> RotationMetric:
    """One figure with its error, split.

    Args:
        name: Of the figure.
        model: Whose it is; empty: of all.
        unit: Of all values.
        n: Observations behind the measured value.
        real: Measured.
        replayed: Simulated with the times of the run.
        predicted: One a simulation.
        measured: Makes a measured number of a value, its unit, its method and the count.
        method_of: How the measured value was obtained.
    """
    import numpy as np

    low, middle, high = (float(np.quantile(predicted, q)) for q in (0.05, 0.5, 0.95))
    seen = measured(real, unit, method_of, n)
    method = f"median of {len(predicted)} simulations on the profile"
    foretold = Number(value=middle, unit=unit, source="estimated", method=method, interval=(low, high), interval_kind=BAND_KIND)
    again = Number(value=replayed, unit=unit, source="estimated", method="simulated with the segment times of the run")
    return RotationMetric(
        name=name,
        model=model,
        measured=seen,
        predicted=foretold,
        replayed=again,
        error=_error(middle, real, "predicted over measured, less 1"),
        mechanism_error=_error(replayed, real, "replayed over measured, less 1"),
        service_error=_error(middle, replayed, "predicted over replayed, less 1"),
    )


def _error(value: float, reference: float, method: str) -> Number | None:
    if not reference:
        return None
    return Number(value=value / reference - 1, unit="ratio", source="derived", method=method, trust="estimated")


def fairness(outcome: Outcome, weights: Sequence[float]) -> float:
    """Jain's index of the device time that models had for their weight while several had work waiting or running.

    1 means in proportion to the weights; 1 / (number of models) that one had it all. Where models never had work at the same time, 1.
    """
    jobs = outcome.real.jobs
    spans: list[list[tuple[float, float]]] = [[] for _ in weights]
    for job, stream in zip(jobs, outcome.stream_of, strict=True):
        if not job.dropped:
            spans[stream].append((job.request.arrival_s, job.finish_s))
    together = _overlap([_union(of) for of in spans if of])
    had = [0.0] * len(weights)
    for turn in outcome.real.turns:
        had[outcome.stream_of[turn.job]] += sum(max(0.0, min(turn.end_s, end) - max(turn.start_s, start)) for start, end in together)
    shares = [h / w for h, w, of in zip(had, weights, spans, strict=True) if of]
    squares = len(shares) * sum(share * share for share in shares)
    return sum(shares) ** 2 / squares if squares else 1.0


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _overlap(unions: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Where all of them are."""
    common = unions[0]
    for other in unions[1:]:
        found, i, j = [], 0, 0
        while i < len(common) and j < len(other):
            start, end = max(common[i][0], other[j][0]), min(common[i][1], other[j][1])
            if start < end:
                found.append((start, end))
            if common[i][1] < other[j][1]:
                i += 1
            else:
                j += 1
        common = found
    return common


def gantt(schedule: Schedule, stream_of: Sequence[int], most: int) -> Gantt:
    """The first turns as a chart."""
    turns = schedule.turns[:most]
    return Gantt(
        lane=tuple(t.lane for t in turns),
        job=tuple(t.job for t in turns),
        model=tuple(stream_of[t.job] for t in turns),
        start_s=tuple(round(t.start_s, 7) for t in turns),
        end_s=tuple(round(t.end_s, 7) for t in turns),
        finished=tuple(t.finished for t in turns),
    )
