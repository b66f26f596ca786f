"""How the memory of a call grows with the batch size: every operator's live bytes are affine in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from ..errors import AimassError
from ..workload import Call
from .trace import Row, Trace, trace_call

LARGEST_BATCH = 2**31 - 1


@dataclass(frozen=True)
class BatchLaw:
    """Bytes of one call as a function of the batch size.

    Args:
        weight_bytes: Parameters and buffers, whatever the batch.
        inputs: Offset and slope of the inputs' bytes.
        live: Offset and slope of what is alive after each operator.
        bound: The same with the operator's workspace bound.
        exact: The same operators ran at both batch sizes, so that each row has its own line.
    """

    weight_bytes: int
    inputs: tuple[float, float]
    live: tuple[tuple[float, float], ...]
    bound: tuple[tuple[float, float], ...]
    exact: bool

    def activation_peak_bytes(self, batch_size: int) -> float:
        """Most bytes alive at once in tensors that the call makes."""
        return max((a + b * batch_size for a, b in self.live), default=0.0)

    def peak_bytes(self, batch_size: int) -> float:
        """Weights, inputs and live tensors at the highest moment."""
        return self._fixed(batch_size) + self.activation_peak_bytes(batch_size)

    def bound_bytes(self, batch_size: int) -> float:
        """The same with operator workspaces at their bound."""
        return self._fixed(batch_size) + max((a + b * batch_size for a, b in self.bound), default=0.0)

    def _fixed(self, batch_size: int) -> float:
        return self.weight_bytes + self.inputs[0] + self.inputs[1] * batch_size

    def largest_batch(self, limit_bytes: float, *, bound: bool) -> int | None:
        """Largest batch size that stays below `limit_bytes`; 0 if none does, None if every one does."""
        batch: float = LARGEST_BATCH
        for a, b in (self.bound if bound else self.live) or ((0.0, 0.0),):
            room = limit_bytes - self.weight_bytes - self.inputs[0] - a
            slope = b + self.inputs[1]
            if slope > 0:
                batch = min(batch, room // slope)
            elif room < 0:
                return 0
        return None if batch >= LARGEST_BATCH else max(0, int(batch))


def support(known: Trace | None) -> tuple[int, int]:
    """The two batch sizes that lines are drawn through.

    A batch of one is no support: models and kernels often treat it apart.
    """
    if known is None or known.batch_size < 2:
        return 2, 3
    return known.batch_size, 3 if known.batch_size == 2 else 2


def extrapolate(first: Trace, second: Trace, batch_size: int) -> Trace | None:
    """The trace at another batch size, row by row on the line through two traces; None where different operators ran."""
    if [row.op for row in first.rows] != [row.op for row in second.rows]:
        return None

    def at(a: float, b: float) -> int:
        offset, slope = _line(first.batch_size, a, second.batch_size, b)
        return round(offset + slope * batch_size)

    rows = tuple(_extrapolate_row(a, b, at) for a, b in zip(first.rows, second.rows, strict=True))
    same_order = [(row, key, size > 0) for row, (key, size) in zip(first.event_rows, first.events, strict=True)] == [
        (row, key, size > 0) for row, (key, size) in zip(second.event_rows, second.events, strict=True)
    ]
    return replace(
        first,
        rows=rows,
        batch_size=batch_size,
        input_bytes=at(first.input_bytes, second.input_bytes),
        outputs=tuple(replace(a, shape=_shape(a.shape, b.shape, at)) for a, b in zip(first.outputs, second.outputs, strict=True)),
        events=tuple((key, at(a, b)) for (key, a), (_, b) in zip(first.events, second.events, strict=True)) if same_order else (),
        event_rows=first.event_rows if same_order else (),
    )


def _extrapolate_row(a: Row, b: Row, at: Callable[[float, float], int]) -> Row:
    known = a.expected_workspace_bytes is not None and b.expected_workspace_bytes is not None
    return a._replace(
        flops=at(a.flops, b.flops),
        bytes_read=at(a.bytes_read, b.bytes_read),
        bytes_written=at(a.bytes_written, b.bytes_written),
        live_bytes=at(a.live_bytes, b.live_bytes),
        workspace_bytes=at(a.workspace_bytes, b.workspace_bytes),
        light_flops=at(a.light_flops, b.light_flops),
        shape=_shape(a.shape, b.shape, at),
        allocated_bytes=at(a.allocated_bytes, b.allocated_bytes),
        expected_workspace_bytes=at(a.expected_workspace_bytes or 0, b.expected_workspace_bytes or 0) if known else None,
    )


def _shape(a: tuple[int, ...], b: tuple[int, ...], at: Callable[[float, float], int]) -> tuple[int, ...]:
    return tuple(at(m, n) for m, n in zip(a, b, strict=True)) if len(a) == len(b) else a


def fit_batch_law(model: nn.Module, call: Call, *, known: Trace | None = None, may_run: bool = True) -> BatchLaw | None:
    """Trace `model` at two batch sizes and draw the lines; None where the batch size of its inputs cannot be changed.

    Args:
        model: In the mode it should be traced in.
        call: Its arguments.
        known: A trace already at hand; it saves one pass if its batch is 2 or more.
        may_run: Allow real calls where a pass without data is not possible.
    """
    sizes = support(known)
    try:
        first, second = (
            known if known is not None and known.batch_size == size else trace_call(model, call, batch_size=size, may_run=may_run) for size in sizes
        )
    except AimassError:
        return None
    aligned = [row.op for row in first.rows] == [row.op for row in second.rows]
    return BatchLaw(
        weight_bytes=first.weight_bytes,
        inputs=_line(first.batch_size, first.input_bytes, second.batch_size, second.input_bytes),
        live=_lines(first, second, lambda row: row.live_bytes, aligned),
        bound=_lines(first, second, lambda row: row.live_bytes + row.workspace_bytes, aligned),
        exact=aligned,
    )


def _lines(first: Trace, second: Trace, read: Callable[[Row], int], aligned: bool) -> tuple[tuple[float, float], ...]:
    if not first.rows or not second.rows:
        return ()
    pairs = zip(first.rows, second.rows, strict=True) if aligned else [(max(first.rows, key=read), max(second.rows, key=read))]
    # Many rows share a line, and only the highest of them matters.
    return tuple({_line(first.batch_size, read(a), second.batch_size, read(b)) for a, b in pairs})


def _line(x1: int, y1: float, x2: int, y2: float) -> tuple[float, float]:
    slope = (y2 - y1) / (x2 - x1)
    return y1 - slope * x1, slope
