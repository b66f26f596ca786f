"""Takes readings: once, again and again, or in the background with a bounded history."""

from __future__ import annotations

import datetime
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from ..errors import InputError
from ..records import Note, Readings
from .base import Reasons, Sources, measured
from .cpu import CpuReader
from .memory import read_memory
from .nvml import Nvml, open_nvml
from .transfer import NetworkReader, StorageReader

SHORTEST_INTERVAL_S = 0.05
"""Below a few ticks of the kernel's accounting, rates are rounding."""


class Sampler:
    """Looks at the machine; rates of each reading are means since the one before, or since it was made.

    Args:
        sources: Where to read.
        unique: Whether to read what only this process holds, which takes the kernel milliseconds.
        clock: Seconds, monotonic.
    """

    def __init__(self, sources: Sources | None = None, *, unique: bool = True, clock: Callable[[], float] = time.perf_counter) -> None:
        self._sources = sources or Sources()
        self._unique = unique
        self._clock = clock
        self._nvml = open_nvml(self._sources.nvml)
        self._cpu = CpuReader(self._sources)
        self._network = NetworkReader(self._sources)
        self._storage = StorageReader(self._sources)
        self._last_s = clock()

    def read(self) -> Readings:
        """Look now."""
        reasons = Reasons()
        now_s = self._clock()
        elapsed_s, self._last_s = max(now_s - self._last_s, 1e-3), now_s
        cpu = self._cpu.read(elapsed_s, reasons)
        network = self._network.read(elapsed_s, reasons)
        storage = self._storage.read(elapsed_s, reasons)
        memory = read_memory(self._sources, reasons, unique=self._unique)
        if isinstance(self._nvml, Nvml):
            gpus, notes = self._nvml.read(since_s=time.time() - elapsed_s, proc=self._sources.proc)  # last, because it waits for the PCIe counters
        else:
            gpus, notes = (), (self._nvml,)
        return Readings(
            taken_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            interval=measured(elapsed_s, "s", "between two looks"),
            cpu=cpu,
            memory=memory,
            gpus=gpus,
            network=network,
            storage=storage,
            notes=(*notes, *reasons.notes),
        )

    def close(self) -> None:
        """End the session with the GPU's driver."""
        if isinstance(self._nvml, Nvml):
            self._nvml.close()
            self._nvml = Note(code="missing:gpu", text="the sampler is closed")


def take_readings(interval_s: float = 0.5, *, sources: Sources | None = None) -> Readings:
    """Look at the machine twice and tell what it does in between.

    Args:
        interval_s: Seconds between the looks, during which this function sleeps.
        sources: Where to read.

    Raises:
        InputError: the interval is too short for rates, or no number.
    """
    _check_interval(interval_s)
    sampler = Sampler(sources)
    try:
        time.sleep(interval_s)
        return sampler.read()
    finally:
        sampler.close()


class Monitor:
    """Takes readings in the background and keeps the newest.

    ::

        with Monitor(interval_s=1.0) as monitor:
            ...
            monitor.latest

    Its thread ends with `stop`, with the ``with`` block, when the monitor is no longer used, and with the process.

    Args:
        interval_s: Seconds from one reading to the next.
        history: Most readings to keep.
        sources: Where to read.
    """

    def __init__(self, interval_s: float = 1.0, *, history: int = 600, sources: Sources | None = None) -> None:
        _check_interval(interval_s)
        if isinstance(history, bool) or not isinstance(history, int) or history < 1:
            raise InputError(f"a history of {history!r} readings cannot be kept", help="give a whole number above 0")
        self.interval_s = interval_s
        self._sources = sources
        self._kept: deque[Readings] = deque(maxlen=history)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether readings are being taken."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def latest(self) -> Readings | None:
        """The newest reading; None before the first."""
        return self._kept[-1] if self._kept else None

    @property
    def history(self) -> tuple[Readings, ...]:
        """What is kept, oldest first."""
        return tuple(self._kept)

    def start(self) -> Monitor:
        """Begin, or go on; returns itself."""
        if not self.running:
            self._end = threading.Event()
            # The thread knows what it fills but not the monitor, so that a forgotten monitor is collected and its thread ends.
            arguments = (Sampler(self._sources, unique=False), self.interval_s, self._kept, self._end)
            self._thread = threading.Thread(target=_sample, args=arguments, name="aimass-readings", daemon=True)
            weakref.finalize(self, self._end.set)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End; what was read stays."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Monitor:
        """Begin."""
        return self.start()

    def __exit__(self, *exc: object) -> None:
        """End."""
        self.stop()


def _sample(sampler: Sampler, interval_s: float, kept: deque[Readings], end: threading.Event) -> None:
    try:
        due_s = time.monotonic() + interval_s
        while not end.wait(max(0.0, due_s - time.monotonic())):
            kept.append(sampler.read())
            due_s = max(due_s + interval_s, time.monotonic())  # never hurry after what a busy machine missed
    finally:
        sampler.close()


def _check_interval(interval_s: float) -> None:
    if not (isinstance(interval_s, (int, float)) and math.isfinite(interval_s) and interval_s >= SHORTEST_INTERVAL_S):
        raise InputError(f"readings every {interval_s!r} s cannot be taken", help=f"give {SHORTEST_INTERVAL_S} s or more")
