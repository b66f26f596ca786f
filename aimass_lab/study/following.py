"""The verb that finds out how replicas should follow a load that changes."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from ..errors import InputError
from ..planning.queueing import Arrivals, Bursty, Poisson, Trace
from ..planning.workloads import read_mmpp, read_timetable
from ..records import ORIGINAL, Bundle, ColdStart, Number, ScalePlan
from ..units import format_quantity, format_seconds, parse_rate, parse_seconds
from ..verbs import Amount, Burst, Count, Latency, Part, Rate, Seconds, Seed, verb
from .base import StudyState


class Following(StudyState):
    """The verb that finds out how replicas should follow a load that changes."""

    @verb
    def scale(
        self,
        *,
        p99: Latency,
        rate: Rate | None = None,
        burst: Burst = 1.0,
        mmpp: str | None = None,
        timetable: str | None = None,
        trace: str | None = None,
        attainment: Part = 0.99,
        scaler: tuple[str, ...] | None = None,
        startup: Seconds | None = None,
        seconds: Seconds = 1200.0,
        max_replicas: Count = 100,
        mtbf: Seconds | None = None,
        max_waiting: int | None = None,
        price: Amount | None = None,
        budget: Amount | None = None,
        technique: str = ORIGINAL,
        seed: Seed = 0,
    ) -> ScalePlan:
        """Compare a fixed number of replicas with autoscalers and floors below them, by cost and by what they attain.

        All are simulated on the same arrivals, with the start-up time that was measured: `cold`, or a bundle's own proof. Of a recorded trace
        the last 40 % are held out and only judge what was chosen.

        Args:
            p99: Latency within which requests should be answered.
            rate: Mean requests per second, of random arrivals.
            burst: Rate of bursts over the rate between them, where a rate is given; bursts come every two minutes on average.
            mmpp: Rates instead between which arrivals jump at random, as rate:mean seconds at it, such as '20:60 200:5'.
            timetable: Rates over time instead, as seconds:rate, such as '0:100 600:400 1200:100'; begins anew at its end.
            trace: File with recorded times instead, in seconds, one a line.
            attainment: Share of all requests that must be answered in time.
            scaler: Autoscaler to try: hpa, keda, knative or ray_serve; may be repeated. All if not given.
            startup: Time from asking for a replica until it answers; what was measured if not given.
            seconds: Time that a simulation covers, where no trace is given.
            max_replicas: Most replicas.
            mtbf: Mean time between failures of a replica; none if not given.
            max_waiting: Most requests that wait at a replica; further ones are turned away. No limit if not given.
            price: USD per hour and replica.
            budget: USD per hour that is never exceeded; needs a price.
            technique: What to serve instead of the original: a technique, or a recipe such as 'low_rank(ratio=0.5) + int8_dynamic'.
            seed: Of everything random.
        """
        from ..planning.follow import Asked, follow_load
        from ..scaling import SCALERS, make_scaler

        technique = self._recipe(technique).name
        law, words = _arrivals(rate, burst, mmpp, timetable, trace)
        names = tuple(scaler) if scaler is not None else tuple(SCALERS)
        for name in names:
            make_scaler(name)  # an unknown name is told before anything is measured
        asked = Asked(
            arrivals=law,
            span_s=parse_seconds(seconds),
            latency_s=parse_seconds(p99),
            attainment=attainment,
            max_replicas=_affordable(max_replicas, price, budget),
            startup=self._startup(startup),
            mtbf_s=math.inf if mtbf is None else parse_seconds(mtbf),
            max_waiting=max_waiting,
            price=price,
            seed=seed,
        )
        ladder = self._measured_ladder(technique)
        model = self._served(technique).info()
        plan = follow_load(model, self._environment_device(), ladder, asked, load=words, scalers=names, progress=self.progress)
        return self._keep("scale", msgspec.structs.replace(plan, technique=technique))

    def _startup(self, given: Seconds | None) -> Number:
        """As given, else as a bundle's proof or a cold start measured it, else an assumption."""
        from ..spec import startup_time

        if given is not None:
            return Number(value=parse_seconds(given), unit="s", source="user", method="asked for")
        bundle, cold = self._last(Bundle), self._last(ColdStart)
        if bundle is None and cold is not None:
            return cold.ready_after
        return startup_time(bundle)


def _affordable(max_replicas: int, price: float | None, budget: float | None) -> int:
    """Most replicas that the budget pays for all at once."""
    if budget is None:
        return max_replicas
    if not price:
        raise InputError(f"a budget of {budget:g} USD per hour says nothing without a price", help="give the price of a replica: --price 0.5")
    paid = math.floor(budget / price + 1e-9)
    if paid < 1:
        raise InputError(f"a budget of {budget:g} USD per hour does not pay for one replica at {price:g}", help="raise the budget")
    return min(max_replicas, paid)


def _arrivals(rate: Rate | None, burst: float, mmpp: str | None, timetable: str | None, trace: str | None) -> tuple[Arrivals, str]:
    """The law, and what it is in words."""
    given = [name for name, value in (("rate", rate), ("mmpp", mmpp), ("timetable", timetable), ("trace", trace)) if value is not None]
    if len(given) != 1:
        ways = "a rate, rates to jump between (mmpp), a timetable or a trace"
        raise InputError(f"arrivals come by {ways}, and {' and '.join(given) or 'none'} was given", help="give one of them")
    if trace is not None:
        from ..serving.arrivals import read_trace
        from ..serving.errors import ServerError

        try:
            law = Trace(tuple(read_trace(Path(trace)).tolist()))
        except ServerError as error:
            raise InputError(str(error)) from None
        return law, f"{len(law.recorded_s)} requests over {format_seconds(law.recorded_s[-1])}, as recorded in {Path(trace).name}"
    if mmpp is not None:
        jumping = read_mmpp(mmpp)
        rates = ", ".join(f"{rate:g}" for rate in jumping.rates)
        return jumping, f"{format_quantity(jumping.rate, 'request/s')} on average, jumping at random between {rates} (MMPP)"
    if timetable is not None:
        table = read_timetable(timetable)
        return table, f"by a timetable of {format_seconds(table.period_s)}, {format_quantity(table.rate, 'request/s')} on average"
    mean = parse_rate(rate)  # type: ignore[arg-type]  # given, as the check above says
    if burst > 1:
        return Bursty(mean, burst=burst, cycle_s=120.0), f"{format_quantity(mean, 'request/s')} on average, bursts of {burst:g} times the rate between them"
    return Poisson(mean), f"{format_quantity(mean, 'request/s')} at random"
