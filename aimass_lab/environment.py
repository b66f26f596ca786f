"""What a measurement holds for: device, software, and how much other work the machine was doing."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .records import Environment, Note

if TYPE_CHECKING:
    import torch

NOISY_FOREIGN_SHARE = 0.1
"""A measurement during which other processes took more than this share of our cores is marked noisy."""


@functools.cache
def usable_cores() -> float:
    """Cores this process may use: CPU affinity and the container's quota (cgroup v2 ``cpu.max``) respected."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max")
    if quota and quota[0] != "max":
        return min(float(affinity), int(quota[0]) / int(quota[1]))
    return float(affinity)


@functools.cache
def usable_memory_bytes() -> int:
    """Memory this process may use: the container's limit (cgroup v2 ``memory.max``) where it is below the machine's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = _cgroup("memory.max")
    return min(total, int(limit[0])) if limit and limit[0] != "max" else total


def _cgroup(name: str) -> list[str] | None:
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / line[3:].lstrip("/")
        for candidate in (folder, Path("/sys/fs/cgroup")):
            if (candidate / name).exists():
                return (candidate / name).read_text().split()
    except (OSError, StopIteration):
        pass
    return None


@functools.cache
def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def read_environment(device: torch.device, *, foreign_cores: float | None = None) -> Environment:
    """Describe the machine as this process sees it.

    Args:
        device: The torch device that was measured.
        foreign_cores: What `LoadMeter` read during the measurement.
    """
    import torch

    driver = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, int(properties.total_memory)
        driver = f"CUDA {torch.version.cuda}"
    else:
        name, memory = _processor_name(), usable_memory_bytes()
    return Environment(
        device=str(device) if device.type != "cuda" or device.index is not None else f"cuda:{torch.cuda.current_device()}",
        device_name=name,
        driver=driver,
        memory_bytes=memory,
        cpu_cores=usable_cores(),
        threads=torch.get_num_threads(),
        clock_hz=_clock_hz(),
        python=platform.python_version(),
        torch=str(torch.__version__),  # a subclass of str, which JSON encoders refuse
        platform=platform.platform(),
        foreign_cores=foreign_cores,
        taken_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _clock_hz() -> float | None:
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return frequency.current * 1e6 if frequency and frequency.current else None


class LoadMeter:
    """Reads how many cores other processes keep busy while a block runs.

    ``foreign_cores`` is None where the operating system does not tell (anything but Linux).
    """

    foreign_cores: float | None = None

    def __enter__(self) -> LoadMeter:
        self._start = self._read()
        return self

    def __exit__(self, *exc: object) -> None:
        end = self._read()
        if self._start and end:
            wall, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
            # Shorter than a few clock ticks of the kernel's accounting, the difference is rounding.
            self.foreign_cores = max(0.0, busy - own) / wall if wall > 0.2 else None

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            lines = Path("/proc/stat").read_text().splitlines()
            # Only the cores this process may use: what runs on the others takes nothing from it.
            cores = {f"cpu{i}" for i in os.sched_getaffinity(0)}
            fields = [[int(x) for x in words[1:9]] for words in map(str.split, lines) if words and words[0] in cores]
        except (OSError, ValueError, AttributeError):
            return None
        own = os.times()
        # user, nice, system, idle, iowait, irq, softirq, steal
        busy = sum(sum(ticks) - ticks[3] - ticks[4] for ticks in fields) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system

    @property
    def noisy(self) -> bool:
        """Whether other work took so much that the figures should not be trusted."""
        return self.foreign_cores is not None and self.foreign_cores > NOISY_FOREIGN_SHARE * usable_cores()

    def notes(self) -> tuple[Note, ...]:
        """A warning when the machine was busy with other work."""
        if not self.noisy:
            return ()
        text = f"other processes kept {self.foreign_cores:.1f} of {usable_cores():g} cores busy while measuring; repeat on a quiet machine"
        return (Note(code="W-NOISY", text=text),)
