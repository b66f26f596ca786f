"""Shortest job first: the request with the fewest items goes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POLICIES, Policy, Request


@POLICIES.register("sjf")
@dataclass(frozen=True, kw_only=True)
class Sjf(Policy):
    """Serve requests with few items first; under steady overload the large ones may starve."""

    name: ClassVar[str] = "sjf"

    def key(self, request: Request, now_s: float) -> float:
        """The number of items."""
        return request.num_items
