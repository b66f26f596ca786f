"""Where memory went at the highest moment of a call: parts that add up to what the driver or the operating system reports."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..records import MemoryPart, Note, Number, derived


@dataclass(frozen=True)
class DeviceAccount:
    """What a GPU's driver and torch's allocator report around the calls that are measured; bytes."""

    used: int
    """On the device, by all processes, as the driver counts."""
    reserved: int
    """By torch's allocator, from the driver."""
    allocated_before: int
    """By tensors, before the call."""
    allocated_peak: int
    """By tensors, at the highest moment of a call."""
    own: int | None
    """By this process, as the driver counts; None where it does not tell."""
    why_not_own: str = ""


def read_device_account(device: torch.device, *, allocated_before: int, allocated_peak: int) -> DeviceAccount:
    """Ask the driver; right after the calls, when torch's allocator still holds what it took for them.

    Args:
        device: A GPU.
        allocated_before: What torch's allocator held before the call.
        allocated_peak: What it held at most.
    """
    free, total = torch.cuda.mem_get_info(device)
    own, why = _own_bytes(device)
    return DeviceAccount(total - free, torch.cuda.memory_reserved(device), allocated_before, allocated_peak, own, why)


def _own_bytes(device: torch.device) -> tuple[int | None, str]:
    from ..readings.nvml import open_nvml

    session = open_nvml()
    if isinstance(session, Note):
        return None, session.text
    with session:
        found = session.own_bytes(device)
    return (None, found) if isinstance(found, str) else (found, "")


class MemoryLedger:
    """Collects the parts; what they leave of the total is named last, so that the sum is exact.

    Args:
        total: What is reported.
        environment: Id of the environment.
    """

    def __init__(self, total: Number, environment: str) -> None:
        self.total = total
        self._environment = environment
        self._parts: list[MemoryPart] = []

    def add(self, name: str, number: Number) -> None:
        """Add a part that is known."""
        self._parts.append(MemoryPart(name=name, bytes=number))

    def add_measured(self, name: str, value: int, method: str) -> None:
        """Add a part that was read off."""
        self.add(name, _measured(value, method, self._environment))

    def add_call(self, activations: Number, call_peak: Number) -> None:
        """Add what a call itself holds: tensors that it made, and what its operators take beside them."""
        held = int(min(activations.value, call_peak.value))
        self.add("activations", activations if held == activations.value else derived(held, "B", "what was allocated", [("allocated", call_peak)]))
        parts = [("allocated", call_peak), ("activations", activations)]
        self.add("operator workspaces", derived(int(call_peak.value) - held, "B", "torch's allocations at the highest moment less activations", parts))

    def close(self, rest: str, negative: str) -> tuple[MemoryPart, ...]:
        """Name the rest and return all parts.

        Args:
            rest: What the total has beyond the parts.
            negative: What it is called where the parts are more than the total.
        """
        left = int(self.total.value) - sum(int(part.bytes.value) for part in self._parts)
        inputs = [("total", self.total), *((part.name, part.bytes) for part in self._parts)]
        self.add(rest if left >= 0 else negative, derived(left, "B", "total less the other parts", inputs))
        return tuple(self._parts)


def _measured(value: int, method: str, environment: str) -> Number:
    return Number(value=value, unit="B", source="measured", method=method, environment=environment)


def processor_ledger(total: Number, *, weights: Number, inputs: Number, activations: Number, call_peak: Number, environment: str) -> tuple[MemoryPart, ...]:
    """Parts of the process's resident memory at the highest moment of a call.

    Args:
        total: High-water mark of the resident memory during the calls.
        weights: Of the model.
        inputs: Of the call.
        activations: Live tensors at the highest moment.
        call_peak: Highest sum of torch's allocations during one call.
        environment: Id of the environment.
    """
    ledger = MemoryLedger(total, environment)
    ledger.add("weights", weights)
    ledger.add("inputs", inputs)
    ledger.add_call(activations, call_peak)
    return ledger.close("interpreter, libraries and the notebook's own data", "of these not in memory: mapped and not yet touched")


def device_ledger(
    total: Number, account: DeviceAccount, *, weights: Number, inputs: Number, activations: Number, environment: str
) -> tuple[tuple[MemoryPart, ...], list[Note]]:
    """Parts of what the driver reports as used on a GPU at the highest moment of a call.

    Args:
        total: What the driver reports, all processes together.
        account: What was read.
        weights: Of the model.
        inputs: Of the call.
        activations: Live tensors at the highest moment.
        environment: Id of the environment.

    Returns:
        The parts, and notes on those that could not be told apart.
    """
    ledger = MemoryLedger(total, environment)
    call_peak = max(0, account.allocated_peak - account.allocated_before)
    ledger.add("weights", weights)
    ledger.add("inputs", inputs)
    ledger.add_call(activations, _measured(call_peak, "allocated at the highest moment less before", environment))
    other = account.allocated_before - int(weights.value) - int(inputs.value)
    ledger.add_measured("other tensors of this process, allocator rounding", other, "allocated before the call less weights and inputs")
    ledger.add_measured("allocator slack", account.reserved - account.allocated_peak, "reserved by torch's allocator less the peak of what was allocated")
    if account.own is None:
        note = Note(code="missing:gpu_process_memory", text=f"the context of this process and other processes cannot be told apart: {account.why_not_own}")
        return ledger.close("CUDA context, libraries and other processes", "not counted by the driver"), [note]
    ledger.add_measured("CUDA context and libraries", account.own - account.reserved, "the driver's count of this process less what torch reserved")
    return ledger.close("other processes and the driver", "not counted by the driver"), []
