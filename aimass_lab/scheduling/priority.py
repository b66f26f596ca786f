"""Priority classes with ageing, so that the lowest class is served too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from .base import POLICIES, Policy, Request


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

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ageing_s) and self.ageing_s > 0):
            raise InputError(f"ageing_s must be a positive time, got {self.ageing_s}", help="give seconds, for example ageing_s=1.0")

    def key(self, request: Request, now_s: float) -> float:
        """The arrival, put off by the class."""
        return request.arrival_s + request.priority * self.ageing_s
