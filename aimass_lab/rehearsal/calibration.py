"""Some seconds of load that show how a running server's batches take under its own conditions, and what it adds to every request.

What a model's profile says is taken in another process, alone, with other threads, often in another runtime. So the server itself is asked: random arrivals
at two loads, and in between volleys, which make batches of all sizes. Sizes differ in ways that no rule foretells: nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BundleError
from ..planning.overhead import BAND_KIND, LEVELS, Overhead
from ..planning.queueing import ServiceTimes
from ..records import BatchPoint, Number, Quality, ServerTime, Unit, derived
from ..serving.verify import quantile_interval
from .replicas import Replicas, Run
from .verdict import disturbance

if TYPE_CHECKING:
    from ..planning.queueing import Array

LOADS = (0.35, 0.7)
"""Of what the server can do: where its own processes begin to disturb each other, and before."""
ROUNDS = 3
MOST_RATE = 500.0
"""Requests per second at most: beyond, on a small machine, the sender of the load would be measured."""
FEWEST = 8
"""Batches of one size under random load for its times to count without those of volleys, where the worker had rested."""
MIN_STRETCH_S = 0.4
REST = 2.5
"""Times of the largest batch from one volley to the next."""
MAX_VOLLEYS, MOST_AT_ONCE = 12, 64
"""Sizes of volleys, and requests of the largest: beyond, connections would be measured."""
OVERLOADED = 503
HELP = "prove it: aimass check FOLDER"


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What a server showed."""

    service: ServiceTimes
    overhead: Overhead
    server_time: ServerTime
    ladder: tuple[BatchPoint, ...]
    front_end: Number
    capacity: Number
    """Requests per second that one replica answered in full batches, the server's own work included."""
    run: Run


@dataclass(frozen=True)
class _Stretch:
    start_s: float
    end_s: float
    times: Array
    random: bool
    """At random, or a volley."""


def calibrate(replicas: Replicas, *, seconds: float, environment: str, seed: int = 0) -> Calibration:
    """Send loads of some seconds, and read what the servers did.

    Args:
        replicas: Running servers.
        seconds: How long; a slow model takes longer, so that every size is seen.
        environment: The `Environment.id` of the numbers.
        seed: Of the arrivals.

    Raises:
        BundleError: requests fail.
    """
    capacity, slowest_s = _warm_up(replicas)
    rng = np.random.default_rng([seed, 1])
    plans = [list(_stretches(replicas.config.max_batch_size, capacity, slowest_s, seconds, rng)) for _ in replicas.servers]
    duration = max(plan[-1].end_s for plan in plans)
    times = [np.concatenate([stretch.times for stretch in plan]) for plan in plans]
    run = replicas.send(times, duration, connections=max(_volley_sizes(replicas.config.max_batch_size)))
    quality: Quality = "ok" if _check(run) and not disturbance(run) else "noisy"
    return _calibration(run, plans, replicas.config.max_batch_size, capacity, quality, environment)


def _warm_up(replicas: Replicas) -> tuple[float, float]:
    """Requests per second and replica in full batches, and seconds of the slowest size."""
    config, spacing_s = replicas.config, 0.05
    count = min(max(3 * config.max_batch_size * config.workers, 16), 2 * MOST_AT_ONCE)
    for _ in range(2):
        spaced = np.repeat([0.0, spacing_s], count)
        run = replicas.send([spaced] * len(replicas.servers), 2 * spacing_s, connections=count)
        _check(run)
        spacing_s = 2 * max(float(result.latency_s[result.ok].max()) for result in run.results) + 0.05
    rates, times = [], []
    for events, result in zip(run.events, run.results, strict=True):
        last = (result.sent_s == spaced[-1]) & result.ok  # by then connections are open and everything is warm
        rates.append(last.sum() / float(result.latency_s[last].max()))
        times.append(float(np.median(events.seconds[events.items == events.items.max()])))
    return float(np.median(rates)), max(times)


def _stretches(size: int, capacity: float, slowest_s: float, seconds: float, rng: np.random.Generator) -> Iterator[_Stretch]:
    rest, volleys = REST * slowest_s + 0.01, _volley_sizes(size)
    volleys_s = len(volleys) * rest + REST * sum(volleys) / capacity
    stretch_s = max(MIN_STRETCH_S, 20 / (LOADS[0] * capacity), (seconds / ROUNDS - volleys_s) / len(LOADS) - rest)
    now = 0.0
    for _ in range(ROUNDS):
        for load in LOADS:
            times = now + np.sort(rng.uniform(0, stretch_s, max(1, round(min(load * capacity, MOST_RATE) * stretch_s))))
            yield _Stretch(now, now + stretch_s, times, random=True)
            now += stretch_s + rest
        for volley in rng.permutation(volleys).tolist():
            begin, now = now, now + rest + REST * volley / capacity
            yield _Stretch(begin, now, np.full(volley, begin), random=False)


def _volley_sizes(size: int) -> list[int]:
    """Numbers of requests at once: all up to the limit and one more, since the first often goes alone; spread where there are too many; and two batches."""
    most = min(size + 1, MOST_AT_ONCE)
    wanted = np.linspace(min(2, size), most, min(most, MAX_VOLLEYS)).round().astype(int)
    return sorted({*wanted.tolist(), min(2 * size, MOST_AT_ONCE)})


