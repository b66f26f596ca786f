"""Time by module, through hooks that belong to no module, so that the model's own stay as they are."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..records import ModuleTime, Number, Quality, derived
from ..timing import percentile
from ..units import format_count


@dataclass
class Span:
    """One call of one module."""

    module: nn.Module
    parent: int | None
    """Position of the enclosing call in the list of spans."""
    start: Any
    end: Any = None


@dataclass
class Times:
    """Seconds of one module over one call of the model."""

    calls: int = 0
    total_s: float = 0.0
    self_s: float = 0.0


class ModuleTimer:
    """While active, notes when each module that this thread calls starts and ends.

    On a GPU the marks are events in its stream, so a module's time is that of its kernels.
    """

    def __init__(self, device: torch.device) -> None:
        self.spans: list[Span] = []
        self._device = device
        self._open: list[int] = []
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleTimer:
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        self._handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True)]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self.spans.append(Span(module, self._open[-1] if self._open else None, None))
        self._open.append(len(self.spans) - 1)
        self.spans[-1].start = self._now()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Must return None: a hook's return value would replace the module's output.
        if threading.get_ident() == self._thread and self._open:
            self.spans[self._open.pop()].end = self._now()

    def elapsed(self, span: Span) -> float:
        """Seconds between a span's marks; 0 for one that never ended."""
        if span.end is None:
            return 0.0
        return float(span.start.elapsed_time(span.end) / 1e3) if self._device.type == "cuda" else float(span.end - span.start)

    def totals(self) -> dict[int, Times]:
        """Times of every module, by the module's id; a module inside itself counts its total once."""
        seconds = [self.elapsed(span) for span in self.spans]
        own = list(seconds)
        for i, span in enumerate(self.spans):
            if span.parent is not None:
                own[span.parent] -= seconds[i]
        times: dict[int, Times] = defaultdict(Times)
        for i, span in enumerate(self.spans):
            entry = times[id(span.module)]
            entry.calls += 1
            entry.self_s += max(0.0, own[i])
            if not self._within_itself(span):
                entry.total_s += seconds[i]
        return dict(times)

    def _within_itself(self, span: Span) -> bool:
        parent = span.parent
        while parent is not None:
            if self.spans[parent].module is span.module:
                return True
            parent = self.spans[parent].parent
        return False

    @property
    def roots(self) -> list[Span]:
        """Calls that no other module made."""
        return [span for span in self.spans if span.parent is None]


def time_modules(
    names: dict[int, tuple[str, str]], rounds: Sequence[dict[int, Times]], *, whole: Number, environment: str, quality: Quality
) -> tuple[ModuleTime, ...]:
    """Turn the times of one or several rounds into records, the module with the largest own time first.

    Args:
        names: Dotted path and class name by the module's id.
        rounds: What `ModuleTimer.totals` gave, once per call of the model.
        whole: Time of the whole call or cell, for the shares.
        environment: Id of the environment.
        quality: Of every number.
    """

    def number(values: list[float], what: str) -> Number:
        return Number(
            value=percentile(values, 50), unit="s", source="measured", method=f"{what}, median of {format_count(len(values), 'call')} with hooks",
            interval=(min(values), max(values)), interval_kind="smallest and largest", n=len(values), environment=environment, quality=quality,
        )  # fmt: skip

    found = []
    for key, (name, kind) in names.items():
        seen = [times[key] for times in rounds if key in times]
        if not seen:
            continue
        own = number([t.self_s for t in seen], "time without submodules")
        share = own.value / whole.value if whole.value > 0 else 0.0
        found.append(
            ModuleTime(
                name=name,
                type=kind,
                calls=max(t.calls for t in seen),
                total_time=number([t.total_s for t in seen], "time with submodules"),
                self_time=own,
                share=derived(share, "ratio", "own time over the whole", [("self_time", own), ("whole", whole)]),
            )
        )
    return tuple(sorted(found, key=lambda m: -m.self_time.value))
