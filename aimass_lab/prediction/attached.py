"""What the GPU attached here was seen to reach, as the calibrated roofline takes it; and what of it holds on other GPUs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..devices import find_by_driver_name
from ..environment import read_environment
from ..profiling.bottleneck import measure_rates
from ..records import Number
from .bands import Band
from .calibration import Gpu, gpu_of, load_calibrations
from .roofline import LightConstants, MatrixConstants, light_seconds, matrix_seconds

CARRIED = 0.25
"""Power of the attached GPU's residual that is carried over to another: more of it made decoder layers on A100, A40 and H100
worse from one to the other (``tests/benchmarks/demand/vidur.py``), though what a newer library gains is gained on all."""

PRODUCT = (2048, 4096, 4096)
"""Rows, columns and inner size of the product that `measure_rates` times on a GPU."""
COPIED_BYTES = 2 * 2**29


def measured_number(band: Band, method: str, basis: Number, kind: str) -> Number:
    """A prediction that rests on a measured rate, and is as noisy as that was."""
    return Number(
        value=band.value, unit="s", source="estimated", method=method, interval=(band.low, band.high), interval_kind=kind, environment=basis.environment,
        quality=basis.quality,
    )  # fmt: skip


def attached_gpu(device: torch.device, dtype: str) -> tuple[Gpu, Number, float]:
    """The attached GPU with its own factors, the measured rate it rests on, and the seconds of starting one operator."""
    rates = measure_rates(device, getattr(torch, dtype, torch.float32))
    precision = dtype if dtype in ("float16", "bfloat16") else "float32"
    gpu = _described(device, precision, float(rates.flops_per_s.value), float(rates.memory_bytes_per_s.value))
    factors = _factors(gpu, precision, float(rates.flops_per_s.value), float(rates.memory_bytes_per_s.value))
    return replace(gpu, factors=factors), rates.flops_per_s, float(rates.overhead.value)


def carried_factors(dtype: str) -> tuple[tuple[float, float], str]:
    """Factors for a GPU that is not attached, and the words that say where they come from; 1 where no GPU is attached."""
    if not torch.cuda.is_available():
        return (1.0, 1.0), ""
    gpu, _, _ = attached_gpu(torch.device("cuda:0"), dtype)
    compute, memory = (float(factor**CARRIED) for factor in gpu.factors)
    return (compute, memory), f", times what {gpu.name} here takes over what is predicted for it to the power {CARRIED}"


def _described(device: torch.device, precision: str, flops_per_s: float, bytes_per_s: float) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    entry = find_by_driver_name(properties.name, read_environment(device).memory_bytes)
    known = gpu_of(entry) if entry else None
    if known is not None and precision in known.flops_per_s:
        return known
    # Not in the catalogue: rates that make the probes come out as they were measured.
    constants = load_calibrations()["gemm"].constants
    assert isinstance(constants, MatrixConstants)
    peak = flops_per_s / constants.compute
    clock_hz = 1e3 * float(getattr(properties, "clock_rate", 0) or 1.5e6)
    cache_bytes = float(getattr(properties, "L2_cache_size", 0) or 2**22)
    return Gpu(properties.name, {precision: peak}, bytes_per_s / constants.memory, properties.multi_processor_count, clock_hz, cache_bytes)


def _factors(gpu: Gpu, precision: str, flops_per_s: float, bytes_per_s: float) -> tuple[float, float]:
    """Measured over modelled seconds of the two probes."""
    expected_product, expected_copy = _modelled(gpu, precision)
    rows, columns, inner = PRODUCT
    return 2 * rows * columns * inner / flops_per_s / expected_product, COPIED_BYTES / bytes_per_s / expected_copy


def _modelled(gpu: Gpu, precision: str) -> tuple[float, float]:
    calibrations = load_calibrations()
    product = calibrations["gemm" if precision in ("float16", "bfloat16") else "gemm32"]
    light = calibrations["elementwise"]
    rows, columns, inner = (np.array([float(n)]) for n in PRODUCT)
    size = 2 if precision in ("float16", "bfloat16") else 4
    moved = size * (rows * inner + inner * columns + rows * columns)
    matrix, light_constants = (c.constants_on(gpu.name) for c in (product, light))
    assert isinstance(matrix, MatrixConstants)
    assert isinstance(light_constants, LightConstants)
    rates = gpu.rates(gpu.flops_per_s[precision])
    product_s = matrix_seconds(matrix, rates, np.ones(1), rows, columns, inner, moved)
    copied = np.array([float(COPIED_BYTES)])
    return float(product_s[0]), float(light_seconds(light_constants, rates, copied / 4, copied)[0])
