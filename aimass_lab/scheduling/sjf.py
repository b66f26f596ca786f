"""Shortest job first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request, require_share


@POLICIES.register("sjf")
@dataclass(frozen=True, kw_only=True)
class Sjf(Policy):
    """Serve what is expected to take least first, each to its end; without ageing, large ones may starve under overload.

    The rank is ``work - ageing * waited``. All who wait age alike, so the order is that of ``work + ageing * arrival``: a request
    is passed only by those that arrive within ``work / ageing`` after it.
    """

    name: ClassVar[str] = "sjf"

    ageing: float = 0.0
    """Work forgiven for every second of waiting: seconds of the device where these are known, else items."""

    def __post_init__(self) -> None:
        require_share("ageing", self.ageing)

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The work, put off by the arrival."""
        return request.work + self.ageing * request.arrival_s
