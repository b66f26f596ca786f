"""The figures of a run: predicted for its law, simulated for its arrivals, replayed with its batches, and measured; and what each error is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..planning.queueing import ServiceTimes
from ..planning.simulate import Trajectory, simulate_fcfs, simulate_queue
from ..prediction.ledger import Correction, apply_correction
from ..records import Number, Plan, Quality, RehearsalMetric, RehearsalQuantity, Unit
from ..scheduling import Request, make_policy
from ..serving.arrivals import arrival_times
from ..serving.load import kept_up
from ..serving.verify import quantile_interval
from .calibration import Calibration
from .journal import Events
from .replicas import Run

if TYPE_CHECKING:
    from ..planning.queueing import Array
    from ..serving.config import ServingConfig

REPLICATIONS = 60
"""Simulated runs with arrivals of their own; their spread is the band."""
MOST_SIMULATED = 600_000
"""Requests of all these runs together, where ten of them have not more."""
GIVEN = 11
"""Simulations of the very arrivals of the run."""
BAND_KIND = "90 % band over simulated runs as long as this one"
UNITS: dict[RehearsalQuantity, Unit] = {"latency p50": "s", "latency p99": "s", "throughput": "request/s", "batch size": "item", "utilization": "ratio"}

Figures = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is offered to one of the replicas, with as many requests as are due on average, so that runs of one rate offer the same load."""

    pattern: str
    rate: float
    seconds: float

    def times_s(self, seed: Sequence[int]) -> Array:
        """Draw the times at which requests leave."""
        number = int(np.random.default_rng(seed).integers(2**31))
        return arrival_times(self.pattern, rate=self.rate, duration_s=self.seconds, seed=number)


def figures(latency_s: Array, finish_s: Array, busy_s: float, items: Array, *, rate: float, duration_s: float, workers: int) -> Figures:
    """The figures of one run.

    Args:
        latency_s: By request.
        finish_s: When each was answered, from the start of the run.
        busy_s: Worker seconds.
        items: By batch.
        rate: Requests per second that were offered.
        duration_s: Over which they were.
        workers: That shared the work.
    """
    return {
        "latency p50": float(np.quantile(latency_s, 0.5, method="inverted_cdf")),
        "latency p99": float(np.quantile(latency_s, 0.99, method="inverted_cdf")),
        "throughput": rate * float(kept_up(finish_s, latency_s, duration_s).mean()),
        "batch size": float(items.mean()),
        "utilization": busy_s / (workers * max(duration_s, float(finish_s.max()))),
    }


