"""Short measurements on this machine that advice rests on: what a page fault costs, what another dtype or layout reaches."""

from __future__ import annotations

import contextlib
import functools
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..timing import timed

FAULT_PROBE_BYTES = 64 * 2**20
FAULT_ROUNDS = 5
PROBE_S = 0.1
"""Seconds spent on each comparison."""


@dataclass(frozen=True)
class Range:
    """A measured value with the smallest and the largest that the probe saw."""

    value: float
    low: float
    high: float


def page_faults() -> int | None:
    """Pages that the operating system has mapped into this process so far; None where it does not tell."""
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def fault_cost() -> Range | None:
    """Wall seconds that one page fault takes when torch's threads write fresh memory side by side; None where it cannot be told.

    Fresh memory is filled twice: the first time every page is mapped on the way, the second time none is. It is not
    kept, because it is set against a latency, and has to come from the same minute: beside other work both are longer.
    """
    if page_faults() is None:
        return None
    costs = []
    for _ in range(FAULT_ROUNDS):
        with mmap.mmap(-1, FAULT_PROBE_BYTES) as fresh:
            seconds, faults = _fill_twice(fresh)
        if faults > 0:
            costs.append(max(0.0, seconds) / faults)
    return Range(sorted(costs)[len(costs) // 2], min(costs), max(costs)) if costs else None


def _fill_twice(fresh: mmap.mmap) -> tuple[float, int]:
    """How much longer the first filling takes, and the pages it mapped."""
    block, before, start = torch.frombuffer(fresh, dtype=torch.uint8), page_faults() or 0, time.perf_counter()
    block.fill_(1)
    middle, faults = time.perf_counter(), (page_faults() or 0) - before
    block.fill_(2)
    return 2 * middle - start - time.perf_counter(), faults


@functools.cache
def product_speedup(device: torch.device, dtype: torch.dtype, *, tf32: bool = False) -> Range:
    """How many times faster a matrix product is in `dtype`, or in float32 with TF32 allowed, than in float32.

    Args:
        device: The attached device.
        dtype: The other dtype.
        tf32: Allow TF32 in the other.
    """
    size = 4096 if device.type == "cuda" else 768
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.rand((size, size), generator=generator).to(device) for _ in range(2))
    other_x, other_weight = x.to(dtype), weight.to(dtype)
    linear = torch.nn.functional.linear

    def other() -> Any:
        with _tf32_allowed() if tf32 else contextlib.nullcontext():
            return linear(other_x, other_weight)

    with torch.inference_mode():
        return ratio_of_two(lambda: linear(x, weight), other, device)


@contextlib.contextmanager
def _tf32_allowed() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def channels_last_speedup(convolution: torch.nn.Conv2d, input_shape: Sequence[int]) -> Range:
    """How many times faster one convolution is with its channels innermost; its weights are copied, not touched.

    Args:
        convolution: The layer.
        input_shape: Of its input.
    """
    weight = convolution.weight.detach()
    x = torch.ones(tuple(input_shape), dtype=weight.dtype, device=weight.device)
    last_x, last_weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))

    def run(x: torch.Tensor, weight: torch.Tensor) -> Any:
        return torch.nn.functional.conv2d(
            x, weight, None, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        )  # fmt: skip

    with torch.inference_mode():
        return ratio_of_two(lambda: run(x, weight), lambda: run(last_x, last_weight), weight.device)


def ratio_of_two(slow: Callable[[], Any], fast: Callable[[], Any], device: torch.device) -> Range:
    """Best time of `slow` over best time of `fast`, taken in turns; the range is that of the turns' ratios."""
    deadline = time.perf_counter() + PROBE_S
    slow(), fast()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < 3 or (time.perf_counter() < deadline and len(pairs) < 200):
        pairs.append((timed(slow, device), timed(fast, device)))
    ratios = sorted(a / b for a, b in pairs if b > 0)
    best = min(a for a, _ in pairs) / max(1e-9, min(b for _, b in pairs))
    return Range(best, min(best, ratios[len(ratios) // 4]), max(best, ratios[(3 * len(ratios)) // 4]))
