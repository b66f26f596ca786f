"""What a server adds to every request beside queue and model: reading, decoding, the hop to the queue and back, the answer's way to the client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import Number, ServerTime
from .queueing import digest_of

if TYPE_CHECKING:
    import numpy as np

    from .queueing import Array

LEVELS = 50
"""Quantiles that stand for the measured ones in a record."""
BAND_KIND = "lowest and highest of the stretches that it was measured in"

RECORDED_S = (0.0009, 0.0011, 0.0013, 0.0016, 0.0026)
"""Equally likely times of a server that nobody measured: a bundle's front end took 0.6 to 1.1 ms of processor time a request and a client on the same
machine 0.4 to 0.5 ms, on two cores of a busy x86 server; that the slower half is drawn out is assumed."""
FRONT_END_S = 0.0001
"""Least processor time that a front end, which computes on one core, has for a request. Under full load it and the worker together took 0.17 ms for 784 numbers
in binary on x86 (tests/benchmarks/serving/results/versions.json): about half of that is left to faster processors."""
RECORDED_BAND_S = (0.0004, 0.005)
"""Of the typical one, wide: from a faster processor to one that has other work at the same time."""


@dataclass(frozen=True, eq=False)
class Overhead:
    """A distribution of the server's own time by request, and how sure its scale is."""

    quantiles: Array
    """Equally likely seconds, sorted."""
    low: float
    """Lower end of the interval of the typical time, relative to it."""
    high: float
    """Upper end."""
    number: Number
    """The typical time as it is shown: the median, with where it comes from."""

    @classmethod
    def from_record(cls, record: ServerTime) -> Overhead:
        """Take what a rehearsal measured."""
        return cls.from_quantiles(record.quantiles_s, record.typical)

    @classmethod
    def from_quantiles(cls, quantiles_s: Sequence[float], number: Number) -> Overhead:
        """Make it from equally likely times and the number that is shown for them.

        Raises:
            InputError: no times, or one below 0, or another unit.
        """
        import numpy as np

        times = np.sort(np.asarray(quantiles_s, dtype=float))
        if not len(times) or not np.isfinite(times).all() or times[0] < 0 or number.unit != "s":
            raise InputError(f"the server's own time must be at least 0 s, got {number.value} {number.unit}")
        low, high = number.ends
        scale = (low / number.value, high / number.value) if number.value > 0 else (1.0, 1.0)
        return cls(times, min(scale[0], 1.0), max(scale[1], 1.0), number)

    @classmethod
    def recorded(cls) -> Overhead:
        """The default, for a server that nobody measured yet."""
        method = "recorded default: processor time of a front end and a client by request; rehearse measures it for a bundle"
        typical = Number(
            value=RECORDED_S[len(RECORDED_S) // 2], unit="s", source="estimated", method=method, interval=RECORDED_BAND_S, interval_kind="recorded range"
        )
        return cls.from_quantiles(RECORDED_S, typical)

    @property
    def record(self) -> ServerTime:
        """As a plan keeps it."""
        return ServerTime(typical=self.number, quantiles_s=tuple(self.quantiles.tolist()))

    @cached_property
    def digest(self) -> bytes:
        """The same for the same times."""
        return digest_of(self.quantiles, self.low, self.high)

    @property
    def least_s(self) -> float:
        """No request is answered sooner than this after queue and model."""
        return float(self.quantiles[0]) * self.low

    @property
    def requests_per_s(self) -> float:
        """More than one front end takes: what is measured here is time, which requests share, so it says so only where it is below the recorded least."""
        least = min(FRONT_END_S, self.number.ends[0])
        return 1 / least if least > 0 else math.inf

    def draw(self, count: int, rng: np.random.Generator, level: float = 0.5) -> Array:
        """Draw the times of `count` requests.

        Args:
            count: How many.
            rng: What draws.
            level: Place within the interval: 0 is its lower end, 0.5 the times as they are, 1 its upper end.
        """
        factor = self.low + (1 - self.low) * 2 * level if level < 0.5 else 1 + (self.high - 1) * (2 * level - 1)
        drawn: Array = factor * rng.choice(self.quantiles, count)
        return drawn
