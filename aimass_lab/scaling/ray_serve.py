"""Ray Serve's autoscaler, by ongoing requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import SCALERS, Controller, Observation, Scaler, Window, require_positive


@SCALERS.register("ray_serve")
@dataclass(frozen=True, kw_only=True)
class RayServe(Scaler):
    """``ceil(ongoing requests / target)`` of the last 30 s; up once it was wanted for 30 s on end, down after 10 minutes.

    (Ray Serve documentation, advanced autoscaling guide: target_ongoing_requests, look_back_period_s, upscale_delay_s, downscale_delay_s.)
    """

    name: ClassVar[str] = "ray_serve"

    target: float = 2.0
    """Requests under way that one replica should have."""
    look_back_s: float = 30.0
    """Time over which they are averaged."""
    upscale_delay_s: float = 30.0
    """Time for which more must be wanted."""
    downscale_delay_s: float = 600.0
    """Time for which less must be wanted."""
    interval_s: float = 10.0
    """Time from one report to the next."""

    def __post_init__(self) -> None:
        require_positive(self, "target", "look_back_s", "interval_s")

    @property
    def period_s(self) -> float:
        """Time from one tick to the next."""
        return self.interval_s

    @property
    def metric(self) -> str:
        """Field of `Observation` that it goes by."""
        return "ongoing"

    def start(self) -> Controller:
        """A new one at work."""
        return _Controller(self)


class _Controller(Controller):
    def __init__(self, scaler: RayServe) -> None:
        self._scaler = scaler
        self._seen = Window(scaler.look_back_s)
        self._direction = 0
        self._since_s = 0.0

    def wanted(self, seen: Observation) -> int:
        """By the rule of the class."""
        self._seen.add(seen.time_s, seen.ongoing)
        desired = math.ceil(self._seen.mean() / self._scaler.target - 1e-9)
        direction = (desired > seen.wanted) - (desired < seen.wanted)
        if direction != self._direction:
            self._direction, self._since_s = direction, seen.time_s
        delay = self._scaler.upscale_delay_s if direction > 0 else self._scaler.downscale_delay_s
        if not direction or seen.time_s - self._since_s < delay:
            return seen.wanted
        self._direction = 0
        return desired
