"""Batch sizes whose times the rest of the ladder contradicts: a call is slowed down by what else a machine does, and never sped up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..timing import percentile

FACTOR = 2.0
"""A smaller batch may take up to this many times as long as a larger one: products of a few rows run other kernels, and small times scatter."""


def find_contradicted(samples: Mapping[int, Sequence[float]]) -> dict[int, int]:
    """Batch sizes that take far longer than a larger one, each with the larger one that takes least.

    Medians are compared, whatever their spread: one that would allow it is itself the sign that something disturbed the calls.

    Args:
        samples: Seconds of calls by batch size, at least one each.
    """
    medians = {size: percentile(seconds, 50) for size, seconds in samples.items()}
    found: dict[int, int] = {}
    quickest: int | None = None
    for size in sorted(medians, reverse=True):
        if quickest is not None and medians[size] > FACTOR * medians[quickest]:
            found[size] = quickest
        if quickest is None or medians[size] <= medians[quickest]:
            quickest = size
    return found
