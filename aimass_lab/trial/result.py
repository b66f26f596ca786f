"""Puts what a trial measured into its record, and judges it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from ..records import INTERRUPTED, Environment, ModelInfo, Note, Number, Quality, Setting, TrialPoint, TrialResult, Verdict
from ..timing import FEWEST_RANKS, latency_number, median_interval, percentile
from ..units import format_bytes, format_seconds, format_share
from ..workload import Workload, weight_bytes
from .causes import across_sizes, find_causes, runs_uncompiled
from .outputs import Outputs
from .speed import MANY_CALLS, Burst, Speeds
from .variant import Variant, counted
from .verdict import BAND, ERROR, Ratio, judge_metric, judge_outputs, num_looks

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Measured:
    """What was measured at one batch size."""

    batch_size: int
    speeds: Speeds
    first_call_s: float | None
    """Seconds of the variant's first call, where that includes a compilation."""


@dataclass(frozen=True)
class Sizes:
    """What weights take."""

    memory_bytes: int
    stored_bytes: int | None
    why_not_stored: str = ""


def measure_sizes(model: nn.Module) -> Sizes:
    """Weigh a model in memory and on disk."""
    from ..storage import stored_bytes

    try:
        return Sizes(weight_bytes(model), stored_bytes(model))
    except UnsupportedError as error:
        return Sizes(weight_bytes(model), None, error.message)


def make_result(
    workload: Workload,
    info: ModelInfo,
    environment: Environment,
    setting: Setting,
    variant: Variant,
    outputs: Outputs,
    measured: Sequence[Measured],
    original_sizes: Sizes,
    sizes: Sizes,
    tolerance: float,
    max_drop: float,
) -> TrialResult:
    """Judge what was measured and write it down."""
    comparison, metric, env = outputs.comparison, outputs.metric, environment.id
    points = tuple(_point(m, env) for m in measured)
    equivalent, why = judge(outputs, env, tolerance, max_drop)
    verdict = overall(points) if equivalent else "not equivalent"
    disturbed = next((f": {m.speeds.meter.reasons}; {m.speeds.decision.remedy}" for m in measured if m.speeds.decision.doubt), "")
    recommended, recommendation = recommend(not variant.techniques, equivalent, points, sizes, original_sizes, disturbed=disturbed)
    return TrialResult(
        model=info,
        environment=environment,
        setting=setting,
        verdict=verdict,
        recommended=recommended,
        recommendation=recommendation,
        reasons=(why, *_reasons(workload, variant, measured, points, sizes, original_sizes)),
        points=points,
        size_bytes=counted(sizes.memory_bytes, "B", "bytes of the variant's parameters and buffers"),
        size_original_bytes=counted(original_sizes.memory_bytes, "B", "bytes of the original's parameters and buffers"),
        stored_bytes=_stored(sizes),
        stored_original_bytes=_stored(original_sizes),
        fidelity=comparison.fidelity(env),
        relative_error=comparison.relative_error(env),
        divergence=comparison.divergence(env),
        agreement=comparison.agreement(env),
        worst_samples=comparison.worst(),
        metric_original=metric.number("original", env) if metric else None,
        metric_variant=metric.number("variant", env) if metric else None,
        metric_drop=metric.drop(env) if metric else None,
        steps=variant.steps,
        apply_time=_timed_once(variant.apply_time_s, "copying the model and changing the copy, once", env),
        peak_memory=None if variant.peak_bytes is None else counted(variant.peak_bytes, "B", "the copy, and the most that a step took above it"),
        notes=(*_of_compiled(workload, variant), *outputs.notes, *_notes(measured, outputs, max_drop, sizes, original_sizes)),
    )


# --- judging --------------------------------------------------------------------------------


