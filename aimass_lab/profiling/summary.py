"""What is known of a model before it runs: who it is at once, and what it computes and holds as soon as one pass over shapes has counted it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..records import ModelSummary, Number

if TYPE_CHECKING:
    from ..tracing.trace import Trace
    from ..workload import Workload


def summarise(workload: Workload, batch_size: int, trace: Trace | None = None) -> ModelSummary:
    """Sum up a model without running it.

    Args:
        workload: The model and its inputs.
        batch_size: Items per call.
        trace: The pass over shapes, once it was made.
    """
    info = workload.info()
    return ModelSummary(
        model=info,
        device=str(workload.torch_device),
        batch_size=batch_size,
        num_parameters=Number(value=info.num_parameters, unit="parameter", source="measured", method="counted, tied ones once"),
        weight_bytes=Number(value=info.weight_bytes, unit="B", source="measured", method="sizes of parameters and buffers, tied ones once"),
        flops=None if trace is None else count_flops(trace),
        activation_peak_bytes=None if trace is None else shapes_peak(trace),
    )


def count_flops(trace: Trace, environment: str | None = None) -> Number:
    """FLOPs of one call."""
    how = "counted over one real call" if trace.ran else "exact shape arithmetic over one pass without data"
    missing = f"; {len(trace.uncovered)} operator(s) without a formula left out" if trace.uncovered else ""
    return Number(value=trace.flops, unit="FLOP", source="measured" if trace.ran else "estimated", method=how + missing, environment=environment)


def shapes_peak(trace: Trace, environment: str | None = None) -> Number:
    """Most bytes that the tensors of one call hold at once, by their shapes."""
    return Number(
        value=trace.activation_peak_bytes, unit="B", source="measured" if trace.ran else "estimated", method="live tensors of one pass over shapes",
        environment=environment,
    )  # fmt: skip
