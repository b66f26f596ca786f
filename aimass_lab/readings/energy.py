"""Energy of a block of code from the counters of the processor (RAPL) or of the GPU's driver (NVML): joules, or a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import Note, Number
from .base import Sources, missing
from .nvml import Nvml, cuda_uuid, open_nvml

RAPL_REFRESH_S = 1e-3
"""How often the processor renews its counters (Intel SDM vol. 3B, §15.10: about every millisecond)."""
NVML_REFRESH_S = 0.1
"""How often the driver renews the board's counter: 20 to 100 ms by generation; the slowest is assumed."""
MAX_PACKAGE_POWER_W = 1000.0
"""No processor package takes more: a block so long that a counter might have wrapped twice is refused."""
MAX_REFRESH_SHARE = 0.2
"""A block must last at least five refreshes of its counter, or its energy is mostly rounding."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """One energy counter."""

    name: str
    """``"package-0"``, ``"dram"``, ``"board"``."""
    read_j: Callable[[], float]
    """Joules since some moment; raises `OSError` or `ValueError`."""
    range_j: float | None = None
    """Where it starts again at 0; None: never."""


class EnergyMeter:
    """Measures the energy that a device takes while a block runs.

    ::

        with EnergyMeter("cuda:0") as meter:
            for _ in range(100): model(x)
            torch.cuda.synchronize()
        meter.joules          # or None, and then meter.note says why
        meter.per_call(100)   # as a Number

    The counters see the whole processor package (with its memory, where there is a counter), or the
    whole GPU board: work of other processes, and what the device takes when idle, is in the figure.

    Args:
        device: ``"cpu"``, ``"cuda:0"`` or torch's object for one.
        sources: Where to read.
        gpu_uuid: The GPU's identity; asked of torch if not given.
        clock: Seconds, monotonic.
    """

    joules: float | None
    """None before the end of the block, and where it cannot be told."""
    note: Note | None
    """Why `joules` is None: code ``"missing:energy"``."""
    elapsed_s: float
    parts: dict[str, float]
    """Joules by counter."""

    def __init__(
        self, device: Any = "cpu", *, sources: Sources | None = None, gpu_uuid: str | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._sources = sources or Sources()
        self._kind = str(device).partition(":")[0]
        self._device = device
        self._uuid = gpu_uuid
        self._clock = clock
        self._session: Nvml | None = None
        self._counters: tuple[Counter, ...] = ()
        self._before: tuple[float, ...] = ()
        self._began_s = 0.0
        self.joules, self.note, self.elapsed_s, self.parts = None, None, 0.0, {}

    def __enter__(self) -> EnergyMeter:
        """Read the counters."""
        self.joules, self.note, self.elapsed_s, self.parts = None, None, 0.0, {}
        found = self._gpu_counters() if self._kind == "cuda" else cpu_counters(self._sources) if self._kind == "cpu" else None
        if found is None:
            found = f"no energy counter is known for the device {self._device}"
        self._counters = () if isinstance(found, str) else found
        if isinstance(found, str):
            self.note = missing("energy", found)
        else:
            self._before = self._read() or ()
        self._began_s = self._clock()
        return self

    def __exit__(self, *exc: object) -> None:
        """Read them again."""
        self.elapsed_s = self._clock() - self._began_s
        after = self._read() if self._before else None
        if self._session is not None:
            self._session.close()
            self._session = None
        if after is None or self.note is not None:
            return
        why = self._why_not_trusted()
        if why:
            self.note = missing("energy", why)
            return
        self.parts = {c.name: energy_difference(b, a, c.range_j) for c, b, a in zip(self._counters, self._before, after, strict=True)}
        self.joules = sum(self.parts.values())

    def per_call(self, num_calls: int = 1) -> Number | None:
        """Joules of each of `num_calls` calls that the block made; None where `joules` is.

        The interval is what the counter's refresh leaves open.
        """
        if self.joules is None:
            return None
        open_share = min(1.0, self._refresh_s / self.elapsed_s)
        value = self.joules / num_calls
        what = "the GPU board" if self._kind == "cuda" else f"RAPL {' + '.join(self.parts)}"
        return Number(
            value=value,
            unit="J",
            source="measured",
            method=f"{what} over {self.elapsed_s:.2f} s, idle power and other processes included",
            interval=(value * (1 - open_share), value * (1 + open_share)),
            interval_kind="counter's refresh",
            n=num_calls,
        )

    @property
    def _refresh_s(self) -> float:
        return NVML_REFRESH_S if self._kind == "cuda" else RAPL_REFRESH_S

    def _why_not_trusted(self) -> str | None:
        if self._refresh_s > MAX_REFRESH_SHARE * self.elapsed_s:
            return f"the block took {1e3 * self.elapsed_s:.3g} ms and the counter is renewed every {1e3 * self._refresh_s:g} ms: measure more calls"
        ranges = [c.range_j for c in self._counters if c.range_j]
        if ranges and self.elapsed_s * MAX_PACKAGE_POWER_W > min(ranges):
            return f"the block took {self.elapsed_s:.0f} s, in which a counter of {min(ranges):.0f} J may have wrapped more than once: measure fewer calls"
        return None

    def _read(self) -> tuple[float, ...] | None:
        try:
            return tuple(counter.read_j() for counter in self._counters)
        except PermissionError as error:
            self.note = missing("energy", _not_permitted(error.filename))
        except (OSError, ValueError) as error:
            self.note = missing("energy", f"the energy counter cannot be read: {error}")
        return None

    def _gpu_counters(self) -> tuple[Counter, ...] | str:
        session = open_nvml(self._sources.nvml)
        if isinstance(session, Note):
            return session.text
        self._session = session
        uuid = self._uuid or cuda_uuid(self._device)
        if uuid is None:
            return "torch does not tell which GPU this is"
        try:
            handle = session.handle(uuid)
        except session.module.NVMLError as error:
            return f"the driver does not know the GPU {uuid}: {error}"
        first = session.energy_j(handle)
        if isinstance(first, str):
            return first

        def read() -> float:
            found = session.energy_j(handle)
            if isinstance(found, str):
                raise ValueError(found)
            return found

        return (Counter(name="board", read_j=read),)


def cpu_counters(sources: Sources) -> tuple[Counter, ...] | str:
    """The counters that together make up the processors and their memory; or why there are none.

    RAPL's *package* zones and the *dram* zones beside them are summed; *core* and *uncore* are parts of a
    package, *psys* contains packages, and ``intel-rapl-mmio`` repeats them. AMD's processors have the same
    zones under the same names; where a kernel offers only the ``amd_energy`` sensors, their sockets are read.
    """
    folder = sources.sys / "class" / "powercap"
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if (zone / "energy_uj").exists()]
    counters: list[Counter] = []
    for zone in zones:
        name = _text(zone / "name")
        if name.startswith("package") or name == "dram":
            parent = zone.name.split(":")[1]
            label = name if name.startswith("package") else f"dram-{parent}"
            counters.append(Counter(name=label, read_j=_micro_joules(zone / "energy_uj"), range_j=_range_j(zone)))
    if counters:
        return tuple(counters)
    sockets = _amd_sockets(sources)
    if sockets:
        return sockets
    return f"this machine shows no energy counter: {folder} has no RAPL package; virtual machines hide it"


def read_counter(counter: Counter) -> float | str:
    """Joules of one counter; or why it cannot be read."""
    try:
        return counter.read_j()
    except PermissionError as error:
        return _not_permitted(error.filename)
    except (OSError, ValueError) as error:
        return f"the energy counter cannot be read: {error}"


def _amd_sockets(sources: Sources) -> tuple[Counter, ...]:
    counters = []
    for sensor in sorted((sources.sys / "class" / "hwmon").glob("hwmon*")):
        if _text(sensor / "name") != "amd_energy":
            continue
        for label in sorted(sensor.glob("energy*_label")):
            if _text(label).startswith("Esocket"):
                value = label.with_name(label.name.replace("_label", "_input"))
                counters.append(Counter(name=_text(label).removeprefix("E"), read_j=_micro_joules(value)))
    return tuple(counters)


def _micro_joules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _range_j(zone: Path) -> float | None:
    text = _text(zone / "max_energy_range_uj")
    return int(text) / 1e6 if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _not_permitted(path: str | None) -> str:
    return f"reading {path} is not permitted: since 2020 Linux shows it to administrators only (CVE-2020-8694); one can allow it with chmod a+r"


def energy_difference(before_j: float, after_j: float, range_j: float | None) -> float:
    """Joules between two readings of a counter that starts again at 0 after `range_j`."""
    if after_j >= before_j or range_j is None:
        return after_j - before_j
    return after_j - before_j + range_j
