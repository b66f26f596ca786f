"""Earliest deadline first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request


@POLICIES.register("edf")
@dataclass(frozen=True, kw_only=True)
class Edf(Policy):
    """Serve what is due soonest first; a request without a deadline goes after all that have one.

    With preemption it meets every deadline that any order on one device could meet (Dertouzos 1974).
    """

    name: ClassVar[str] = "edf"

    preemptive: bool = True
    """Whether a running job makes room at the end of a segment."""

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The deadline."""
        return request.deadline_s
