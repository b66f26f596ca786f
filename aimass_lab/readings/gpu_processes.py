"""Which processes use a GPU, by the driver's own lists; and whether its numbers for them are those of this container."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..records import GpuProcess, Number
from .base import Reasons, measured

FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""Of the machine itself, by Linux (PROC_PID_INIT_INO of include/linux/proc_ns.h): whoever is in it counts processes as the driver does."""
GPU_FILES = ("/dev/nvidia", "/dev/dxg")
"""What a process that uses a GPU has open; the second under Windows' subsystem for Linux."""
NOT_COUNTED = 2**32 - 1
"""NVML_VALUE_NOT_AVAILABLE of a 32-bit value."""
NO_ACCOUNT = "the driver keeps no account of single processes here, as under Windows and in some containers"
_LISTS = ("Compute", "MPSCompute", "Graphics")


class GpuProcesses:
    """Asks the driver for the processes of one GPU or MIG instance.

    Args:
        module: ``pynvml`` or what stands in for it, initialised.
        handle: Of the GPU or instance.
        label: What reasons call it: ``"gpu0"``.
        why: Words for a refusal of the driver.
        reasons: Where to say what is missing.
    """

    def __init__(self, module: Any, handle: Any, label: str, why: Callable[[Any], str], reasons: Reasons) -> None:
        self._module, self._handle, self._label, self._why, self._reasons = module, handle, label, why, reasons

    def read(self, since_s: float) -> tuple[GpuProcess, ...]:
        """Those that use it, each once, whatever for; names are to be added by who knows whether the numbers are ours.

        Args:
            since_s: Unix time from which on utilisation counts.
        """
        memory = self.memory()
        shares = self.shares(since_s) if memory else {}
        if any(size is None for size in memory.values()):
            self._reasons.add(f"{self._label}.processes.memory", NO_ACCOUNT)
        return tuple(
            GpuProcess(
                pid=pid,
                ours=False,
                memory_bytes=None if size is None else measured(size, "B", "the driver's account of the process"),
                utilization=shares.get(pid),
            )
            for pid, size in memory.items()
        )

    def memory(self) -> dict[int, int | None]:
        """Process -> bytes, of those that compute, share the GPU through MPS, or draw; None where the driver does not tell."""
        found: dict[int, int | None] = {}
        for kind in _LISTS:
            for process in self._list(kind):
                size = None if process.usedGpuMemory is None else int(process.usedGpuMemory)
                known = found.get(int(process.pid))
                found[int(process.pid)] = size if known is None else max(known, size or 0)  # in two lists with the same account
        return found

    def _list(self, kind: str) -> Sequence[Any]:
        m, error_of = self._module, self._module.NVMLError
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        try:
            try:
                return list(getattr(m, name)(self._handle))
            except error_of as error:
                older = getattr(m, f"{name}_v2", None)  # drivers before 510
                if getattr(error, "value", None) != m.NVML_ERROR_FUNCTION_NOT_FOUND or older is None:
                    raise
                return list(older(self._handle))
        except error_of as error:
            if kind == "Compute":  # the others are there where somebody draws or shares
                self._reasons.add(f"{self._label}.processes", self._why(error))
            return ()
        except AttributeError:  # of an older binding
            return ()

    def shares(self, since_s: float) -> dict[int, Number]:
        """Mean utilisation of each process since then; where the driver takes no such samples, over the process's life if it keeps accounts."""
        sampled = self.sampled(since_s)
        if not isinstance(sampled, str):
            return sampled
        accounts = self._accounts()
        if accounts is None:
            self._reasons.add(f"{self._label}.processes.utilization", sampled)
        return accounts or {}

    def sampled(self, since_s: float) -> dict[int, Number] | str:
        """Mean utilisation of each process since then, of those that ran a kernel; or why the driver takes no such samples."""
        m = self._module
        try:
            samples = m.nvmlDeviceGetProcessUtilization(self._handle, int(since_s * 1e6))
        except m.NVMLError as error:
            # The binding raises SUCCESS, or the driver NOT_FOUND, when there was no sample.
            return {} if getattr(error, "value", None) in (m.NVML_SUCCESS, m.NVML_ERROR_NOT_FOUND) else self._why(error)
        by_pid: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid:
                by_pid.setdefault(int(sample.pid), []).append(min(100, sample.smUtil))
        return {pid: measured(sum(seen) / len(seen) / 100, "ratio", f"mean of {len(seen)} sample(s) of the driver") for pid, seen in by_pid.items()}

    def _accounts(self) -> dict[int, Number] | None:
        """Of running processes, by the driver's accounting, which an administrator switches on; None where it is off."""
        m = self._module
        try:
            if not m.nvmlDeviceGetAccountingMode(self._handle):
                return None
            found = {}
            for pid in self.memory():
                share = m.nvmlDeviceGetAccountingStats(self._handle, pid).gpuUtilization
                if share != NOT_COUNTED:
                    found[pid] = measured(min(100, share) / 100, "ratio", "mean over the process's life, by the driver's accounting")
            return found
        except m.NVMLError:
            return None


def why_numbers_differ(pids: Sequence[int], proc: Path) -> str | None:
    """Why the driver's numbers of processes cannot be taken for those of this process's namespace; None where they can.

    Drivers differ in whether they count for a container as it counts itself. A number that nobody has here, or one whose holder has no GPU open,
    shows that it is the machine's.

    Args:
        pids: The driver's.
        proc: Where the operating system shows processes.
    """
    try:
        if os.readlink(proc / "self" / "ns" / "pid") == FIRST_PID_NAMESPACE:
            return None
    except OSError:
        pass  # then they are looked at one by one
    seen = [_has_gpu_open(proc / str(pid)) for pid in pids]
    if False in seen:
        return "the driver counts processes by numbers of the host, which a container does not see: none can be told apart"
    if pids and True not in seen:
        return "in this container it cannot be seen whether the driver counts processes as the container does: their open files may not be read"
    return None


def named(processes: Sequence[GpuProcess], proc: Path) -> tuple[GpuProcess, ...]:
    """Processes whose numbers are ours, with their names and with which is this one."""
    return tuple(msgspec.structs.replace(one, name=_name(proc / str(one.pid)), ours=one.pid == os.getpid()) for one in processes)


def _has_gpu_open(process: Path) -> bool | None:
    """None where its open files may not be read."""
    try:
        files = list((process / "fd").iterdir())
    except PermissionError:
        return None
    except OSError:
        return False
    for file in files:
        try:
            if os.readlink(file).startswith(GPU_FILES):
                return True
        except OSError:  # it was closed meanwhile
            continue
    return False


def _name(process: Path) -> str | None:
    try:
        return (process / "comm").read_text().strip() or None
    except OSError:
        return None
