"""Main memory: of this process, of its container, of the machine."""

from __future__ import annotations

from pathlib import Path

from ..records import MemoryReading, Number
from .base import Reasons, Sources, measured, why_unreadable
from .cgroup import memory_group
from .cpu import stalled


def read_memory(sources: Sources, reasons: Reasons, *, unique: bool = True) -> MemoryReading:
    """Read it now.

    Args:
        sources: Where to read.
        reasons: Where to say what is missing.
        unique: Whether to add up what only this process holds, for which the kernel walks all of its pages.
    """
    resident = _fields(sources.proc / "self" / "status", "memory.process", reasons).get("VmRSS")
    machine = _fields(sources.proc / "meminfo", "memory.machine", reasons)
    total, available = machine.get("MemTotal"), machine.get("MemAvailable")
    group = memory_group(sources)
    if group is None:
        reasons.add("memory.container", "this process is in no control group that counts memory")
    elif group.limit_bytes is None:
        reasons.add("memory.container_limit", "no control group of this process limits its memory")
    limit = None if group is None else group.limit_bytes
    free = [available] if available is not None else []
    if group is not None and limit is not None:
        free.append(max(0, limit - group.used_bytes))
    swap = machine["SwapTotal"] - machine["SwapFree"] if {"SwapTotal", "SwapFree"} <= machine.keys() else None
    if not free:
        reasons.add("memory.usable", "neither the machine's free memory nor a container's limit is known")
    if swap is None:
        reasons.add("memory.swap_used", "the kernel does not tell how much is swapped out")
    own = "control group of this process, without file pages that can be dropped"
    return MemoryReading(
        process_bytes=None if resident is None else measured(resident, "B", "/proc/self/status, VmRSS"),
        process_unique_bytes=_unique(sources.proc / "self" / "smaps_rollup", reasons) if unique else None,
        machine_used_bytes=None if total is None or available is None else measured(total - available, "B", "/proc/meminfo, total less available"),
        machine_total_bytes=None if total is None else measured(total, "B", "/proc/meminfo"),
        container_used_bytes=None if group is None else measured(group.used_bytes, "B", own),
        container_limit_bytes=None if limit is None else measured(limit, "B", "control group of this process"),
        usable_bytes=measured(min(free), "B", "free on the machine, or up to the container's limit if that is less") if free else None,
        swap_used_bytes=None if swap is None else measured(swap, "B", "/proc/meminfo"),
        stalled=stalled(sources, "memory", reasons),
    )


def _unique(path: Path, reasons: Reasons) -> Number | None:
    found = _fields(path, "memory.process_unique", reasons)
    parts = [found[name] for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb") if name in found]
    return measured(sum(parts), "B", "/proc/self/smaps_rollup, private pages") if parts else None


def _fields(path: Path, what: str, reasons: Reasons) -> dict[str, int]:
    """``Name:  123 kB`` of each line, in bytes."""
    try:
        pairs = [line.partition(":") for line in path.read_text().splitlines()]
        return {name: int(rest.split()[0]) * 1024 for name, _, rest in pairs if rest.strip().endswith("kB")}
    except (OSError, ValueError) as error:
        reasons.add(what, why_unreadable(error, path))
        return {}
