"""Predictions for devices that nothing of the model was measured on: a roofline over its operators at every batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..records import Note, Number, PredictedPoint, Prediction
from ..tracing.trace import Trace, trace_call
from ..workload import Workload
from .batches import CATALOGUE_BATCHES, BatchTraces, checked_batch_sizes, largest_where
from .bookkeeping import throughput_of
from .ledger import basis_of
from .memory import memory_by_shapes
from .target import TargetDevice, estimate_latency, find_target


@dataclass(frozen=True)
class _Fixed:
    """What does not depend on the batch size."""

    target: TargetDevice
    dtype: str


def predict_by_rates(workload: Workload, *, device: str | None, batch_sizes: Sequence[int] = ()) -> Prediction:
    """Predict on any device from its rates: a roofline over the operators of each batch size.

    Args:
        workload: Model and example inputs; the model may lie on the meta device.
        device: As for `estimate_demand`.
        batch_sizes: Items per call; 1, 2, 4 ... 256 if not given, as far as they fit.

    Raises:
        UnsupportedError: a rate of the device is unknown, or none of the batch sizes fits into its memory.
        UnknownNameError: no such device.
        InputError: a batch size is not a positive integer.
        ModelError: the model raises on these inputs.
    """
    asked = checked_batch_sizes(batch_sizes)
    fixed = _Fixed(find_target(device, workload), workload.info().dtype)
    traces = BatchTraces(workload)
    points, notes = [], []
    for size in asked or CATALOGUE_BATCHES:
        trace = traces.computed(size)
        if trace is None:
            if not asked and size != workload.call.batch_size:
                continue
            trace = trace_call(workload.model, workload.call, batch_size=size)
        point, said = _by_rates(trace, fixed)
        limit = fixed.target.memory
        if limit is not None and point.peak_memory_bytes is not None and point.peak_memory_bytes.value > limit.value:
            notes.append(Note(code="W-FIT", text=f"batch {size} does not fit into the memory of {fixed.target.name}"))
            if not asked:
                break
            continue
        points.append(point)
        notes += [note for note in said if note not in notes]
    if not points:
        raise UnsupportedError(f"none of these batch sizes fits into the memory of {fixed.target.name}", help="choose a device with more memory")
    return Prediction(
        model=workload.info(), device=fixed.target.name, points=tuple(points), memory_limit_bytes=fixed.target.memory,
        max_batch_size=_largest_by_shapes(traces, fixed.target), notes=tuple(notes),
    )  # fmt: skip


def _by_rates(trace: Trace, fixed: _Fixed) -> tuple[PredictedPoint, tuple[Note, ...]]:
    latency, notes = estimate_latency(trace, fixed.target, fixed.dtype)
    if latency is None:
        raise UnsupportedError(notes[0].text, help="choose a device whose rates are known, or add the figure to your own catalogue")
    basis = basis_of(latency, "" if fixed.target.attached is not None else f"catalogue:{fixed.target.name}")
    memory = memory_by_shapes(trace, fixed.target)
    return PredictedPoint(
        batch_size=trace.batch_size, basis=basis, latency=latency, throughput=throughput_of(trace.batch_size, latency), peak_memory_bytes=memory
    ), notes  # fmt: skip


def _largest_by_shapes(traces: BatchTraces, target: TargetDevice) -> Number | None:
    limit = target.memory
    if limit is None or traces.followed(2) is None or traces.followed(3) is None:
        return None

    def needs(size: int, *, bound: bool) -> float:
        trace = traces.computed(size)
        if trace is None:
            return float("inf")
        fixed = trace.weight_bytes + trace.input_bytes
        return fixed + (trace.activation_bound_bytes + target.context_bytes if bound else trace.activation_peak_bytes)

    safe = largest_where(lambda size: needs(size, bound=True) <= limit.value)
    most = largest_where(lambda size: needs(size, bound=False) <= limit.value)
    if safe is None or most is None:
        return None
    return Number(
        value=safe, unit="item", source="estimated", method="largest batch whose memory with operators' workspaces at their bound stays below the limit",
        interval=(safe, max(safe, most)), interval_kind="with workspaces at their bound, and without any",
    )  # fmt: skip
