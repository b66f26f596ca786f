"""What processes and their children take of the machine: for a Jupyter server, one entry for each of its kernels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psutil

from ..records import GpuReading, Number
from .base import Reasons, measured

SHARED_EVERY = 5
"""The kernel of the operating system walks all pages to divide shared ones among their processes: every so many looks."""


class ProcessTrees:
    """Processor time and memory of process trees; rates are means since the last look at the same tree.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._cpu: dict[int, tuple[float, float]] = {}
        self._memory: dict[int, Number] = {}
        self._looks = 0

    def begin(self, pids: set[int]) -> None:
        """A look begins: forget the trees that are not in it."""
        self._looks += 1
        self._cpu = {pid: seen for pid, seen in self._cpu.items() if pid in pids}
        self._memory = {pid: seen for pid, seen in self._memory.items() if pid in pids}

    def read(self, pid: int) -> tuple[int, Number | None, Number | None]:
        """Number of processes, cores kept busy, bytes of memory; (0, None, None) when it has ended."""
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0, None, None
        cpu = self._cores(pid, tree)
        if pid not in self._memory or self._looks % SHARED_EVERY == 0:
            self._memory[pid] = _memory(tree)
        return len(tree), cpu, self._memory[pid]

    def _cores(self, pid: int, tree: list[psutil.Process]) -> Number | None:
        spent_s = 0.0
        for process in tree:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                spent_s += times.user + times.system
        now_s = self._clock()
        before, self._cpu[pid] = self._cpu.get(pid), (spent_s, now_s)
        if before is None or now_s <= before[1]:
            return None
        # A child that ended took its time along: then the sum falls, and 0 is the best that can be said.
        return measured(max(0.0, spent_s - before[0]) / (now_s - before[1]), "core", "processor time of the process and its children, between two looks")


def _memory(tree: list[psutil.Process]) -> Number:
    """Shared pages count in part, so that the sum over processes is right; where that cannot be read, resident memory."""
    total, whole = 0, 0
    for process in tree:
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss)
            continue
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
            whole += 1
    method = f"proportional set size of {len(tree)} process(es)" + (f", {whole} of them by resident memory" if whole else "")
    return measured(total, "B", method)


def gpu_use(pid: int, gpus: tuple[GpuReading, ...], reasons: Reasons) -> tuple[Number | None, Number | None]:
    """Bytes and utilisation of a process tree on all GPUs, by the driver's list of processes."""
    if not gpus:
        return None, None
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        pids = {pid, *(child.pid for child in root.children(recursive=True))}
        mine = [process for gpu in gpus for process in gpu.processes if process.pid in pids]
        strangers = any(process.name is None for gpu in gpus for process in gpu.processes)
        if not mine and strangers:
            reasons.add("kernel.gpu", "the driver counts processes by numbers of the host, which a container does not see: no kernel can be told apart")
            return None, None
        memory = [process.memory_bytes.value for process in mine if process.memory_bytes is not None]
        shares = [process.utilization.value for process in mine if process.utilization is not None]
        how = f"the driver's account of {len(mine)} process(es)"
        return (
            measured(sum(memory), "B", how) if memory or not mine else None,
            measured(sum(shares), "ratio", how) if shares or not mine else None,
        )
    return None, None
