"""Round robin: a slice of time each, in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request, require_positive


@POLICIES.register("round_robin")
@dataclass(frozen=True, kw_only=True)
class RoundRobin(Policy):
    """Serve each for one quantum, then go to the end of the line.

    A turn ends with the first segment that uses the quantum up, so it is at most one segment longer.
    """

    name: ClassVar[str] = "round_robin"

    quantum_s: float = 0.005
    """Length of a turn in seconds of device time."""

    def __post_init__(self) -> None:
        if not math.isinf(self.quantum_s):
            require_positive("quantum_s", self.quantum_s)

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The time at which it began to wait this time."""
        return now_s
