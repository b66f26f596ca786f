"""How long a message takes to be written and read, measured on the codecs that really do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Number
from ..timing import median_interval, percentile

ROUNDS, MIN_ROUNDS = 60, 7
MIN_BATCH_S = 200e-6
"""A round repeats a step until it takes this long, so that the clock's resolution does not matter."""


@dataclass(frozen=True)
class Codec:
    """One form of a message, written and read by the code that serves it."""

    form: str
    """As records name it: ``"json"``, ``"binary"``, ``"grpc"``."""
    write_request: Callable[[], Any]
    """Client: tensors to bytes."""
    read_request: Callable[[], Any]
    """Server: the same bytes to checked tensors."""
    write_response: Callable[[], Any]
    """Server: outputs to bytes."""
    read_response: Callable[[], Any]
    """Client: the same bytes to tensors."""
    request_bytes: int
    """Of the body that `write_request` makes."""
    response_bytes: int

    def steps(self) -> tuple[Callable[[], Any], ...]:
        """The four steps in the order of a call."""
        return self.write_request, self.read_request, self.write_response, self.read_response


def cpu_seconds(step: Callable[[], Any], *, budget_s: float) -> list[float]:
    """CPU seconds of one call of `step`, once a round: what other processes do to the wall clock does not count.

    Args:
        step: Called without arguments.
        budget_s: Wall seconds to spend; `MIN_ROUNDS` are made even if that takes longer.
    """
    deadline = time.perf_counter() + budget_s
    start = time.thread_time()
    step()
    first = max(time.thread_time() - start, 1e-7)
    repeats = max(1, min(1000, round(MIN_BATCH_S / first)))
    samples: list[float] = []
    while len(samples) < ROUNDS and (len(samples) < MIN_ROUNDS or time.perf_counter() < deadline):
        start = time.thread_time()
        for _ in range(repeats):
            step()
        samples.append((time.thread_time() - start) / repeats)
    return samples


def measure_codec(codec: Codec, *, budget_s: float, environment: str) -> tuple[Number, Number, Number, Number]:
    """CPU seconds of each of the four steps for this message, with the interval of the median.

    Args:
        codec: The message.
        budget_s: For all steps together.
        environment: The `Environment.id` it is measured in.
    """
    names = ("client writes the request", "server reads and checks it", "server writes the response", "client reads it")
    made = [_number(cpu_seconds(step, budget_s=budget_s / 4), name, environment) for step, name in zip(codec.steps(), names, strict=True)]
    return made[0], made[1], made[2], made[3]


def _number(samples: Sequence[float], what: str, environment: str) -> Number:
    return Number(
        value=percentile(samples, 50), unit="s", source="measured", method=f"{what}: median CPU time of {len(samples)} rounds",
        interval=median_interval(samples), interval_kind="95 % interval of the median", n=len(samples), environment=environment,
    )  # fmt: skip


def growth(small: Codec, large: Codec, small_times: Sequence[Number], large_times: Sequence[Number]) -> Number | None:
    """Bytes a second by which the four steps together grow, from messages of two sizes; None where the time did not grow.

    Args:
        small: A message.
        large: The same with more items.
        small_times: What `measure_codec` gave for it.
        large_times: And for the other.
    """
    added_bytes = large.request_bytes + large.response_bytes - small.request_bytes - small.response_bytes
    ends = [sum(n.value for n in large_times) - sum(n.value for n in small_times)]
    for near, far in ((0, 1), (1, 0)):  # the steepest and the flattest that the intervals allow
        ends.append(sum(n.interval[far] for n in large_times if n.interval) - sum(n.interval[near] for n in small_times if n.interval))
    if added_bytes <= 0 or min(ends) <= 0:
        return None
    value, low, high = (added_bytes / seconds for seconds in ends)
    return Number(
        value=value, unit="B/s", source="measured", method=f"body bytes over CPU time, all four steps, from {small.request_bytes} B to {large.request_bytes} B",
        interval=(min(low, value), max(high, value)), interval_kind="from the 95 % intervals of the medians", environment=small_times[0].environment,
    )  # fmt: skip
