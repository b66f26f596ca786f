"""NVIDIA GPUs as their driver sees them, through NVML; every call is guarded alone, and what is refused says why."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..records import GpuReading, Note, Number, Unit
from .base import Reasons, measured, missing
from .gpu_processes import NO_ACCOUNT, GpuProcesses, named, why_numbers_differ

PROC = Path("/proc")
NAMES = "gpu.processes.names"
"""What is missing where the driver's numbers of processes are not ours: then their names, and which of them is which."""
NOT_INSTALLED = "nvidia-ml-py is not installed: pip install aimass-lab[gpu]"

_THROTTLES = (
    ("SwPowerCap", "power limit"),
    ("SwThermalSlowdown", "temperature (software)"),
    ("HwThermalSlowdown", "temperature (hardware)"),
    ("HwPowerBrakeSlowdown", "power brake"),
    ("HwSlowdown", "hardware slowdown"),
    ("ApplicationsClocksSetting", "clocks set by an administrator"),
)
"""NVML's names of the reasons for low clocks (nvml.h, nvmlClocksEventReason*), and ours."""


def open_nvml(module: Any = None) -> Nvml | Note:
    """Open a session with the driver.

    Args:
        module: A module with the calls of ``pynvml``; that one if not given.

    Returns:
        The session; or a note that says why there is none.
    """
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            return missing("gpu", NOT_INSTALLED)
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        return missing("gpu", _why_no_session(module, error))
    return Nvml(module)


def driver_version(module: Any = None) -> str | None:
    """Version of the loaded NVIDIA driver, such as ``"550.54.15"``; None where NVML does not tell."""
    session = open_nvml(module)
    if isinstance(session, Note):
        return None
    with session:
        return session.driver


def _why_no_session(module: Any, error: Any) -> str:
    code = getattr(error, "value", None)
    if code == module.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "there is no NVIDIA driver here: its library libnvidia-ml.so was not found"
    if code == module.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is not loaded"
    if code == module.NVML_ERROR_NO_PERMISSION:
        return "talking to the NVIDIA driver is not permitted to this user"
    if code == module.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver and its library differ in version, as after an upgrade: restart the machine, or reload the driver"
    return f"the NVIDIA driver does not answer: {error}"


