"""Inference requests that were answered, counted in memory that outlives the process that counts: what a front end counted is not lost with it."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PROTOCOLS = {name: place for place, name in enumerate(("rest", "predict", "grpc", "amqp"))}
REFUSED = frozenset({401, 403, 404, 405})
"""Of requests that got to no model, of whatever kind; counted apart, for they are no load that a server could be scaled by."""
NUM_CODES = 600
"""HTTP's codes are smaller."""
NUM_TIMES = len(SECONDS) + 2
"""How many took at most each time, how many longer, and all their seconds."""
FIRST_TIME = len(PROTOCOLS) * NUM_CODES
NUM_BYTES = 8 * (FIRST_TIME + len(PROTOCOLS) * NUM_TIMES)


class Tally:
    """Counts of one process.

    Args:
        handle: Of a file of `NUM_BYTES`, which another process reads, too; None: memory of this process.
    """

    def __init__(self, handle: int = -1) -> None:
        self.numbers = memoryview(mmap.mmap(handle, NUM_BYTES)).cast("d")
        """By protocol and code, then by protocol and time."""

    def add(self, protocol: str, code: int, seconds: float | None = None) -> None:
        """Count an answer; `seconds` where its time is of interest, and it got outputs."""
        numbers, place = self.numbers, PROTOCOLS[protocol]
        numbers[place * NUM_CODES + code] += 1
        if code == 200 and seconds is not None:
            first = FIRST_TIME + place * NUM_TIMES
            numbers[first + bisect_left(SECONDS, seconds)] += 1
            numbers[first + NUM_TIMES - 1] += seconds


class Answers(Collector):
    """The sums of several tallies, for Prometheus."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []

    def collect(self) -> Iterable[Metric]:
        """Requests by protocol and code, those that got to no model likewise, and the times of those that got outputs."""
        sums = [sum(column) for column in zip([0.0] * (NUM_BYTES // 8), *(tally.numbers for tally in self.tallies), strict=True)]
        requests = CounterMetricFamily("aimass_requests", "Inference requests answered", labels=["protocol", "code"])
        refused = CounterMetricFamily("aimass_refused", "Requests that got to no model: token, address, model or method", labels=["protocol", "code"])
        times = HistogramMetricFamily("aimass_request_seconds", "Time of a request that got outputs", labels=["protocol"])
        for protocol, place in PROTOCOLS.items():
            for code, count in enumerate(sums[place * NUM_CODES : (place + 1) * NUM_CODES]):
                if count:
                    (refused if code in REFUSED else requests).add_metric([protocol, str(code)], count)
            *counts, total_s = sums[FIRST_TIME + place * NUM_TIMES :][:NUM_TIMES]
            if any(counts):
                ends = [*map(floatToGoString, SECONDS), "+Inf"]
                times.add_metric([protocol], [(end, sum(counts[: i + 1])) for i, end in enumerate(ends)], total_s)
        return requests, refused, times