def judge(outputs: Outputs, environment: str, tolerance: float, max_drop: float) -> tuple[bool, str]:
    """Equivalent or not, and why: shapes, then finite values, then the metric where there is one, else the outputs."""
    comparison, metric = outputs.comparison, outputs.metric
    if comparison.mismatch:
        return False, f"the outputs cannot be compared: {comparison.mismatch}"
    if comparison.num_lost:
        lost = f"{comparison.num_lost} of {comparison.num_samples} samples"
        return False, f"{lost} have values that are not finite where the original's are"
    if metric is not None:
        return judge_metric(metric.original, metric.variant, metric.drop_interval, max_drop)
    return judge_outputs(float(comparison.fidelity(environment).value), float(comparison.relative_error(environment).value), tolerance)


def overall(points: Sequence[TrialPoint]) -> Verdict:
    """The verdict on speed over all batch sizes."""
    verdicts = {point.verdict for point in points}
    if "cannot tell" in verdicts:
        return "cannot tell"
    return verdicts.pop() if len(verdicts) == 1 else "mixed"


def recommend(is_control: bool, equivalent: bool, points: Sequence[TrialPoint], sizes: Sizes, original: Sizes, *, disturbed: str = "") -> tuple[bool, str]:
    """Whether to take the variant in the model's place, and why.

    It must be equivalent, shown to be no slower at any batch size, and faster at one of them or smaller.

    Args:
        is_control: Nothing was changed.
        equivalent: The outputs are.
        points: Speed by batch size.
        sizes: Of the variant.
        original: Of the original.
        disturbed: What kept a verdict on speed from being given and what to do, in words that follow.
    """
    if is_control:
        return False, "the control: nothing was changed, so there is nothing to recommend"
    if not equivalent:
        return False, "refused: its outputs are not equivalent"
    slower = [p for p in points if p.verdict == "slower"]
    if slower:
        return False, f"refused: slower at {_listed(slower)}"
    untold = [p for p in points if p.verdict == "cannot tell"]
    if untold:
        return False, f"cannot tell at {_listed(untold)} whether it is faster{disturbed}"
    unclear = [p for p in points if p.speedup.interval is None or p.speedup.interval[0] < 1 - BAND]
    if unclear:
        return False, f"refused: it is not shown to be as fast at {_listed(unclear)}"
    gains = []
    faster = [p for p in points if p.verdict == "faster"]
    if faster:
        gains.append(_gain(faster))
    for where, own, other in (("on disk", sizes.stored_bytes, original.stored_bytes), ("in memory", sizes.memory_bytes, original.memory_bytes)):
        if own is not None and other and own < (1 - BAND) * other:
            gains.append(f"{other / max(own, 1):.1f} times smaller {where}")
    if not gains:
        return False, "refused: neither faster nor smaller"
    return True, f"recommended: {', '.join(gains)}"


def _gain(faster: Sequence[TrialPoint]) -> str:
    ratios = sorted({f"{p.speedup.value:.2f}" for p in faster}, key=float)
    return f"{ratios[0]}{f' to {ratios[-1]}' if len(ratios) > 1 else ''} times as fast at {_listed(faster)}"


def _listed(points: Sequence[TrialPoint]) -> str:
    return "batch " + ", ".join(str(p.batch_size) for p in points)


# --- words ----------------------------------------------------------------------------------


def _reasons(workload: Workload, variant: Variant, measured: Sequence[Measured], points: Sequence[TrialPoint], sizes: Sizes, original: Sizes) -> Iterator[str]:
    several = len(points) > 1
    told: set[str] = set()
    for m, point in zip(measured, points, strict=True):
        at = f"batch {m.batch_size}: " if several else ""
        yield f"{at}{m.speeds.decision.explain()}"
        if point.verdict in ("no gain", "slower"):
            causes = find_causes(variant, workload.model, m.speeds, m.batch_size, workload.torch_device)
            yield from (f"{at}{cause}" for cause in causes if cause not in told)
            told.update(causes)
    yield from across_sizes(points)
    yield from _accounts(variant, measured, points, sizes, original)


