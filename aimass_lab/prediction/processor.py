"""Seconds of a call on the processor attached here: each family of operators at the rate that small probes of it reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

from ..environment import LoadMeter
from ..profiling.bottleneck import measure_rates
from ..records import Number
from ..tracing.trace import Row, Trace
from .bands import Band

PROBE_S = 0.012
"""Seconds spent on each probe."""
FEWEST_CALLS = 5
MOST_TRIES = 3

WIDTHS = {"gemm": 1.4, "conv": 2.0, "attention": 1.8, "recurrent": 2.5, "norm": 1.8, "elementwise": 1.8, "gather": 2.0, "copy": 2.0}
"""Half-width of the band of each family, as a factor: what the probes missed on whole models, rounded up."""
OTHER_WIDTH = 3.0
BEYOND_PROBES = 1.15
"""Time of whole models over that of their operators' best probes, on eight models: caches and fresh pages between operators."""
OVERHEAD_WIDTH = 2.0

CACHE_BYTES = 2**23
"""Weights beyond this are taken to have left the caches between two uses."""

HEAVY = ("gelu", "silu", "tanh", "sigmoid", "exp", "erf", "pow", "sin", "cos", "log", "mish", "softplus", "elu", "hardswish")
"""Words of element-wise operators that compute a series rather than one instruction."""
FEW_INPUTS = 64
"""Multiply-adds per result below which a convolution is one by channel."""

Rate = list[tuple[float, float]]
"""Pairs of a size and the rate reached at that size, sorted by size."""


@dataclass(frozen=True)
class _Measured:
    rate: Rate
    noisy: bool
    tries: int


_known: dict[tuple[str, torch.dtype, int], _Measured] = {}


def family_rate(kind: str, dtype: torch.dtype) -> Rate:
    """Rates of one kind of operator by size: probed once per process, dtype and thread count, in about 50 ms.

    While other processes load the machine it is done again the next times, three times at most, and the best is kept.
    """
    key = (kind, dtype, torch.get_num_threads())
    known = _known.get(key)
    if known is None or (known.noisy and known.tries < MOST_TRIES):
        with LoadMeter() as load, torch.inference_mode():
            rate = sorted(_PROBES[kind](dtype))
        if known is not None:
            rate = [(size, max(now, before)) for (size, now), (_, before) in zip(rate, known.rate, strict=True)]
        known = _known[key] = _Measured(rate, load.noisy, 1 if known is None else known.tries + 1)
    return known.rate


def price_on_processor(trace: Trace, device: torch.device, dtype: str) -> tuple[Band, Number]:
    """Seconds of `trace` on the attached processor, and the measured rate that the prediction names as its basis."""
    rates = measure_rates(device, _floating(dtype))
    band = Band(0.0, 0.0, 0.0)
    for seconds, width in _rows_seconds(trace, device, dtype):
        band = band + Band(seconds, seconds / width, seconds * width)
    start = float(rates.overhead.value) * len(trace.rows)
    return band + Band(start, start / OVERHEAD_WIDTH, start * OVERHEAD_WIDTH), rates.flops_per_s


def row_seconds_on_processor(trace: Trace, device: torch.device, dtype: str) -> list[float]:
    """Seconds of every row by the same rates, its start included."""
    start = float(measure_rates(device, _floating(dtype)).overhead.value)
    return [seconds + start for seconds, _ in _rows_seconds(trace, device, dtype)]


def _floating(dtype: str) -> torch.dtype:
    floating = getattr(torch, dtype, torch.float32)
    return floating if floating in (torch.float32, torch.float64, torch.float16, torch.bfloat16) else torch.float32


def _rows_seconds(trace: Trace, device: torch.device, dtype: str) -> list[tuple[float, float]]:
    """Seconds of every row without its start, and the half-width of its band."""
    rates = measure_rates(device, _floating(dtype))
    # The probes repeat themselves with everything in the caches; a model with more weights than they hold finds them cold.
    cold_s_per_byte = 1 / float(rates.memory_bytes_per_s.value) if trace.weight_bytes > CACHE_BYTES else 0.0
    priced = (_row_seconds(row, _floating(dtype), cold_s_per_byte) for row in trace.rows)
    return [(BEYOND_PROBES * seconds, width) for seconds, width in priced]


def _row_seconds(row: Row, dtype: torch.dtype, cold_s_per_byte: float) -> tuple[float, float]:
    moved = row.bytes_read + row.bytes_written
    cold = moved * cold_s_per_byte
    width = WIDTHS.get(row.family, OTHER_WIDTH)
    kind, size, amount = _kind(row)
    by_flops = row.family in ("gemm", "conv", "attention", "recurrent")
    return amount / _between(family_rate(kind, dtype), size) + (cold if by_flops else 0.0), width


def _kind(row: Row) -> tuple[str, float, float]:
    """Which probe stands for the row, at which size, and the FLOP or bytes that its rate is to be divided into."""
    moved = float(row.bytes_read + row.bytes_written)
    numel = max(1, math.prod(row.shape))
    if row.family == "gemm":
        columns = row.shape[-1] if row.shape else 1
        lines = row.shape[-2] if "bmm" in row.op and len(row.shape) > 2 else numel / max(1, columns)
        return "int8" if row.dtype == "int8" or "int_mm" in row.op else "gemm", lines, row.flops
    if row.family == "conv":
        return "depthwise" if row.flops / (2 * numel) <= FEW_INPUTS else "conv", numel, row.flops
    if row.family in ("attention", "recurrent"):
        return row.family, row.shape[-2] if len(row.shape) > 1 else 1, row.flops
    if row.family == "norm":
        return "softmax" if "softmax" in row.op else "norm", moved, moved
    if row.family in ("gather", "copy"):
        return "copy", moved, moved
    heavy = row.family == "elementwise" and any(word in row.op for word in HEAVY)
    return "heavy" if heavy else "elementwise", moved, moved


