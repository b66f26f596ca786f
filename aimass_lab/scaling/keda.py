"""KEDA on a request rate, as a Prometheus trigger gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import SCALERS, Controller, Observation, Scaler, Stabilization, require_positive


@SCALERS.register("keda")
@dataclass(frozen=True, kw_only=True)
class Keda(Scaler):
    """``ceil(requests/s / target)``, of a rate that is polled every 30 s; a HorizontalPodAutoscaler acts on it.

    From one replica to none it goes once nothing has come for the cooldown, where the pool's floor allows it (KEDA documentation, scaling
    deployments: pollingInterval, cooldownPeriod).
    """

    name: ClassVar[str] = "keda"

    target: float = 10.0
    """Requests per second that one replica should have."""
    polling_s: float = 30.0
    """Time from one look at the rate to the next."""
    cooldown_s: float = 300.0
    """Time without a request after which nothing is kept."""
    tolerance: float = 0.1
    """Share by which the metric may be off before anything is done."""
    stabilization_s: float = 300.0
    """Time over which the highest recommendation holds before it scales down."""

    def __post_init__(self) -> None:
        require_positive(self, "target", "polling_s", "cooldown_s", "stabilization_s")

    @property
    def period_s(self) -> float:
        """Time from one tick to the next."""
        return self.polling_s

    @property
    def metric(self) -> str:
        """Field of `Observation` that it goes by."""
        return "requests_per_s"

    def start(self) -> Controller:
        """A new one at work."""
        return _Controller(self)


class _Controller(Controller):
    def __init__(self, scaler: Keda) -> None:
        self._scaler = scaler
        self._stabilization = Stabilization(scaler.stabilization_s)
        self._active_s = 0.0

    def wanted(self, seen: Observation) -> int:
        """By the rule of the class."""
        if seen.requests_per_s > 0:
            self._active_s = seen.time_s
        elif seen.time_s - self._active_s >= self._scaler.cooldown_s:
            return 0
        ratio = seen.requests_per_s / max(seen.wanted, 1) / self._scaler.target
        recommended = max(seen.wanted, 1) if abs(ratio - 1) <= self._scaler.tolerance else max(1, math.ceil(seen.requests_per_s / self._scaler.target - 1e-9))
        # The HPA behind it acts every 15 s, so twice a look: four times, or eight more.
        return self._stabilization.wanted(seen, recommended, syncs=max(1, int(self._scaler.polling_s // 15)))