class Nvml:
    """A session with the driver; close it, or use it in a ``with`` block.

    Args:
        module: ``pynvml`` or what stands in for it, initialised.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def __enter__(self) -> Nvml:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End the session."""
        self.close()

    def close(self) -> None:
        """End the session; others in this process, torch's among them, go on."""
        with contextlib.suppress(self.module.NVMLError):  # the driver went away meanwhile: nothing is left to end
            self.module.nvmlShutdown()

    @property
    def driver(self) -> str | None:
        """Version of the driver."""
        try:
            return str(self.module.nvmlSystemGetDriverVersion())
        except self.module.NVMLError:
            return None

    def handle(self, uuid: str) -> Any:
        """The driver's handle of a GPU or MIG instance.

        Args:
            uuid: As torch gives it (``torch.cuda.get_device_properties(i).uuid``), with or without ``GPU-`` before it.

        Raises:
            NVMLError: of the module; the driver knows none.
        """
        if uuid.startswith(("GPU-", "MIG-")):
            return self.module.nvmlDeviceGetHandleByUUID(uuid)
        try:
            return self.module.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except self.module.NVMLError:
            return self.module.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def energy_j(self, handle: Any) -> float | str:
        """Joules that the board took since the driver was loaded; or why the driver does not tell."""
        try:
            return float(self.module.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except self.module.NVMLError as error:
            if self._is(error, "NOT_SUPPORTED"):
                return "this GPU does not count its energy (those before Volta, and MIG instances, do not)"
            return f"the driver does not tell the energy: {error}"

    def own_share(self, since_s: float) -> float | str:
        """Mean share of the time since then (Unix time) in which a GPU kernel of this process ran, summed over GPUs; or why that is not known."""
        pid, shares = os.getpid(), []
        try:
            for device in self._devices():
                memory = device.processes.memory()
                why_not = why_numbers_differ(list(memory), PROC)
                if why_not is not None:
                    return why_not
                if pid in memory:
                    sampled = device.processes.sampled(since_s)
                    if isinstance(sampled, str):
                        return sampled
                    shares.append(float(sampled[pid].value) if pid in sampled else 0.0)  # one that ran no kernel has no sample
        except self.module.NVMLError as error:
            return f"the NVIDIA driver does not answer: {error}"
        return sum(shares) if shares else "the driver lists no such process on any GPU"

    def own_bytes(self, device: Any) -> int | str:
        """Memory of a CUDA device of torch that this process holds by the driver's account, contexts and libraries included; or why that is not known."""
        uuid = cuda_uuid(device)
        if uuid is None:
            return "torch does not tell which GPU this is"
        try:
            memory = _Device(self.module, self.handle(uuid), "gpu", Reasons()).processes.memory()
        except self.module.NVMLError as error:
            return f"the driver does not tell: {error}"
        why_not = why_numbers_differ(list(memory), PROC)
        if why_not is not None:
            return why_not
        if os.getpid() not in memory:
            return "the driver does not list this process"
        held = memory[os.getpid()]
        return NO_ACCOUNT if held is None else held

    def _devices(self) -> list[_Device]:
        handles = [self.module.nvmlDeviceGetHandleByIndex(i) for i in range(self.module.nvmlDeviceGetCount())]
        return [_Device(self.module, handle, f"gpu{i}", Reasons()) for i, handle in enumerate(handles)]

    def read(self, *, since_s: float, proc: Path = PROC) -> tuple[tuple[GpuReading, ...], tuple[Note, ...]]:
        """Read every GPU of the machine.

        Args:
            since_s: Unix time from which on processes' utilisation counts.
            proc: Where the operating system shows processes.
        """
        reasons = Reasons()
        try:
            handles = [self.module.nvmlDeviceGetHandleByIndex(i) for i in range(self.module.nvmlDeviceGetCount())]
        except self.module.NVMLError as error:
            return (), (missing("gpu", f"the NVIDIA driver does not answer: {error}"),)
        if not handles:
            reasons.add("gpu", "the NVIDIA driver sees no GPU")
        found: list[GpuReading] = []
        for index, handle in enumerate(handles):
            device = _Device(self.module, handle, f"gpu{index}", reasons)
            found.append(device.read(index, since_s))
            found += self._instances(handle, index, since_s, reasons) if device.mig else []
        why_not = why_numbers_differ([process.pid for gpu in found for process in gpu.processes], proc)
        if why_not is not None:
            reasons.add(NAMES, why_not)
        else:
            found = [msgspec.structs.replace(gpu, processes=named(gpu.processes, proc)) for gpu in found]
        return tuple(found), tuple(reasons.notes)

    def _instances(self, handle: Any, index: int, since_s: float, reasons: Reasons) -> list[GpuReading]:
        """The MIG instances of a divided GPU: their names, memory and processes, which is all that the driver tells of them."""
        found = []
        for number in range(self.module.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = self.module.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except self.module.NVMLError:
                continue  # this place is not taken
            device = _Device(self.module, instance, f"gpu{index}.mig{number}", reasons)
            device.mig = True
            used, total = device.memory()
            found.append(
                GpuReading(
                    index=index, mig_instance=number, name=device.name(), uuid=device.uuid(), memory_used_bytes=used, memory_total_bytes=total,
                    processes=device.processes.read(since_s),
                )
            )  # fmt: skip
        return found

    def _is(self, error: Any, *names: str) -> bool:
        return getattr(error, "value", None) in {getattr(self.module, f"NVML_ERROR_{name}") for name in names}


class _Device:
    """One GPU: asks the driver for each thing alone, and notes what it refuses."""

    def __init__(self, module: Any, handle: Any, label: str, reasons: Reasons) -> None:
        self._module, self._handle, self._label, self._reasons = module, handle, label, reasons
        self.mig = bool(self._try(lambda: module.nvmlDeviceGetMigMode(handle)[0]))
        self.processes = GpuProcesses(module, handle, label, self._why, reasons)

    def read(self, index: int, since_s: float) -> GpuReading:
        """Everything there is."""
        m, handle = self._module, self._handle
        used, total = self.memory()
        busy = self._ask("utilization", lambda: m.nvmlDeviceGetUtilizationRates(handle))
        return GpuReading(
            index=index,
            name=self.name(),
            uuid=self.uuid(),
            utilization=None if busy is None else measured(busy.gpu / 100, "ratio", "the driver's last sampling period (1/6 to 1 s)"),
            memory_utilization=None if busy is None else measured(busy.memory / 100, "ratio", "the driver's last sampling period (1/6 to 1 s)"),
            memory_used_bytes=used,
            memory_total_bytes=total,
            power=self._number("power", lambda: m.nvmlDeviceGetPowerUsage(handle) / 1e3, "W", "the driver's reading of the whole board"),
            power_limit=self._number("power_limit", lambda: m.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3, "W", "enforced by the driver"),
            temperature=self._number("temperature", lambda: m.nvmlDeviceGetTemperature(handle, m.NVML_TEMPERATURE_GPU), "°C", "sensor of the chip"),
            sm_clock=self._number("sm_clock", lambda: m.nvmlDeviceGetClockInfo(handle, m.NVML_CLOCK_SM) * 1e6, "Hz", "multiprocessors, now"),
            memory_clock=self._number("memory_clock", lambda: m.nvmlDeviceGetClockInfo(handle, m.NVML_CLOCK_MEM) * 1e6, "Hz", "memory, now"),
            pcie_receive=self._pcie("pcie_receive", "RX"),
            pcie_transmit=self._pcie("pcie_transmit", "TX"),
            throttled=self._throttles(),
            processes=() if self.mig else self.processes.read(since_s),
        )

    def name(self) -> str:
        return str(self._try(lambda: self._module.nvmlDeviceGetName(self._handle)) or "unknown GPU")

    def uuid(self) -> str | None:
        found = self._try(lambda: self._module.nvmlDeviceGetUUID(self._handle))
        return None if found is None else str(found)

    def memory(self) -> tuple[Number | None, Number | None]:
        """Bytes used and there, by all processes and the driver."""
        info = self._ask("memory", lambda: self._module.nvmlDeviceGetMemoryInfo(self._handle))
        if info is None:
            return None, None
        return measured(int(info.used), "B", "the driver's account: all processes, and what it keeps itself"), measured(int(info.total), "B", "the driver")

    def _pcie(self, what: str, direction: str) -> Number | None:
        # The driver counts KB of 1000 bytes during 20 ms, in which the call waits.
        counter = getattr(self._module, f"NVML_PCIE_UTIL_{direction}_BYTES")
        return self._number(what, lambda: self._module.nvmlDeviceGetPcieThroughput(self._handle, counter) * 1e3, "B/s", "driver's count during 20 ms")

    def _throttles(self) -> tuple[str, ...]:
        bits = self._try(lambda: self._module.nvmlDeviceGetCurrentClocksEventReasons(self._handle)) or 0
        return tuple(words for name, words in _THROTTLES if bits & getattr(self._module, f"nvmlClocksEventReason{name}", 0))

    def _number(self, what: str, read: Callable[[], float], unit: Unit, method: str) -> Number | None:
        value = self._ask(what, read)
        return None if value is None else measured(value, unit, method)

    def _ask(self, what: str, read: Callable[[], Any]) -> Any:
        """What the driver answers; None, and the reason noted, where it refuses."""
        try:
            return read()
        except self._module.NVMLError as error:
            self._reasons.add(f"{self._label}.{what}", self._why(error))
            return None

    def _try(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._module.NVMLError:
            return None

    def _why(self, error: Any) -> str:
        code = getattr(error, "value", None)
        if self.mig and code in (self._module.NVML_ERROR_NOT_SUPPORTED, self._module.NVML_ERROR_NO_PERMISSION):
            return "MIG hides it: the GPU is divided into instances, and the driver tells this of none"
        if code == self._module.NVML_ERROR_NOT_SUPPORTED:
            return "this GPU or its driver does not report it"
        if code == self._module.NVML_ERROR_NO_PERMISSION:
            return "the driver reports it to administrators only"
        if code == self._module.NVML_ERROR_GPU_IS_LOST:
            return "the GPU has fallen off the bus: restart the machine"
        return f"the driver does not tell: {error}"


def cuda_uuid(device: Any) -> str | None:
    """The driver's identity of a CUDA device of torch, which ``CUDA_VISIBLE_DEVICES`` does not change; None where torch does not tell."""
    import torch

    try:
        return str(torch.cuda.get_device_properties(device).uuid)
    except (RuntimeError, AssertionError, AttributeError):
        return None
