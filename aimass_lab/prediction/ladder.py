"""Latencies by batch size on a device that is not attached: what a plan can be made from when nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import AimassError, UnsupportedError
from ..records import BatchPoint
from ..tracing.law import extrapolate
from ..tracing.trace import Trace, trace_call
from ..workload import Workload
from .batches import CATALOGUE_BATCHES
from .bookkeeping import throughput_of
from .memory import memory_by_shapes
from .target import TargetDevice, estimate_latency, find_target


def estimate_ladder(workload: Workload, device: str | None, *, traces: Sequence[Trace] | None = None) -> tuple[BatchPoint, ...]:
    """Predict latency, throughput and memory at batch sizes 1, 2, 4 ... 256, as far as they fit.

    The three percentiles are the same prediction: a roofline knows of no jitter.

    Args:
        workload: Model and example inputs.
        device: As for `estimate_demand`.
        traces: What `ladder_traces` gives for the same workload, where it is at hand: they do not depend on the device, and take most of the time.

    Raises:
        UnsupportedError: a rate of the device is unknown, or not even one item fits into its memory.
        UnknownNameError: no such device.
        ModelError: the model raises on these inputs.
    """
    target = find_target(device, workload)
    points = []
    for trace in ladder_traces(workload) if traces is None else traces:
        peak = trace.weight_bytes + trace.input_bytes + trace.activation_bound_bytes + target.context_bytes
        if target.memory is not None and peak > target.memory.value:
            break
        points.append(_point(trace, target, workload.info().dtype))
    if not points:
        raise UnsupportedError(f"not even the smallest batch fits into the memory of {target.name}", help="choose a device with more memory")
    return tuple(points)


def ladder_traces(workload: Workload) -> list[Trace]:
    """One trace per batch size: a batch of one on its own, the others on the lines through batches 2 and 3.

    Raises:
        ModelError: the model raises on these inputs.
    """
    own = trace_call(workload.model, workload.call)
    one = own if own.batch_size == 1 else _try(workload, 1)
    first, second = _try(workload, 2), _try(workload, 3)
    if first is None or second is None:
        return [own]
    rest = [extrapolate(first, second, size) or trace_call(workload.model, workload.call, batch_size=size) for size in CATALOGUE_BATCHES[1:]]
    return [*([one] if one else []), *rest]


def _try(workload: Workload, batch_size: int) -> Trace | None:
    try:
        return trace_call(workload.model, workload.call, batch_size=batch_size)
    except AimassError:  # inputs or a model that know one batch size only
        return None


def _point(trace: Trace, target: TargetDevice, dtype: str) -> BatchPoint:
    latency, notes = estimate_latency(trace, target, dtype)
    if latency is None or latency.interval is None:
        raise UnsupportedError(notes[0].text, help="choose a device whose rates are known, or add the figure to your own catalogue")
    throughput, memory = throughput_of(trace.batch_size, latency), memory_by_shapes(trace, target)
    return BatchPoint(
        batch_size=trace.batch_size, latency_p50=latency, latency_p95=latency, latency_p99=latency, throughput=throughput, peak_memory_bytes=memory
    )
