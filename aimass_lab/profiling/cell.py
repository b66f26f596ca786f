"""Profile of a piece of code that runs once, such as a notebook cell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from ..environment import LoadMeter, read_environment
from ..records import CellProfile, Note, Number, Quality
from .memory import reset_resident_peak
from .modules import ModuleTimer, time_modules

SAMPLE_EVERY_S = 0.01


class _ResidentPeak(threading.Thread):
    """Watches the process's resident memory until told to stop.

    The operating system remembers the highest moment, on Linux since it was last told to begin anew, elsewhere of the
    process's whole life; where it remembers an older one, a peak between two looks is missed.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="aimass-resident-peak")
        import psutil

        self._process = psutil.Process()
        self._stop_asked = threading.Event()
        self._reset = reset_resident_peak()
        self.before = self.highest = self._resident()
        self._mark_before = _high_water_mark()

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)

    def run(self) -> None:
        while not self._stop_asked.wait(SAMPLE_EVERY_S):
            self.highest = max(self.highest, self._resident())

    def finish(self) -> int:
        """Stop watching; return the bytes resident now."""
        self._stop_asked.set()
        self.join()
        now = self._resident()
        mark = _high_water_mark()
        self.exact = self._reset or mark > self._mark_before
        self.highest = max(self.highest, now, mark if self.exact else 0)
        return now


def _high_water_mark() -> int:
    try:
        import resource
    except ImportError:  # not a Unix: sampling alone
        return 0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def profile_callable(function: Callable[[], Any], *, label: str) -> CellProfile:
    """Run `function` exactly once and write down what it took.

    An exception, an interrupt included, ends the measurement and stands in `CellProfile.raised`; it is
    for the caller to raise it again. The caller keeps the function's result, if it wants it.

    Args:
        function: What to run.
        label: What to call it in the notes: ``"cell [7]"``.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() and torch.cuda.is_initialized() else torch.device("cpu")
    timer, watcher, load = ModuleTimer(device), _ResidentPeak(), LoadMeter()
    raised: str | None = None
    watcher.start()
    with load:
        cpu_start, start = time.process_time(), time.perf_counter()
        try:
            with timer:
                function()
        except BaseException as error:  # whatever ended it is part of the answer
            raised = f"{type(error).__name__}: {error}".rstrip(": ")
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    resident = watcher.finish()
    environment = read_environment(device, load=load)
    quality: Quality = "noisy" if load.noisy else "ok"

    def number(value: float, unit: Any, method: str) -> Number:
        return Number(value=value, unit=unit, source="measured", method=method, n=1, environment=environment.id, quality=quality)

    wall = number(wall_s, "s", f"wall clock around {label}, run once with module hooks")
    modules = time_modules(_names(timer), [timer.totals()], whole=wall, environment=environment.id, quality=quality)
    inside_s = min(wall_s, sum(timer.elapsed(span) for span in timer.roots))
    how = "high-water mark of the operating system" if watcher.exact else f"highest of readings every {SAMPLE_EVERY_S * 1e3:g} ms"
    return CellProfile(
        environment=environment,
        wall_time=wall,
        cpu_time=number(cpu_s, "s", "processor time of all threads of this process"),
        peak_memory_bytes=number(watcher.highest, "B", f"resident memory of the process: {how}"),
        memory_growth_bytes=number(resident - watcher.before, "B", "resident memory after less before"),
        modules=modules,
        outside_modules=number(wall_s - inside_s, "s", "wall clock less the calls of models"),
        raised=raised,
        notes=(*load.notes(), *_notes(label, timer, raised)),
    )


def _notes(label: str, timer: ModuleTimer, raised: str | None) -> list[Note]:
    notes = []
    if raised is not None:
        notes.append(Note(code="W-RAISED", text=f"{label} ended early with {raised}; the figures cover what ran until then"))
    if not timer.spans:
        notes.append(Note(code="missing:modules", text=f"{label} called no torch module on this thread"))
    return notes


def _names(timer: ModuleTimer) -> dict[int, tuple[str, str]]:
    """Name every module that was called: its root's class, then its dotted path there."""
    names: dict[int, tuple[str, str]] = {}
    used: dict[str, int] = {}
    for root in {id(span.module): span.module for span in timer.roots}.values():
        kind = type(root).__name__
        used[kind] = used.get(kind, 0) + 1
        prefix = kind if used[kind] == 1 else f"{kind}#{used[kind]}"
        for path, module in root.named_modules():
            names.setdefault(id(module), (f"{prefix}.{path}" if path else prefix, type(module).__name__))
    for span in timer.spans:  # modules that no root holds as its own
        kind = type(span.module).__name__
        names.setdefault(id(span.module), (kind, kind))
    return names
