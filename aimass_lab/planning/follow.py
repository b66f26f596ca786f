"""Compares ways to follow a load that changes: a fixed number of replicas, autoscalers, and floors with autoscalers above them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import (
    AllocationKind,
    BatchPoint,
    ModelInfo,
    Note,
    Number,
    ScaleOption,
    ScalePlan,
    ScaleSeries,
    Unit,
    derived,
)  # fmt: skip
from ..scaling import Scaler, make_scaler
from ..units import format_quantity, format_seconds, format_share
from .pool import Pool, PoolRun, simulate_pool
from .problem import SIMULATION, ladder_number
from .queueing import Arrivals, ServiceTimes, Trace
from .simulate import Band
from .workloads import draw_until

if TYPE_CHECKING:
    from .queueing import Array

REPLICATIONS = 3
MOST_REQUESTS = 10_000_000
"""In one simulation; all of a comparison's are drawn beforehand and kept."""
FULLNESS = (0.6, 0.8)
"""Shares of what a replica can carry that autoscalers are aimed at."""
FLOORS = (0.5,)
"""Floors of hybrids, as shares of the static number."""
SHOWN_TICKS = 400
LEAST_MORE = 0.005
"""Replicas: what is written with two digits as more than none."""
BAND = "lowest and highest of the replications"

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the pool."""

    arrivals: Arrivals
    span_s: float
    """Time that one simulation covers; a recorded trace is taken as long as it is."""
    latency_s: float
    attainment: float = 0.99
    max_replicas: int = 100
    startup: Number = field(default_factory=lambda: Number(value=30, unit="s", source="assumed", method="start-up not measured"))
    mtbf_s: float = math.inf
    max_waiting: int | None = None
    price: float | None = None
    """USD per hour and replica."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.latency_s > 0 and 0 < self.attainment < 1):
            raise InputError(f"the latency must be above 0 and the attainment between 0 and 1, got {self.latency_s} and {self.attainment}")
        if not (math.isfinite(self.span_s) and self.span_s > 0):
            raise InputError(f"the time to simulate must be above 0, got {self.span_s}")
        if not self.arrivals.rate * self.span_s <= MOST_REQUESTS and not isinstance(self.arrivals, Trace):
            raise InputError(
                f"{self.arrivals.rate:.3g} requests/s over {format_seconds(self.span_s)} are {self.arrivals.rate * self.span_s:.3g} requests to simulate",
                help=f"at most {MOST_REQUESTS:,}: give a shorter time, --seconds, or the rate of a part of the replicas",
            )
        if self.price is not None and not self.price >= 0:
            raise InputError(f"the price must be at least 0, got {self.price}")

    def draws(self) -> tuple[list[Array], list[Array]]:
        """Arrivals to choose by, and arrivals held out: of a trace its first 60 % and the rest, of a law separate draws."""
        import numpy as np

        if isinstance(self.arrivals, Trace):
            times = np.asarray(self.arrivals.recorded_s)
            cut = times[0] + 0.6 * (times[-1] - times[0])
            first, rest = times[times < cut], times[times >= cut]
            if not len(first) or not len(rest):
                raise InputError(f"a trace of {len(times)} requests is too short to hold a part of it out")
            return [first - times[0]] * 2, [rest - cut] * 2
        drawn = [draw_until(self.arrivals, self.span_s, np.random.default_rng([self.seed, k])) for k in range(2 * REPLICATIONS)]
        drawn = [times if len(times) else np.zeros(1) for times in drawn]
        return drawn[:REPLICATIONS], drawn[REPLICATIONS:]


@dataclass(frozen=True, eq=False)
class Tried:
    """One way, with its runs."""

    kind: AllocationKind
    pool: Pool
    runs: Sequence[PoolRun]

    def attainment(self, target_s: float) -> Band:
        """Of all runs together, lowest and highest of them."""
        each = [run.attainment(target_s) for run in self.runs]
        weight = [len(run.arrival_s) for run in self.runs]
        return Band(sum(a * w for a, w in zip(each, weight, strict=True)) / sum(weight), min(each), max(each))

    @property
    def replicas(self) -> Band:
        """Mean number over time."""
        each = [run.mean_replicas for run in self.runs]
        return Band(sum(each) / len(each), min(each), max(each))


