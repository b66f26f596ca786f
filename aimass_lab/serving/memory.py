"""Memory of a process and all that it started: what a bundle promises, and what its server tells of itself."""

from __future__ import annotations

from pathlib import Path

import psutil

KIND = "PSS" if Path("/proc/self/smaps_rollup").exists() else "RSS"
"""PSS counts shared pages once; where the system does not tell it, RSS."""


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and its descendants; nothing when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def tree_bytes(pid: int) -> int:
    """Bytes that the process and its descendants hold together."""
    return sum(map(process_bytes, process_tree(pid)))


def process_bytes(process: psutil.Process) -> int:
    """Bytes that one process holds; 0 when it is gone."""
    try:
        if KIND == "RSS":
            return int(process.memory_info().rss)
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, psutil.Error):
        return 0  # it ended while we looked
