"""Kubernetes' HorizontalPodAutoscaler, by utilization or by requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import SCALERS, Controller, Observation, Scaler, Stabilization, require_positive


@SCALERS.register("hpa")
@dataclass(frozen=True, kw_only=True)
class Hpa(Scaler):
    """``ceil(replicas * metric / target)`` every 15 s, nothing within the tolerance; up at once, down to the highest of five minutes.

    Replicas that are not ready count as idle when it scales up. Upwards it goes by four replicas or to twice as many per tick, whichever is
    more (Kubernetes documentation, Horizontal Pod Autoscaling, autoscaling/v2 and its defaults).
    """

    name: ClassVar[str] = "hpa"

    by: Literal["utilization", "requests_per_s"] = "utilization"
    """What it goes by, per replica."""
    target: float = 0.7
    """Share of its time, or requests per second, that one replica should have."""
    sync_s: float = 15.0
    """Time from one tick to the next."""
    tolerance: float = 0.1
    """Share by which the metric may be off before anything is done."""
    stabilization_s: float = 300.0
    """Time over which the highest recommendation holds before it scales down."""

    def __post_init__(self) -> None:
        require_positive(self, "target", "sync_s", "stabilization_s")

    @property
    def period_s(self) -> float:
        """Time from one tick to the next."""
        return self.sync_s

    @property
    def metric(self) -> str:
        """Field of `Observation` that it goes by."""
        return self.by

    def start(self) -> Controller:
        """A new one at work."""
        return _Controller(self)


class _Controller(Controller):
    def __init__(self, scaler: Hpa) -> None:
        self._scaler = scaler
        self._stabilization = Stabilization(scaler.stabilization_s)

    def wanted(self, seen: Observation) -> int:
        """By the rule of the class."""
        total = seen.utilization * seen.ready if self._scaler.by == "utilization" else seen.requests_per_s
        return self._stabilization.wanted(seen, self._recommend(seen, total))

    def _recommend(self, seen: Observation, total: float) -> int:
        if not seen.ready:
            return seen.wanted
        ratio = total / seen.ready / self._scaler.target
        if ratio > 1 and seen.wanted > seen.ready:
            ratio = max(1.0, total / seen.wanted / self._scaler.target)  # those that are starting count as idle
            replicas = seen.wanted
        else:
            replicas = seen.ready
        if abs(ratio - 1) <= self._scaler.tolerance:
            return seen.wanted
        return max(1, math.ceil(ratio * replicas - 1e-9))
