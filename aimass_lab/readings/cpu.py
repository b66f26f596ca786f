"""The processor: busy cores of the machine, the container and this process, clocks, power, pressure."""

from __future__ import annotations

import os
from pathlib import Path

from ..records import CpuReading, Number
from .base import Reasons, Sources, measured, why_unreadable
from .cgroup import cpu_group
from .energy import cpu_counters, energy_difference, read_counter


class CpuReader:
    """Reads the processor; its rates are means since the last reading, or since it was made."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._name = _processor_name(sources.proc)
        found = cpu_counters(sources)
        self._counters = () if isinstance(found, str) else found
        self._why_no_power = found if isinstance(found, str) else ""
        self._ignored = Reasons()
        self._cores = self._core_ticks(self._ignored)
        self._own = self._own_ticks(self._ignored)
        self._group = cpu_group(sources)
        self._energy = [read_counter(counter) for counter in self._counters]

    def read(self, elapsed_s: float, reasons: Reasons) -> CpuReading:
        """Read it now.

        Args:
            elapsed_s: Seconds since the last reading.
            reasons: Where to say what is missing.
        """
        allowed = _allowed_cores(self._sources.proc)
        cores, self._cores = self._cores, self._core_ticks(reasons)
        shares = {core: _shares(cores[core], now) for core, now in self._cores.items() if core in cores}
        ours = [core for core in sorted(shares) if not allowed or core in allowed]
        own, self._own = self._own, self._own_ticks(reasons)
        process = None if own is None or self._own is None else (self._own - own) / self._ticks_per_s / elapsed_s
        container, throttled, limit = self._read_group(elapsed_s, reasons)
        affinity = float(len(allowed) or os.cpu_count() or 1)
        return CpuReading(
            name=self._name,
            usable_cores=measured(affinity if limit is None else min(affinity, limit), "core", "affinity of this process and quota of its container"),
            machine=measured(sum(busy for busy, _ in shares.values()), "core", "/proc/stat, all cores") if shares else None,
            process=None if process is None else measured(process, "core", f"/proc/self/stat, in ticks of {1000 / self._ticks_per_s:g} ms"),
            container=container,
            cores=tuple(round(shares[core][0], 4) for core in ours),
            load_1min=_load(self._sources.proc, reasons),
            frequency=_frequency(self._sources, allowed, reasons),
            power=self._power(elapsed_s, reasons),
            stalled=stalled(self._sources, "cpu", reasons),
            throttled=throttled,
            stolen=measured(sum(shares[core][1] for core in ours) / len(ours), "ratio", "/proc/stat, steal of the cores of this process") if ours else None,
        )

    def _core_ticks(self, reasons: Reasons) -> dict[int, tuple[int, int, int]]:
        """Busy, stolen and all ticks of each core."""
        path = self._sources.proc / "stat"
        found = {}
        try:
            for words in map(str.split, path.read_text().splitlines()):
                if words and words[0].startswith("cpu") and words[0] != "cpu":
                    ticks = [int(word) for word in words[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
                    found[int(words[0][3:])] = (sum(ticks[:3]) + sum(ticks[5:7]), ticks[7], sum(ticks))
        except (OSError, ValueError, IndexError) as error:
            for what in ("cpu.machine", "cpu.stolen"):
                reasons.add(what, why_unreadable(error, path))
        return found

    def _own_ticks(self, reasons: Reasons) -> int | None:
        path = self._sources.proc / "self" / "stat"
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold blanks
            return int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of proc(5)
        except (OSError, ValueError, IndexError) as error:
            reasons.add("cpu.process", why_unreadable(error, path))
            return None

    def _read_group(self, elapsed_s: float, reasons: Reasons) -> tuple[Number | None, Number | None, float | None]:
        """Cores that the container used, share of the time it was held back, and its quota in cores."""
        before, now = self._group, cpu_group(self._sources)
        self._group = now
        if before is None or now is None:
            for what in ("cpu.container", "cpu.throttled"):
                reasons.add(what, "this process is in no control group that counts processor time")
            return None, None, None
        used = throttled = None
        if before.used_s is None or now.used_s is None:
            reasons.add("cpu.container", "the control group of this process does not count processor time")
        else:
            used = measured(max(0.0, now.used_s - before.used_s) / elapsed_s, "core", "control group of this process")
        if now.limit_cores is None:
            reasons.add("cpu.throttled", "no quota holds this process back")
        elif before.throttled_s is not None and now.throttled_s is not None:
            share = min(1.0, max(0.0, now.throttled_s - before.throttled_s) / elapsed_s)
            throttled = measured(share, "ratio", f"control group with a quota of {now.limit_cores:g} cores")
        else:
            reasons.add("cpu.throttled", "the control group does not say how long its quota held it back")
        return used, throttled, now.limit_cores

    def _power(self, elapsed_s: float, reasons: Reasons) -> Number | None:
        before, self._energy = self._energy, [read_counter(counter) for counter in self._counters]
        why = self._why_no_power or next((value for value in self._energy if isinstance(value, str)), None)
        if why is not None:
            reasons.add("cpu.power", why)
            return None
        joules = 0.0
        for counter, first, last in zip(self._counters, before, self._energy, strict=True):
            if isinstance(first, str) or isinstance(last, str):
                reasons.add("cpu.power", "the energy counter became readable only now")
                return None
            joules += energy_difference(first, last, counter.range_j)
        return measured(joules / elapsed_s, "W", f"RAPL {' + '.join(counter.name for counter in self._counters)}, mean")


def stalled(sources: Sources, resource: str, reasons: Reasons) -> Number | None:
    """Share of the last ten seconds in which some task of the machine waited for `resource` (pressure stall information).

    Args:
        sources: Where to read.
        resource: ``"cpu"``, ``"memory"`` or ``"io"``.
        reasons: Where to say what is missing.
    """
    path = sources.proc / "pressure" / resource
    try:
        line = next(line for line in path.read_text().splitlines() if line.startswith("some"))
        percent = float(line.split("avg10=")[1].split()[0])
    except (OSError, ValueError, IndexError, StopIteration) as error:
        why = "this kernel keeps no pressure stall information" if isinstance(error, OSError) else f"{path} has an unknown form"
        reasons.add(f"{'storage' if resource == 'io' else resource}.stalled", why)
        return None
    return measured(percent / 100, "ratio", f"/proc/pressure/{resource}, some, mean of 10 s")


def _shares(before: tuple[int, int, int], now: tuple[int, int, int]) -> tuple[float, float]:
    """Busy and stolen, of all."""
    ticks = now[2] - before[2]
    busy, stolen = (min(1.0, max(0.0, (after - first) / ticks)) if ticks > 0 else 0.0 for after, first in zip(now[:2], before[:2], strict=True))
    return busy, stolen


def _load(proc: Path, reasons: Reasons) -> Number | None:
    path = proc / "loadavg"
    try:
        return measured(float(path.read_text().split()[0]), "ratio", "/proc/loadavg, tasks, mean of 1 min")
    except (OSError, ValueError, IndexError) as error:
        reasons.add("cpu.load_1min", why_unreadable(error, path))
        return None


def _allowed_cores(proc: Path) -> set[int]:
    """Numbers of the cores that this process may use; empty where the kernel does not tell."""
    try:
        line = next(line for line in (proc / "self" / "status").read_text().splitlines() if line.startswith("Cpus_allowed_list:"))
        spans = [span.partition("-") for span in line.split(":", 1)[1].strip().split(",")]
        return {core for first, _, last in spans for core in range(int(first), int(last or first) + 1)}
    except (OSError, ValueError, StopIteration):
        return set()


def _frequency(sources: Sources, allowed: set[int], reasons: Reasons) -> Number | None:
    """Mean clock of the cores that this process may use."""
    folder = sources.sys / "devices" / "system" / "cpu"
    found = []
    for core in sorted(allowed):
        try:
            found.append(int((folder / f"cpu{core}" / "cpufreq" / "scaling_cur_freq").read_text()) * 1e3)
        except (OSError, ValueError):
            continue
    if found:
        return measured(sum(found) / len(found), "Hz", f"cpufreq, mean of {len(found)} core(s)")
    clocks = [float(value) * 1e6 for name, value in _cpuinfo(sources.proc) if name == "cpu MHz"]
    if clocks:
        return measured(sum(clocks) / len(clocks), "Hz", f"/proc/cpuinfo, mean of {len(clocks)} core(s)")
    reasons.add("cpu.frequency", "the kernel does not tell the clock, as in most virtual machines")
    return None


def _cpuinfo(proc: Path) -> list[tuple[str, str]]:
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _processor_name(proc: Path) -> str:
    return next((value for name, value in _cpuinfo(proc) if name in ("model name", "Model")), "unknown processor")
