"""Earliest deadline first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request


@POLICIES.register("edf")
@dataclass(frozen=True, kw_only=True)
class Edf(Policy):
    """Serve what is due soonest first; a request without a deadline goes after all that have one."""

    name: ClassVar[str] = "edf"

    def key(self, request: Request, now_s: float) -> float:
        """The deadline."""
        return request.deadline_s
