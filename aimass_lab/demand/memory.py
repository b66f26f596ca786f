"""Memory of a call as a function of the batch size: what tensors and operators hold, and what the device's driver would show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..prediction.target import CONTEXT_BYTES, TargetDevice
from ..records import Number, Source
from ..tracing.allocator import CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_SM90, AllocatorPeaks, replay, rules_from_environment
from ..tracing.rows import Row, Trace

if TYPE_CHECKING:
    from .workspace import Calibration

Floats = npt.NDArray[np.float64]

MIB = 2**20
LARGEST_BATCH = 2**31 - 1
HEAP_SHARE, HEAP_BYTES = (0.8, 0.0, 1.5), (20 * MIB, 4 * MIB, 48 * MIB)
"""What the C library keeps of freed blocks, as a share of the call's peak, and what oneDNN and MKL take for code and
buffers: as expected, at least, at most. Seen over eight models with glibc: 0.1 to 1.3 times the peak, 10 to 37 MiB."""
RULE_MARGIN, RULE_BYTES = 0.15, 64 * 1024
"""How far a workspace that a rule gives may be off, as a share and in bytes: the worst of all shapes that were compared."""
CHECKED_DTYPES = ("", "float32", "float64")
"""The rules' margin holds for these; kernels for others take scratch of their own beside it."""
FUSED_LEAST, REUSED_LEAST = 0.4, 0.98
"""Least share of the live tensors that a real call holds: fused transformer layers hold less than their parts; else a reused block saves a little."""
SLACK_MARGIN = 1.5
"""The allocator's slack is replayed by its rules; streams and the order of frees on a device may differ."""


@dataclass(frozen=True)
class Part:
    """One line of a ledger: bytes as expected, at least and at most."""

    name: str
    bytes: float
    least: float
    most: float
    method: str
    assumed: bool = False


@dataclass(frozen=True)
class Moment:
    """The highest moment of a call at one batch size."""

    row: int | None
    """Index of the operator."""
    live: float
    """Tensors alive then."""
    workspace: float
    """What the operator holds for itself."""
    least: float
    most: float
    """Ends of the band of `live` plus `workspace`."""
    basis: str = ""
    """What the bytes were calibrated on; empty where nothing was measured."""

    @property
    def bytes(self) -> float:
        """Tensors and workspace."""
        return self.live + self.workspace


@dataclass(frozen=True)
class _Line:
    """Straight lines over the batch size, one per entry."""

    offset: Floats
    slope: Floats

    def at(self, batch: float) -> Floats:
        return np.asarray(self.offset + self.slope * batch)

    @classmethod
    def through(cls, read: Callable[[Trace], list[float]], first: Trace, second: Trace) -> _Line:
        a, b = np.array(read(first), dtype=np.float64), np.array(read(second), dtype=np.float64)
        slope = (b - a) / (second.batch_size - first.batch_size)
        return cls(a - slope * first.batch_size, slope)


