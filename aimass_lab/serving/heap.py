"""Gives memory back that this process holds and does not use."""

from __future__ import annotations

import ctypes
import gc

YOUNG_OBJECTS = 10_000
"""From so many new ones on, Python looks for circles among them: more than a wave of requests has, else every wave is looked at."""
IDLE_S = 5.0
"""After so long without work it is given back: what a crowd or a large body took would else be kept for the next one."""


def look_for_circles_seldom() -> None:
    """As seldom as a process that answers many requests at once should: `frontend.tidy` looks for the rest while nobody asks."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def give_back() -> None:
    """Return free memory to the system, where the C library has a way to; it may take some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
