"""Runs a bundle at a planned load on this machine, and says what was foretold, what happened, and what the difference is made of."""

from __future__ import annotations

from .measure import Asked, rehearse

__all__ = ["Asked", "rehearse"]
