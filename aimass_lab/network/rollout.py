"""How long weights take to reach replicas, and an image to be pulled, over links of a given rate."""

from __future__ import annotations

import math
from typing import Literal

Way = Literal["one source", "tree", "pipelined"]

CHUNK_BYTES = 4 * 2**20
"""Of a pipelined roll-out: what a replica has before it starts to pass it on."""
WAYS: tuple[Way, ...] = ("one source", "tree", "pipelined")


def rollout_bytes(weight_bytes: int, replicas: int) -> int:
    """What all replicas together receive: P each, whatever the way."""
    return weight_bytes * replicas


def busiest_bytes(weight_bytes: int, replicas: int, way: Way) -> int:
    """What the busiest machine sends: everything from one source, a copy a round in a tree, one copy in a pipeline."""
    if replicas == 0:
        return 0
    return weight_bytes * {"one source": replicas, "tree": rounds(replicas), "pipelined": 1}[way]


def rounds(replicas: int) -> int:
    """Rounds of a binomial tree: whoever has the weights passes them on, so that holders double, ⌈log2(R+1)⌉ (Thakur et al. 2005, IJHPCA 19(1))."""
    return math.ceil(math.log2(replicas + 1))


def rollout_time_s(weight_bytes: int, replicas: int, bytes_per_s: float, way: Way, *, chunk_bytes: int = CHUNK_BYTES) -> float:
    """Seconds until the last replica has all weights.

    One source: R·P/B. Tree: ⌈log2(R+1)⌉·P/B. Pipelined along a chain: P/B and one chunk for each further
    replica, (P + (R-1)·c)/B (Träff & Ripke 2008, JPDC 68(7)).

    Args:
        weight_bytes: P.
        replicas: R, the source not counted.
        bytes_per_s: B, of every machine's link.
        way: Who sends to whom.
        chunk_bytes: c.
    """
    if replicas == 0:
        return 0.0
    if way == "pipelined":
        return (weight_bytes + (replicas - 1) * min(chunk_bytes, weight_bytes)) / bytes_per_s
    return busiest_bytes(weight_bytes, replicas, way) / bytes_per_s
