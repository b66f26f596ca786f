"""Latencies that can be trusted: warmed up, repeated until the spread is small or the time is up, interleaved to compare."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .records import Number, Quality

if TYPE_CHECKING:
    import numpy as np
    import torch

S = TypeVar("S")

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


@overload
def interleave(
    functions: Sequence[Callable[[], Any]], device: torch.device, *, budget_s: float, min_rounds: int = ..., max_rounds: int = ..., seed: int = ...,
    stop: Callable[[Sequence[Sequence[float]]], bool] | None = ...,
) -> Iterator[list[list[float]]]: ...  # fmt: skip


@overload
def interleave(
    functions: Sequence[Callable[[], Any]], device: torch.device, *, budget_s: float, min_rounds: int = ..., max_rounds: int = ..., seed: int = ...,
    stop: Callable[[Sequence[Sequence[S]]], bool] | None = ..., sample: Callable[[Callable[[], Any], torch.device], S],
) -> Iterator[list[list[S]]]: ...  # fmt: skip


def interleave(
    functions: Sequence[Callable[[], Any]],
    device: torch.device,
    *,
    budget_s: float,
    min_rounds: int = MIN_SAMPLES,
    max_rounds: int = MAX_SAMPLES,
    seed: int = 0,
    stop: Callable[[Sequence[Sequence[Any]]], bool] | None = None,
    sample: Callable[[Callable[[], Any], torch.device], Any] = timed,
) -> Iterator[list[list[Any]]]:
    """Time several functions side by side, in a new random order each round, so that drift hits all alike.

    Every order is drawn by itself: of two equal functions, either one is then as likely to be the slower one of a round, whatever
    disturbs them and for however long, which is what `paired_ratio` rests on.

    Args:
        functions: What to compare; each is called once before the first round.
        device: Where they run.
        budget_s: Seconds to spend; `min_rounds` are made even if that takes longer.
        min_rounds: Fewest rounds.
        max_rounds: Most rounds.
        seed: Of the order.
        stop: Asked after each round, from `min_rounds` on: is this enough?
        sample: Takes one sample of a function; the seconds of one call if not given.

    Yields:
        After every round, all samples so far, one list per function. It is the same list
        each time, so an interrupted caller keeps what was measured.
    """
    import random

    order = list(range(len(functions)))
    shuffle = random.Random(seed).shuffle
    deadline = time.perf_counter() + budget_s
    for function in functions:
        function()
    samples: list[list[Any]] = [[] for _ in functions]
    for round_number in range(1, max_rounds + 1):
        shuffle(order)
        for i in order:
            samples[i].append(sample(functions[i], device))
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


FEWEST_RANKS = 10
"""Pairs from which their ranks alone give an interval at every level used here."""


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """Typical ratio of samples taken in pairs, with its interval, which holds whatever the distribution of the times is.

    What slows both samples of a pair down alike cancels. The ratio is the Hodges-Lehmann estimate on logarithms, the median of the means of
    all pairs of rounds; the interval is that of Wilcoxon's signed ranks (Hollander, Wolfe & Chicken, Nonparametric Statistical Methods,
    §3.1-3.3). It supposes that the logarithm of a round's ratio is symmetric about its centre, as it is by construction for two equal
    functions whose order is drawn by lot in each round (see `interleave`). Of fewer pairs than `FEWEST_RANKS` ranks say too little: Student's
    t is taken, which a straying round widens.

    Args:
        numerator: Seconds, one per round, at least two.
        denominator: Seconds, of the same rounds.
        level: Of the interval.

    Returns:
        Ratio, lower end, upper end.
    """
    import numpy as np

    logs = np.log(np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float))
    n = len(logs)
    if n < FEWEST_RANKS:
        from scipy.special import stdtrit  # of the t distribution, without the rest of scipy.stats

        half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(logs.std(ddof=1)) / math.sqrt(n)
        centre = float(logs.mean())
        return math.exp(centre), math.exp(centre - half), math.exp(centre + half)
    first, second = np.triu_indices(n)
    means = np.sort((logs[first] + logs[second]) / 2)
    k = _signed_rank_tail(n, (1 - level) / 2)
    ends = (means[0], means[-1]) if k < 0 else (means[k], means[len(means) - 1 - k])
    return math.exp(float(np.median(means))), math.exp(float(ends[0])), math.exp(float(ends[1]))


@functools.cache
def _signed_rank_tail(n: int, tail: float) -> int:
    """The largest sum of ranks that is exceeded downwards with a probability of at most `tail`; -1 where none is so rare."""
    import numpy as np

    if n > 60:  # where the normal approximation is within a rank or two of it
        deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.floor(n * (n + 1) / 4 + _normal_quantile(tail) * deviation - 0.5)
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, n + 1):
        ways[rank:] = ways[rank:] + ways[:-rank]
    return int(np.searchsorted(np.cumsum(ways) / 2.0**n, tail, side="right")) - 1


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
