"""What operators reach of a GPU's rates: the fitted constants, and the seconds of a call's operators by them."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tracing.trace import Row
from .roofline import Array, AttentionConstants, LightConstants, MatrixConstants, Rates, attention_seconds, light_seconds, matrix_seconds

if TYPE_CHECKING:
    from ..devices import Device

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONSTANTS = Path(__file__).with_name("constants.toml")

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "int8": 1}
SIXTEEN = ("float16", "bfloat16")
RECURRENT_STRETCH = 4.0
"""Bands of recurrent layers as a power of those of products: their steps wait for one another, and nothing public was measured."""


@dataclass(frozen=True)
class Calibration:
    """The constants of one family of operators, and how far they can be trusted on a device that was not among those fitted on."""

    constants: MatrixConstants | LightConstants | AttentionConstants
    devices: tuple[str, ...]
    """What they were fitted on."""
    half_width: float
    """Half of the 90 % band on a logarithmic scale."""
    worst: float
    """The same of the one chip that was predicted worst when it was held out."""
    own: dict[str, dict[str, float]]
    """Device -> constant -> factor, for devices that were fitted on."""

    def constants_on(self, device: str) -> MatrixConstants | LightConstants | AttentionConstants:
        """The constants with the device's own factors, where it has some."""
        factors = self.own.get(device, {})
        return replace(self.constants, **{name: getattr(self.constants, name) * factor for name, factor in factors.items()})


@functools.cache
def load_calibrations() -> dict[str, Calibration]:
    """Return the constants that ship, by family."""
    tables = tomllib.loads(CONSTANTS.read_text(encoding="utf-8"))
    return {name: _calibration(dict(table)) for name, table in tables.items()}


def _calibration(table: dict[str, Any]) -> Calibration:
    devices, half, worst, own = tuple(table.pop("devices")), table.pop("half_width"), table.pop("worst"), table.pop("own", {})
    kind = MatrixConstants if "half_tile" in table else LightConstants if "window" in table else AttentionConstants
    return Calibration(kind(**table), devices, half, worst, own)


@dataclass(frozen=True)
class Gpu:
    """What a calibrated roofline needs to know of a GPU."""

    name: str
    flops_per_s: dict[str, float]
    """Dense peak by precision."""
    bytes_per_s: float
    num_multiprocessors: float
    clock_hz: float
    cache_bytes: float
    factors: tuple[float, float] = (1.0, 1.0)
    """Measured over modelled seconds of arithmetic and of memory traffic on this device, or carried over from another."""
    tf32_products: bool = False
    """Whether float32 matrix products may use TF32."""
    tf32_convolutions: bool = True
    """Whether float32 convolutions may use TF32, as torch allows by default."""

    def rates(self, peak: float) -> Rates:
        """As the roofline takes them."""
        return Rates(peak, self.bytes_per_s, self.num_multiprocessors, self.clock_hz, self.cache_bytes)


def gpu_of(entry: Device) -> Gpu | None:
    """Read a catalogue entry; None where it lacks what the calibrated roofline needs, or is no NVIDIA device."""
    bandwidth, multiprocessors, clock, cache = entry.memory_bytes_per_s, entry.num_multiprocessors, entry.clock_hz, entry.cache_bytes
    if entry.compute_capability is None or bandwidth is None or multiprocessors is None or clock is None or cache is None:
        return None
    peaks: dict[str, float] = {dtype: float(number.value) for dtype, number in entry.flops_per_s.items()}
    return Gpu(entry.name, peaks, float(bandwidth.value), float(multiprocessors.value), float(clock.value), float(cache.value))


class UnknownRateError(Exception):
    """The device has no rate for a precision that the call computes in."""


@dataclass(frozen=True)
class Priced:
    """Seconds of every row of a call, each with a 90 % band."""

    seconds: Array
    low: Array
    high: Array
    doubts: tuple[str, ...]
    """What was not among the measurements behind the constants, for the reader."""

    @property
    def total(self) -> tuple[float, float, float]:
        """Expected, lower and upper end of the sum; operators of a family err together, so the ends add up."""
        return float(self.seconds.sum()), float(self.low.sum()), float(self.high.sum())


@dataclass(frozen=True)
class _Basis:
    """How one row is priced."""

    family: str
    """Whose constants."""
    precision: str
    stretch: float = 1.0
    """Power of the band."""
    doubt: str = ""
    causal: bool = False
    """A causal mask, which the row does not tell of, would halve the work."""


def price_rows(rows: Sequence[Row], gpu: Gpu, dtype: str) -> Priced:
    """Price every row on `gpu`.

    Args:
        rows: Of one call, gradients and optimizer included where they were traced.
        gpu: Where it would run.
        dtype: Of rows that have no floating-point tensor.

    Raises:
        UnknownRateError: a precision has no known rate there.
    """
    bases = [_basis(row, gpu, row.dtype or dtype) for row in rows]
    seconds, low, high = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    calibrations = load_calibrations()
    for basis in set(bases):
        at = np.flatnonzero([b == basis for b in bases])
        calibration = calibrations[basis.family]
        some = _seconds([rows[int(i)] for i in at], calibration, basis, gpu)
        half = (calibration.half_width if gpu.name in calibration.devices else max(calibration.half_width, calibration.worst)) * basis.stretch
        seconds[at], high[at] = some, some * math.exp(half)
        low[at] = some * math.exp(-half - (math.log(2) if basis.causal else 0.0))
    return Priced(seconds, low, high, tuple(sorted({b.doubt for b in bases if b.doubt})))


