"""What is known of a model before it runs: who it is at once, and what it computes and holds as soon as one pass over shapes has counted it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..errors import ModelError
from ..records import ModelSummary, Number
from ..units import format_count

if TYPE_CHECKING:
    from ..tracing.trace import Trace
    from ..workload import Workload


def look_first(workload: Workload, batch_size: int, seen: Callable[[ModelSummary], None] | None = None) -> Trace | None:
    """Follow one call by its shapes, without running it; None where the model cannot be followed so.

    Args:
        workload: The model and its inputs.
        batch_size: Items per call.
        seen: Given what is known before the pass, and again after it.
    """
    summary = summarise(workload, batch_size) if seen else None
    if seen and summary:
        seen(summary)
    from ..tracing.trace import trace_call

    trace = None
    with contextlib.suppress(ModelError):  # a model that only a real call can follow is traced after the first one
        trace = trace_call(workload.model, workload.call, batch_size=batch_size, may_run=False)
    if seen and summary and trace is not None:
        seen(with_counts(summary, trace))
    return trace


def summarise(workload: Workload, batch_size: int) -> ModelSummary:
    """Sum up a model without following a call of it.

    Args:
        workload: The model and its inputs.
        batch_size: Items per call.
    """
    info = workload.info()
    return ModelSummary(
        model=info,
        device=str(workload.torch_device),
        batch_size=batch_size,
        num_parameters=Number(value=info.num_parameters, unit="parameter", source="measured", method="counted, tied ones once"),
        weight_bytes=Number(value=info.weight_bytes, unit="B", source="measured", method="sizes of parameters and buffers, tied ones once"),
    )


def with_counts(summary: ModelSummary, trace: Trace) -> ModelSummary:
    """The same with what a pass over shapes counted."""
    return msgspec.structs.replace(summary, flops=count_flops(trace), activation_peak_bytes=shapes_peak(trace))


def count_flops(trace: Trace, environment: str | None = None) -> Number:
    """FLOPs of one call."""
    how = "counted over one real call" if trace.ran else "exact shape arithmetic over one pass without data"
    missing = f"; {format_count(len(trace.uncovered), 'operator')} without a formula left out" if trace.uncovered else ""
    return Number(value=trace.flops, unit="FLOP", source="measured" if trace.ran else "estimated", method=how + missing, environment=environment)


def shapes_peak(trace: Trace, environment: str | None = None) -> Number:
    """Most bytes that the tensors of one call hold at once, by their shapes."""
    return Number(
        value=trace.activation_peak_bytes, unit="B", source="measured" if trace.ran else "estimated", method="live tensors of one pass over shapes",
        environment=environment,
    )  # fmt: skip
