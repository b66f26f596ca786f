"""The jobs of a rotation: streams of calls, one for each model, put together in the order of their arrival."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..planning.queueing import Arrivals, Bursty, Poisson
from ..scheduling import Request
from ..workload import Workload


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Calls of one model that come at random."""

    workload: Workload
    rate: float | None = None
    """Calls per second; None: so many that all streams without one put the same work on the device."""
    priority: int = 0
    """0 is the most urgent."""
    weight: float = 1.0
    """Share of the device under load, relative to the other streams'."""
    deadline_s: float = math.inf
    """Counted from the arrival."""

    def __post_init__(self) -> None:
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise InputError(f"the rate of {self.name!r} must be above 0, got {self.rate}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError(f"the weight of {self.name!r} must be above 0, got {self.weight}")
        if not self.deadline_s > 0:
            raise InputError(f"the deadline of {self.name!r} must be above 0, got {self.deadline_s}")

    @property
    def name(self) -> str:
        """The model's."""
        return self.workload.name


def rates_for(streams: Sequence[Stream], service_s: Sequence[float], load: float, lanes: int) -> list[float]:
    """Calls per second of each stream; those without a rate share what the load leaves.

    Args:
        streams: Their own rates, where they have one.
        service_s: Device time of one call, by stream.
        load: Share of the lanes' time that all of them together should take.
        lanes: Devices or cores.

    Raises:
        InputError: the given rates alone make up the load.
    """
    given = sum(stream.rate * took for stream, took in zip(streams, service_s, strict=True) if stream.rate is not None)
    unset = sum(stream.rate is None for stream in streams)
    left = load * lanes - given
    if unset and left <= 0:
        text = f"the given rates alone keep {given:.2f} lanes busy, no less than the load of {load:g} on {lanes}"
        raise InputError(text, help="raise the load, or give every model a rate")
    return [stream.rate if stream.rate is not None else left / unset / took for stream, took in zip(streams, service_s, strict=True)]


def make_requests(
    streams: Sequence[Stream], rates: Sequence[float], service_s: Sequence[float], *, seconds: float, burst: float = 1.0, seed: int = 0
) -> tuple[list[Request], list[int]]:
    """Draw the arrivals of all streams over `seconds`; one call at least.

    Returns:
        Requests in order of arrival, and the stream of each.
    """
    import numpy as np

    drawn: list[tuple[float, int]] = []
    for k, rate in enumerate(rates):
        law: Arrivals = Bursty(rate, burst=burst) if burst > 1 else Poisson(rate)
        times = law.times_s(int(rate * seconds + 6 * math.sqrt(rate * seconds) + 20) * (4 if burst > 1 else 1), np.random.default_rng([seed, k]))
        drawn += [(time, k) for time in times.tolist() if time < seconds]
    drawn = sorted(drawn) or [(0.0, 0)]
    requests = [
        Request(i, time, 1, streams[k].priority, time + streams[k].deadline_s, service_s[k], streams[k].name, streams[k].weight)
        for i, (time, k) in enumerate(drawn)
    ]
    return requests, [k for _, k in drawn]
