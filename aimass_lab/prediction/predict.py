"""Latency, throughput and memory at the batch sizes asked for, from what was measured on the device at others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import torch

from ..records import Note, Number, PredictedPoint, Prediction, Profile, Quality
from ..workload import Workload
from .batches import BatchTraces, checked_batch_sizes, default_batch_sizes, largest_where
from .bookkeeping import throughput_of
from .interpolate import Anchor, Estimate, Interpolation
from .memory import MemoryCurve, call_bytes
from .products import ProductTimer
from .regimes import find_knees, fresh_bytes, mmap_threshold_bytes, page_fault_doubt, page_fault_seconds_per_byte

LATENCY_PRIOR = 0.06
"""Half-width of the 90 % band of an interpolated latency before any residual is known, as a logarithm: what
``tests/benchmarks/demand/latency.py`` found on smooth ladders, rounded up."""

LEAST_DOUBT = 0.03
"""Smallest doubt, as a logarithm, that is worth a note."""


def predict_from_profile(workload: Workload, profile: Profile, *, batch_sizes: Sequence[int] = (), technique: str = "none") -> Prediction:
    """Predict on the device that `profile` was taken on.

    What was measured is given back as it is; between measured batch sizes a curve runs through them, and beyond
    the last one it is drawn on. Matrix products of few rows, whose kernels change from one batch size to the next,
    are timed alone, and pages that every call faults in afresh are counted; both take a fraction of a second on a
    CPU and are not done on a GPU.

    Args:
        workload: What was profiled.
        profile: Its ladder is what is interpolated.
        batch_sizes: Items per call; if none are given, those between the measured ones and up to twice their range.
        technique: What the profile was taken of.

    Raises:
        InputError: a batch size is not a positive integer.
    """
    sizes = checked_batch_sizes(batch_sizes) or default_batch_sizes([p.batch_size for p in profile.ladder])
    return _FromProfile(workload, profile, sizes).make(technique)


class _FromProfile:
    """One prediction from one profile."""

    def __init__(self, workload: Workload, profile: Profile, sizes: tuple[int, ...]) -> None:
        self.profile, self.sizes = profile, sizes
        self.device = torch.device(profile.environment.device)
        self._traces = BatchTraces(workload)
        self._timer = ProductTimer(self.device)
        self._threshold = mmap_threshold_bytes(self.device)
        measured = [p.batch_size for p in profile.ladder]
        followed = [t for t in map(self._traces.followed, sorted({*measured, *sizes})) if t is not None]
        self.knees = find_knees(followed, self.device)
        self.latency = Interpolation(
            [_anchor(p.batch_size, p.latency_p50) for p in profile.ladder],
            prior=LATENCY_PRIOR,
            known=self._known_seconds,
            knees=[k.batch_size for k in self.knees],
            doubt=self._doubt,
        )
        peaks = [(p.batch_size, p.peak_memory_bytes) for p in profile.ladder if p.peak_memory_bytes is not None]
        follows = all(self._traces.computed(size) is not None for size in (*(size for size, _ in peaks), *sizes))
        self.memory = MemoryCurve([_anchor(size, peak) for size, peak in peaks], self._followed_bytes) if peaks and follows else None

    def make(self, technique: str) -> Prediction:
        profile = self.profile
        return Prediction(
            model=profile.model,
            device=profile.environment.device,
            environment=profile.environment,
            technique=technique,
            points=tuple(self._point(size) for size in self.sizes),
            max_batch_size=self._largest(),
            memory_limit_bytes=self._limit(),
            measured=profile.ladder,
            notes=tuple(self._notes()),
        )

    def _known_seconds(self, sizes: tuple[int, ...]) -> list[float]:
        """Time of products with few rows and of fresh pages."""
        traces = tuple(t for t in map(self._traces.followed, sizes) if t is not None)
        if len(traces) < len(sizes):
            return [0.0] * len(sizes)
        fresh = [fresh_bytes(trace, self._threshold) for trace in traces]
        cost = page_fault_seconds_per_byte() if any(fresh) else 0.0
        return [seconds + cost * pages for seconds, pages in zip(self._timer.seconds(traces), fresh, strict=True)]

    def _doubt(self, size: int, seconds: float) -> float:
        trace = self._traces.followed(size)
        return 0.0 if trace is None else page_fault_doubt(trace, seconds, self._threshold)

    def _followed_bytes(self, size: int) -> float:
        trace = self._traces.computed(size)
        assert trace is not None  # or there is no memory curve
        return call_bytes(trace)

    def _point(self, size: int) -> PredictedPoint:
        own = next((p for p in self.profile.ladder if p.batch_size == size), None)
        estimate = self.latency.at(size)
        if own is not None and estimate.measured:
            return PredictedPoint(
                batch_size=size, basis="measured", latency=own.latency_p50, throughput=own.throughput, peak_memory_bytes=own.peak_memory_bytes
            )
        latency = self._latency(estimate)
        memory = own.peak_memory_bytes if own else self._memory(size)
        return PredictedPoint(
            batch_size=size, basis="interpolated" if estimate.inside else "extrapolated", latency=latency,
            throughput=throughput_of(size, latency), peak_memory_bytes=memory,
        )  # fmt: skip

    def _memory(self, size: int) -> Number | None:
        if self.memory is None:
            return None
        estimate = self.memory.at(size)
        method = f"followed by shapes, corrected by what was measured at batch {_listed(estimate)}"
        return Number(
            value=round(estimate.value), unit="B", source="estimated", method=method,
            interval=(estimate.low, estimate.high), interval_kind="band: buffers that no rule knows", environment=self.profile.environment.id,
        )  # fmt: skip

    def _latency(self, estimate: Estimate) -> Number:
        quality: Quality = "extrapolated" if not estimate.inside else "noisy" if estimate.noisy else "ok"
        where = "interpolated: between" if estimate.inside else "extrapolated: drawn on from"
        reasons = ["a call runs differently there, so the band is twice as wide"] if estimate.knee else []
        if self._doubt(estimate.batch_size, estimate.value) > LEAST_DOUBT:
            reasons.append("freed memory may or may not stay with the process, so the band is wider")
        return Number(
            value=estimate.value,
            unit="s",
            source="estimated",
            method="; ".join([f"{where} the measured batches {_listed(estimate)}", *reasons]),
            interval=(estimate.low, estimate.high),
            interval_kind="90 % band: anchors left out in turn, and their own spread",
            environment=self.profile.environment.id,
            quality=quality,
        )

    def _limit(self) -> Number:
        return Number(
            value=self.profile.environment.memory_bytes, unit="B", source="measured", method="what this process may use on the device",
            environment=self.profile.environment.id,
        )  # fmt: skip

    def _largest(self) -> Number | None:
        if self.memory is None:
            return None
        memory, limit = self.memory, self.profile.environment.memory_bytes
        safe = largest_where(lambda size: memory.at(size).high <= limit)
        most = largest_where(lambda size: memory.at(size).value <= limit)
        if safe is None or most is None:
            return None
        quality: Quality = "extrapolated" if safe > memory.range[1] else "ok"
        return Number(
            value=safe, unit="item", source="estimated", method="largest batch whose memory band stays below the limit", interval=(safe, max(safe, most)),
            interval_kind="by the band's upper end, and by its middle", environment=self.profile.environment.id, quality=quality,
        )  # fmt: skip

    def _notes(self) -> list[Note]:
        notes = [knee.note for knee in self.knees]
        if self.latency.noisy:
            notes.append(Note(code="W-NOISY", text="every measured latency was taken while other work kept the machine busy: the bands are twice as wide"))
        if self.latency.left_out:
            listed = ", ".join(map(str, self.latency.left_out))
            notes.append(Note(code="W-NOISY", text=f"latencies at batch {listed} were taken while other work kept the machine busy and are not used"))
        falls = [b.batch_size for a, b in pairwise(self.latency.anchors) if b.low > 0 and b.high < a.low]
        if falls:
            text = f"a call of batch {', '.join(map(str, falls))} takes less time than the next smaller one that was measured; this is kept as it is"
            notes.append(Note(code="ladder:non-monotone", text=text))
        notes += self._about_pages()
        if self._traces.followed(self.latency.anchors[-1].batch_size) is None:
            text = "the model's operators could not be followed at other batch sizes: changes of regime are not foreseen"
            notes.append(Note(code="missing:trace", text=text))
        if self.memory is None:
            notes.append(Note(code="missing:peak_memory_bytes", text="the profile has no memory by batch size, or the model cannot be followed at others"))
        return notes

    def _about_pages(self) -> list[Note]:
        doubts = {size: self._doubt(size, self.latency.at(size).value) for size in self.sizes}
        worst = max(doubts, key=lambda size: doubts[size])
        if doubts[worst] < LEAST_DOUBT:
            return []
        text = (
            f"whether freed memory stays with the process between calls depends on what it did before, and moves the latency at batch {worst} by about "
            f"{100 * math.expm1(doubts[worst]):.0f} %; the bands hold that, and MALLOC_TRIM_THRESHOLD_ set high ends it"
        )
        return [Note(code="W-ALLOCATOR", text=text)]


def _listed(estimate: Estimate) -> str:
    return " and ".join(filter(None, (", ".join(map(str, estimate.anchors[:-1])), str(estimate.anchors[-1]))))


def _anchor(size: int, number: Number) -> Anchor:
    low, high = number.ends
    return Anchor(size, float(number.value), float(low), float(high), noisy=number.quality == "noisy")


# --- techniques that were not tried ---------------------------------------------------------------


def with_effect(prediction: Prediction, workload: Workload, technique: str) -> Prediction:
    """The prediction for a copy that `technique` would make: every latency times the ratio predicted at its batch size.

    Args:
        prediction: For the model as it is.
        workload: That model.
        technique: Its name.

    Raises:
        AimassError: as `Effects`.
    """
    from .effects import Effects

    effects = Effects(workload, technique)
    own = effects.at(prediction.device)
    points = []
    for point in prediction.points:
        same = point.batch_size == own.batch_size
        effect = own if same else effects.at(prediction.device, batch_size=point.batch_size)
        latency = _times(point.latency, effect.latency_ratio, point.basis)
        points.append(
            PredictedPoint(
                batch_size=point.batch_size, basis="effect", latency=latency, throughput=throughput_of(point.batch_size, latency),
                peak_memory_bytes=effect.peak_memory_bytes,
            )
        )  # fmt: skip
    text = "the largest batch of a copy that nothing was measured of is not predicted; trial makes the copy"
    notes = (*prediction.notes, *own.notes, Note(code="missing:max_batch_size", text=text))
    return msgspec.structs.replace(
        prediction, technique=technique, points=tuple(points), max_batch_size=None, speedup=_inverse(own.latency_ratio),
        weight_bytes=own.weight_bytes, effect_batch_size=own.batch_size, notes=notes,
    )  # fmt: skip


def _times(latency: Number, ratio: Number, basis: str) -> Number:
    (low, high), (least, most) = (n.ends for n in (latency, ratio))
    quality: Quality = "extrapolated" if latency.quality == "extrapolated" else "noisy" if "noisy" in (latency.quality, ratio.quality) else "ok"
    return Number(
        value=latency.value * ratio.value,
        unit="s",
        source="estimated",
        method=f"{basis} latency of the original, times a {ratio.method}",
        interval=(low * least, high * most),
        interval_kind="band of the original times the band of the effect",
        environment=latency.environment,
        quality=quality,
    )


def _inverse(ratio: Number) -> Number:
    low, high = ratio.ends
    return msgspec.structs.replace(ratio, value=1 / ratio.value, interval=(1 / high, 1 / low))