class CallMemory:
    """Bytes of one call by batch size: exact at the batches that were followed, on the lines through two of them elsewhere.

    Args:
        own: The call as it was asked for.
        pair: The call at two batch sizes; None where the batch of its inputs cannot be changed.
        target: Where it would run: the rules of workspaces are those of CPU kernels.
        resident_bytes: Sizes of the tensors that are there before the call, whatever the batch: weights and buffers,
            in training the optimizer's state.
    """

    def __init__(self, own: Trace, pair: tuple[Trace, Trace] | None, target: TargetDevice, resident_bytes: list[int]) -> None:
        self.own, self.pair, self.target = own, pair, target
        self.resident_bytes = resident_bytes
        self.exact = pair is not None and [row.op for row in pair[0].rows] == [row.op for row in pair[1].rows]
        self.on_gpu = target.kind == "gpu"
        self.calibration: Calibration | None = None
        self._lines: dict[str, _Line] = {}
        self.peaks_at = functools.lru_cache(maxsize=256)(self._peaks_at)

    # --- what torch holds

    def input_bytes(self, batch: int) -> float:
        """Of the call's inputs."""
        if self.pair is None or batch == self.own.batch_size:
            return self.own.input_bytes
        return float(_Line.through(lambda t: [t.input_bytes], *self.pair).at(batch)[0])

    def moment(self, batch: int) -> Moment:
        """The highest moment at `batch`; calibrated where that is possible."""
        plain = self.uncalibrated(batch)
        return plain if self.calibration is None else self.calibration.correct(batch, plain, self)

    def uncalibrated(self, batch: int) -> Moment:
        """The highest moment by shapes and rules alone."""
        live, expected, most = (self._values(name, batch) for name in ("live", "expected", "most"))
        if not len(live):
            return Moment(None, 0, 0, 0, 0)
        at = int(np.argmax(live + expected))
        least = (FUSED_LEAST if self.own.slow_path else REUSED_LEAST) * float(live.max())
        high = max(float((live + most).max()), float(live[at] + expected[at]))
        aligned = self.exact or batch == self.own.batch_size
        return Moment(at if aligned else None, float(live[at]), float(expected[at]), least, high)

    def torch_bytes(self, batch: int) -> tuple[float, float, float]:
        """Weights, inputs and the call at its highest moment: as expected, at least, at most."""
        fixed, moment = sum(self.resident_bytes) + self.input_bytes(batch), self.moment(batch)
        return fixed + moment.bytes, fixed + moment.least, fixed + moment.most

    def row(self, moment: Moment) -> Row | None:
        """Where that moment is."""
        return None if moment.row is None else self.own.rows[moment.row]

    def _values(self, name: str, batch: int) -> Floats:
        if self.pair is None or batch == self.own.batch_size:
            return np.array(self._read(name, self.own), dtype=np.float64)
        if name not in self._lines:
            read = (lambda t: self._read(name, t)) if self.exact else (lambda t: self._highest(name, t))
            self._lines[name] = _Line.through(read, *self.pair)
        return self._lines[name].at(batch)

    def _highest(self, name: str, trace: Trace) -> list[float]:
        """Different operators ran at the two batch sizes: then only their highest moments can be held against each other."""
        live, own = self._read("live", trace), self._read(name, trace)
        if name == "live":
            return [max(live, default=0.0)]
        return [max((a + b for a, b in zip(live, own, strict=True)), default=0.0) - max(live, default=0.0)]

    def _read(self, name: str, trace: Trace) -> list[float]:
        if name == "live":
            return [row.live_bytes for row in trace.rows]
        if name == "expected":
            return [0.0 if self.on_gpu else row.expected_workspace_bytes or 0 for row in trace.rows]
        return [self._most(row) for row in trace.rows]

    def _most(self, row: Row) -> float:
        rule = row.expected_workspace_bytes
        if self.on_gpu or rule is None:
            return row.workspace_bytes
        unchecked = row.workspace_bytes if row.dtype not in CHECKED_DTYPES else 0
        return (1 + RULE_MARGIN) * rule + RULE_BYTES + unchecked if rule else 0.0

    # --- what the driver shows

    def parts(self, batch: int) -> list[Part]:
        """What stands beside weights and inputs in the ledger at `batch`: activations, workspaces, slack, context."""
        moment = self.moment(batch)
        how = moment.basis or "live tensors by shapes"
        # The band of the call is told with its workspace: the tensors are what the shapes say.
        over, under = moment.most - moment.bytes, moment.bytes - moment.least
        workspace = "the kernel's own buffers by rule" if not self.on_gpu else "not known before it runs: from none to a bound by operator"
        call = [
            Part("activations", moment.live, moment.live - min(under, moment.live), moment.live, how),
            Part("operator workspace", moment.workspace, moment.workspace - max(0.0, under - moment.live), moment.workspace + over, moment.basis or workspace),
        ]
        return [*call, *(self._gpu_parts(batch) if self.on_gpu else self._cpu_parts(moment))]

    def _cpu_parts(self, moment: Moment) -> list[Part]:
        share, fixed = HEAP_SHARE, HEAP_BYTES
        value, least, most = (s * b + f for s, f, b in zip(share, fixed, (moment.bytes, moment.least, moment.most), strict=True))
        return [Part("heap and libraries", value, least, most, "freed blocks that stay with the process, and the libraries' own: as other models had")]

    def _gpu_parts(self, batch: int) -> list[Part]:
        library = self.library_bytes
        peaks = self.peaks_at(batch)
        slack = peaks.slack_bytes
        value, least, most = CONTEXT_BYTES
        return [
            Part("library workspace", library, 0, 2 * library, "what cuBLAS takes on one stream"),
            Part("allocator slack", slack, 0, SLACK_MARGIN * slack, "the caching allocator's rules replayed: its segments less what was asked for"),
            Part("CUDA context", value, least, most, "assumed; differs by driver and device, not measured here", assumed=True),
        ]

    def driver_bytes(self, batch: int) -> tuple[float, float, float]:
        """What the driver would show beside what it shows before: as expected, at least, at most."""
        fixed, parts = sum(self.resident_bytes) + self.input_bytes(batch), self.parts(batch)
        value, least, most = sum(p.bytes for p in parts), sum(p.least for p in parts), sum(p.most for p in parts)
        return fixed + value, fixed + least, fixed + most

    @functools.cached_property
    def library_bytes(self) -> int:
        """Workspace of cuBLAS, where anything calls it."""
        if not any(row.family == "gemm" for row in self.own.rows):
            return 0
        return CUBLAS_WORKSPACE_SM90 if _is_sm90(self.target) else CUBLAS_WORKSPACE

    def _peaks_at(self, batch: int) -> AllocatorPeaks:
        """Replay the call: weights first, then inputs, then what the operators take and give back."""
        events: list[tuple[Any, int]] = [(("weight", i), size) for i, size in enumerate(self.resident_bytes)]
        events.append((("inputs",), round(self.input_bytes(batch))))
        first_gemm = next((i for i, row in enumerate(self.own.rows) if row.family == "gemm"), None)
        stream, rows, scale = self._stream(batch)
        waiting = first_gemm is not None
        for (key, size), row in zip(stream, rows, strict=True):
            if waiting and first_gemm is not None and row >= first_gemm:
                events.append((("cublas",), self.library_bytes))
                waiting = False
            events.append((key, round(size * scale)))
        return replay(events, rules_from_environment() if self.target.attached is not None else None)

    def _stream(self, batch: int) -> tuple[list[tuple[int, float]], tuple[int, ...], float]:
        """Allocations and releases at `batch`; where the two traces do not allocate alike, those of the own batch, scaled."""
        own = self.own
        if self.pair is None or batch == own.batch_size:
            return list(own.events), own.event_rows, 1.0
        first, second = self.pair
        if [k for k, _ in first.events] != [k for k, _ in second.events]:
            live = max((row.live_bytes for row in own.rows), default=0)
            return list(own.events), own.event_rows, float(self._values("live", batch).max()) / max(1, live)
        sizes = _Line.through(lambda t: [size for _, size in t.events], first, second).at(batch)
        return [(key, float(size)) for (key, _), size in zip(first.events, sizes, strict=True)], first.event_rows, 1.0

    # --- the largest batch

    def largest_batch(self, limit_bytes: float, *, of: Literal["driver", "torch"] = "driver", optimistic: bool = False) -> int | None:
        """Largest batch that stays within the limit; 0 if none does, None if the batch is fixed or every one does.

        Args:
            limit_bytes: What there is.
            of: What is held against it: what the driver shows, or what torch's tensors and operators hold.
            optimistic: Go by the lower end of the band instead of the upper one.
        """
        if self.pair is None:
            return None
        if of == "torch" or optimistic or not self.on_gpu:
            ends = self.torch_bytes if of == "torch" else self._without_replay if self.on_gpu else self.driver_bytes
            return _largest(lambda batch: ends(batch)[1 if optimistic else 2] <= limit_bytes)
        # A replay costs more than all lines together: find the neighbourhood without one.
        free_of_slack = _largest(lambda batch: self._without_replay(batch)[2] <= limit_bytes)
        if not free_of_slack:
            return free_of_slack
        slack = SLACK_MARGIN * self.peaks_at(free_of_slack).slack_bytes
        near = _largest(lambda batch: self._without_replay(batch)[2] + slack <= limit_bytes) or 0
        return _largest(lambda batch: self.driver_bytes(batch)[2] <= limit_bytes, near=max(1, near))

    def _without_replay(self, batch: int) -> tuple[float, float, float]:
        """What the driver shows at least, were the allocator to waste nothing."""
        ends = zip(self.torch_bytes(batch), (self.library_bytes, 0, 2 * self.library_bytes), CONTEXT_BYTES, strict=True)
        value, least, most = (sum(end) for end in ends)
        return value, least, most


def _largest(fits: Callable[[int], bool], near: int = 1) -> int | None:
    """The largest batch that fits, looked for from `near` on; 0 if none does, None if every one does."""
    low, high = (near, near + 1) if fits(near) else (0, near)
    if low == 0 and near == 1:
        return 0
    step = 1
    while low and high <= LARGEST_BATCH and fits(high):
        low, step = high, 2 * step
        high = low + step
    if high > LARGEST_BATCH:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def number_of(part: Part, *, measured: bool) -> Number:
    """A part as records have it: bytes are whole."""
    source: Source = "assumed" if part.assumed else "measured" if measured else "estimated"
    value = round(part.bytes)
    band = None if part.least == part.most == part.bytes else (min(part.least, value), max(part.most, value))
    kind = None if band is None else "band: what this part may take"
    return Number(value=value, unit="B", source=source, method=part.method, interval=band, interval_kind=kind)


def _is_sm90(target: TargetDevice) -> bool:
    if target.attached is not None:
        import torch

        return torch.cuda.get_device_capability(target.attached) == (9, 0)
    return target.name.startswith(("h100", "h200", "gh200"))
