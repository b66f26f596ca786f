"""Memory over the time of one call, and what was held at its highest moment."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import LiveTensor, MemoryTimeline, Number
from .kernels import Breakdown
from .recorder import Allocation

MOST_POINTS = 500
MOST_TENSORS = 12
"""Tensors that are listed one by one."""


@dataclass(frozen=True)
class Peak:
    """The highest moment of a call."""

    index: int
    """Position among the allocations."""
    held_bytes: int
    alive: tuple[Allocation, ...]
    """Held at that moment, the largest first."""


def find_peak(allocations: list[Allocation]) -> Peak | None:
    """Follow every allocation to the moment at which most is held; the first such moment.

    Memory that was there before the call and is given back during it lowers what is held, and is no tensor of the call.
    """
    held = highest = 0
    at = -1
    for i, allocation in enumerate(allocations):
        held += allocation.bytes
        if held > highest:
            highest, at = held, i
    if at < 0:
        return None
    alive: dict[int, Allocation] = {}
    for allocation in allocations[: at + 1]:
        if allocation.bytes > 0:
            alive[allocation.address] = allocation
        else:
            alive.pop(allocation.address, None)
    return Peak(at, highest, tuple(sorted(alive.values(), key=lambda a: -a.bytes)))


def downsample(times_s: list[float], held: list[int], most: int = MOST_POINTS) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Keep at most `most` points: the first, the last, and the highest of every stretch between, so that the peak stays."""
    if len(held) <= most:
        return tuple(times_s), tuple(held)
    inner, stretches = len(held) - 2, most - 2
    kept = [0]
    for k in range(stretches):
        start, stop = 1 + k * inner // stretches, 1 + (k + 1) * inner // stretches
        kept.append(max(range(start, stop), key=lambda i: held[i]))
    kept.append(len(held) - 1)
    return tuple(times_s[i] for i in kept), tuple(held[i] for i in kept)


def make_timeline(breakdown: Breakdown, *, environment: str) -> MemoryTimeline | None:
    """Turn the allocations of a recorded call into its record; None where nothing was allocated.

    Args:
        breakdown: The call, with its operators' modules and lines.
        environment: Id of the environment.
    """
    allocations = breakdown.recording.allocations
    peak = find_peak(allocations)
    if peak is None:
        return None

    def measured(value: float, method: str, unit: str = "B") -> Number:
        return Number(value=value, unit="s" if unit == "s" else "B", source="measured", method=method, n=1, environment=environment)

    def live(allocation: Allocation) -> LiveTensor:
        operator, source = breakdown.origin(allocation.op)
        size = measured(allocation.bytes, "one allocation of torch's allocator")
        return LiveTensor(bytes=size, operator=operator, module=allocation.module or "", source=source)

    times, held = _series(allocations)
    top = peak.alive[:MOST_TENSORS]
    last = allocations[peak.index]
    operator, source = breakdown.origin(last.op)
    method = f"{len(allocations)} allocations and releases of one call, from torch's profiler"
    shown_times, shown_held = downsample(times, held)
    return MemoryTimeline(
        times_s=shown_times,
        held_bytes=shown_held,
        method=method,
        peak=measured(peak.held_bytes, "highest sum of torch's allocations during one call"),
        peak_at=measured(max(0, last.time_ns) / 1e9, "since the call began, profiler on", "s"),
        operator=operator,
        module=last.module or "",
        source=source,
        alive=tuple(map(live, top)),
        alive_rest=measured(peak.held_bytes - sum(a.bytes for a in top), f"the peak less the {len(top)} largest allocations"),
    )


def _series(allocations: list[Allocation]) -> tuple[list[float], list[int]]:
    times, held = [0.0], [0]
    for allocation in allocations:
        times.append(max(0, allocation.time_ns) / 1e9)
        held.append(held[-1] + allocation.bytes)
    return times, held
