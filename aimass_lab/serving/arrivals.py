"""When requests leave: at random, in bursts, evenly, or as a recorded trace has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ServerError

Array = np.ndarray[Any, Any]

BURST_FACTOR = 4.0
"""How many times the rate between bursts a burst has."""
BURST_SHARE = 0.2
"""Of the time that bursts take."""
BURST_S = 1.0
"""Mean length of a burst."""


def poisson(count: int, duration_s: float, generator: np.random.Generator) -> Array:
    """Times of a Poisson process of which the number of arrivals is known: independent and uniform, so that runs of one rate offer the same load."""
    return np.sort(generator.uniform(0, duration_s, count))


def bursty(count: int, duration_s: float, generator: np.random.Generator) -> Array:
    """Times of a process that switches between two rates at random (a Markov-modulated Poisson process), of which the number of arrivals is known.

    Given the times of the switches, arrivals are independent, with a density that is proportional to the rate.
    """
    mean_s = {True: BURST_S, False: BURST_S * (1 - BURST_SHARE) / BURST_SHARE}
    burst, ends, weights = bool(generator.random() < BURST_SHARE), [0.0], []
    while ends[-1] < duration_s:
        ends.append(min(duration_s, ends[-1] + generator.exponential(mean_s[burst])))
        weights.append((BURST_FACTOR if burst else 1.0) * (ends[-1] - ends[-2]))
        burst = not burst
    return np.interp(np.sort(generator.uniform(0, sum(weights), count)), np.concatenate([[0.0], np.cumsum(weights)]), ends)


def steady(count: int, duration_s: float, generator: np.random.Generator) -> Array:
    """Equal steps."""
    return np.arange(count) * (duration_s / count)


PATTERNS: dict[str, Callable[[int, float, np.random.Generator], Array]] = {"poisson": poisson, "bursty": bursty, "steady": steady}


def arrival_times(pattern: str, *, rate: float, duration_s: float, seed: int = 0) -> Array:
    """Seconds from the start at which requests leave, `rate` a second on average.

    Args:
        pattern: A name of `PATTERNS`.
        rate: Requests/s.
        duration_s: How long; so many requests are sent as are due on average, one at least, so that the last may end it a little earlier or later.
        seed: Of the times.
    """
    count = max(1, round(rate * duration_s))
    return PATTERNS[pattern](count, count / rate, np.random.default_rng(seed))


def read_trace(path: Path, *, speed: float = 1.0) -> Array:
    """Times of a recorded trace, from its first request on.

    Args:
        path: One time in seconds a line, in any order; of several columns with commas between them, the first. A first line that is no number is a
            heading.
        speed: 2: in half the time.

    Raises:
        ServerError: it cannot be read, or holds no times.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"cannot read the trace {path}: {getattr(error, 'strerror', None) or error}") from None
    times = []
    for number, line in enumerate(lines, 1):
        text = line.split(",")[0].strip()
        try:
            times.append(float(text))
        except ValueError:
            if text and number > 1:
                raise ServerError(f"line {number} of the trace {path} begins with {text[:40]!r}, which is no time in seconds") from None
    if not times or not np.isfinite(times).all():
        raise ServerError(f"the trace {path} holds no times" if not times else f"the trace {path} holds times that are not finite")
    found = np.sort(np.array(times))
    return (found - found[0]) / speed
