"""Time by operator, GPU kernel and line of the user's code, from one recorded call."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..records import KernelTime, LineTime, Note, Number, OperatorTime, Quality, derived
from ..tracing.formulas import describe
from ..tracing.trace import Row, Trace
from ..units import format_share
from .recorder import Op, Recording

MOST_ROWS = 40
"""Rows of each table; what is left is added up in one more."""


class Breakdown:
    """Attributes the time of a recorded call.

    Args:
        recording: The call.
        trace: The same call followed over shapes, whose rows know the user's lines; None where there is none.
        environment: Id of the environment.
        quality: Of every number.
    """

    def __init__(self, recording: Recording, trace: Trace | None, *, environment: str, quality: Quality) -> None:
        self.recording = recording
        self.rows = match_rows(recording.ops, trace.rows if trace else ())
        self.sources = spread_sources(recording.ops, self.rows)
        self._environment, self._quality = environment, quality
        self._device_ns, self._weights_ns = recording.device_ns, recording.weights_ns

    @property
    def on_gpu(self) -> bool:
        """Whether kernels were recorded."""
        return bool(self.recording.kernels)

    @functools.cached_property
    def call(self) -> Number:
        """The recorded call."""
        return self._seconds(self.recording.call_ns, "one call with torch's profiler and module marks")

    @functools.cached_property
    def all_kernels(self) -> Number:
        """Time of all GPU kernels."""
        return self._seconds(self.recording.whole_ns if self.on_gpu else 0, "all GPU kernels of one call, from the profiler")

    def _seconds(self, nanoseconds: int, method: str) -> Number:
        return Number(value=nanoseconds / 1e9, unit="s", source="measured", method=method, n=1, environment=self._environment, quality=self._quality)

    def _share(self, part: Number) -> Number:
        whole, name = (self.all_kernels, "all kernels") if self.on_gpu else (self.call, "call")
        return derived(part.value / whole.value if whole.value else 0.0, "ratio", f"time over {name}", [("time", part), (name, whole)])

    def operators(self) -> tuple[OperatorTime, ...]:
        """One row per operator, the largest first; the time of all of them and `Recording.outside_ops_ns` is the call."""
        groups: dict[str, _Group] = defaultdict(_Group)
        for i, op in enumerate(self.recording.ops):
            groups[op.name].add(self._weights_ns[i], op.self_ns, self._device_ns[i], op.module, self.sources[i])
        return tuple(self._operator(name, group) for name, group in _largest(groups, "operators"))

    def _operator(self, name: str, group: _Group) -> OperatorTime:
        own = self._seconds(group.self_ns, "time without the operators it called, one call with torch's profiler")
        device = self._seconds(group.device_ns, "time of its GPU kernels, from the profiler") if self.on_gpu else None
        return OperatorTime(
            name=name,
            family=family_named(name),
            calls=group.calls,
            self_time=own,
            device_time=device,
            share=self._share(device or own),
            module=group.main(group.by_module),
            source=group.main(group.by_source),
        )

    def kernels(self) -> tuple[KernelTime, ...]:
        """One row per GPU kernel, the largest first."""
        groups: dict[str, _Group] = defaultdict(_Group)
        for kernel in self.recording.kernels:
            operator = self.recording.ops[self._named(kernel.op)].name if kernel.op >= 0 else ""
            groups[kernel.name].add(kernel.duration_ns, 0, kernel.duration_ns, kernel.module, operator)
        found = []
        for name, group in _largest(groups, "kernels"):
            time = self._seconds(group.device_ns, "from the profiler")
            operator, module = group.main(group.by_source), group.main(group.by_module)
            found.append(KernelTime(name=name, calls=group.calls, device_time=time, share=self._share(time), operator=operator, module=module))
        return tuple(found)

    def lines(self) -> tuple[LineTime, ...]:
        """One row per line of the user's code, the largest first."""
        groups: dict[str, _Group] = defaultdict(_Group)
        for i, source in enumerate(self.sources):
            if source:
                weight = self._weights_ns[i]
                groups[source].add(weight, weight, weight, None, self.origin(i)[0], counted=self.rows[i] is not None)
        what = "GPU kernels of the operators that it asked for" if self.on_gpu else "operators that it asked for"
        found = []
        for source, group in _largest(groups, "lines"):
            time = self._seconds(group.self_ns, f"{what}, one call with torch's profiler")
            found.append(LineTime(source=source, calls=group.calls, time=time, share=self._share(time), operator=group.main(group.by_source)))
        return tuple(found)

    def _named(self, op: int) -> int:
        """The operator as the user's line asked for it: the nearest one around it that the trace knows, else the outermost."""
        ops, outer = self.recording.ops, op
        while op >= 0:
            if self.rows[op] is not None:
                return op
            outer, op = op, ops[op].parent
        return outer

    def origin(self, op: int) -> tuple[str, str]:
        """Name and line of the operator, as the user asked for it."""
        return (self.recording.ops[self._named(op)].name, self.sources[op]) if op >= 0 else ("", "")

    def outside_operators(self) -> Number:
        """What of the call belongs to no operator."""
        return self._seconds(self.recording.outside_ops_ns, "recorded call less its operators: Python, dispatch and the profiler's own marks")

    def notes(self, trace: Trace | None) -> list[Note]:
        """What of the time has no line, where lines are known at all."""
        if trace is None or not any(row.source for row in trace.rows):
            return []
        whole = sum(self._weights_ns)
        missing = sum(weight for weight, source in zip(self._weights_ns, self.sources, strict=True) if not source)
        if whole == 0 or missing <= 0.1 * whole:
            return []
        text = f"{format_share(missing / whole)} of the operators' time has no line: the real call ran other operators there than the pass over shapes"
        return [Note(code="missing:lines", text=text)]


