"""The device a demand is held against: its memory, and how long one call would take there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..environment import read_environment
from ..errors import UnsupportedError
from ..profiling.bottleneck import split_time
from ..records import Note, Number
from ..tracing.trace import Trace
from ..workload import Workload
from .attached import attached_gpu, carried_factors, measured_number
from .bands import EFFICIENCY, LAUNCH_S, ROOFLINE, Band, launches
from .calibration import Gpu, UnknownRateError, gpu_of, load_calibrations, price_rows
from .processor import price_on_processor, row_seconds_on_processor

if TYPE_CHECKING:
    from ..devices import Device


@dataclass(frozen=True)
class Efficiency:
    """What operators reach of the rates a datasheet roofline is drawn with: as expected, at best and at worst."""

    compute: tuple[float, float, float]
    memory: tuple[float, float, float]


# Shares of dense peak on A100, A40 and H100: matrix products 0.70-0.75 from 2048 rows on and far less below,
# element-wise operators 0.41-0.62 of the memory rate.
DATASHEET = Efficiency(compute=(0.6, 0.85, 0.2), memory=(0.6, 0.95, 0.3))

RECURRENT_WORST = 0.03
"""Worst share of the arithmetic rate that a recurrent layer reaches: its steps wait for one another."""

DISTURBED = Note(code="W-NOISY", text="others had the processor while its rates were measured, on which the latency rests: ask again when it is quiet")

CONTEXT_BYTES = (450 * 2**20, 250 * 2**20, 700 * 2**20)
"""What a CUDA context takes beside the tensors: usually, at least, at most; it differs by driver and device, and was not measured here."""


@dataclass(frozen=True)
class TargetDevice:
    """One attached device or one entry of the catalogue."""

    name: str
    memory: Number | None
    kind: str
    """``"cpu"`` or ``"gpu"``."""
    attached: torch.device | None
    entry: Device | None

    @property
    def context_bytes(self) -> int:
        """Upper bound of what the driver takes beside the tensors."""
        return CONTEXT_BYTES[2] if self.kind == "gpu" else 0


def find_target(name: str | None, workload: Workload) -> TargetDevice:
    """Resolve a device's name: ``cpu`` and ``cuda:0`` are the attached ones, all else is looked up in the catalogue.

    Raises:
        UnsupportedError: a CUDA device that is not attached.
        UnknownNameError: no such device in the catalogue.
    """
    if name is None:
        device = workload.torch_device
        name = "cpu" if device.type == "meta" else str(device)
    if name == "cpu" or name.partition(":")[0] == "cuda":
        return _attached(name)
    from ..devices import get_device

    entry = get_device(name)
    return TargetDevice(name=name, memory=entry.memory_bytes, kind=entry.kind, attached=None, entry=entry)


def _attached(name: str) -> TargetDevice:
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = name.partition(":")[2] or "0"
        if not index.isdigit() or int(index) >= count:
            raise UnsupportedError(f"the device {name} is not attached to this machine", help="name a device of the catalogue, or cpu")
        name = f"cuda:{index}"
    device = torch.device(name)
    environment = read_environment(device)
    memory = Number(value=environment.memory_bytes, unit="B", source="measured", method="what this process may use on the device", environment=environment.id)
    return TargetDevice(name=name, memory=memory, kind="gpu" if device.type == "cuda" else "cpu", attached=device, entry=None)


def estimate_latency(trace: Trace, target: TargetDevice, dtype: str) -> tuple[Number | None, tuple[Note, ...]]:
    """Predict the time of one call by a roofline over its operators.

    Args:
        trace: The call, gradients and optimizer included where they were traced.
        target: Where it would run.
        dtype: Of the weights, torch's word: ``"float32"``.

    Returns:
        The time, and what a reader must know; None where a rate of the device is unknown.
    """
    try:
        latency = predict_on_device(trace, target, dtype)
        return latency, (DISTURBED,) if latency.quality == "noisy" else ()
    except UnsupportedError as error:
        return None, (Note(code="missing:latency", text=f"{error.message}, so no latency is predicted there"),)


def predict_on_device(trace: Trace, target: TargetDevice, dtype: str) -> Number:
    """Predict the time of one call on `target`; the basis is named in `Number.method`.

    *Calibrated roofline of rates measured here*: the device is attached. *Calibrated roofline (fitted on ...)*: an
    NVIDIA GPU of the catalogue. Where another GPU is attached, a share of what it was seen to reach is carried over.
    *Datasheet roofline*: any other device, with a band from the best to the worst efficiency.

    Args:
        trace: The call.
        target: Where it would run.
        dtype: Of operators without a floating-point tensor, torch's word.

    Raises:
        UnsupportedError: a rate of the device is unknown.
    """
    dtype = "float32" if dtype == "none" else dtype  # a model without weights
    if target.attached is not None:
        return _on_attached(trace, target.attached, dtype)
    gpu = gpu_of(target.entry) if target.entry else None
    return _by_datasheet(trace, target, dtype) if gpu is None else _calibrated(trace, gpu, dtype)


def operator_seconds(trace: Trace, target: TargetDevice, dtype: str) -> list[float] | None:
    """Seconds of every operator, by the model that `predict_on_device` adds up; None where a rate of the device is unknown.

    Where a GPU waits for its host, every operator takes as long as its start.
    """
    dtype = "float32" if dtype == "none" else dtype
    if target.attached is not None and target.attached.type == "cpu":
        return row_seconds_on_processor(trace, target.attached, dtype)
    gpu = attached_gpu(target.attached, dtype)[0] if target.attached is not None else gpu_of(target.entry) if target.entry else None
    try:
        seconds = _datasheet_seconds(trace, target, dtype) if gpu is None else [float(s) for s in price_rows(trace.rows, gpu, dtype).seconds]
    except (UnknownRateError, UnsupportedError):
        return None
    starts = launches(len(trace.rows)).value
    return seconds if target.kind != "gpu" or sum(seconds) >= starts else [LAUNCH_S[0]] * len(seconds)


def _on_attached(trace: Trace, device: torch.device, dtype: str) -> Number:
    if device.type == "cpu":
        band, basis = price_on_processor(trace, device, dtype)
        method = "calibrated roofline of rates measured here, by families of operators"
        return measured_number(band, method, basis, EFFICIENCY)
    gpu, basis, start_s = attached_gpu(device, dtype)
    band, doubts = _kernels(trace, gpu, dtype)
    band = band.at_least(launches(len(trace.rows), (1.5 * start_s, 0.5 * start_s, 5 * start_s)))
    return measured_number(band, f"calibrated roofline of rates measured here{doubts}", basis, ROOFLINE)


def _calibrated(trace: Trace, gpu: Gpu, dtype: str) -> Number:
    factors, carried = carried_factors(dtype)
    band, doubts = _kernels(trace, replace(gpu, factors=factors), dtype)
    used = load_calibrations()["gemm"].devices
    fitted = "fitted on it and on other devices" if gpu.name in used else f"fitted on {', '.join(used)}"
    method = f"calibrated roofline ({fitted}) of {gpu.name}, not measured here{carried}{doubts}"
    return _estimate(band.at_least(launches(len(trace.rows))), method, ROOFLINE)


def _kernels(trace: Trace, gpu: Gpu, dtype: str) -> tuple[Band, str]:
    gpu = replace(gpu, tf32_products=torch.get_float32_matmul_precision() != "highest")
    try:
        priced = price_rows(trace.rows, gpu, dtype)
    except UnknownRateError as unknown:
        raise UnsupportedError(f"the {unknown} rate of {gpu.name} is unknown") from unknown
    return Band(*priced.total), f"; {', '.join(priced.doubts)}: a wider band" if priced.doubts else ""


def _datasheet_rates(target: TargetDevice, dtype: str) -> tuple[float, float]:
    """FLOP/s and bytes/s of a device of the catalogue.

    Raises:
        UnsupportedError: one of them is unknown.
    """
    entry = target.entry
    flops_per_s = next((number for key, number in entry.flops_per_s.items() if key == dtype), None) if entry else None
    bandwidth = entry.memory_bytes_per_s if entry else None
    if flops_per_s is None or bandwidth is None:
        unknown = f"{dtype} rate" if flops_per_s is None else "memory rate"
        raise UnsupportedError(f"the {unknown} of {target.name} is unknown")
    return float(flops_per_s.value), float(bandwidth.value)


def _datasheet_seconds(trace: Trace, target: TargetDevice, dtype: str) -> list[float]:
    flops_per_s, bytes_per_s = _datasheet_rates(target, dtype)
    compute, memory = DATASHEET.compute[0] * flops_per_s, DATASHEET.memory[0] * bytes_per_s
    return [max(row.flops / compute, (row.bytes_read + row.bytes_written) / memory) for row in trace.rows]


def _by_datasheet(trace: Trace, target: TargetDevice, dtype: str) -> Number:
    flops_per_s, bytes_per_s = _datasheet_rates(target, dtype)
    recurrent = any(row.family == "recurrent" for row in trace.rows)
    worst = min(DATASHEET.compute[2], RECURRENT_WORST) if recurrent else DATASHEET.compute[2]
    shares = zip((*DATASHEET.compute[:2], worst), DATASHEET.memory, strict=True)
    splits = [split_time(trace, flops_per_s * compute, bytes_per_s * memory, 0.0) for compute, memory in shares]
    band = Band(*(split.compute_s + split.memory_s for split in splits))
    # A GPU computes while the host starts the next operators; on a CPU one waits for the other.
    starts = launches(len(trace.rows))
    band = band.at_least(starts) if target.kind == "gpu" else band + starts
    return _estimate(band, f"datasheet roofline of {target.name}, not measured here and nothing of its kind was fitted", EFFICIENCY)


def _estimate(band: Band, method: str, kind: str) -> Number:
    return Number(value=band.value, unit="s", source="estimated", method=method, interval=(band.low, band.high), interval_kind=kind)
