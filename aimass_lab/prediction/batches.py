"""Batch sizes: those asked for, those worth asking for, the trace of a call at each, and the largest that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ..errors import AimassError, InputError
from ..tracing.law import extrapolate
from ..tracing.trace import Trace, trace_call
from ..workload import Workload

LARGEST_BATCH = 2**31
CATALOGUE_BATCHES = tuple(2**k for k in range(9))
"""What is predicted on a device where nothing was measured, if nobody asks for other sizes."""


def default_batch_sizes(measured: Sequence[int]) -> tuple[int, ...]:
    """The measured batch sizes, one between each two neighbours that leave room, and twice the largest."""
    between = {(a + b) // 2 for a, b in pairwise(measured) if b - a > 1}
    return tuple(sorted({*measured, *between, 2 * max(measured)}))


def checked_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """In order and once each.

    Raises:
        InputError: one is not a positive integer.
    """
    for size in batch_sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"batch size {size!r} is not a positive integer")
    return tuple(sorted(set(batch_sizes)))


class BatchTraces:
    """Traces of one call by batch size, made when they are asked for."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._known: dict[int, Trace | None] = {}

    def followed(self, batch_size: int) -> Trace | None:
        """One pass at this batch size; None where that is not possible without running the model."""
        if batch_size not in self._known:
            try:
                self._known[batch_size] = trace_call(self._workload.model, self._workload.call, batch_size=batch_size, may_run=False)
            except AimassError:  # inputs of one batch size only, or shapes that depend on the data
                self._known[batch_size] = None
        return self._known[batch_size]

    def computed(self, batch_size: int) -> Trace | None:
        """The same from the lines through batches 2 and 3 where the same operators run; for sizes nobody follows."""
        first, second = self.followed(2), self.followed(3)
        if batch_size in self._known or first is None or second is None:
            return self.followed(batch_size)
        return extrapolate(first, second, batch_size) or self.followed(batch_size)


def largest_where(holds: Callable[[int], bool]) -> int | None:
    """Largest batch size for which `holds`, which fails for all above the first it fails for; None where it never fails."""
    if not holds(1):
        return 0
    low = 1
    while low < LARGEST_BATCH and holds(2 * low):
        low *= 2
    if low >= LARGEST_BATCH:
        return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
