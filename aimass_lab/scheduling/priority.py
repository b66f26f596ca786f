"""Priority classes with ageing, so that the lowest class is served too."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from .base import POLICIES, Policy, Request, require_positive

_STRICT_S = 1e9
"""Stands for ageing that never ends: thirty years, which leaves microseconds of an arrival in a float."""


@POLICIES.register("priority")
@dataclass(frozen=True, kw_only=True)
class Priority(Policy):
    """Serve urgent classes first; waiting makes a request more urgent, by one class every `ageing_s`.

    At any moment the rank is ``priority - waited / ageing_s``. All who wait age alike, so the
    order is that of ``arrival + priority * ageing_s``, which does not change while they wait:
    a request is passed only by those that arrive within ``priority * ageing_s`` after it.
    """

    name: ClassVar[str] = "priority"

    ageing_s: float = 1.0
    """Seconds of waiting that make up for one class; inf: none do, and the lowest class may starve."""
    preemptive: bool = True
    """Whether a running job makes room at the end of a segment."""

    def __post_init__(self) -> None:
        if self.ageing_s != math.inf:
            require_positive("ageing_s", self.ageing_s)

    def key(self, request: Request, now_s: float, used_s: float = 0.0) -> float:
        """The arrival, put off by the class."""
        return request.arrival_s + request.priority * min(self.ageing_s, _STRICT_S)

    def sped_up(self, factor: float) -> Priority:
        """Waiting makes up for a class that much sooner."""
        return replace(self, ageing_s=self.ageing_s / factor)
