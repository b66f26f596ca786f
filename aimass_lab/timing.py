"""Latencies that can be trusted: warmed up, repeated until the spread is small or the time is up, interleaved to compare."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .records import Number, Quality

if TYPE_CHECKING:
    import numpy as np
    import torch

MIN_SAMPLES = 5
MAX_SAMPLES = 2000
STABLE_WIDTH = 0.02
"""Sampling stops once the 95 % interval of the median is narrower than this share of it."""
MAX_WARMUP = 10
WARM_SPREAD = 0.05
"""Two calls in a row that differ by less than this share are taken for warm."""


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds that one call takes, until its results are there.

    On a GPU: CUDA events around the call, or wall time where that is longer because the host
    could not keep the device busy.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end) / 1e3, time.perf_counter() - start)


def sample_latency(
    function: Callable[[], Any],
    device: torch.device,
    *,
    budget_s: float,
    warmup: int = 1,
    min_samples: int = MIN_SAMPLES,
    max_samples: int = MAX_SAMPLES,
    into: list[float] | None = None,
    cpu_into: list[float] | None = None,
) -> list[float]:
    """Call `function` until its median is known well enough or the time is up.

    Args:
        function: One call of the model.
        device: Where it runs.
        budget_s: Seconds to spend, warm-up included; `min_samples` are taken even if that takes longer.
        warmup: Calls made first and not counted.
        min_samples: Fewest samples to return.
        max_samples: Most samples to return.
        into: An empty list to append to, so that an interrupted caller keeps what was measured.
        cpu_into: An empty list for the seconds of processor time, of all threads of this process, of each counted call.

    Returns:
        Seconds of each counted call.
    """
    deadline = time.perf_counter() + budget_s
    for _ in range(warmup):
        function()
    samples: list[float] = [] if into is None else into
    while len(samples) < max_samples:
        cpu_start = time.process_time()
        samples.append(timed(function, device))
        if cpu_into is not None:
            cpu_into.append(time.process_time() - cpu_start)
        enough = len(samples) >= max(min_samples, 20) and len(samples) % 10 == 0
        if len(samples) >= min_samples and (time.perf_counter() > deadline or (enough and _stable(samples))):
            break
    return samples


def warm_up(function: Callable[[], Any], device: torch.device, *, first_s: float, budget_s: float, max_calls: int = MAX_WARMUP) -> list[float]:
    """Call `function` until two calls in a row take the same time within `WARM_SPREAD`, or the time is up.

    Args:
        function: One call of the model.
        device: Where it runs.
        first_s: Seconds of the first call, which was made before.
        budget_s: Seconds to spend; no call is made that would not fit.
        max_calls: Most calls.

    Returns:
        Seconds of the first call and of those made here.
    """
    deadline = time.perf_counter() + budget_s
    calls = [first_s]
    while len(calls) <= max_calls and time.perf_counter() + min(calls) <= deadline:
        calls.append(timed(function, device))
        if abs(calls[-1] - calls[-2]) <= WARM_SPREAD * calls[-2]:
            break
    return calls


def calls_until_steady(calls: Sequence[float], steady: Sequence[float]) -> int | None:
    """How many of the first calls were slower than steady ones: those before the first that lies within their 95th percentile.

    Args:
        calls: Seconds of the very first call and of those after it.
        steady: Seconds of calls long after.

    Returns:
        The number; None where none of `calls` was as fast.
    """
    limit = percentile(steady, 95)
    return next((i for i, seconds in enumerate(calls) if seconds <= limit), None)


def _stable(samples: Sequence[float]) -> bool:
    low, high = median_interval(samples)
    return (high - low) < STABLE_WIDTH * percentile(samples, 50)


def interleave(
    functions: Sequence[Callable[[], Any]],
    device: torch.device,
    *,
    budget_s: float,
    min_rounds: int = MIN_SAMPLES,
    max_rounds: int = MAX_SAMPLES,
    seed: int = 0,
    stop: Callable[[Sequence[Sequence[float]]], bool] | None = None,
) -> Iterator[list[list[float]]]:
    """Time several functions side by side, in a new random order each round, so that drift hits all alike.

    Args:
        functions: What to compare; each is called once before the first round.
        device: Where they run.
        budget_s: Seconds to spend; `min_rounds` are made even if that takes longer.
        min_rounds: Fewest rounds.
        max_rounds: Most rounds.
        seed: Of the order.
        stop: Asked after each round, from `min_rounds` on: is this enough?

    Yields:
        After every round, all seconds so far, one list per function. It is the same list
        each time, so an interrupted caller keeps what was measured.
    """
    import random

    order = list(range(len(functions)))
    shuffle = random.Random(seed).shuffle
    deadline = time.perf_counter() + budget_s
    for function in functions:
        function()
    samples: list[list[float]] = [[] for _ in functions]
    for round_number in range(1, max_rounds + 1):
        shuffle(order)
        for i in order:
            samples[i].append(timed(functions[i], device))
        yield samples
        if round_number >= min_rounds and (time.perf_counter() > deadline or (stop is not None and stop(samples))):
            return


def percentile(samples: Sequence[float], q: float) -> float:
    """The `q`-th percentile, linear between observations."""
    import numpy as np

    return float(np.percentile(samples, q))


def median_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the median from order statistics: no distribution is assumed (David & Nagaraja, Order Statistics, §7.1)."""
    return percentile_interval(samples, 50, level)


def percentile_interval(samples: Sequence[float], q: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of the `q`-th percentile from order statistics, by the normal approximation of the binomial.

    With too few samples for the level, the smallest or the largest observation bounds it.
    """
    ordered, n, p = sorted(samples), len(samples), q / 100
    half = _normal_quantile(0.5 + level / 2) * math.sqrt(n * p * (1 - p))
    low = max(0, math.floor(n * p - half) - 1)
    high = min(n - 1, math.ceil(n * p + half))
    return ordered[low], ordered[high]


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of medians of interleaved samples with its bootstrap interval; rounds are resampled as pairs.

    Args:
        numerator: Seconds, one per round.
        denominator: Seconds, of the same rounds.
        level: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Ratio, lower end, upper end.
    """
    import numpy as np

    a, b = np.asarray(numerator), np.asarray(denominator)
    rows = np.random.default_rng(seed).integers(0, len(a), size=(resamples, len(a)))
    ratios: np.ndarray = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(np.median(a) / np.median(b)), float(low), float(high)


def latency_number(samples: Sequence[float], q: float, *, environment: str, quality: Quality = "ok") -> Number:
    """The `q`-th percentile of `samples` as a measured number with its interval."""
    few = "" if len(samples) * min(q, 100 - q) / 100 >= 1 else ", too few calls to resolve it: the extreme is shown"
    return Number(
        value=percentile(samples, q),
        unit="s",
        source="measured",
        method=f"p{q:g} of {len(samples)} calls, profiler off{few}",
        interval=percentile_interval(samples, q),
        interval_kind=f"95 % interval of p{q:g}",
        n=len(samples),
        environment=environment,
        quality=quality,
    )


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield a function that tells the seconds since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start