class Comparison:
    """Tries the ways on the same arrivals.

    Args:
        asked: What is asked.
        service: Times by batch size.
        max_batch_size: Most items in a batch.
        scalers: Names of the autoscalers to try.
    """

    def __init__(self, asked: Asked, service: ServiceTimes, max_batch_size: int, scalers: Sequence[str]) -> None:
        self.asked = asked
        self.capacity = service.stable_rate(max_batch_size)
        """Requests per second from which on the queue of one replica grows."""
        self.scalers = scalers
        self.chosen_by, self.held_out = asked.draws()
        self._pool = Pool(
            service=service, max_batch_size=max_batch_size, max_replicas=asked.max_replicas, startup_s=(asked.startup.value,), mtbf_s=asked.mtbf_s,
            max_waiting=asked.max_waiting,
        )  # fmt: skip
        self._alone_s = service.mean_s(max_batch_size)

    def run(self, kind: AllocationKind, pool: Pool, arrivals: Sequence[Array]) -> Tried:
        """Simulate one way on each of the arrivals, until one shows that it does not meet the target."""
        runs: list[PoolRun] = []
        for k, times in enumerate(arrivals):
            runs.append(simulate_pool(times, pool, seed=[self.asked.seed, k]))
            if arrivals is self.chosen_by and runs[-1].attainment(self.asked.latency_s) < self.asked.attainment:
                break
        return Tried(kind, pool, runs)

    def again(self, tried: Tried) -> Tried:
        """The same way on the arrivals that were held out."""
        return self.run(tried.kind, tried.pool, self.held_out)

    def meets(self, tried: Tried) -> bool:
        """Whether even the worst replication attains what is asked, and the queue does not grow: a short simulation may end before that is felt."""
        return self.stable(tried.pool.max_replicas) and tried.attainment(self.asked.latency_s).low >= self.asked.attainment

    def stable(self, replicas: int) -> bool:
        """Whether so many carry the mean rate; a recorded trace has an end, and is simulated to it."""
        return isinstance(self.asked.arrivals, Trace) or self.asked.arrivals.rate < replicas * self.capacity

    def all(self, progress: Progress) -> list[Tried]:
        """Every way: the smallest fixed number that meets the target, then autoscalers and floors below it."""
        static = self._static(progress)
        found = [static]
        settings = [(name, full, floor) for name in self.scalers for full in FULLNESS for floor in self._floors(static)]
        for k, (name, full, floor) in enumerate(settings):
            progress(0.3 + 0.6 * k / len(settings), f"simulating {name} from {floor} replicas")
            scaler = self._scaler(name, full)
            pool = replace(self._pool, min_replicas=floor, scaler=scaler, start_replicas=floor)
            found.append(self.run("hybrid" if floor > 1 else "dynamic", pool, self.chosen_by))
        return found

    def _static(self, progress: Progress) -> Tried:
        """By bisection: more replicas never attain less, but for chance."""

        def fixed(count: int) -> Tried:
            progress(0.1, f"simulating {count} replicas")
            return self.run("static", replace(self._pool, min_replicas=count, start_replicas=count, max_replicas=count), self.chosen_by)

        low, high = 0, 1
        tried = fixed(high)
        while not self.meets(tried) and high < self.asked.max_replicas:
            low, high = high, min(2 * high, self.asked.max_replicas)
            tried = fixed(high)
        while high - low > 1 and self.meets(tried):
            middle = (low + high) // 2
            attempt = fixed(middle)
            if self.meets(attempt):
                high, tried = middle, attempt
            else:
                low = middle
        return tried

    def _floors(self, static: Tried) -> list[int]:
        most = static.pool.min_replicas
        return sorted({1, *(floor for share in FLOORS if 1 < (floor := round(share * most)) < most)})

    def _scaler(self, name: str, fullness: float) -> Scaler:
        """Aimed at a share of what one replica carries, in the words of its metric."""
        metric = make_scaler(name).metric
        if metric == "utilization":
            return make_scaler(name, target=fullness)
        if metric == "requests_per_s":
            return make_scaler(name, target=fullness * self.capacity)
        # Little's law: so many requests are under way at that rate when each takes the time of a batch.
        return make_scaler(name, target=max(1.0, fullness * self.capacity * self._alone_s))


