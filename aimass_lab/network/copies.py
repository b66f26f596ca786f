"""Copies between host and device: bytes of a call's inputs and outputs, and how long they take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..records import Number
from ..timing import median_interval, percentile

if TYPE_CHECKING:
    import torch

    from ..devices import Device

PCIE_SHARE = (0.75, 0.95, 0.25)
"""Share of one direction's rate: as expected from page-locked memory, at best, and from pageable memory, which is copied twice."""
COPY_START_S = (10e-6, 4e-6, 30e-6)
"""Seconds before the first byte, in the same order."""
ROUNDS = 30


def estimate_copy(num_bytes: int, tensors: int, device: Device) -> Number | None:
    """Seconds to copy over the device's PCIe link; None where its rate is unknown.

    Args:
        num_bytes: In one direction.
        tensors: Copied one by one.
        device: An entry of the catalogue, whose rate counts both directions together.
    """
    if device.pcie_bytes_per_s is None:
        return None
    rate = device.pcie_bytes_per_s.value / 2
    value, low, high = (tensors * start + num_bytes / (rate * share) for share, start in zip(PCIE_SHARE, COPY_START_S, strict=True))
    return Number(
        value=value, unit="s", source="estimated", method=f"datasheet: {100 * PCIE_SHARE[0]:.0f} % of one direction of {device.name}'s PCIe, not measured here",
        interval=(low, high), interval_kind="band from 95 % of the rate to pageable memory at 25 %",
    )  # fmt: skip


def measure_copies(sizes: list[int], device: torch.device, *, to_device: bool, environment: str) -> Number:
    """Measure the copies of one call on an attached GPU, from or to pageable memory as eager code has it.

    Args:
        sizes: Bytes of each tensor.
        device: A CUDA device.
        to_device: Direction.
        environment: The `Environment.id` it is measured in.
    """
    import torch

    made = [torch.empty(size, dtype=torch.uint8, device="cpu" if to_device else device) for size in sizes]
    target = device if to_device else torch.device("cpu")

    def once() -> float:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for tensor in made:
            tensor.to(target)
        torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    samples = [once() for _ in range(ROUNDS)]
    way = "host to device" if to_device else "device to host"
    return Number(
        value=percentile(samples, 50), unit="s", source="measured", method=f"median of {ROUNDS} copies {way}, pageable memory",
        interval=median_interval(samples), interval_kind="95 % interval of the median", n=ROUNDS, environment=environment,
    )  # fmt: skip
