"""Which steps of progress are told: many come within a moment, and the first of a stage may be the last for long."""

from __future__ import annotations

import re
import time

EVERY_S = 0.2

_NUMBERS = re.compile(r"[\d.,]+")


class Pace:
    """Lets a step pass when it begins a stage, which is a text that differs by more than numbers, or when the last was told a while ago."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._told_at = 0.0

    def due(self, text: str) -> bool:
        """Whether to tell this one, which then counts as told."""
        now, stage = time.monotonic(), _NUMBERS.sub("", text)
        if stage == self._stage and now - self._told_at < EVERY_S:
            return False
        self._stage, self._told_at = stage, now
        return True