def _between(rates: Rate, size: float) -> float:
    """The rate at `size`, on straight lines through logarithms; beyond the probes that of the nearest one."""
    if size <= rates[0][0]:
        return rates[0][1]
    for (a, low), (b, high) in pairwise(rates):
        if size <= b:
            share = math.log(size / a) / math.log(b / a)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return rates[-1][1]


# --- the probes: each gives pairs of a size and a rate


def _numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    # Not drawn: the user's random state stays as it is, and arithmetic takes as long on equal numbers.
    return torch.full(shape, 0.5, dtype=dtype)


def _gemm(dtype: torch.dtype) -> Rate:
    weight = _numbers(dtype, 768, 768)
    return [(float(m), 2 * m * 768 * 768 / _best(F.linear, _numbers(dtype, m, 768), weight)) for m in (1, 8, 32, 128, 512)]


def _int8(dtype: torch.dtype) -> Rate:
    weight = torch.ones(768, 768, dtype=torch.int8)
    return [(float(m), 2 * m * 768 * 768 / _best(torch._int_mm, torch.ones(m, 768, dtype=torch.int8), weight)) for m in (32, 128, 512)]


def _conv(dtype: torch.dtype) -> Rate:
    found = []
    for side in (14, 28, 56):
        x = _numbers(dtype, 1, 64, side, side)
        three, one = _numbers(dtype, 64, 64, 3, 3), _numbers(dtype, 128, 64, 1, 1)
        seconds = _best(lambda x=x, w=three: F.conv2d(x, w, padding=1)) + _best(F.conv2d, x, one)
        found.append((64.0 * side * side, 2 * side * side * (64 * 64 * 9 + 128 * 64) / seconds))
    return found


def _depthwise(dtype: torch.dtype) -> Rate:
    found = []
    for side in (14, 56):
        x, weight = _numbers(dtype, 1, 96, side, side), _numbers(dtype, 96, 1, 3, 3)
        seconds = _best(lambda x=x, w=weight: F.conv2d(x, w, padding=1, groups=96))
        found.append((96.0 * side * side, 2 * side * side * 96 * 9 / seconds))
    return found


def _attention(dtype: torch.dtype) -> Rate:
    found = []
    for length in (1, 32, 128, 512):
        q, k = _numbers(dtype, 1, 4, length, 64), _numbers(dtype, 1, 4, max(length, 32), 64)
        found.append((float(length), 4 * 4 * length * max(length, 32) * 64 / _best(F.scaled_dot_product_attention, q, k, k)))
    return found


def _recurrent(dtype: torch.dtype) -> Rate:
    # Its weights are given, because a module would draw them from the random state.
    weights = [_numbers(dtype, *shape).mul_(0.05) for shape in ((1024, 256), (1024, 256), (1024,), (1024,))]
    found = []
    for batch in (1, 16):
        x, state = _numbers(dtype, 16, batch, 256), torch.zeros(1, batch, 256, dtype=dtype)
        seconds = _best(lambda x=x, s=state: torch.lstm(x, (s, s), weights, True, 1, 0.0, False, False, False))
        found.append((float(batch), 2 * 16 * batch * 2 * 1024 * 256 / seconds))
    return found


def _by_bytes(function: Callable[..., Any], sizes: Sequence[int], operands: int) -> Callable[[torch.dtype], Rate]:
    def probe(dtype: torch.dtype) -> Rate:
        found = []
        for size in sizes:
            x = _numbers(dtype, max(1, size // (operands * dtype.itemsize) // 768), 768)
            moved = float(operands * x.numel() * dtype.itemsize)
            found.append((moved, moved / _best(function, x)))
        return found

    return probe


_SIZES = (2**16, 2**20, 2**23, 2**25)
_PROBES: dict[str, Callable[[torch.dtype], Rate]] = {
    "gemm": _gemm,
    "int8": _int8,
    "conv": _conv,
    "depthwise": _depthwise,
    "attention": _attention,
    "recurrent": _recurrent,
    "elementwise": _by_bytes(lambda x: x + x, _SIZES, 2),
    "heavy": _by_bytes(F.gelu, _SIZES[:3], 2),
    "norm": _by_bytes(lambda x: F.layer_norm(x, (768,)), _SIZES[:3], 2),
    "softmax": _by_bytes(lambda x: F.softmax(x, -1), _SIZES[:3], 2),
    "copy": _by_bytes(lambda x: x.t().contiguous(), _SIZES[:3], 2),
}


def _best(function: Callable[..., Any], *args: Any) -> float:
    """The fastest of the calls that fit `PROBE_S`, and of five at least: other load can only slow a call down."""
    # One thread's own time does not run while others have the core.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    function(*args)
    best, calls, deadline = math.inf, 0, time.perf_counter() + PROBE_S
    while calls < FEWEST_CALLS or time.perf_counter() < deadline:
        start = clock()
        function(*args)
        best, calls = min(best, clock() - start), calls + 1
    return max(best, 1e-9)
