"""Limits and use of the control group (container) that this process runs in, cgroup v1 and v2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .base import Sources

T = TypeVar("T")

V1_UNLIMITED_BYTES = 2**62
"""v1 writes "no limit" as the largest multiple of the page size below 2^63."""


@dataclass(frozen=True, kw_only=True)
class MemoryGroup:
    """Memory of the group whose limit leaves the least room."""

    limit_bytes: int | None
    """None: no group above this process has a limit."""
    used_bytes: int
    """Without file pages that the kernel can drop at once: what counts towards being killed."""


@dataclass(frozen=True, kw_only=True)
class CpuGroup:
    """Processor time of the group."""

    limit_cores: float | None
    """The lowest quota of the group and those around it; None: none has one."""
    used_s: float | None
    """CPU seconds that the group has used so far."""
    throttled_s: float | None
    """Seconds during which its quota held it back so far; None without a quota."""


def memory_group(sources: Sources) -> MemoryGroup | None:
    """Read the memory limit that binds, of this process's group or any group around it; None where there are no groups."""
    v2 = _folders(sources, "")
    found = [_memory(folder, "memory.max", "memory.current", "inactive_file") for folder in v2]
    if not any(found):
        found = [_memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") for folder in _folders(sources, "memory")]
    groups = [group for group in found if group]
    limited = [group for group in groups if group.limit_bytes is not None]
    if limited:
        return min(limited, key=lambda group: (group.limit_bytes or 0) - group.used_bytes)
    return groups[0] if groups else None


def cpu_group(sources: Sources) -> CpuGroup | None:
    """Read processor quota and use of this process's group; None where there are no groups."""
    v2 = _folders(sources, "")
    if any((folder / "cpu.stat").exists() for folder in v2[:1]) and not _folders(sources, "cpuacct"):
        quotas = [(folder, _quota_v2(folder)) for folder in v2]
        used, held = _stat(v2[0] / "cpu.stat", "usage_usec"), "throttled_usec"
        used_s, unit = None if used is None else used / 1e6, 1e6
    else:
        folders = _folders(sources, "cpu")
        if not folders:
            return None
        quotas = [(folder, _quota_v1(folder)) for folder in folders]
        accounts = _folders(sources, "cpuacct")
        nanoseconds = _integer(accounts[0] / "cpuacct.usage") if accounts else None
        used_s, held, unit = None if nanoseconds is None else nanoseconds / 1e9, "throttled_time", 1e9
    limited = [(cores, folder) for folder, cores in quotas if cores is not None]
    if not limited:
        return CpuGroup(limit_cores=None, used_s=used_s, throttled_s=None)
    cores, folder = min(limited)
    throttled = _stat(folder / "cpu.stat", held)
    return CpuGroup(limit_cores=cores, used_s=used_s, throttled_s=None if throttled is None else throttled / unit)


def _folders(sources: Sources, controller: str) -> list[Path]:
    """Folders of this process's group and those around it, innermost first.

    Args:
        sources: Where to read.
        controller: Of v1; ``""`` is v2.
    """
    path = _path(sources, controller)
    if path is None:
        return []
    # Systems that keep both versions mount v2 beside the controllers of v1.
    name = controller or ("unified" if (sources.cgroup / "unified").is_dir() else ".")
    root = sources.cgroup / name
    parts = [part for part in path.split("/") if part]
    # In a container the path may be the host's, while the mount shows only what is below the container's group.
    if ".." in parts or not root.joinpath(*parts).is_dir():
        parts = []
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1) if root.is_dir()]


def _path(sources: Sources, controller: str) -> str | None:
    try:
        lines = (sources.proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return None


def _memory(folder: Path, limit_name: str, used_name: str, droppable_name: str) -> MemoryGroup | None:
    used = _integer(folder / used_name)
    if used is None:
        return None
    limit = _integer(folder / limit_name)  # v2 writes "max" for none
    if limit is not None and limit >= V1_UNLIMITED_BYTES:
        limit = None
    return MemoryGroup(limit_bytes=limit, used_bytes=max(0, used - (_stat(folder / "memory.stat", droppable_name) or 0)))


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max", str.split) or []
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _integer(folder / "cpu.cfs_quota_us"), _integer(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def _stat(path: Path, name: str) -> int | None:
    def find(text: str) -> int | None:
        return next((int(words[1]) for words in map(str.split, text.splitlines()) if words and words[0] == name), None)

    return _read(path, find)


def _integer(path: Path) -> int | None:
    return _read(path, int)


def _read(path: Path, parse: Callable[[str], T]) -> T | None:
    try:
        return parse(path.read_text())
    except (OSError, ValueError):
        return None
