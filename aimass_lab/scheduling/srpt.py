"""Shortest remaining processing time first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request, require_share


@POLICIES.register("srpt")
@dataclass(frozen=True, kw_only=True)
class Srpt(Policy):
    """Serve what is expected to end soonest; a running job makes room for a shorter one.

    No other order has a smaller mean latency on one device when the expected times are right (Schrage 1968). Without ageing, large
    jobs may starve under overload.
    """

    name: ClassVar[str] = "srpt"

    preemptive: bool = True
    """Whether a running job makes room at the end of a segment."""
    ageing: float = 0.0
    """Work forgiven for every second of waiting: seconds of the device where these are known, else items."""

    def __post_init__(self) -> None:
        require_share("ageing", self.ageing)

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The work that is left, put off by the arrival."""
        return max(request.work - used_s, 0.0) + self.ageing * request.arrival_s
