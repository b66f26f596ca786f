"""What an autoscaler sees of a pool of replicas, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import InputError
from ..options import read_options
from ..registry import Registry


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened since the last tick."""

    time_s: float
    ready: int
    """Replicas that take requests."""
    wanted: int
    """Replicas that were asked for, those still starting included."""
    utilization: float
    """Share of their time that the ready replicas computed."""
    requests_per_s: float
    """Requests that arrived."""
    ongoing: float
    """Requests under way, waiting ones included: mean over the time since the last tick."""


class Controller(ABC):
    """One autoscaler at work."""

    @abstractmethod
    def wanted(self, seen: Observation) -> int:
        """How many replicas there should be from now on; the pool keeps it within its limits."""


class Scaler(ABC):
    """A kind of autoscaler with its settings: a frozen dataclass whose fields are its options.

    What is modelled is the published rule of when how many replicas are wanted. What comes after, such as finding a node for a replica
    or pulling its image, is in the pool's start-up time.
    """

    name: ClassVar[str]
    target: float
    """What one replica should have of the metric."""

    @property
    @abstractmethod
    def period_s(self) -> float:
        """Time from one tick to the next."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Field of `Observation` that it goes by."""

    @abstractmethod
    def start(self) -> Controller:
        """A new one at work."""


SCALERS: Registry[type[Scaler]] = Registry("autoscaler", "aimass_lab.scaling")


def make_scaler(name: str, options: Mapping[str, Any] | None = None, **more: Any) -> Scaler:
    """Return the autoscaler called `name`, with its options set.

    Raises:
        UnknownNameError: there is no such autoscaler.
        InputError: it has no such option, or the option's value is out of range.
    """
    return SCALERS[name](**read_options(SCALERS[name], f"the autoscaler {name!r}", {**(options or {}), **more}))


def require_positive(scaler: Scaler, *fields: str) -> None:
    """Check options that must be above 0.

    Raises:
        InputError: one of them is not.
    """
    for field in fields:
        value = getattr(scaler, field)
        if not 0 < value < float("inf"):
            raise InputError(f"{field} of the autoscaler {scaler.name!r} must be a number above 0, got {value}")


class Window:
    """Values of the last seconds.

    Args:
        length_s: How many.
    """

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._values: deque[tuple[float, float]] = deque()

    def add(self, time_s: float, value: float) -> None:
        """Note a value, and forget those that are too old."""
        self._values.append((time_s, value))
        while self._values[0][0] <= time_s - self._length_s:
            self._values.popleft()

    def mean(self) -> float:
        """Mean of the values; one at least was noted."""
        return sum(value for _, value in self._values) / len(self._values)

    def highest(self) -> float:
        """Largest of the values."""
        return max(value for _, value in self._values)


class Stabilization:
    """What a HorizontalPodAutoscaler makes of recommendations: up at once, by four replicas or to twice as many a sync; down to the highest of a while.

    Args:
        window_s: The while.
    """

    def __init__(self, window_s: float) -> None:
        self._recommended = Window(window_s)

    def wanted(self, seen: Observation, recommended: int, *, syncs: int = 1) -> int:
        """How many replicas there should be.

        Args:
            seen: What happened.
            recommended: What the metric asks for.
            syncs: So many times it acts until it is asked again.
        """
        self._recommended.add(seen.time_s, recommended)
        if recommended < seen.wanted:
            return min(seen.wanted, int(self._recommended.highest()))
        return min(recommended, max(seen.wanted + 4 * syncs, seen.wanted * 2**syncs))
