"""How much memory one call takes: exact readings of torch's allocators."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .recorder import profiled


def peak_of_call(function: Callable[[], Any], device: torch.device) -> int | None:
    """Most bytes that torch's allocator held at once during one call, beyond what it held before.

    On the CPU every allocation and release is written down by torch's profiler; on a GPU the caching
    allocator keeps the peak itself. Memory that a library takes from the operating system directly is not seen.

    Returns:
        The bytes; None where they cannot be read because the caller is being profiled already.
    """
    if device.type == "cuda":
        return _cuda_peak(function, device)
    if torch._C._autograd._profiler_enabled():
        function()
        return None
    return _cpu_peak(function)


def _cuda_peak(function: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(function: Callable[[], Any]) -> int:
    from torch._C._autograd import DeviceType

    results = profiled(function, torch.device("cpu"))
    events = (e for e in results.events() if e.name() == "[memory]" and e.device_type() == DeviceType.CPU)
    changes = sorted(((e.start_ns(), e.nbytes()) for e in events), key=lambda change: change[0])
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def reset_resident_peak() -> bool:
    """Let the operating system's high-water mark of this process's resident memory begin anew.

    Linux only (proc(5), ``/proc/pid/clear_refs``). Whoever reads the mark later, ``ru_maxrss`` included, sees the peak since now.

    Returns:
        Whether it did.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_bytes() -> tuple[int, int] | None:
    """Resident memory of this process now, and its high-water mark; None where there is no ``/proc``."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if name in ("VmRSS", "VmHWM")}
        return fields["VmRSS"], fields["VmHWM"]
    except (OSError, KeyError, ValueError):
        return None


def begin_peak(device: torch.device) -> int | None:
    """Let the high-water mark begin anew: of this process's resident memory, or on a GPU of what tensors hold there.

    Returns:
        Bytes held now; None where the mark cannot be reset.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    now = resident_bytes()
    return now[0] if now is not None and reset_resident_peak() else None


def peak_since(device: torch.device) -> int:
    """The high-water mark since `begin_peak`, which must have succeeded."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    now = resident_bytes()
    return now[1] if now is not None else 0


def free_bytes(device: torch.device) -> int:
    """Memory that this process could still take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    from ..environment import usable_memory_bytes

    process = psutil.Process().memory_info()
    return max(0, min(int(psutil.virtual_memory().available), usable_memory_bytes() - process.rss, _address_space_bytes() - process.vms))


def _address_space_bytes() -> int:
    """What this process may address, if somebody limited that."""
    if not sys.platform.startswith("linux"):
        return sys.maxsize
    import resource

    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    return min(limits, default=sys.maxsize)


@contextlib.contextmanager
def address_space_capped(device: torch.device) -> Iterator[None]:
    """Let an allocation that the machine cannot back fail with an error.

    Linux promises more memory than there is and kills the process that uses it; under a limit on the
    address space the allocator is refused instead, and the notebook survives. Elsewhere nothing is done.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux") or torch.cuda.is_initialized():
        yield
        return
    import resource

    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    cap = int(psutil.Process().memory_info().vms + 0.9 * free_bytes(device))
    resource.setrlimit(resource.RLIMIT_AS, (min(cap, _address_space_bytes()), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def release_cached(device: torch.device) -> None:
    """Give back what a failed call left behind; what the C library's heap kept of it, too."""
    import ctypes
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
