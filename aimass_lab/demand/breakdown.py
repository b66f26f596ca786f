"""A traced call by operator, by module and by the user's line, each with what limits it on a device."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..prediction.bands import LAUNCH_S
from ..prediction.target import DATASHEET, TargetDevice
from ..profiling.bottleneck import measure_rates
from ..records import Bound, LineDemand, ModuleDemand, Number, OperatorDemand, Unit, derived
from ..tracing.rows import Row, Trace
from ..units import format_share

LIGHT = "no model FLOPs by definition: element-wise, reduction or data movement"


@dataclass(frozen=True)
class Roof:
    """What one device reaches: enough to say what limits a piece of work (Williams, Waterman, Patterson 2009)."""

    flops_per_s: dict[str, Number]
    """By torch's dtype, that of the model first."""
    bytes_per_s: Number
    launch_s: float

    @property
    def peak(self) -> Number:
        """FLOP/s in the model's dtype."""
        return next(iter(self.flops_per_s.values()))

    def seconds(self, row: Row) -> tuple[float, float]:
        """Of arithmetic and of memory traffic."""
        peak = self.flops_per_s.get(row.dtype, self.peak)
        return row.flops / peak.value, (row.bytes_read + row.bytes_written) / self.bytes_per_s.value


def roof_of(target: TargetDevice, dtype: str) -> Roof | None:
    """The rates of a device; None where the catalogue lacks them."""
    if target.attached is not None:
        return _attached_roof(target.attached, dtype, torch.get_num_threads())
    dtype = "float32" if dtype == "none" else dtype
    peaks = {name: _reached(number, DATASHEET.compute[0]) for name, number in (target.entry.flops_per_s if target.entry else {}).items()}
    bandwidth = target.entry.memory_bytes_per_s if target.entry else None
    if dtype not in peaks or bandwidth is None:
        return None
    ordered = {dtype: peaks[dtype], **{str(name): peak for name, peak in peaks.items()}}
    return Roof(ordered, _reached(bandwidth, DATASHEET.memory[0]), LAUNCH_S[0])


def _reached(peak: Number, share: float) -> Number:
    assumed = Number(value=share, unit="ratio", source="assumed", method="share of a datasheet's rate that operators reach")
    return derived(share * peak.value, peak.unit, f"{format_share(share)} of {peak.method}", [("datasheet", peak), ("share", assumed)])


@functools.cache
def _attached_roof(device: torch.device, dtype: str, num_threads: int) -> Roof:
    # Kept even if the machine was busy: what limits an operator follows from the ratio of the rates, which fall together.
    rates = measure_rates(device, getattr(torch, dtype, torch.float32))
    return Roof({dtype: rates.flops_per_s}, rates.memory_bytes_per_s, rates.overhead.value)


@dataclass
class _Sum:
    """What several rows add up to."""

    calls: int = 0
    flops: int = 0
    light_flops: int = 0
    bytes_moved: int = 0
    live_bytes: int = 0
    compute_s: float = 0.0
    memory_s: float = 0.0
    seconds: float = 0.0
    unknown: bool = False

    def add(self, row: Row, roofs: tuple[float, float] | None, seconds: float) -> None:
        self.calls += 1
        self.flops += row.flops
        self.light_flops += row.light_flops
        self.bytes_moved += row.bytes_read + row.bytes_written
        self.live_bytes = max(self.live_bytes, row.live_bytes)
        self.unknown = self.unknown or row.kind == "unknown"
        self.seconds += seconds
        if roofs is not None:
            arithmetic, traffic = roofs
            self.compute_s += arithmetic if arithmetic >= traffic else 0.0
            self.memory_s += traffic if traffic > arithmetic else 0.0


