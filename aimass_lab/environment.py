"""What a measurement holds for: device, software, and how much other work the machine was doing."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .readings.base import Sources
from .records import Environment, Note
from .units import format_share

if TYPE_CHECKING:
    import torch

NOISY_FOREIGN_SHARE = 0.1
"""A measurement during which other processes, and the host of a virtual machine, took more than this share of our cores is marked noisy."""

NOISY_PRESSURE = 0.2
"""So is one in which tasks waited for a core for more than this share of the time."""


@functools.cache
def usable_cores() -> float:
    """Cores this process may use: CPU affinity and the container's quota respected."""
    from .readings.cgroup import cpu_group

    affinity = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    group = cpu_group(Sources())
    return affinity if group is None or group.limit_cores is None else min(affinity, group.limit_cores)


@functools.cache
def usable_memory_bytes() -> int:
    """Memory this process may use: the container's limit where it is below the machine's."""
    import psutil

    from .readings.cgroup import memory_group

    total = int(psutil.virtual_memory().total)
    group = memory_group(Sources())
    return total if group is None or group.limit_bytes is None else min(total, group.limit_bytes)


@functools.cache
def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, from NVML or from ``nvidia-smi``; None where neither is there."""
    from .readings.nvml import driver_version

    version = driver_version()
    if version is not None:
        return version
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer else None


def read_environment(device: torch.device, *, load: LoadMeter | None = None) -> Environment:
    """Describe the machine as this process sees it.

    Args:
        device: The torch device that was measured.
        load: What was read of the machine's load during the measurement.
    """
    import torch

    driver = cuda = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, int(properties.total_memory)
        driver, cuda = nvidia_driver(), torch.version.cuda
    else:
        name, memory = _processor_name(), usable_memory_bytes()
    return Environment(
        device=str(device) if device.type != "cuda" or device.index is not None else f"cuda:{torch.cuda.current_device()}",
        device_name=name,
        driver=driver,
        cuda=cuda,
        memory_bytes=memory,
        cpu_cores=usable_cores(),
        threads=torch.get_num_threads(),
        clock_hz=_clock_hz(device),
        python=platform.python_version(),
        torch=str(torch.__version__),  # a subclass of str, which JSON encoders refuse
        platform=platform.platform(),
        foreign_cores=load.foreign_cores if load else None,
        cpu_pressure=load.pressure if load else None,
        cpu_steal=load.stolen if load else None,
        taken_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _clock_hz(device: torch.device) -> float | None:
    """Of the device that was measured, now."""
    if device.type == "cuda":
        import torch

        try:
            return torch.cuda.clock_rate(device) * 1e6
        except Exception:  # NVML's own errors, and what torch raises where it is not installed
            return None
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return frequency.current * 1e6 if frequency and frequency.current else None


class Clocks(NamedTuple):
    """Seconds so far; processor time is that of the cores that this process may use."""

    wall: float
    busy: float
    """In which somebody on this machine ran."""
    own: float
    """Of them ours, and of our children."""
    stolen: float
    """In which a virtual machine had something to run and its host ran something else."""


class LoadMeter:
    """Reads how many cores others keep busy while a block runs, and for how long tasks waited for one.

    ``foreign_cores`` is None where the operating system does not tell (anything but Linux), ``pressure``
    where the kernel does not count it (`Documentation/accounting/psi.rst` of Linux), ``stolen``, a share of our cores, where
    nothing tells either; it is 0 where no host shares the processor (`steal` in `proc(5)`).
    """

    foreign_cores: float | None = None
    pressure: float | None = None
    stolen: float | None = None

    def __enter__(self) -> LoadMeter:
        self._start = self._read()
        self._waited_start = (time.perf_counter(), self._read_waited())
        return self

    def __exit__(self, *exc: object) -> None:
        self.update()

    def update(self) -> None:
        """Read the load since the block began."""
        end = self._read()
        began, waited_before = self._waited_start
        waited, wall_s = self._read_waited(), time.perf_counter() - began
        if waited is not None and waited_before is not None and wall_s > 0.2:
            self.pressure = min(1.0, (waited - waited_before) / wall_s)
        if self._start and end:
            passed = Clocks(*(after - before for after, before in zip(end, self._start, strict=True)))
            # Shorter than a few clock ticks of the kernel's accounting, the difference is rounding.
            long_enough = passed.wall > 0.2
            self.foreign_cores = max(0.0, passed.busy - passed.own) / passed.wall if long_enough else None
            self.stolen = min(1.0, passed.stolen / (passed.wall * usable_cores())) if long_enough else None

    @staticmethod
    def _read() -> Clocks | None:
        try:
            lines = Path("/proc/stat").read_text().splitlines()
            # Only the cores this process may use: what runs on the others takes nothing from it.
            cores = {f"cpu{i}" for i in os.sched_getaffinity(0)}
            fields = [[int(x) for x in words[1:9]] for words in map(str.split, lines) if words and words[0] in cores]
        except (OSError, ValueError, AttributeError):
            return None
        own, tick = os.times(), os.sysconf("SC_CLK_TCK")
        # user, nice, system, idle, iowait, irq, softirq, steal
        busy = sum(sum(ticks[:3]) + sum(ticks[5:7]) for ticks in fields) / tick
        return Clocks(time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system, sum(t[7] for t in fields) / tick)

    @staticmethod
    def _read_waited() -> float | None:
        """Seconds so far in which some task waited for a core: of our control group, else of the machine."""
        try:
            group = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
            own = Path("/sys/fs/cgroup") / group.lstrip("/") / "cpu.pressure"
            if not own.exists() and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
                return None  # what waits on the machine's other cores is not in our way
            line = (own if own.exists() else Path("/proc/pressure/cpu")).read_text().splitlines()[0]
            return int(line.rpartition("total=")[2]) / 1e6
        except (OSError, StopIteration, ValueError, IndexError, AttributeError):
            return None

    @property
    def crowded(self) -> bool:
        """Whether others kept cores busy, on this machine or on its host; their own threads waiting for each other is not in it."""
        return (self.foreign_cores or 0.0) + (self.stolen or 0.0) * usable_cores() > NOISY_FOREIGN_SHARE * usable_cores()

    @property
    def robbed(self) -> bool:
        """Whether the host took so much that processor time should not be trusted either: not every virtual machine leaves it out of that."""
        return self.stolen is not None and self.stolen > NOISY_FOREIGN_SHARE

    @property
    def noisy(self) -> bool:
        """Whether others took so much that the figures should not be trusted."""
        return self.crowded or (self.pressure is not None and self.pressure > NOISY_PRESSURE)

    @property
    def reasons(self) -> str:
        """What disturbed the measurement, in words; empty on a quiet machine."""
        if not self.noisy:
            return ""
        seen = []
        if self.foreign_cores is not None:
            seen.append(f"other processes kept {self.foreign_cores:.1f} of {usable_cores():g} cores busy")
        if self.pressure is not None:
            seen.append(f"tasks waited for a core {format_share(self.pressure)} of the time")
        if self.stolen is not None and self.stolen >= 0.01:
            seen.append(f"the host took {format_share(self.stolen)} of the processor")
        return " and ".join(filter(None, (", ".join(seen[:-1]), *seen[-1:])))

    def notes(self) -> tuple[Note, ...]:
        """A warning when the machine was busy with other work."""
        return (Note(code="W-NOISY", text=f"while measuring, {self.reasons}; repeat on a quiet machine"),) if self.noisy else ()