def _accounts(variant: Variant, measured: Sequence[Measured], points: Sequence[TrialPoint], sizes: Sizes, original: Sizes) -> Iterator[str]:
    """What was covered, what it weighs, and what compiling cost."""
    for step in variant.steps:
        if step.num_changed_layers.value and step.num_layers.value:
            where = f"{step.step.technique}: " if len(variant.steps) > 1 else ""
            layers = f"{step.num_changed_layers.value:g} of {step.num_layers.value:g} layers with weights"
            yield f"{where}{layers} were changed, {format_share(step.weight_share.value)} of the weights"
    if original.memory_bytes and sizes.memory_bytes != original.memory_bytes:
        both = f"{format_bytes(sizes.memory_bytes)} instead of {format_bytes(original.memory_bytes)}"
        yield f"the weights take {sizes.memory_bytes / original.memory_bytes:.2f} of their bytes in memory: {both}"
    if original.stored_bytes and sizes.stored_bytes is not None and sizes.stored_bytes != original.stored_bytes:
        both = f"{format_bytes(sizes.stored_bytes)} instead of {format_bytes(original.stored_bytes)}"
        yield f"and {sizes.stored_bytes / original.stored_bytes:.2f} of them on disk: {both}"
    for m, point in zip(measured, points, strict=True):
        if point.compile_time is not None and point.compile_time.value > 0:
            saved_s = percentile(m.speeds.calls_s("original"), 50) - percentile(m.speeds.calls_s("variant"), 50)
            pays = f", which pays back after {math.ceil(point.compile_time.value / saved_s):,} calls" if point.verdict == "faster" and saved_s > 0 else ""
            yield f"the first call at batch {m.batch_size} took {format_seconds(float(point.compile_time.value))} longer, for compiling{pays}"


def _notes(measured: Sequence[Measured], outputs: Outputs, max_drop: float, sizes: Sizes, original: Sizes) -> Iterator[Note]:
    metric = outputs.metric
    if metric and metric.drop_interval and metric.original - (metric.variant or 0.0) <= max_drop < metric.drop_interval[1]:
        text = f"{metric.num_items} labelled items do not exclude a drop of up to {metric.drop_interval[1]:.3g}; give more to be sure"
        yield Note(code="W-METRIC", text=text)
    for m in measured:
        at = f" at batch {m.batch_size}" if len(measured) > 1 else ""
        if m.speeds.interrupted:
            yield Note(code=INTERRUPTED, text=f"interrupted{at} after {m.speeds.num_rounds} rounds")
        if not m.speeds.decision.resolved:
            yield Note(code="W-UNRESOLVED", text=_unresolved(m.speeds, at))
    noisy = next((m.speeds.meter for m in measured if m.speeds.noisy), None)
    if noisy is not None:
        yield from noisy.notes()
    if measured[0].speeds.num_callers > 1:
        text = f"{measured[0].speeds.num_callers} callers are threads of one process, which share Python's lock; processes of their own may do better"
        yield Note(code="one-process", text=text)
    for of_whom, found in (("the variant", sizes), ("the original", original)):
        if found.stored_bytes is None:
            text = f"what {of_whom} takes on disk is not known, and what it takes in memory is shown: {found.why_not_stored}"
            yield Note(code="missing:stored_bytes", text=text)


def _of_compiled(workload: Workload, variant: Variant) -> Iterator[Note]:
    if runs_uncompiled(variant, workload.model):
        text = f"the copy is one of the model behind torch.compile, and is not compiled itself: try '{variant.name} + compile' to compare like with like"
        yield Note(code="compiled-original", text=text)


def _unresolved(speeds: Speeds, at: str) -> str:
    if speeds.decision.doubt:
        return f"no verdict on speed is given{at}: {speeds.meter.reasons}; {speeds.decision.remedy}"
    ratio = speeds.decision.ratio
    few = f", after {ratio.num_rounds} rounds" if ratio.num_rounds < FEWEST_RANKS else ""
    return f"the interval [{ratio.low:.3g}, {ratio.high:.3g}]{at} is too wide to tell{few}; allow more time or quieten the machine"


