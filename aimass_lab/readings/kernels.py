"""What processes and their children take of the machine: for a Jupyter server, one entry for each of its kernels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from ..records import GpuHolder, GpuMemory, GpuProcess, Number, Readings, Unit
from .base import Reasons, measured
from .nvml import NAMES

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

    def read(self, pid: int) -> tuple[frozenset[int], Number | None, Number | None]:
        """The process and its descendants, cores kept busy, bytes of memory; nobody, None and None when it has ended."""
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return frozenset(), None, None
        cpu = self._cores(pid, tree)
        if pid not in self._memory or self._looks % SHARED_EVERY == 0:
            self._memory[pid] = _memory(tree)
        return frozenset(process.pid for process in tree), cpu, self._memory[pid]

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


def gpu_use(tree: frozenset[int], readings: Readings, reasons: Reasons) -> tuple[Number | None, Number | None]:
    """Bytes and utilisation of a process tree on all GPUs, by the driver's list of processes."""
    if not readings.gpus:
        return None, None
    unknown = next((note.text for note in readings.notes if note.code == f"missing:{NAMES}"), None)
    if unknown is not None:
        reasons.add("kernel.gpu", f"what a kernel takes of the GPU is not known: {unknown}")
        return None, None
    mine = [process for gpu in readings.gpus for process in gpu.processes if process.pid in tree]
    how = f"the driver's account of {len(mine)} process(es)"
    return _sum([process.memory_bytes for process in mine], "B", how), _sum([process.utilization for process in mine], "ratio", how)


def gpu_memory(readings: Readings, kernels: Mapping[str, tuple[str, frozenset[int]]]) -> tuple[GpuMemory, ...]:
    """Whose memory each GPU's is.

    Args:
        readings: Of the machine.
        kernels: Id of a kernel -> what it is called, and its process with its descendants.
    """
    told_apart = all(note.code != f"missing:{NAMES}" for note in readings.notes)
    owners = {pid: kernel_id for kernel_id, (_, tree) in kernels.items() for pid in tree} if told_apart else {}
    found = []
    for gpu in readings.gpus:
        used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
        if (
            used is None
            or total is None
            or (gpu.mig_instance is None and any(other.mig_instance is not None and other.index == gpu.index for other in readings.gpus))
        ):
            continue  # of a divided GPU the instances are shown, which share its memory out among them
        by_owner: dict[str | int, list[GpuProcess]] = {}
        for process in gpu.processes:
            by_owner.setdefault(owners.get(process.pid, process.pid), []).append(process)
        holders = [_holder(owner, processes, kernels) for owner, processes in by_owner.items()]
        held = sum(holder.memory_bytes.value for holder in holders if holder.memory_bytes is not None)
        rest = measured(max(0.0, used.value - held), "B", "the driver's used memory, less what it says of the listed processes")
        found.append(
            GpuMemory(
                index=gpu.index, mig_instance=gpu.mig_instance, uuid=gpu.uuid, rest_bytes=rest,
                holders=tuple(sorted(holders, key=lambda one: -(one.memory_bytes.value if one.memory_bytes else 0.0))),
                free_bytes=measured(total.value - used.value, "B", "the driver"),
            )
        )  # fmt: skip
    return tuple(found)


def _holder(owner: str | int, processes: Sequence[GpuProcess], kernels: Mapping[str, tuple[str, frozenset[int]]]) -> GpuHolder:
    how = f"the driver's account of {len(processes)} process(es)"
    return GpuHolder(
        kernel_id=owner if isinstance(owner, str) else None,
        name=kernels[owner][0] if isinstance(owner, str) else processes[0].name or f"process {owner}",
        pids=tuple(process.pid for process in processes),
        memory_bytes=_sum([process.memory_bytes for process in processes], "B", how),
        utilization=_sum([process.utilization for process in processes if process.utilization is not None], "ratio", how)
        if any(p.utilization for p in processes)
        else None,
    )


def _sum(numbers: Sequence[Number | None], unit: Unit, how: str) -> Number | None:
    """Of what is known; None where some of it is not."""
    known = [number.value for number in numbers if number is not None]
    return measured(sum(known), unit, how) if len(known) == len(numbers) else None
