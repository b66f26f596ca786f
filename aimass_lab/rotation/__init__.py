"""Several models on one device in turn, for real and in the simulation: what a scheduling policy does, and how well it is foretold."""

from __future__ import annotations

from .measure import MAX_BARS, rotate
from .tasks import Stream

__all__ = ["MAX_BARS", "Stream", "rotate"]
