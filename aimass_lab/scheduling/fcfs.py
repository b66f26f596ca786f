"""First come, first served: what the server that a bundle ships does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request


@POLICIES.register("fcfs")
@dataclass(frozen=True, kw_only=True)
class Fcfs(Policy):
    """Serve in the order of arrival, each to its end."""

    name: ClassVar[str] = "fcfs"

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The time of arrival."""
        return request.arrival_s
