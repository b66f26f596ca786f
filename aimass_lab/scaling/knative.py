"""Knative's pod autoscaler, by concurrency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import SCALERS, Controller, Observation, Scaler, Window, require_positive


@SCALERS.register("knative")
@dataclass(frozen=True, kw_only=True)
class Knative(Scaler):
    """``ceil(concurrency / (target * utilization))`` of the last minute, every 2 s; of the last 6 s while it panics.

    It panics when those 6 s alone want twice the replicas there are, and then does not scale down until a minute after (Knative Serving,
    autoscaling concepts and config-autoscaler's defaults).
    """

    name: ClassVar[str] = "knative"

    target: float = 10.0
    """Requests under way that one replica may have."""
    target_utilization: float = 0.7
    """Share of the target that is aimed at."""
    stable_s: float = 60.0
    """Length of the long window."""
    panic_share: float = 0.1
    """Length of the short window, as a share of the long one."""
    panic_threshold: float = 2.0
    """So many times the replicas there are make it panic."""
    max_scale_down_rate: float = 2.0
    """Most by which the replicas are divided in one tick."""
    tick_s: float = 2.0
    """Time from one tick to the next."""
    grace_s: float = 30.0
    """Time for which the last replica is kept after nothing is under way any more."""

    def __post_init__(self) -> None:
        require_positive(self, "target", "target_utilization", "stable_s", "panic_share", "panic_threshold", "max_scale_down_rate", "tick_s")

    @property
    def period_s(self) -> float:
        """Time from one tick to the next."""
        return self.tick_s

    @property
    def metric(self) -> str:
        """Field of `Observation` that it goes by."""
        return "ongoing"

    def start(self) -> Controller:
        """A new one at work."""
        return _Controller(self)


class _Controller(Controller):
    def __init__(self, scaler: Knative) -> None:
        self._scaler = scaler
        self._stable, self._panic = Window(scaler.stable_s), Window(scaler.stable_s * scaler.panic_share)
        self._panic_until_s = -math.inf
        self._highest = 0
        self._idle_since_s: float | None = None

    def wanted(self, seen: Observation) -> int:
        """By the rule of the class."""
        scaler = self._scaler
        self._stable.add(seen.time_s, seen.ongoing)
        self._panic.add(seen.time_s, seen.ongoing)
        aim = scaler.target * scaler.target_utilization
        stable, panic = (math.ceil(window.mean() / aim - 1e-9) for window in (self._stable, self._panic))
        ready = max(seen.ready, 1)
        lowest = math.floor(ready / scaler.max_scale_down_rate)
        stable, panic = max(stable, lowest), max(panic, lowest)
        if panic >= scaler.panic_threshold * ready:
            if seen.time_s >= self._panic_until_s:
                self._highest = 0
            self._panic_until_s = seen.time_s + scaler.stable_s
        if seen.time_s < self._panic_until_s:
            self._highest = max(self._highest, panic, seen.ready)
            return self._highest
        if self._stable.mean() > 0:
            self._idle_since_s = None
            return max(1, stable)
        if self._idle_since_s is None:
            self._idle_since_s = seen.time_s
        return 0 if seen.time_s - self._idle_since_s >= scaler.grace_s else 1
