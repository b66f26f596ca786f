"""Memory at batch sizes that were not measured: what shapes and the kernels' rules say, corrected by what was measured at others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..records import Number
from ..tracing.trace import Trace
from .interpolate import Anchor, Estimate
from .target import TargetDevice

PRIOR = 0.02
"""Half-width of the 90 % band as a logarithm: at some sizes a library takes buffers that no rule knows."""

UNSEEN = 0.5
"""Share of what anchors are corrected by that each doubling beyond them adds to the band."""


def call_bytes(trace: Trace) -> float:
    """Weights, inputs and the highest moment of a call: live tensors, and the kernels' own buffers where a rule tells them."""
    highest = max((row.live_bytes + (row.expected_workspace_bytes or 0) for row in trace.rows), default=0)
    return float(trace.weight_bytes + trace.input_bytes + highest)


def memory_by_shapes(trace: Trace, target: TargetDevice) -> Number:
    """Weights, inputs and live tensors of a call on a device that nothing was measured on."""
    fixed = trace.weight_bytes + trace.input_bytes
    return Number(
        value=fixed + trace.activation_peak_bytes, unit="B", source="estimated", method="weights, inputs and live activations by shapes",
        interval=(fixed + 0.4 * trace.activation_peak_bytes, fixed + trace.activation_bound_bytes + target.context_bytes),
        interval_kind="band: operators' own workspaces, from none to their bound by operator",
    )  # fmt: skip


class MemoryCurve:
    """Bytes by batch size: `followed`, times what anchors between and beside were found to be off by.

    Args:
        anchors: Measured peaks, at least one.
        followed: Bytes of a call as followed by shapes, at a batch size.
    """

    def __init__(self, anchors: Sequence[Anchor], followed: Callable[[int], float]) -> None:
        self.anchors = sorted(anchors, key=lambda a: a.batch_size)
        self._followed = followed
        self._off = [math.log(a.value / followed(a.batch_size)) for a in self.anchors]

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest batch size that was measured."""
        return self.anchors[0].batch_size, self.anchors[-1].batch_size

    def at(self, batch_size: int) -> Estimate:
        """The bytes at `batch_size`."""
        sizes = [a.batch_size for a in self.anchors]
        if batch_size in sizes:
            own = self.anchors[sizes.index(batch_size)]
            return Estimate(batch_size, own.value, min(own.low, own.value), max(own.high, own.value), (batch_size,), inside=True)
        below = max((i for i, size in enumerate(sizes) if size < batch_size), default=None)
        above = min((i for i, size in enumerate(sizes) if size > batch_size), default=None)
        beside = [i for i in (below, above) if i is not None]
        inside = len(beside) == 2
        if inside:
            first, last = beside
            share = (batch_size - sizes[first]) / (sizes[last] - sizes[first])
            off = (1 - share) * self._off[first] + share * self._off[last]
            doubt = abs(self._off[last] - self._off[first])
        else:
            off = self._off[beside[0]]
            doubt = UNSEEN * max(map(abs, self._off)) * abs(math.log2(batch_size / sizes[beside[0]]))
        value, half = self._followed(batch_size) * math.exp(off), PRIOR + doubt
        return Estimate(batch_size, value, value * math.exp(-half), value * math.exp(half), tuple(sizes[i] for i in beside), inside=inside)
