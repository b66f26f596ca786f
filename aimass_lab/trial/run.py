"""One setting on a copy of the model, measured side by side with the original."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..environment import LoadMeter, read_environment
from ..errors import InputError, ModelError, UnsupportedError
from ..preserve import preserved
from ..quiet import quiet
from ..records import INTERRUPTED, Environment, Note, Number, Quality, Setting, TrialResult, Unit
from ..timing import MIN_SAMPLES, interleave, latency_number, percentile, ratio_interval, timed
from ..units import format_bytes, format_seconds
from ..workload import Call, Workload, call_model, weight_bytes
from .fidelity import MetricComparison, OutputComparison, compare_metric, join_batches, take_items
from .variant import Variant, apply_setting, first_line
from .verdict import DEFAULT_MAX_DROP, DEFAULT_TOLERANCE, EnoughRounds, explain_speed, is_resolved, judge_metric, judge_outputs, speed_verdict

if TYPE_CHECKING:
    import torch

Progress = Callable[[float, str], None]

MAX_ROUNDS = 500
SAMPLES_SHARE = 1 / 3
"""Of the budget, for comparing outputs; as many samples as fit."""
FEW_SAMPLES = 8
OVERHEAD_PER_LAYER_S = 30e-6
"""Starting one layer from Python costs eager torch 5 to 20 µs; a call that takes little more per layer is bound by that."""


def run_trial(
    workload: Workload,
    setting: Setting,
    *,
    budget_s: float = 6.0,
    tolerance: float = DEFAULT_TOLERANCE,
    max_drop: float = DEFAULT_MAX_DROP,
    progress: Progress | None = None,
    variant: Variant | None = None,
) -> TrialResult:
    """Try one setting: apply it to a copy, and compare speed and outputs with the original.

    Original and variant run side by side in this process, in random order within each round,
    until the verdict is clear or the time is up. Outputs are compared on the labelled data
    where there is some, else on the example inputs. A keyboard interrupt ends the comparison
    and keeps what was measured, if that is at least 5 rounds.

    Args:
        workload: The model and what it is called with.
        setting: What to try.
        budget_s: Seconds for comparing; copying, changing and compiling come on top.
        tolerance: Without a metric, outputs are equivalent if their mean cosine similarity is at
            least ``1 - tolerance`` and their relative error at most ``sqrt(2 * tolerance)``.
        max_drop: With a metric, the variant is equivalent if it loses at most this much of it.
        progress: Called with the share done and what is being done.
        variant: What `apply_setting` made of the same setting; made here, and released
            afterwards, if not given.

    Raises:
        InputError: an argument cannot be used, or the metric fails on the original's outputs.
        UnsupportedError: the technique is not possible here, or its result does not run.
        ModelError: the original raised, or the model cannot be copied.
        DoesNotFitError: the memory does not suffice.
    """
    if not (budget_s > 0 and 0 < tolerance < 1 and max_drop >= 0):
        given = f"budget_s={budget_s}, tolerance={tolerance}, max_drop={max_drop}"
        raise InputError(f"{given} cannot be used together", help="budget_s > 0, 0 < tolerance < 1 and max_drop >= 0")
    if variant is not None and variant.setting.technique != setting.technique:
        raise InputError(f"the variant was made by {variant.setting.technique!r} and the setting asks for {setting.technique!r}")
    report = progress or (lambda share, text: None)
    owned = variant is None
    try:
        if variant is None:
            report(0.0, f"{setting.technique}: changing a copy of the model")
            variant = apply_setting(workload, setting)
        batch_size = setting.batch_size or variant.setting.batch_size or workload.call.batch_size
        return _Trial(workload, variant, batch_size, budget_s, tolerance, max_drop, report).run()
    except BaseException as error:
        if owned:
            _forget(variant, error)
        raise
    finally:
        del variant
        if owned:
            _release_memory(workload.torch_device)


def _forget(variant: Variant | None, error: BaseException | None) -> None:
    """Let go of a copy although an error was raised: a notebook keeps its last traceback, and with its frames would keep the copy."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    if variant is not None:
        variant.release()  # Python 3.11 does not free what a function made in a cleared frame refers to


