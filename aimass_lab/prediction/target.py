"""The device a demand is held against: its memory, and how long one call would take there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..environment import read_environment
from ..errors import UnsupportedError
from ..profiling.bottleneck import measure_rates, split_time
from ..records import Note, Number
from ..tracing.trace import Trace
from ..workload import Workload

if TYPE_CHECKING:
    from ..devices import Device


@dataclass(frozen=True)
class Efficiency:
    """What operators reach of the rates a roofline is drawn with: as expected, at best and at worst."""

    compute: tuple[float, float, float]
    memory: tuple[float, float, float]
    overhead_s: tuple[float, float, float]


# Shares of dense peak on A100, A40 and H100: matrix products 0.70-0.75 from 2048 rows on and far less below,
# element-wise operators 0.41-0.62 of the memory rate; eager launches take 4 to 20 microseconds.
DATASHEET = Efficiency(compute=(0.6, 0.85, 0.2), memory=(0.6, 0.95, 0.3), overhead_s=(8e-6, 2e-6, 20e-6))
# Of rates that were measured here: odd shapes, cold caches and page faults take their part.
MEASURED = Efficiency(compute=(0.65, 1.1, 0.2), memory=(0.4, 1.5, 0.1), overhead_s=(1.5, 0.5, 5.0))
"""Here `overhead_s` holds multiples of the overhead measured."""

RECURRENT_WORST = 0.03
"""Worst share of the arithmetic rate that a recurrent layer reaches: its steps wait for one another."""

CONTEXT_BYTES = 700 * 2**20
"""What a CUDA context and the libraries' workspaces take at most beside the tensors."""


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
        return CONTEXT_BYTES if self.kind == "gpu" else 0


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
        trace: The call.
        target: Where it would run.
        dtype: Of the weights, torch's word: ``"float32"``.

    Returns:
        The time, and what a reader must know; None where a rate of the device is unknown.
    """
    if target.attached is not None:
        rates = measure_rates(target.attached, getattr(torch, dtype, torch.float32))
        figures = (rates.flops_per_s.value, rates.memory_bytes_per_s.value)
        overheads = [rates.overhead.value * factor for factor in MEASURED.overhead_s]
        method = "roofline of every operator with rates measured here, matrix products at 65 % of the best"
        return _latency(trace, target, figures, MEASURED, overheads, method, rates.flops_per_s), ()
    dtype = "float32" if dtype == "none" else dtype  # a model without weights
    peaks = dict(target.entry.flops_per_s) if target.entry else {}
    flops_per_s = next((number for key, number in peaks.items() if key == dtype), None)
    bandwidth = target.entry.memory_bytes_per_s if target.entry else None
    if flops_per_s is None or bandwidth is None:
        unknown = f"{dtype} rate" if flops_per_s is None else "memory rate"
        return None, (Note(code="missing:latency", text=f"the {unknown} of {target.name} is unknown, so no latency is predicted there"),)
    method = f"datasheet roofline of {target.name}, not measured here"
    return _latency(trace, target, (flops_per_s.value, bandwidth.value), DATASHEET, list(DATASHEET.overhead_s), method, flops_per_s), ()


def _latency(
    trace: Trace, target: TargetDevice, rates: tuple[float, float], efficiency: Efficiency, overheads: list[float], method: str, basis: Number
) -> Number:
    values = []
    worst = min(efficiency.compute[2], RECURRENT_WORST) if any("rnn" in row.op for row in trace.rows) else efficiency.compute[2]
    efficiency = replace(efficiency, compute=(*efficiency.compute[:2], worst))
    for compute, memory, overhead_s in zip(efficiency.compute, efficiency.memory, overheads, strict=True):
        split = split_time(trace, rates[0] * compute, rates[1] * memory, overhead_s)
        work_s = split.compute_s + split.memory_s
        # A GPU computes while the host starts the next operators; on a CPU one waits for the other.
        values.append(max(work_s, split.overhead_s) if target.kind == "gpu" else work_s + split.overhead_s)
    expected, low, high = values
    return Number(
        value=expected, unit="s", source="estimated", method=method, interval=(min(low, expected), max(high, expected)),
        interval_kind="band from best to worst efficiency of operators", environment=basis.environment, quality=basis.quality,
    )  # fmt: skip