def _basis(row: Row, gpu: Gpu, dtype: str) -> _Basis:
    light = {"norm": "norm" if dtype in SIXTEEN else "norm32", "elementwise": "elementwise", "gather": "gather"}
    if row.family in light:
        return _Basis(light[row.family], "float32")
    if row.family in ("copy", "reduction"):
        return _Basis("elementwise", "float32", 1.5)
    if row.family == "fft":
        return _Basis("elementwise", "float32", 3.0, "transforms are priced by their bytes")
    if row.family not in ("gemm", "conv", "attention", "recurrent"):
        return _Basis("fused", "float32", 1.5)
    if "int_mm" in row.op or dtype == "int8":
        return _Basis("gemm", _known("int8", gpu), 2.0, "8-bit products take the shares of 16-bit ones")
    return _arithmetic(row, gpu, dtype)


def _arithmetic(row: Row, gpu: Gpu, dtype: str) -> _Basis:
    sixteen = dtype in SIXTEEN
    tf32 = dtype == "float32" and "tf32" in gpu.flops_per_s and (gpu.tf32_convolutions if row.family == "conv" else gpu.tf32_products)
    precision = "tf32" if tf32 else _known(dtype, gpu)
    if row.family == "attention":
        doubt = "" if sixteen else "attention in 32 bits was not measured"
        return _Basis("attention", precision, 1.0 if sixteen else 2.0, doubt, causal=True)
    if row.family == "recurrent":
        return _Basis("gemm" if sixteen else "gemm32", precision, RECURRENT_STRETCH, "recurrent layers were not measured")
    if row.family == "conv":
        if sixteen or tf32:
            return _Basis("gemm", precision, 2.0, "convolutions on tensor cores take the shares of matrix products")
        return _Basis("conv32", precision)
    return _Basis("gemm", precision, 1.5 if tf32 else 1.0) if sixteen or tf32 else _Basis("gemm32", precision)


def _known(precision: str, gpu: Gpu) -> str:
    if precision not in gpu.flops_per_s:
        raise UnknownRateError(precision)
    return precision


def _seconds(rows: list[Row], calibration: Calibration, basis: _Basis, gpu: Gpu) -> Array:
    constants = calibration.constants_on(gpu.name)
    moved = np.array([row.bytes_read + row.bytes_written for row in rows], dtype=np.float64)
    slower_compute, slower_memory = gpu.factors
    if isinstance(constants, LightConstants):
        elements = moved / np.array([ITEM_BYTES.get(row.dtype, 4) for row in rows])
        constants = replace(
            constants,
            memory=constants.memory / slower_memory,
            cache=constants.cache / slower_memory,
            elements_per_cycle=constants.elements_per_cycle / slower_memory,
        )
        return light_seconds(constants, gpu.rates(1.0), elements, moved)
    rates = gpu.rates(gpu.flops_per_s[basis.precision])
    constants = replace(constants, compute=constants.compute / slower_compute, memory=constants.memory / slower_memory)
    if isinstance(constants, AttentionConstants):
        flops, blocks = np.array([(row.flops, _attention_blocks(row)) for row in rows], dtype=np.float64).T
        return attention_seconds(constants, rates, flops, blocks, moved)
    repeats, batch, m, n, k = np.array([_product(row) for row in rows], dtype=np.float64).T
    return repeats * matrix_seconds(constants, rates, batch, m, n, k, moved / repeats)


def _product(row: Row) -> tuple[float, float, float, float, float]:
    """Repetitions one after another, and batch, rows, columns and inner size of the product that the row amounts to."""
    shape = row.shape or (1,)
    size = max(1, math.prod(shape))
    if row.family == "recurrent":
        # (steps, batch, features): each step is a product that waits for the last; all gates together have the features' inputs.
        steps, features = max(1, shape[0]), max(1, shape[-1])
        lines = max(1.0, size / steps / features)
        return steps, 1, lines, features, max(1.0, row.flops / (2 * steps * lines * features))
    if row.family == "conv" and len(shape) > 2:
        columns, batch = max(1, shape[1]), 1
    else:
        columns = max(1, shape[-1]) if len(shape) > 1 else 1
        batch = max(1, math.prod(shape[:-2])) if "bmm" in row.op else 1
    lines = max(1.0, size / columns / batch)
    return 1, batch, lines, columns, max(1.0, row.flops / (2 * size))


def _attention_blocks(row: Row) -> float:
    """Blocks of 128 queries, or of 128 keys where there is one query only, over all heads."""
    if len(row.shape) < 3:
        return 1.0
    *outer, queries, width = row.shape
    keys = row.flops / max(1, 4 * math.prod(outer) * queries * width)
    return max(1.0, math.prod(outer) * math.ceil((keys if queries == 1 else queries) / 128))
