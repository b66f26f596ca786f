"""Memory of a process tree during a load, and how much of the machine other work took meanwhile, and when."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .load import LOAD_THREAD, LoadResult
from .memory import process_bytes, process_tree
from .tensors import Array

LOOK_EVERY_S = 1.0
"""Which processes there are, and what they hold, takes milliseconds to find out, in which this process sends nothing and theirs cannot get memory."""


@dataclass(frozen=True)
class Disturbance:
    """What other work took during a stretch of time."""

    foreign_cores: float
    """Cores that other processes kept busy, on average."""
    stolen_cores: float
    """Cores that the host of a virtual machine took away meanwhile, on average."""
    ends: Array
    """Ends of the slices that were looked at, by `time.perf_counter`; the first entry is the beginning of the first slice."""
    stalls_s: Array
    """By slice: the most by which other work can have held us up. That is the processor time that it took, and no more than
    the threads of the server and that of the load waited for a processor, where the system tells that; and what the host took,
    which the system counts as nobody's waiting."""

    @property
    def taken_cores(self) -> float:
        """Cores that others had, on this machine or on its host."""
        return self.foreign_cores + self.stolen_cores

    @property
    def words(self) -> str:
        """What others had, of how much."""
        cores = os.cpu_count() or 1
        stolen = f", and the host took {100 * self.stolen_cores / cores:.0f} % of the processor" if self.stolen_cores >= 0.01 * cores else ""
        return f"other work kept {self.foreign_cores:.1f} of {cores} cores busy{stolen}"

    def least_latency(self, result: LoadResult) -> Array:
        """The latencies without all that other work can have added; NaN where there was no answer.

        What held up one request holds up those behind it. So each gets the stalls of every slice from the moment when
        the server last had nothing to do.
        """
        begin = result.began_s + result.sent_s
        end = begin + np.nan_to_num(result.latency_s, nan=0.0)
        before = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]])  # when all earlier requests had their answers
        starts = np.maximum.accumulate(np.where(begin > before, begin, -np.inf))
        total = np.concatenate([[0.0], np.cumsum(self.stalls_s)])
        first = np.clip(np.searchsorted(self.ends, starts, side="right") - 1, 0, len(self.stalls_s))
        last = np.clip(np.searchsorted(self.ends, end, side="left"), 0, len(self.stalls_s))
        least: Array = np.maximum(result.latency_s - np.maximum(total[last] - total[first], 0.0), 0.0)
        return least


class Watch:
    """Reads the clocks of servers' processes, of this process and of the machine.

    Args:
        pids: Of the servers' processes that have started all their others.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._processes: list[psutil.Process] = []
        self._look_at_s = 0.0
        self.peak_bytes = 0
        self._readings: list[tuple[float, float, float | None, float]] = []

    def begin(self) -> None:
        """Start the clocks."""
        self._readings = []
        self._look()
        self.sample()

    def sample(self) -> None:
        """Read the clocks now, and the memory now and then."""
        if time.perf_counter() >= self._look_at_s:
            self._look()
        waited = [waited_s(process.pid) for process in self._processes]
        waited += [waited_s(os.getpid(), thread.native_id) for thread in threading.enumerate() if thread.name == LOAD_THREAD]
        known = None if any(seconds is None for seconds in waited) else sum(seconds or 0.0 for seconds in waited)
        self._readings.append((time.perf_counter(), busy_s() - self._known_s(), known, stolen_s()))

    def end(self) -> Disturbance:
        """What other work took since `begin`."""
        self._look()
        self.sample()
        ends = np.array([reading[0] for reading in self._readings])
        foreign, stolen = (np.diff([reading[i] for reading in self._readings]) for i in (1, 3))
        stalls = np.maximum(foreign, 0.0)
        if all(reading[2] is not None for reading in self._readings):
            stalls = np.minimum(stalls, np.maximum(np.diff(np.array([reading[2] for reading in self._readings], float)), 0.0))
        took_s = float(ends[-1] - ends[0])
        return Disturbance(max(0.0, float(foreign.sum())) / took_s, float(stolen.sum()) / took_s, ends, stalls + stolen)

    def own_s(self) -> float:
        """Processor time of the server and of this process, from their beginnings."""
        self._look()
        return self._known_s()

    def _known_s(self) -> float:
        total = time.process_time()
        for process in self._processes:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def _look(self) -> None:
        """See which processes there are, and what they hold."""
        self._processes = [process for pid in self._pids for process in process_tree(pid)]
        self.peak_bytes = max(self.peak_bytes, sum(map(process_bytes, self._processes)))
        self._look_at_s = time.perf_counter() + LOOK_EVERY_S


def waited_s(pid: int, thread: int | None = None) -> float | None:
    """How long the threads of a process, or one of them, were ready to run and did not; None where the system does not tell."""
    total, tasks = 0, Path(f"/proc/{pid}/task")
    try:
        for task in tasks.iterdir() if thread is None else [tasks / str(thread)]:
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None if Path(f"/proc/{pid}").exists() else 0.0
    return total * 1e-9


def busy_s() -> float:
    """Processor time that anybody used since the machine was started, over all cores."""
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0)
    return sum(times[:8]) - idle - stolen_s(times)


def stolen_s(times: Any = None) -> float:
    """Processor time that the host of a virtual machine took from it since then, over all cores; 0 where nothing tells.

    Args:
        times: What psutil tells of the processor; read now if not given.
    """
    return float(getattr(psutil.cpu_times() if times is None else times, "steal", 0.0))
