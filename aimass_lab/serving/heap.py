"""Gives memory back that this process holds and does not use."""

from __future__ import annotations

import ctypes

IDLE_S = 5.0
"""After so long without work it is given back: what a crowd or a large body took would else be kept for the next one."""


def give_back() -> None:
    """Return free memory to the system, where the C library has a way to; it may take some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