# --- numbers --------------------------------------------------------------------------------


def _point(m: Measured, environment: str) -> TrialPoint:
    speeds, decision = m.speeds, m.speeds.decision
    quality: Quality = "noisy" if speeds.noisy else "ok"

    def latency(which: str, q: float) -> Number:
        return latency_number(speeds.calls_s(which), q, environment=environment, quality=quality)

    many = min(len(speeds.calls_s("original")), len(speeds.calls_s("variant"))) >= MANY_CALLS
    wall = _speedup(decision.wall, "wall time", speeds, environment, quality)
    clean: Quality = "noisy" if decision.doubt else "ok"
    processor = None if decision.processor is None else _speedup(decision.processor, "processor time of all threads", speeds, environment, clean)
    alone = None if decision.one_thread is None else _speedup(decision.one_thread, "processor time with one thread", speeds, environment, "ok")
    compile_s = None if m.first_call_s is None else max(0.0, m.first_call_s - percentile(speeds.calls_s("variant"), 50))
    method = "first call less the median call; what torch compiled earlier in this process or keeps on disk is reused"
    return TrialPoint(
        batch_size=m.batch_size,
        verdict=decision.verdict,
        speedup=processor if decision.clock == "processor" and processor else wall,
        clock=decision.clock,
        wall_speedup=wall,
        processor_speedup=processor,
        one_thread_speedup=alone,
        latency_original=latency("original", 50),
        latency_variant=latency("variant", 50),
        latency_p99_original=latency("original", 99) if many else None,
        latency_p99_variant=latency("variant", 99) if many else None,
        throughput_original=_throughput(m.batch_size, speeds, "original", environment, quality),
        throughput_variant=_throughput(m.batch_size, speeds, "variant", environment, quality),
        compile_time=None if compile_s is None else _timed_once(compile_s, method, environment),
    )


def _speedup(ratio: Ratio, clock: str, speeds: Speeds, environment: str, quality: Quality) -> Number:
    several = f", {speeds.num_callers} callers at once" if speeds.num_callers > 1 else ""
    return Number(
        value=ratio.value,
        unit="ratio",
        source="measured",
        method=f"{clock} per call of the original over that of the variant, {ratio.num_rounds} rounds in turns{several}",
        interval=(ratio.low, ratio.high),
        interval_kind=_interval_kind(ratio.num_rounds),
        n=ratio.num_rounds,
        environment=environment,
        quality=quality,
    )


def _interval_kind(num_rounds: int) -> str:
    looks = num_looks(num_rounds)
    ranks = "signed ranks" if num_rounds >= FEWEST_RANKS else "Student's t"
    return f"{format_share(1 - ERROR)} interval of paired rounds ({ranks})" + (f", for up to {looks} looks together" if looks > 1 else "")


def _throughput(batch_size: int, speeds: Speeds, which: str, environment: str, quality: Quality) -> Number:
    several = speeds.num_callers > 1
    bursts: Sequence[Burst] = getattr(speeds, which)
    seconds = [burst.seconds for burst in bursts] if several else speeds.calls_s(which)
    low, high = median_interval(seconds)
    who = f"of {speeds.num_callers} callers together" if several else "of one caller"
    return Number(
        value=batch_size / percentile(seconds, 50),
        unit="item/s",
        source="measured",
        method=f"items per call over the median time per call {who}",
        interval=(batch_size / high, batch_size / low),
        interval_kind="95 % interval of the median",
        n=len(seconds),
        environment=environment,
        quality=quality,
    )


def _stored(sizes: Sizes) -> Number:
    if sizes.stored_bytes is None:
        return counted(sizes.memory_bytes, "B", "bytes in memory, because the size on disk is not known")
    return counted(sizes.stored_bytes, "B", "bytes of the file of weights, packed without loss")


def _timed_once(seconds: float, method: str, environment: str) -> Number:
    return Number(value=seconds, unit="s", source="measured", method=method, n=1, environment=environment)