def follow_load(
    model: ModelInfo,
    device: str,
    ladder: Sequence[BatchPoint],
    asked: Asked,
    *,
    load: str,
    scalers: Sequence[str] = ("hpa", "keda", "knative", "ray_serve"),
    progress: Progress | None = None,
) -> ScalePlan:
    """Find the cheapest way to follow a load: static, dynamic or hybrid, all simulated on the same arrivals.

    A replica gathers whatever waits, up to the batch limit: the largest power of two whose batch takes less than half of the target. An option
    meets the target when its worst replication does. What was chosen is simulated once more on arrivals that were held out.

    Args:
        model: What is served.
        device: On what.
        ladder: Batch ladder there.
        asked: Arrivals, target and limits.
        load: The arrivals in words.
        scalers: Autoscalers to try; none: a fixed number only.
        progress: Told the share done and what is being done.

    Raises:
        InputError: no ladder, or a value out of range.
        UnknownNameError: there is no such autoscaler.
    """
    tell = progress or (lambda share, text: None)
    service = ServiceTimes.from_points(ladder)
    sizes = [2**k for k in range(service.max_batch_size.bit_length())]
    size = max((size for size in sizes if service.mean_s(size) <= asked.latency_s / 2), default=1)
    comparison = Comparison(asked, service, size, scalers)
    tried = comparison.all(tell)
    best = _choose(tried, comparison)
    tell(0.95, "simulating what was held out")
    answer = _Answer(device, ladder, asked, comparison)
    options = tuple(answer.option(t, comparison.again(t) if comparison.meets(t) or t is tried[best] else None, t is tried[best], tried[best]) for t in tried)
    tell(1.0, "compared")
    limit = answer.number(comparison.capacity, "request/s", f"{size} / mean time of a batch of {size}")
    return ScalePlan(
        model=model,
        device=device,
        load=load,
        requests_per_s=answer.number(asked.arrivals.rate, "request/s", "mean of the arrivals"),
        latency_target=Number(value=asked.latency_s, unit="s", source="user", method="asked for"),
        attainment_target=Number(value=asked.attainment, unit="ratio", source="user", method="asked for"),
        max_batch_size=size,
        startup_time=asked.startup,
        failures=None if math.isinf(asked.mtbf_s) else Number(value=asked.mtbf_s, unit="s", source="user", method="asked for"),
        replica_limit=limit,
        unstable_from=answer.number(comparison.capacity * asked.max_replicas, "request/s", "most replicas x what one carries"),
        feasible=options[best].meets,
        recommended=best,
        binding=_binding(asked, comparison, options, best),
        options=options,
        series=_series(tried[best].runs[0]),
        notes=answer.notes(options[best]),
    )


def _choose(tried: Sequence[Tried], comparison: Comparison) -> int:
    """The cheapest that meets the target, a fixed number among equals; where none does, the one that attains most."""
    good = [k for k, t in enumerate(tried) if comparison.meets(t)]
    if good:
        return min(good, key=lambda k: (round(tried[k].replicas.value, 3), tried[k].kind != "static"))
    return max(range(len(tried)), key=lambda k: tried[k].attainment(comparison.asked.latency_s).value)


