"""Seconds of a call on the processor attached here: each family of operators at the rate that small probes of it reached."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import torch

from ..profiling.bottleneck import measure_rates
from ..records import Number
from ..tracing.trace import Row, Trace
from .bands import Band
from .families import Rate, family_rate

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


def price_on_processor(trace: Trace, device: torch.device, dtype: str) -> tuple[Band, Number]:
    """Seconds of `trace` on the attached processor, and the measured rate that the prediction names as its basis."""
    rates = measure_rates(device, _floating(dtype))
    start = float(rates.overhead.value) * len(trace.rows)
    band = sum(_rows(trace, device, dtype), Band(start, start / OVERHEAD_WIDTH, start * OVERHEAD_WIDTH))
    if any(family_rate(_kind(row)[0], _floating(dtype)).disturbed for row in trace.rows):
        return band, msgspec.structs.replace(rates.flops_per_s, quality="noisy")
    return band, rates.flops_per_s


def row_seconds_on_processor(trace: Trace, device: torch.device, dtype: str) -> list[float]:
    """Seconds of every row by the same rates, its start included."""
    start = float(measure_rates(device, _floating(dtype)).overhead.value)
    return [band.value + start for band in _rows(trace, device, dtype)]


def _floating(dtype: str) -> torch.dtype:
    floating = getattr(torch, dtype, torch.float32)
    return floating if floating in (torch.float32, torch.float64, torch.float16, torch.bfloat16) else torch.float32


def _rows(trace: Trace, device: torch.device, dtype: str) -> list[Band]:
    """Seconds of every row without its start."""
    rates = measure_rates(device, _floating(dtype))
    # The probes repeat themselves with everything in the caches; a model with more weights than they hold finds them cold.
    cold_s_per_byte = 1 / float(rates.memory_bytes_per_s.value) if trace.weight_bytes > CACHE_BYTES else 0.0
    return [_row(row, _floating(dtype), cold_s_per_byte) for row in trace.rows]


def _row(row: Row, dtype: torch.dtype, cold_s_per_byte: float) -> Band:
    moved = row.bytes_read + row.bytes_written
    cold = moved * cold_s_per_byte if row.family in ("gemm", "conv", "attention", "recurrent") else 0.0
    width = WIDTHS.get(row.family, OTHER_WIDTH)
    kind, size, amount = _kind(row)
    rate = family_rate(kind, dtype)
    seconds, usual = (BEYOND_PROBES * (amount / _between(rates, size) + cold) for rates in (rate.best, rate.usual))
    return Band(seconds, seconds / width, usual * width)


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