def _check(run: Run) -> bool:
    """Whether every request was answered, or some were turned away, as a starved server does.

    Raises:
        BundleError: there were other answers, or none.
    """
    status = np.concatenate([result.status for result in run.results])
    failed = status[(status != 200) & (status != OVERLOADED)]
    if len(failed) or not (status == 200).any():
        raise BundleError(f"{len(failed) or len(status)} of {len(status)} requests got no good answer while the server was measured", help=HELP)
    return bool((status == 200).all())


def _calibration(run: Run, plans: Sequence[Sequence[_Stretch]], max_batch_size: int, capacity: float, quality: Quality, environment: str) -> Calibration:
    samples = _samples(run, plans)
    paces = _paces(run, plans, samples)
    scale = min(1.0, min(paces)), max(1.0, max(paces))
    server_time = _server_time(run, plans, quality, environment)

    def number(value: float, unit: Unit, method: str, n: int) -> Number:
        return Number(value=value, unit=unit, source="measured", method=method, n=n, environment=environment, quality=quality)

    return Calibration(
        service=ServiceTimes.from_samples(samples, max_batch_size, scale=scale),
        overhead=Overhead.from_record(server_time),
        server_time=server_time,
        ladder=tuple(_point(size, np.sort(times), scale, quality, environment) for size, times in sorted(samples.items())),
        front_end=number(run.front_end_s / run.num_requests, "s", "the front end's processor time over requests", run.num_requests),
        capacity=number(capacity, "request/s", "a volley of requests over the time until all were answered, median of the replicas", len(plans)),
        run=run,
    )


def _within(times: Array, plan: Sequence[_Stretch], *, random: bool) -> Array:
    """Which times lie in a stretch of a kind."""
    found = np.zeros(len(times), bool)
    for stretch in plan:
        if stretch.random == random:
            found |= (times >= stretch.start_s) & (times < stretch.end_s)
    return found


def _samples(run: Run, plans: Sequence[Sequence[_Stretch]]) -> dict[int, Array]:
    """Seconds of batches by size."""
    loaded: dict[int, list[float]] = {}
    rested: dict[int, list[float]] = {}
    for events, plan in zip(run.events, plans, strict=True):
        random = _within(events.start_s, plan, random=True)
        for items, seconds, is_random in zip(events.items.tolist(), events.seconds.tolist(), random.tolist(), strict=True):
            (loaded if is_random else rested).setdefault(items, []).append(seconds)
    sizes = sorted({*loaded, *rested})
    return {size: np.array(times) if len(times := loaded.get(size, [])) >= FEWEST else np.array([*times, *rested.get(size, [])]) for size in sizes}


def _paces(run: Run, plans: Sequence[Sequence[_Stretch]], samples: dict[int, Array]) -> list[float]:
    """By stretch of random load, all replicas together: how much slower its batches were than those of their size are."""
    typical = {size: float(np.median(times)) for size, times in samples.items()}
    paces = []
    for number, stretch in enumerate(plans[0]):
        if stretch.random:
            ratios: list[float] = []
            for events, plan in zip(run.events, plans, strict=True):
                here = (events.start_s >= plan[number].start_s) & (events.start_s < plan[number].end_s)
                ratios += [seconds / typical[items] for items, seconds in zip(events.items[here].tolist(), events.seconds[here].tolist(), strict=True)]
            paces.append(float(np.median(ratios)) if ratios else 1.0)
    return paces


def _server_time(run: Run, plans: Sequence[Sequence[_Stretch]], quality: Quality, environment: str) -> ServerTime:
    """Of the requests under random load; a volley's own last ones wait for its first to be sent."""
    medians: list[float] = []
    pooled: list[Array] = []
    for events, result, plan in zip(run.events, run.results, plans, strict=True):
        found = events.overhead_s(result)
        if found is None:
            raise BundleError("requests waited in the server and got no answer while it was measured", help=HELP)
        sent, times = found
        for stretch in plan:
            if stretch.random:
                here = times[(sent >= stretch.start_s) & (sent < stretch.end_s)]
                medians += [float(np.median(here))] if len(here) else []
                pooled.append(here)
    every = np.sort(np.concatenate(pooled))
    middle = float(np.median(every))
    typical = Number(
        value=middle,
        unit="s",
        source="measured",
        method="latency less queue and model, the client on the same machine",
        interval=(min(middle, *medians), max(middle, *medians)),
        interval_kind=BAND_KIND,
        n=len(every),
        environment=environment,
        quality=quality,
    )
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    return ServerTime(typical=typical, quantiles_s=tuple(round(float(time), 7) for time in np.quantile(every, levels, method="inverted_cdf")))


def _point(size: int, ordered: Array, scale: tuple[float, float], quality: Quality, environment: str) -> BatchPoint:
    def number(share: float) -> Number:
        value = float(np.quantile(ordered, share, method="inverted_cdf"))
        low, high = quantile_interval(ordered, share)
        # the pace changed from stretch to stretch, too
        interval = min(low, value * scale[0]), max(high, value * scale[1])
        method = f"p{100 * share:g} of {len(ordered)} batches in the server under load"
        return Number(
            value=value, unit="s", source="measured", method=method, interval=interval, interval_kind="95 % order-statistic interval and pace of stretches",
            n=len(ordered), environment=environment, quality=quality,
        )  # fmt: skip

    middle = number(0.5)
    throughput = derived(size / middle.value, "item/s", "batch size over latency", [("latency", middle)])
    return BatchPoint(batch_size=size, latency_p50=middle, latency_p95=number(0.95), latency_p99=number(0.99), throughput=throughput)