@dataclass(frozen=True)
class _Answer:
    """Makes the numbers of the record."""

    device: str
    ladder: Sequence[BatchPoint]
    asked: Asked
    comparison: Comparison

    def number(self, value: float, unit: Unit, method: str, band: Band | None = None) -> Number:
        inputs = [("service_time", ladder_number(self.ladder)), ("startup_time", self.asked.startup), ("simulation", SIMULATION)]
        interval = None if band is None else (band.low, band.high)
        return derived(value, unit, method, inputs, interval=interval, interval_kind=None if interval is None else BAND)

    def option(self, tried: Tried, held_out: Tried | None, chosen: bool, best: Tried) -> ScaleOption:
        import numpy as np

        target, replicas = self.asked.latency_s, tried.replicas
        attained, kept = tried.attainment(target), None if held_out is None else held_out.attainment(target)
        latencies = np.concatenate([run.latency_s for run in tried.runs])
        answered = latencies[~np.isnan(latencies)]
        scaler = tried.pool.scaler
        unit: Unit = "ratio" if scaler is None or scaler.metric == "utilization" else "request/s" if scaler.metric == "requests_per_s" else "request"
        mean = self.number(replicas.value, "replica", "mean of the simulations, those still starting included", replicas)
        price = self.asked.price
        return ScaleOption(
            kind=tried.kind,
            scaler=scaler.name if scaler else "none",
            target=None if scaler is None else self.number(scaler.target, unit, "share of what one replica carries"),
            min_replicas=tried.pool.min_replicas,
            max_replicas=tried.pool.max_replicas,
            replicas=mean,
            cost=None if price is None else self._cost(price, replicas),
            attainment=self.number(attained.value, "ratio", "share of simulated requests within the target", attained),
            held_out=None if kept is None else self.number(kept.value, "ratio", "the same on arrivals held out", kept),
            latency_p99=self.number(float(np.percentile(answered, 99)), "s", "p99 of the simulated requests") if len(answered) else None,
            dropped=self.number(1 - len(answered) / len(latencies), "ratio", "share of simulated requests without an answer"),
            meets=self.comparison.meets(tried),
            reason=self._reason(tried, chosen, best),
        )

    def _cost(self, price: float, replicas: Band) -> Number:
        band = Band(price * replicas.value, price * replicas.low, price * replicas.high)
        return self.number(band.value, "USD/h", "mean replicas x price", band)

    def _reason(self, tried: Tried, chosen: bool, best: Tried) -> str:
        if chosen:
            return "the answer" if self.comparison.meets(tried) else "comes nearest"
        if not self.comparison.stable(tried.pool.max_replicas):
            return "its queue grows without bound"
        if not self.comparison.meets(tried):
            return "misses the target in its worst replication"
        more = tried.replicas.value - best.replicas.value
        return f"meets the target with {more:.2f} replicas more on average" if more >= LEAST_MORE else "meets the target with as many replicas on average"

    def notes(self, best: ScaleOption) -> tuple[Note, ...]:
        notes = [
            Note(code="assumes:random-split", text="requests go to ready replicas at random; a batch is what waits; autoscalers act by their published rules")
        ]
        if self.asked.startup.weakest_source != "measured":
            text = f"the start-up time of {format_seconds(self.asked.startup.value)} was not measured: autoscalers stand or fall with it"
            notes.append(Note(code="W-STARTUP-NOT-MEASURED", text=text))
        if best.meets and best.held_out is not None and best.held_out.value < self.asked.attainment:
            text = f"on the arrivals held out it attains {format_share(best.held_out.value, decimals=2)}, less than asked: give it more room, or a longer trace"
            notes.append(Note(code="W-HELD-OUT", text=text))
        return tuple(notes)


def _binding(asked: Asked, comparison: Comparison, options: Sequence[ScaleOption], best: int) -> str:
    option = options[best]
    limit = format_quantity(comparison.capacity * asked.max_replicas, "request/s")
    if not option.meets:
        if not comparison.stable(asked.max_replicas):
            return f"unstable from {limit} on with {asked.max_replicas} replicas, and {format_quantity(asked.arrivals.rate, 'request/s')} arrive"
        lowest = option.attainment.ends[0]
        wanted, found = (format_share(share, decimals=2) for share in (asked.attainment, lowest))
        return f"no way attains {wanted} in every replication with up to {asked.max_replicas} replicas; the best has {found} in its worst"
    static = options[0]
    if option is static:
        others = [o for o in options[1:] if o.meets]
        why = "every autoscaler that attains it has more on average" if others else "no autoscaler attains it: replicas are ready too late"
        return f"a fixed number of {static.min_replicas} is cheapest: {why if len(options) > 1 else 'nothing else was tried'}"
    saved = 1 - option.replicas.value / static.replicas.value
    return f"{option.kind} by {option.scaler} saves {format_share(saved)} of the {static.min_replicas} replicas that a fixed number needs"


def _series(run: PoolRun) -> ScaleSeries:
    ticks = sum(time_s <= run.span_s for time_s in run.time_s)  # later ones only see what is left being answered, at a rate of 0
    shown = slice(0, ticks, max(1, ticks // SHOWN_TICKS))
    return ScaleSeries(
        time_s=tuple(run.time_s[shown]),
        requests_per_s=tuple(run.requests_per_s[shown]),
        wanted=tuple(run.wanted[shown]),
        ready=tuple(run.ready[shown]),
        under_way=tuple(run.waiting[shown]),
    )
