"""Arrivals whose rate changes: between several states at random, by a timetable, or as a file has recorded it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from .queueing import Array, Arrivals


@dataclass(frozen=True)
class Mmpp:
    """Poisson arrivals whose rate jumps between states at random (a Markov-modulated Poisson process); each state is followed by any other."""

    rates: tuple[float, ...]
    """Arrivals per second, by state."""
    mean_s: tuple[float, ...]
    """Mean time in each state."""

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.mean_s) or len(self.rates) < 2:
            raise InputError(f"an MMPP needs a rate and a mean time for each of two states or more, got {len(self.rates)} and {len(self.mean_s)}")
        if not all(math.isfinite(r) and r >= 0 for r in self.rates) or not any(self.rates):
            raise InputError(f"the rates of an MMPP must be at least 0, and one above it, got {self.rates}")
        if not all(math.isfinite(s) and s > 0 for s in self.mean_s):
            raise InputError(f"the mean times of an MMPP must be above 0, got {self.mean_s}")

    @property
    def rate(self) -> float:
        """Mean arrivals per second: states come equally often."""
        return sum(r * s for r, s in zip(self.rates, self.mean_s, strict=True)) / sum(self.mean_s)

    def times_s(self, count: int, rng: np.random.Generator) -> Array:
        """Draw `count` arrival times; the first state is drawn by its share of the time."""
        import numpy as np

        state = int(rng.choice(len(self.rates), p=np.array(self.mean_s) / sum(self.mean_s)))
        pieces: list[Array] = []
        start, drawn = 0.0, 0
        while drawn < count:
            length = float(rng.exponential(self.mean_s[state]))
            pieces.append(np.sort(start + length * rng.random(int(rng.poisson(self.rates[state] * length)))))
            drawn += len(pieces[-1])
            start += length
            state = (state + int(rng.integers(1, len(self.rates)))) % len(self.rates)
        return np.concatenate(pieces)[:count]

    def split(self, num_queues: int) -> Mmpp:
        """All queues change their state together, thinned."""
        return Mmpp(tuple(rate / num_queues for rate in self.rates), self.mean_s)


@dataclass(frozen=True)
class Timetable:
    """Poisson arrivals whose rate is a line through points, again and again."""

    points: tuple[tuple[float, float], ...]
    """Time in seconds and rate, from time 0 on; at the last time the first point follows."""

    def __post_init__(self) -> None:
        times = [time for time, _ in self.points]
        if len(times) < 2 or times[0] != 0 or any(b <= a for a, b in itertools.pairwise(times)):
            raise InputError(f"a timetable needs two points or more, at times that rise from 0, got {list(times)}", help='for example "0:100 600:400 1200:100"')
        if not all(math.isfinite(rate) and rate >= 0 for _, rate in self.points) or not any(rate for _, rate in self.points):
            raise InputError("the rates of a timetable must be at least 0, and one above it")

    @property
    def period_s(self) -> float:
        """After which it begins anew."""
        return self.points[-1][0]

    @property
    def rate(self) -> float:
        """Mean arrivals per second."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs) / self.period_s

    def times_s(self, count: int, rng: np.random.Generator) -> Array:
        """Draw `count` arrival times, by thinning (Lewis and Shedler 1979)."""
        import numpy as np

        clock, rate = zip(*self.points, strict=True)
        highest = max(rate)
        kept: list[Array] = []
        start, drawn = 0.0, 0
        while drawn < count:
            times = start + rng.exponential(1 / highest, 2 * count + 16).cumsum()
            start = float(times[-1])
            kept.append(times[rng.random(len(times)) * highest < np.interp(times % self.period_s, clock, rate)])
            drawn += len(kept[-1])
        return np.concatenate(kept)[:count]

    def split(self, num_queues: int) -> Timetable:
        """Thinned."""
        return Timetable(tuple((time, rate / num_queues) for time, rate in self.points))


def read_mmpp(text: str) -> Mmpp:
    """Read ``"20:60 200:5"``: requests per second and the mean seconds for which they come so.

    Raises:
        InputError: it is not of that form.
    """
    try:
        pairs = [(float(rate), float(mean)) for rate, _, mean in (word.partition(":") for word in text.replace(",", " ").split())]
    except ValueError:
        raise InputError(f"{text!r} is no MMPP", help='give rates and mean seconds, for example "20:60 200:5"') from None
    return Mmpp(tuple(rate for rate, _ in pairs), tuple(mean for _, mean in pairs))


def read_timetable(text: str) -> Timetable:
    """Read ``"0:100 600:400 1200:100"``: seconds and requests per second.

    Raises:
        InputError: it is not of that form.
    """
    try:
        points = tuple((float(time), float(rate)) for time, _, rate in (word.partition(":") for word in text.replace(",", " ").split()))
    except ValueError:
        raise InputError(f"{text!r} is no timetable", help='give seconds and rates, for example "0:100 600:400 1200:100"') from None
    return Timetable(points)


def draw_until(law: Arrivals, span_s: float, rng: np.random.Generator) -> Array:
    """Arrival times of a law within `span_s`; a recorded trace gives what it has.

    Args:
        law: When requests arrive.
        span_s: Seconds.
        rng: Of the draw.
    """
    expected = law.rate * span_s
    found = law.times_s(int(1.5 * expected + 10 * math.sqrt(expected)) + 100, rng)
    return found[found < span_s]