@dataclass(frozen=True)
class Breakdown:
    """The tables of one trace.

    Args:
        trace: The call.
        roof: Of the device that limits are about; None leaves them out.
        seconds: Of every row on that device, for the shares of time; None leaves them out.
        how: How FLOPs and bytes were counted, in a few words.
    """

    trace: Trace
    roof: Roof | None
    seconds: Sequence[float] | None
    how: str
    _operators: dict[str, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    _modules: dict[str, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    _lines: dict[str, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    _whole: _Sum = field(default_factory=_Sum)

    def __post_init__(self) -> None:
        for row, seconds in zip(self.trace.rows, self.seconds or [0.0] * len(self.trace.rows), strict=True):
            roofs = self.roof.seconds(row) if self.roof else None
            for total in (self._whole, self._operators[row.op], self._lines[row.source], *(self._modules[name] for name in {"", *row.scope})):
                total.add(row, roofs, seconds)

    def operators(self) -> tuple[OperatorDemand, ...]:
        """Those with the most FLOPs first, then those that move the most."""
        return tuple(
            OperatorDemand(
                name=name,
                calls=s.calls,
                flops=self._number(s.flops, "FLOP", self._how_flops(name, s)),
                bytes_moved=self._number(s.bytes_moved, "B", self.how),
                has_formula=not s.unknown,
                light_flops=self._number(s.light_flops, "FLOP", "one an element"),
                bytes_share=self._share(s.bytes_moved, self._whole.bytes_moved, "of the bytes moved"),
                time_share=self._time_share(s),
            )
            for name, s in sorted(self._operators.items(), key=lambda item: (-item[1].flops, -item[1].bytes_moved, item[0]))
        )

    def modules(self) -> tuple[ModuleDemand, ...]:
        """In the model's own order."""
        return tuple(self._module(name, module, self._modules[name]) for name, module in self.trace.modules.items() if name in self._modules)

    def lines(self) -> tuple[LineDemand, ...]:
        """Those that take the most time first; operators that no line of the user's asked for are left out."""
        return tuple(
            LineDemand(
                source=source,
                calls=s.calls,
                flops=self._number(s.flops, "FLOP", self.how),
                bytes_moved=self._number(s.bytes_moved, "B", self.how),
                time_share=self._time_share(s),
            )
            for source, s in sorted(self._lines.items(), key=lambda item: (-item[1].seconds, -item[1].flops, -item[1].bytes_moved, item[0]))
            if source
        )

    def light_flops(self) -> Number:
        """Of the whole call."""
        return self._number(self._whole.light_flops, "FLOP", f"{self.how}: element-wise and reduction operators, one FLOP an element")

    def _module(self, name: str, module: nn.Module, s: _Sum) -> ModuleDemand:
        flops, moved = self._number(s.flops, "FLOP", self.how), self._number(s.bytes_moved, "B", self.how)
        return ModuleDemand(
            name=name,
            type=type(module).__name__,
            num_parameters=sum(p.numel() for p in module.parameters()),
            flops=flops,
            bytes_moved=moved,
            light_flops=self._number(s.light_flops, "FLOP", "one an element"),
            arithmetic_intensity=intensity(flops, moved),
            live_bytes=self._number(s.live_bytes, "B", self.how),
            bound=self._bound(s),
            time_share=self._time_share(s),
        )

    def _bound(self, s: _Sum) -> Bound | None:
        if self.roof is None:
            return None
        times: dict[Bound, float] = {"compute": s.compute_s, "memory": s.memory_s, "launch": s.calls * self.roof.launch_s}
        return max(times, key=lambda name: times[name])

    def _how_flops(self, name: str, s: _Sum) -> str:
        return "no formula" if s.unknown else self.how if s.flops or not s.light_flops else LIGHT

    def _number(self, value: float, unit: Unit, method: str) -> Number:
        return Number(value=value, unit=unit, source="measured" if self.trace.ran else "estimated", method=method)

    def _share(self, part: float, whole: float, method: str) -> Number:
        return self._number(round(part / whole, 6) if whole else 0.0, "ratio", method)

    def _time_share(self, s: _Sum) -> Number | None:
        if self.seconds is None:
            return None
        return Number(value=round(s.seconds / max(1e-30, self._whole.seconds), 6), unit="ratio", source="estimated", method="of the predicted time")


def intensity(flops: Number, moved: Number) -> Number:
    """FLOPs over bytes moved."""
    pairs = [("flops", flops), ("bytes_moved", moved)]
    return derived(flops.value / moved.value if moved.value else 0.0, "FLOP/B", "FLOPs over bytes moved", pairs)