@dataclass
class _Group:
    """What is added up for one row of a table."""

    calls: int = 0
    weight: int = 0
    self_ns: int = 0
    device_ns: int = 0
    by_module: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_source: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, weight: int, self_ns: int, device_ns: int, module: str | None, source: str, *, counted: bool = True) -> None:
        self.calls += counted
        self.weight += weight
        self.self_ns += self_ns
        self.device_ns += device_ns
        if module:
            self.by_module[module] += weight
        if source:
            self.by_source[source] += weight

    @staticmethod
    def main(weights: dict[str, int]) -> str:
        return max(weights, key=lambda name: weights[name]) if weights else ""


def _largest(groups: dict[str, _Group], what: str) -> list[tuple[str, _Group]]:
    ranked = sorted(groups.items(), key=lambda item: -item[1].weight)
    if len(ranked) <= MOST_ROWS + 1:
        return ranked
    rest = _Group()
    for _, group in ranked[MOST_ROWS:]:
        rest.calls, rest.weight = rest.calls + group.calls, rest.weight + group.weight
        rest.self_ns, rest.device_ns = rest.self_ns + group.self_ns, rest.device_ns + group.device_ns
    return [*ranked[:MOST_ROWS], (f"({len(ranked) - MOST_ROWS} other {what})", rest)]


def match_rows(ops: list[Op], rows: Iterable[Row]) -> list[Row | None]:
    """Find each recorded operator in the trace of the same call.

    Both list the operators of a module in the order in which they ran, so the n-th call of an operator in a
    module is the same in both. Where a module ran another number of them than the trace has, the two differ
    there: such operators are matched only if all their rows come from one line, because then it does not matter which is which.

    Args:
        ops: Recorded operators, in the order in which they began.
        rows: Of the trace.

    Returns:
        The row of each operator, None for those that the trace does not have: views, and what operators call themselves.
    """
    waiting: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        waiting[row.scope[-1] if row.scope else "", row.op].append(row)
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    within = [False] * len(ops)
    for i, op in enumerate(ops):
        key = (op.module or "", op.name)
        within[i] = op.parent >= 0 and within[op.parent]
        if not within[i] and key in waiting:
            found[key].append(i)
            within[i] = True
    matched: list[Row | None] = [None] * len(ops)
    for key, places in found.items():
        candidates = waiting[key]
        if len(candidates) != len(places) and len({row.source for row in candidates}) > 1:
            continue
        for number, place in enumerate(places):
            matched[place] = candidates[min(number, len(candidates) - 1)]
    return matched


def spread_sources(ops: list[Op], rows: list[Row | None]) -> list[str]:
    """The line of every operator: its own row's, else that of the operator around it, else the one that all within it share."""
    sources = [row.source if row else "" for row in rows]
    _inherit(ops, sources)
    inner: list[set[str]] = [set() for _ in ops]
    for i in range(len(ops) - 1, -1, -1):
        if not sources[i] and len(inner[i]) == 1:
            sources[i] = next(iter(inner[i]))
        if ops[i].parent >= 0:
            inner[ops[i].parent] |= {sources[i]} if sources[i] else inner[i]
    _inherit(ops, sources)
    return sources


def _inherit(ops: list[Op], sources: list[str]) -> None:
    for i, op in enumerate(ops):
        if not sources[i] and op.parent >= 0:
            sources[i] = sources[op.parent]


def share_of_families(recording: Recording, *families: str) -> float:
    """Share of the call, or of its kernels' time where there is a GPU, that operators of these families take."""
    part = sum(weight for weight, op in zip(recording.weights_ns, recording.ops, strict=True) if family_named(op.name) in families)
    return part / recording.whole_ns if recording.whole_ns else 0.0


@functools.cache
def family_named(name: str) -> str:
    """Family of an operator that is known by its name only; ``"view"`` for those that move nothing."""
    namespace, _, short = name.partition("::")
    try:
        packet: Any = getattr(getattr(torch.ops, namespace), short)
        operator = describe(getattr(packet, packet.overloads()[0]))
    except (AttributeError, IndexError, RuntimeError):  # a region of compiled code, or an operator that is not registered
        return "other"
    return "view" if operator.kind == "view" else operator.family
