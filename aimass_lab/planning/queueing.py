"""What the simulator is fed: when requests arrive, and how long a batch of each size takes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ..errors import InputError
from ..records import BatchPoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_LEVELS = 200
"""Points at which a service time's quantile function is kept when only its percentiles are known."""


class Arrivals(Protocol):
    """A law of arrivals at one queue."""

    @property
    def rate(self) -> float:
        """Mean arrivals per second."""

    def times_s(self, count: int, rng: np.random.Generator) -> Array:
        """Draw sorted arrival times, starting near 0; a recorded trace may give fewer than `count`."""

    def split(self, num_queues: int) -> Arrivals:
        """What one of `num_queues` queues sees when every request picks one of them at random."""


def _positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a finite number above 0, got {value}")


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals."""

    rate: float

    def __post_init__(self) -> None:
        _positive(self.rate, "rate")

    def times_s(self, count: int, rng: np.random.Generator) -> Array:
        """Draw `count` arrival times."""
        times: Array = rng.exponential(1 / self.rate, count).cumsum()
        return times

    def split(self, num_queues: int) -> Poisson:
        """A thinned Poisson process is one of a lower rate."""
        return Poisson(self.rate / num_queues)


@dataclass(frozen=True)
class Bursty:
    """Poisson arrivals whose rate jumps between two values (a two-state Markov-modulated process)."""

    rate: float
    burst: float = 4.0
    """Rate in a burst over the rate between bursts."""
    share: float = 0.2
    """Share of the time that bursts take."""
    cycle_s: float = 2.0
    """Mean time from one burst to the next."""

    def __post_init__(self) -> None:
        _positive(self.rate, "rate")
        _positive(self.cycle_s, "cycle_s")
        if not (math.isfinite(self.burst) and self.burst >= 1):
            raise InputError(f"burst must be at least 1 (the same rate throughout), got {self.burst}")
        if not 0 < self.share < 1:
            raise InputError(f"share must lie between 0 and 1, got {self.share}")

    def times_s(self, count: int, rng: np.random.Generator) -> Array:
        """Draw `count` arrival times; the first state is drawn too."""
        import numpy as np

        quiet = self.rate / (1 - self.share + self.burst * self.share)
        first = int(rng.random() < self.share)
        pieces: list[Array] = []
        start, drawn = 0.0, 0
        while drawn < count:
            in_burst = (np.arange(2 + 2 * int((count - drawn) / (self.rate * self.cycle_s))) + first) % 2 == 1
            lengths = rng.exponential(self.cycle_s * np.where(in_burst, self.share, 1 - self.share))
            counts = rng.poisson(lengths * np.where(in_burst, quiet * self.burst, quiet))
            starts = start + lengths.cumsum() - lengths
            pieces.append(np.sort(np.repeat(starts, counts) + rng.random(counts.sum()) * np.repeat(lengths, counts)))
            start, drawn = start + float(lengths.sum()), drawn + int(counts.sum())
        return np.concatenate(pieces)[:count]

    def split(self, num_queues: int) -> Bursty:
        """Bursts reach all queues at the same time, thinned."""
        return Bursty(self.rate / num_queues, self.burst, self.share, self.cycle_s)


@dataclass(frozen=True)
class Trace:
    """Recorded arrival times in seconds, sorted; each request is kept with probability `keep`."""

    recorded_s: tuple[float, ...]
    keep: float = 1.0

    def __post_init__(self) -> None:
        if not self.recorded_s:
            raise InputError("the arrival trace is empty", help="give at least one arrival time in seconds")
        if not all(math.isfinite(time) and time >= 0 for time in self.recorded_s):
            raise InputError("the arrival trace holds a time that is negative or not a number")
        if any(later < earlier for earlier, later in zip(self.recorded_s, self.recorded_s[1:], strict=False)):
            raise InputError("the arrival trace is not sorted", help="sort the arrival times")

    @property
    def rate(self) -> float:
        """Kept arrivals over the length of the trace."""
        length = self.recorded_s[-1] - self.recorded_s[0]
        return self.keep * (len(self.recorded_s) - 1) / length if length else math.inf

    def times_s(self, count: int, rng: np.random.Generator) -> Array:
        """Return the first `count` arrivals that this queue gets."""
        import numpy as np

        times = np.asarray(self.recorded_s)
        return times[:count] if self.keep == 1 else times[rng.random(len(times)) < self.keep][:count]

    def split(self, num_queues: int) -> Trace:
        """Every recorded request goes to one of the queues."""
        return Trace(self.recorded_s, self.keep / num_queues)


@dataclass(frozen=True, eq=False)
class ServiceTimes:
    """How long a batch takes, by its size: a distribution for each, and how sure its scale is.

    Sizes between measured ones are interpolated linearly, quantile by quantile; nothing is
    made monotone, as real tables are not. Beyond the largest measured size the time per item
    stays what it is there (no further gain from batching is assumed); below the smallest, a
    batch takes as long as the smallest.
    """

    quantiles: Array
    """Row b, 0 unused: equally likely service times in seconds of a batch of b, sorted."""
    low: Array
    """By batch size: lower end of the interval of its typical time, relative to that time."""
    high: Array
    """By batch size: upper end."""
    largest_known: int
    """Largest batch size that was measured (or predicted); beyond it is extrapolated."""

    @property
    def max_batch_size(self) -> int:
        """Largest batch size that the table holds."""
        return len(self.quantiles) - 1

    @classmethod
    def from_samples(
        cls, samples_s: Mapping[int, Sequence[float] | Array], max_batch_size: int | None = None, *, scale: tuple[float, float] = (1.0, 1.0)
    ) -> ServiceTimes:
        """Make the table from measured times in seconds by batch size; the simulation draws from them.

        Args:
            samples_s: By batch size.
            max_batch_size: Largest of the table; the largest measured one if not given.
            scale: Ends of the interval of all of them, relative to the times as they are.

        Raises:
            InputError: no sample, a size below 1, or a time that is not positive.
        """
        import numpy as np

        if not samples_s or not all(len(times) for times in samples_s.values()):
            raise InputError("service times need at least one sample for each batch size")
        levels = max(len(times) for times in samples_s.values())
        middles = (np.arange(levels) + 0.5) / levels
        known = {
            size: np.sort(np.asarray(times, dtype=float))
            if len(times) == levels
            else np.quantile(np.asarray(times, dtype=float), middles, method="inverted_cdf")
            for size, times in samples_s.items()
        }
        return cls._from_known(known, dict.fromkeys(known, scale), max_batch_size)

    @classmethod
    def from_values(cls, values_s: Mapping[int, float], max_batch_size: int | None = None) -> ServiceTimes:
        """Make the table from one time in seconds for each batch size: no spread.

        Raises:
            InputError: as `from_samples`.
        """
        return cls.from_samples({size: [value] for size, value in values_s.items()}, max_batch_size)

    @classmethod
    def from_points(cls, points: Sequence[BatchPoint], max_batch_size: int | None = None) -> ServiceTimes:
        """Make the table from a ladder's p50, p95 and p99.

        Between these percentiles the quantile function is taken as linear, below p50 as p50,
        above p99 as p99; the interval of p50 becomes the uncertainty of the scale.

        Raises:
            InputError: the ladder is empty or holds a size twice.
        """
        import numpy as np

        if not points:
            raise InputError("the batch ladder is empty", help="profile the model at one batch size at least")
        if len({point.batch_size for point in points}) < len(points):
            raise InputError(f"the batch ladder holds a size twice: {[point.batch_size for point in points]}")
        middles = (np.arange(_LEVELS) + 0.5) / _LEVELS
        known, scale = {}, {}
        for point in points:
            percentiles = [point.latency_p50.value, point.latency_p95.value, point.latency_p99.value]
            known[point.batch_size] = np.interp(middles, [0.5, 0.95, 0.99], np.maximum.accumulate(percentiles))
            if point.latency_p50.interval and point.latency_p50.value > 0:
                low, high = point.latency_p50.interval
                scale[point.batch_size] = (low / point.latency_p50.value, high / point.latency_p50.value)
        return cls._from_known(known, scale, max_batch_size)

    @classmethod
    def _from_known(cls, known: Mapping[int, Array], scale: Mapping[int, tuple[float, float]], max_batch_size: int | None) -> ServiceTimes:
        import numpy as np

        sizes = sorted(known)
        if sizes[0] < 1:
            raise InputError(f"a batch size must be at least 1, got {sizes[0]}")
        table = np.stack([known[size] for size in sizes])
        if not (np.isfinite(table).all() and (table > 0).all()):
            raise InputError("service times must be finite and above 0")
        largest = sizes[-1]
        wanted = np.arange((max_batch_size or largest) + 1)
        quantiles = np.stack([np.interp(wanted, sizes, column) for column in table.T], axis=1)
        quantiles *= np.maximum(1, wanted / largest)[:, None]
        bounds = np.array([scale.get(size, (1.0, 1.0)) for size in sizes])
        return cls(
            quantiles=quantiles,
            low=np.interp(wanted, sizes, np.clip(bounds[:, 0], 1e-3, 1)),
            high=np.interp(wanted, sizes, np.maximum(bounds[:, 1], 1)),
            largest_known=largest,
        )

    @cached_property
    def digest(self) -> bytes:
        """The same for tables of the same times."""
        return digest_of(self.quantiles, self.low, self.high)

    def mean_s(self, batch_size: int) -> float:
        """Mean service time of a batch."""
        return float(self.quantiles[batch_size].mean())

    def is_extrapolated(self, batch_size: int) -> bool:
        """True beyond the largest size that was measured."""
        return batch_size > self.largest_known

    def stable_rate(self, max_batch_size: int, num_workers: int = 1) -> float:
        """Return the items per second at which the queue starts to grow without bound.

        A server that gathers whatever waits runs full batches once a backlog stands, so the
        limit is ``max_batch_size / mean_s(max_batch_size)`` for each worker, whatever smaller
        batches could reach (drift condition of the bulk-service queue, Bailey 1954).
        """
        return num_workers * max_batch_size / self.mean_s(max_batch_size)

    def at_level(self, level: float) -> ServiceTimes:
        """Return the table moved within its intervals: 0 is the lower end, 0.5 as it stands, 1 the upper end."""
        import numpy as np

        factor = self.low + (1 - self.low) * 2 * level if level < 0.5 else 1 + (self.high - 1) * (2 * level - 1)
        return ServiceTimes(self.quantiles * np.asarray(factor)[:, None], self.low, self.high, self.largest_known)


def digest_of(*parts: Array | float) -> bytes:
    """A digest of numbers, which tables are known again by."""
    import numpy as np

    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(np.ascontiguousarray(part, dtype=float).tobytes())
    return made.digest()