def _release_memory(device: torch.device) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _order(num_samples: int, batch_size: int) -> torch.Tensor:
    """The order in which samples are compared: if not all come in one batch, a random one, so that the first ones stand for all."""
    import torch

    return torch.arange(num_samples) if num_samples <= batch_size else torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))


@dataclass
class _Timings:
    """What the comparison of speed gave."""

    original_s: list[float]
    variant_s: list[float]
    meter: LoadMeter


class _Trial:
    """The steps of one trial and what they found."""

    def __init__(self, workload: Workload, variant: Variant, batch_size: int, budget_s: float, tolerance: float, max_drop: float, report: Progress) -> None:
        self.workload = workload
        self.variant = variant
        self.budget_s = budget_s
        self.tolerance = tolerance
        self.max_drop = max_drop
        self.report = report
        self.name = variant.setting.technique
        self.device = workload.torch_device
        self.call = workload.call.with_batch(batch_size)
        self.notes: list[Note] = []

    def run(self) -> TrialResult:
        """Measure, and put the result together."""
        import torch

        # preserved outside: what it puts back must not be written under inference mode
        with preserved(self.workload.model), torch.inference_mode():
            first_call_s = self._first_call()
            comparison, metric = self._compare_outputs()
            timings = self._compare_speed()
        return self._result(first_call_s, comparison, metric, timings)

    def _run_original(self, call: Call) -> Any:
        return call_model(self.workload.model, call)

    def _run_variant(self, call: Call) -> Any:
        try:
            return call_model(self.variant.model, call)
        except ModelError as error:
            cause = error.__cause__ or error
            what = f"{self.name} gives a model that does not run on {call.describe()}"
            raise UnsupportedError(f"{what}: {type(cause).__name__}: {first_line(cause)}") from cause

    def _first_call(self) -> float:
        """Seconds of the variant's first call."""
        self._run_original(self.call)  # first, so that a model that raises by itself is not blamed on the technique
        compiling = ", compiling it" if self.variant.technique.compiles else ""
        self.report(0.1, f"{self.name}: first call{compiling}")
        with quiet():
            return timed(partial(self._run_variant, self.call), self.device)

    # --- outputs ---

    def _compare_outputs(self) -> tuple[OutputComparison, MetricComparison | None]:
        """Compare outputs, and the metric if there is one, on as many samples as the time allows."""
        samples = self.workload.data[0] if self.workload.data else self.workload.call
        rows = _order(samples.batch_size, self.call.batch_size)
        comparison = OutputComparison()
        outputs: list[tuple[Any, Any, Call]] = []
        deadline = time.perf_counter() + SAMPLES_SHARE * self.budget_s
        for part_rows in rows.split(self.call.batch_size):
            if outputs and time.perf_counter() > deadline:
                break
            self.report(0.15 + 0.2 * len(outputs) * self.call.batch_size / len(rows), f"{self.name}: comparing outputs")
            part = samples.take(part_rows)
            batch = part.with_batch(self.call.batch_size)  # filled up, because each new shape would be compiled anew
            original, changed = self._outputs(batch)
            comparison.add(original, changed, batch, len(part_rows))
            keep = _order(len(part_rows), len(part_rows))
            outputs.append((take_items(original, keep, batch), take_items(changed, keep, batch), part) if self.workload.metric else (None, None, part))
        rows = rows[: sum(len(r) for r in rows.split(self.call.batch_size)[: len(outputs)])]
        self._note_samples(len(rows), samples.batch_size)
        return comparison, self._compare_metric(rows, outputs) if not comparison.num_lost and not comparison.mismatch else None

    def _compare_metric(self, rows: torch.Tensor, outputs: list[tuple[Any, Any, Call]]) -> MetricComparison | None:
        """The user's metric on the outputs of the samples `rows`; None without one."""
        if self.workload.data is None or self.workload.metric is None:
            return None
        inputs, labels = self.workload.data
        calls = [call for _, _, call in outputs]
        joined = [join_batches([parts[which] for parts in outputs], calls) for which in (0, 1)]
        return compare_metric(self.workload.metric, joined[0], joined[1], labels[rows.to(labels.device)], inputs.take(rows))

    def _note_samples(self, num_samples: int, num_available: int) -> None:
        if num_samples < num_available:
            text = f"outputs were compared on {num_samples} of {num_available} samples, drawn at random, to keep to the time"
            self._note("W-SUBSET", f"{text}; give a larger budget for all")
        if num_samples < FEW_SAMPLES:
            number = f"{num_samples} sample{'s' * (num_samples != 1)}"
            self._note("W-FEW-SAMPLES", f"fidelity rests on {number}; pass more example inputs or labelled data")

    def _outputs(self, call: Call) -> tuple[Any, Any]:
        """Outputs of both, from the same random numbers: a model may draw some."""
        import torch

        torch.manual_seed(0)
        original = self._run_original(call)
        torch.manual_seed(0)
        return original, self._run_variant(call)

    # --- speed ---

    def _compare_speed(self) -> _Timings:
        """Time both side by side."""
        interrupted = False
        samples: list[list[float]] = [[], []]
        start = reported = time.perf_counter()
        with LoadMeter() as meter:
            try:
                functions = (partial(self._run_original, self.call), partial(self._run_variant, self.call))
                for samples in interleave(functions, self.device, budget_s=self.budget_s, max_rounds=MAX_ROUNDS, stop=EnoughRounds()):
                    now = time.perf_counter()
                    if now - reported > 0.2:
                        reported = now
                        share = 0.35 + 0.6 * min(1.0, (now - start) / self.budget_s)
                        self.report(share, self._so_far(samples))
            except KeyboardInterrupt:
                if min(len(s) for s in samples) < MIN_SAMPLES:
                    raise
                interrupted = True
        num_rounds = min(len(s) for s in samples)
        if interrupted:
            self._note(INTERRUPTED, f"interrupted after {num_rounds} rounds")
        return _Timings(samples[0][:num_rounds], samples[1][:num_rounds], meter)

    def _so_far(self, samples: list[list[float]]) -> str:
        ratio = percentile(samples[0], 50) / percentile(samples[1], 50)
        return f"{self.name}: speed-up about {ratio:.2f} after {len(samples[1])} rounds"

    # --- result ---

    def _note(self, code: str, text: str) -> None:
        self.notes.append(Note(code=code, text=text))

    def _result(self, first_call_s: float, comparison: OutputComparison, metric: MetricComparison | None, timings: _Timings) -> TrialResult:
        environment = read_environment(self.device, load=timings.meter)
        quality: Quality = "noisy" if timings.meter.noisy else "ok"
        ratio, low, high = ratio_interval(timings.original_s, timings.variant_s)
        fidelity, relative_error = comparison.fidelity(environment.id), comparison.relative_error(environment.id)
        equivalent, why = self._judge(comparison, metric, float(fidelity.value), float(relative_error.value))
        verdict = speed_verdict(low, high) if equivalent else "not equivalent"
        num_rounds = len(timings.variant_s)
        reasons = [why, explain_speed(ratio, low, high, num_rounds)]
        if speed_verdict(low, high) != "faster":
            reasons += self._causes(percentile(timings.original_s, 50))
        compile_time = self._compile_time(first_call_s, timings, environment)
        reasons += self._accounts(ratio, timings, compile_time)
        self.notes += timings.meter.notes()
        if not is_resolved(low, high):
            self._note("W-UNRESOLVED", f"the interval [{low:.3g}, {high:.3g}] is too wide to tell; allow more time or quieten the machine")
        coverage = self.variant.coverage
        return TrialResult(
            model=self.workload.info(),
            environment=environment,
            setting=Setting(technique=self.name, options=self.variant.setting.options, batch_size=self.call.batch_size),
            batch_size=self.call.batch_size,
            verdict=verdict,
            reasons=tuple(reasons),
            speedup=Number(
                value=ratio,
                unit="ratio",
                source="measured",
                method=f"median latency of the original over that of the variant, {num_rounds} interleaved rounds",
                interval=(min(low, ratio), max(high, ratio)),
                interval_kind="95 % bootstrap of the ratio of medians",
                n=num_rounds,
                environment=environment.id,
                quality=quality,
            ),
            latency_original=latency_number(timings.original_s, 50, environment=environment.id, quality=quality),
            latency_variant=latency_number(timings.variant_s, 50, environment=environment.id, quality=quality),
            size_bytes=_counted(self.variant.size_bytes, "B", "bytes of the variant's parameters and buffers"),
            size_original_bytes=_counted(weight_bytes(self.workload.model), "B", "bytes of the original's parameters and buffers"),
            fidelity=fidelity,
            relative_error=relative_error,
            agreement=comparison.agreement(environment.id),
            metric_original=metric.number("original", environment.id) if metric else None,
            metric_variant=metric.number("variant", environment.id) if metric else None,
            num_changed_layers=_counted(coverage.num_changed, "layer", "layers that the technique changes"),
            num_eligible_layers=_counted(coverage.num_layers, "layer", "layers that hold weights"),
            apply_time=_timed_once(self.variant.apply_time_s, "copying the model and changing the copy, once", environment),
            compile_time=compile_time,
            notes=tuple(self.notes),
        )

    def _judge(self, comparison: OutputComparison, metric: MetricComparison | None, cosine: float, relative_error: float) -> tuple[bool, str]:
        """Equivalent or not, and why: shapes, then finite values, then the metric where there is one, else the outputs."""
        if comparison.mismatch:
            return False, f"the outputs cannot be compared: {comparison.mismatch}"
        if comparison.num_lost:
            lost = f"{comparison.num_lost} of {comparison.num_samples} samples"
            return False, f"{lost} have values that are not finite where the original's are"
        if metric is None:
            return judge_outputs(cosine, relative_error, self.tolerance)
        equivalent, why = judge_metric(metric.original, metric.variant, metric.drop_interval, self.max_drop)
        if equivalent and metric.drop_interval and metric.drop_interval[1] > self.max_drop:
            text = f"{metric.num_items} labelled items do not exclude a drop of up to {metric.drop_interval[1]:.3g}; give more to be sure"
            self._note("W-METRIC", text)
        return equivalent, why

    def _causes(self, latency_original_s: float) -> list[str]:
        """Why it is not faster, as far as known."""
        causes = list(self.variant.technique.causes(self.workload.model, self.call.batch_size, self.device))
        num_leaves = sum(1 for module in self.workload.model.modules() if not any(module.children()))
        per_layer_s = latency_original_s / num_leaves
        if per_layer_s < OVERHEAD_PER_LAYER_S and self.variant.technique.coverage(self.workload.model).num_changed:
            each = f"one call takes {format_seconds(latency_original_s)} for {num_leaves} modules, {format_seconds(per_layer_s)} each"
            causes.append(f"{each}: at batch {self.call.batch_size} most of that is the overhead of starting operators, which stays")
        return causes

    def _accounts(self, ratio: float, timings: _Timings, compile_time: Number | None) -> list[str]:
        """What was covered, what it weighs, and what compiling cost."""
        coverage, size = self.variant.coverage, weight_bytes(self.workload.model)
        found = []
        if coverage.num_changed:
            layers = f"{coverage.num_changed} of {coverage.num_layers} layers with weights"
            found.append(f"{layers} were changed, {coverage.weight_share:.0%} of the weights")
        if size and self.variant.size_bytes != size:
            sizes = f"{format_bytes(self.variant.size_bytes)} instead of {format_bytes(size)}"
            found.append(f"the weights take {self.variant.size_bytes / size:.2f} of their bytes: {sizes}")
        if compile_time is not None and compile_time.value > 0:
            saved_s = percentile(timings.original_s, 50) - percentile(timings.variant_s, 50)
            num_calls = math.ceil(compile_time.value / saved_s) if ratio > 1 else None
            pays = "" if num_calls is None else f", which pays back after {num_calls:,} calls"
            found.append(f"the first call took {format_seconds(float(compile_time.value))} longer, for compiling{pays}")
        return found

    def _compile_time(self, first_call_s: float, timings: _Timings, environment: Environment) -> Number | None:
        if not self.variant.technique.compiles:
            return None
        seconds = max(0.0, first_call_s - percentile(timings.variant_s, 50))
        method = "first call less the median call; what torch compiled earlier in this process or keeps on disk is reused"
        return _timed_once(seconds, method, environment)


def _counted(value: int, unit: Unit, method: str) -> Number:
    return Number(value=value, unit=unit, source="measured", method=method)


def _timed_once(seconds: float, method: str, environment: Environment) -> Number:
    return Number(value=seconds, unit="s", source="measured", method=method, n=1, environment=environment.id)
