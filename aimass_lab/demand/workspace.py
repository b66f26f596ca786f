"""Calibrates the memory of a call on two or more batch sizes at which it was measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from ..preserve import preserved
from ..profiling.memory import peak_of_call
from ..records import BatchPoint
from ..workload import Workload, call_model

if TYPE_CHECKING:
    from .memory import CallMemory, Moment

BAND = 0.01
"""Half-width of the band within the measured range, as a share of the call's peak; `tests/benchmarks/demand` holds it to that."""
BAND_PER_DOUBLING = 0.02
"""What is added for every doubling beyond twice the largest measured batch."""


@dataclass(frozen=True)
class Calibration:
    """Peaks of real calls by batch size: what the prediction misses is drawn as a line over the batch between and beyond them.

    What a kernel takes for itself grows in proportion to the batch or not at all, so the excess of the real peak over the
    predicted one is affine in the batch for as long as the same kernels run. A batch of one is often served by other kernels:
    it stands for itself where two other batches were measured.

    Args:
        peaks: Batch size to the most bytes that torch's allocator held during a call, beyond what it held before.
    """

    peaks: Mapping[int, float]

    @property
    def basis(self) -> str:
        """``"calibrated on batches 1, 2"``."""
        return f"calibrated on batches {', '.join(str(batch) for batch in sorted(self.peaks))}"

    def correct(self, batch: int, plain: Moment, memory: CallMemory) -> Moment:
        """Put the excess that was measured on top of the `plain` prediction."""
        from dataclasses import replace

        measured = self.peaks.get(batch)
        if measured is not None:
            value, spread = measured, 0.0
        else:
            excess = {size: peak - memory.uncalibrated(size).bytes for size, peak in self.peaks.items()}
            value = max(0.0, plain.bytes + _excess_at(batch, excess))
            beyond = max(0.0, math.log2(batch / (2 * max(self.peaks))))
            spread = (BAND + BAND_PER_DOUBLING * beyond) * value
        live = min(plain.live, value)
        return replace(plain, live=live, workspace=value - live, least=value - spread, most=value + spread, basis=self.basis)


def _excess_at(batch: int, excess: Mapping[int, float]) -> float:
    """The line through the two measured batches around `batch`, or the two nearest to it."""
    sizes = sorted(excess)
    if len(sizes) > 2 and batch > 1:
        sizes = [size for size in sizes if size > 1]
    if len(sizes) == 1:
        return excess[sizes[0]] * batch / sizes[0]
    low, high = next(((a, b) for a, b in pairwise(sizes) if batch <= b), (sizes[-2], sizes[-1]))
    value = excess[low] + (excess[high] - excess[low]) * (batch - low) / (high - low)
    # An excess that shrinks towards nothing stays there: it does not turn into its opposite.
    last = excess[high] if batch > high else excess[low] if batch < low else value
    return value if value * last >= 0 and last != 0 else 0.0 if batch > high or batch < low else value


def calibration_of(ladder: Sequence[BatchPoint], memory: CallMemory) -> Calibration | None:
    """Read a profile's ladder; None unless memory was measured at two batch sizes or more, or the batch cannot be changed."""
    if memory.pair is None:
        return None
    weights = sum(memory.resident_bytes)
    peaks = {
        point.batch_size: point.peak_memory_bytes.value - weights - memory.input_bytes(point.batch_size)
        for point in ladder
        if point.peak_memory_bytes is not None and point.peak_memory_bytes.weakest_source == "measured"
    }
    return Calibration(peaks) if len(peaks) > 1 else None


def measure_call_peaks(workload: Workload, batch_sizes: Sequence[int]) -> Calibration:
    """Run the model once untold and once watched at each batch size; it is left as it was.

    Args:
        workload: The model, with its weights, and inputs.
        batch_sizes: Two or more; batches of 2 and more tell more than a batch of one.

    Raises:
        UnsupportedError: the model is on the meta device, or another profiler keeps the allocations to itself.
        InputError: the batch of the inputs cannot be set.
        ModelError: the model raised.
        DoesNotFitError: a batch does not fit into memory.
    """
    import torch

    device = workload.torch_device
    workload.require_weights("leave calibration out, or load its weights")
    peaks: dict[int, float] = {}
    placed = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with preserved(workload.model), placed, torch.inference_mode():
        for size in sorted(set(batch_sizes)):
            call = workload.call.with_batch(size)
            call_model(workload.model, call)  # libraries keep what their first call allocates
            peak = peak_of_call(lambda call=call: call_model(workload.model, call), device)  # type: ignore[misc]
            if peak is None:
                raise UnsupportedError("another profiler is running, so allocations cannot be read", help="stop it first")
            peaks[size] = peak
    return Calibration(peaks)