def predict(load: Load, calibration: Calibration, config: ServingConfig, replicas: int, seed: int) -> list[Figures]:
    """Simulate runs of the law, the uncertainty of the calibration spread over them."""
    count = max(1, round(load.rate * load.seconds)) * replicas
    runs = max(10, min(REPLICATIONS, MOST_SIMULATED // count))
    found = []
    for k in range(runs):
        level, other = (k + 0.5) / runs, (0.618 * (k + 0.5)) % 1.0
        service = calibration.service.at_level(level)
        parts = []
        for replica in range(replicas):
            run = _simulate(load.times_s([seed, k, replica, 2]), service, config, [seed, k, replica, 3])
            parts.append((run, calibration.overhead.draw(len(run.arrival_s), np.random.default_rng([seed, k, replica, 4]), other)))
        found.append(_pooled(parts, load, config, replicas))
    return found


def given_arrivals(load: Load, arrivals: Sequence[Array], calibration: Calibration, config: ServingConfig, seed: int) -> Figures:
    """Simulate the very arrivals of a run, with the times that were foretold; the median of some draws."""
    runs = []
    for k in range(GIVEN):
        parts = []
        for replica, times in enumerate(arrivals):
            run = _simulate(times, calibration.service, config, [seed, k, replica, 5])
            parts.append((run, calibration.overhead.draw(len(times), np.random.default_rng([seed, k, replica, 6]))))
        runs.append(_pooled(parts, load, config, len(arrivals)))
    return {name: float(np.median([run[name] for run in runs])) for name in UNITS}


def replay(load: Load, run: Run, calibration: Calibration, config: ServingConfig, seed: int) -> Figures:
    """Simulate the run with the arrivals, the batches' times and the server's own times that were measured."""
    parts = []
    for replica, (events, result) in enumerate(zip(run.events, run.results, strict=True)):
        requests = [Request(index, float(time), 1) for index, time in enumerate(events.queued_s)]
        again = simulate_queue(requests, calibration.service, make_policy("fcfs"), took=_measured_time(events, calibration), **_limits(config))  # type: ignore[arg-type]
        known = events.overhead_s(result)
        drawn = calibration.overhead.draw(len(requests), np.random.default_rng([seed, replica, 7]))
        parts.append((again, drawn if known is None else known[1]))
    return _pooled(parts, load, config, len(parts))


def measured_figures(run: Run, load: Load, config: ServingConfig) -> Figures:
    """What came out."""
    ok = [result.ok for result in run.results]
    latency = np.concatenate([result.latency_s[good] for result, good in zip(run.results, ok, strict=True)])
    finish = np.concatenate([(result.sent_s + result.latency_s)[good] for result, good in zip(run.results, ok, strict=True)])
    busy = sum(float(events.seconds.sum()) for events in run.events)
    items = np.concatenate([events.items for events in run.events])
    answered = sum(int(good.sum()) for good in ok) / run.num_requests
    replicas = len(run.results)
    rate = load.rate * replicas * answered
    return figures(latency, finish, busy, items, rate=rate, duration_s=run.results[0].duration_s, workers=config.workers * replicas)


def _simulate(times: Array, service: ServiceTimes, config: ServingConfig, seed: Sequence[int]) -> Trajectory:
    return simulate_fcfs(times, service, seed=seed, **_limits(config))  # type: ignore[arg-type]


def _limits(config: ServingConfig) -> dict[str, object]:
    return {"max_batch_size": config.max_batch_size, "max_wait_s": config.max_wait_s, "wait_policy": config.wait_policy, "num_workers": config.workers}


def _pooled(parts: Sequence[tuple[Trajectory, Array]], load: Load, config: ServingConfig, replicas: int) -> Figures:
    latency = np.concatenate([run.latency_s + added for run, added in parts])
    finish = np.concatenate([run.finish_s + added for run, added in parts])
    busy = sum(float(run.batch_service_s.sum()) for run, _ in parts)
    items = np.concatenate([run.batch_items for run, _ in parts])
    return figures(latency, finish, busy, items, rate=load.rate * replicas, duration_s=load.seconds, workers=config.workers * replicas)


def _measured_time(events: Events, calibration: Calibration) -> Callable[[int, float], float]:
    """The time that the batch of this size took which started nearest; where there was none of the size, what the calibration says of it."""
    by_size = {size: (events.start_s[events.items == size], events.seconds[events.items == size]) for size in np.unique(events.items).tolist()}

    def took(items: int, start_s: float) -> float:
        if items not in by_size:
            return calibration.service.mean_s(items)
        starts, seconds = by_size[items]
        place = int(np.searchsorted(starts, start_s))
        near = [k for k in (place - 1, place) if 0 <= k < len(starts)]
        return float(seconds[min(near, key=lambda k: abs(starts[k] - start_s))])

    return took


# --- side by side --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sides:
    """One run, from all sides."""

    measured: Figures
    predicted: Sequence[Figures]
    given: Figures
    """For the very arrivals, with the times that were foretold."""
    replayed: Figures
    run: Run
    plan: Plan | None
    """That the run holds against; None: no plan of this load."""
    replicas: int
    quality: Quality
    environment: str


def compare(sides: Sides, corrections: Mapping[str, Correction], kind: Callable[[str], str]) -> tuple[RehearsalMetric, ...]:
    """Every figure.

    Args:
        sides: The run.
        corrections: What earlier runs teach, by the ledger's kind.
        kind: The ledger's kind of a figure's name.
    """
    return tuple(_metric(name, sides, corrections.get(kind(name))) for name in UNITS)


def _metric(name: RehearsalQuantity, sides: Sides, learnt: Correction | None) -> RehearsalMetric:
    values = [run[name] for run in sides.predicted]
    low, middle, high = (float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95))
    method = f"median of {len(values)} simulated runs of the law, from what the server showed just before"
    predicted = Number(value=middle, unit=UNITS[name], source="estimated", method=method, interval=(low, high), interval_kind=BAND_KIND)
    predicted = apply_correction(predicted, learnt) if learnt else predicted
    again = Number(value=sides.replayed[name], unit=UNITS[name], source="estimated", method="simulated with the arrivals and the batch times of the run")
    measured, planned = _measured(name, sides), _planned(name, sides)
    low, high = predicted.ends
    return RehearsalMetric(
        name=name,
        measured=measured,
        predicted=predicted,
        planned=planned,
        replayed=again,
        error=_error(predicted.value, measured.value, "predicted over measured, less 1"),
        mechanism_error=_error(again.value, measured.value, "replayed over measured, less 1"),
        service_error=_error(sides.given[name], again.value, "simulated on the run's arrivals over replayed, less 1"),
        arrivals_error=_error(predicted.value, sides.given[name], "predicted over simulated on the run's arrivals, less 1"),
        planned_error=_error(planned.value, measured.value, "planned over measured, less 1") if planned else None,
        inside=low <= measured.value <= high,
    )


def _measured(name: RehearsalQuantity, sides: Sides) -> Number:
    requests = sum(int(result.ok.sum()) for result in sides.run.results)
    batches = sum(len(events.items) for events in sides.run.events)
    interval = kind = None
    if name.startswith("latency"):
        latency = np.sort(np.concatenate([result.latency_s[result.ok] for result in sides.run.results]))
        share = 0.5 if name.endswith("p50") else 0.99
        interval, kind = quantile_interval(latency, share), "95 % order-statistic interval"
        if sides.quality != "ok":
            least, worst = _disturbed(sides.run, share)
            interval, kind = (min(interval[0], least), max(interval[1], worst)), "from what is left without other work to the worst third of the run"
    method, n = {
        "latency p50": ("from when a request should have left to its whole answer", requests),
        "latency p99": ("from when a request should have left to its whole answer", requests),
        "throughput": ("answers that kept up with the offered load", requests),
        "batch size": ("items over batches", batches),
        "utilization": ("share of time that workers had a batch", batches),
    }[name]
    return Number(
        value=sides.measured[name], unit=UNITS[name], source="measured", method=method, interval=interval, interval_kind=kind, n=n,
        environment=sides.environment, quality=sides.quality,
    )  # fmt: skip


def _disturbed(run: Run, share: float) -> tuple[float, float]:
    """A quantile of the latency without all that other work can have added, and that of the third of the run which suffered most."""
    least = np.concatenate([run.disturbance.least_latency(result)[result.ok] for result in run.results])
    sent = np.concatenate([result.sent_s[result.ok] for result in run.results])
    latency = np.concatenate([result.latency_s[result.ok] for result in run.results])
    thirds = np.minimum(3 * sent / max(result.duration_s for result in run.results), 2).astype(int)
    worst = [np.quantile(latency[thirds == third], share, method="inverted_cdf") for third in range(3) if (thirds == third).any()]
    return float(np.quantile(least, share, method="inverted_cdf")), float(max(worst))


def _planned(name: RehearsalQuantity, sides: Sides) -> Number | None:
    if sides.plan is None:
        return None
    return {"latency p50": sides.plan.latency_p50, "latency p99": sides.plan.latency_p99, "utilization": sides.plan.utilization}.get(name)


def _error(value: float, reference: float, method: str) -> Number:
    return Number(value=value / reference - 1 if reference else 0.0, unit="ratio", source="derived", method=method, trust="estimated")
