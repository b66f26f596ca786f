"""From the bands of operators to the band of a call."""

from __future__ import annotations

from dataclasses import dataclass

LAUNCH_S = (8e-6, 2e-6, 20e-6)
"""Seconds in which a host starts one operator of an eager model on a GPU: expected, at best and at worst. Datasheets do not tell."""

ROOFLINE = "90 % band: operators of held-out devices, ends added up"
"""Of the calibrated roofline: how often that band holds is in the table that ``tests/benchmarks/demand/vidur.py`` prints."""

EFFICIENCY = "band from best to worst efficiency of operators"
"""Of rates that nothing was calibrated for: not a quantile."""


@dataclass(frozen=True)
class Band:
    """A value with its lower and upper end."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is outside of its own band from {self.low} to {self.high}")

    def __add__(self, other: Band) -> Band:
        """Ends add up: what errs for one reason errs together."""
        return Band(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, other: Band) -> Band:
        """Product of two uncertain values, whose ends may meet."""
        return Band(self.value * other.value, self.low * other.low, self.high * other.high)

    def at_least(self, other: Band) -> Band:
        """The larger of the two at every place: a GPU computes while the host starts what comes next."""
        return Band(max(self.value, other.value), max(self.low, other.low), max(self.high, other.high))


def launches(num_operators: int, seconds: tuple[float, float, float] = LAUNCH_S) -> Band:
    """Seconds of starting `num_operators` operators one after another."""
    expected, low, high = seconds
    return Band(num_operators * expected, num_operators * low, num_operators * high)
