"""Turn the raw observations of a profile into its record."""

from __future__ import annotations

from typing import Any

import msgspec

from ..compiled import is_compiled
from ..environment import LoadMeter, read_environment
from ..records import BatchPoint, ModuleTime, Note, Number, Profile, Quality, Unit, derived
from ..timing import latency_number, percentile
from ..workload import Workload
from .bottleneck import say_what_binds
from .explain import Explanation
from .measure import Observations
from .modules import time_modules
from .summary import count_flops, shapes_peak

MOST_MODULES = 500
"""A model of thousands of modules must not fill a notebook with them: a row takes a kilobyte."""


class Report:
    """Builds the numbers of one profile, all of the same environment and quality."""

    def __init__(self, workload: Workload, seen: Observations, load: LoadMeter) -> None:
        self.workload, self.seen, self.load = workload, seen, load
        self.environment = read_environment(workload.torch_device, load=load)
        self.quality: Quality = "noisy" if load.noisy else "ok"

    def _measured(self, value: float, unit: Unit, method: str, **more: Any) -> Number:
        # Other load disturbs times; sizes stay what they are.
        quality: Quality = "ok" if unit == "B" else self.quality
        return Number(value=value, unit=unit, source="measured", method=method, environment=self.environment.id, quality=quality, **more)

    def make(self) -> Profile:
        """Return the record."""
        seen = self.seen
        ladder = tuple(self._point(size) for size in sorted(seen.samples) if seen.samples[size])
        base = next(point for point in ladder if point.batch_size == seen.batch_size)
        weights = self._measured(self.workload.info().weight_bytes, "B", "sizes of parameters and buffers, tied ones once")
        activations = self._activations()
        peak = self._peak(seen.batch_size, weights)
        other = peak.value - weights.value - activations.value
        flops = self._flops()
        modules = self._modules(base.latency_p50)
        profile = Profile(
            model=self.workload.info(),
            environment=self.environment,
            batch_size=seen.batch_size,
            latency_p50=base.latency_p50,
            latency_p95=base.latency_p95,
            latency_p99=base.latency_p99,
            throughput=base.throughput,
            peak_memory_bytes=peak,
            weight_bytes=weights,
            activation_peak_bytes=activations,
            other_memory_bytes=derived(
                other, "B", "peak less weights and activations: inputs, operator workspaces", [("peak", peak), ("activations", activations)]
            ),
            process_memory_bytes=self._measured(seen.process_bytes, "B", "resident memory of this process after the first call"),
            flops=flops,
            flops_per_s=flops
            and derived(flops.value / base.latency_p50.value, "FLOP/s", "FLOPs over p50 latency", [("flops", flops), ("latency_p50", base.latency_p50)]),
            host_residual=self._host_residual(modules, base.latency_p50),
            first_call=self._measured(seen.first_call_s, "s", "first call of this profile", n=1),
            profiling_overhead=self._overhead(base.latency_p50),
            ladder=ladder,
            modules=modules,
            binds=self._binds(base.latency_p50),
        )
        explanation = Explanation(self.workload, seen, self.load, self.environment)
        fields = explanation.fields(profile)
        return msgspec.structs.replace(profile, **fields, notes=(*seen.notes, *self._driver_notes(), *explanation.notes, *self.load.notes()))

    def _driver_notes(self) -> list[Note]:
        if self.environment.driver is not None or self.workload.torch_device.type != "cuda":
            return []
        return [Note(code="missing:driver", text="neither NVML (package nvidia-ml-py) nor nvidia-smi is there to tell the driver's version")]

    def _point(self, batch_size: int) -> BatchPoint:
        samples = self.seen.samples[batch_size]
        quality: Quality = "noisy" if batch_size in self.seen.contradicted else self.quality
        p50, p95, p99 = (latency_number(samples, q, environment=self.environment.id, quality=quality) for q in (50, 95, 99))
        band = p50.interval and (batch_size / p50.interval[1], batch_size / p50.interval[0])
        throughput = derived(
            batch_size / p50.value, "item/s", "batch size over p50 latency", [("latency_p50", p50)], interval=band, interval_kind=p50.interval_kind
        )
        weights = self._measured(self.workload.info().weight_bytes, "B", "sizes of parameters and buffers, tied ones once")
        known = self.seen.call_peaks.get(batch_size) is not None
        memory = self._peak(batch_size, weights) if known else None
        return BatchPoint(batch_size=batch_size, latency_p50=p50, latency_p95=p95, latency_p99=p99, throughput=throughput, peak_memory_bytes=memory)

    def _peak(self, batch_size: int, weights: Number) -> Number:
        peak = self.seen.call_peaks.get(batch_size)
        inputs = self._measured(self.seen.input_sizes.get(batch_size, 0), "B", "sizes of the inputs")
        if peak is not None:
            call = self._measured(peak, "B", "highest sum of torch's allocations during one call", n=1)
        else:
            trace = self.seen.trace
            call = Number(
                value=trace.activation_peak_bytes if trace else 0, unit="B", source="estimated" if trace else "assumed",
                method="live tensors of one pass over shapes" if trace else "not known: another profiler was running", environment=self.environment.id,
            )  # fmt: skip
        parts = [("weights", weights), ("inputs", inputs), ("call", call)]
        return derived(sum(n.value for _, n in parts), "B", f"weights, inputs and {call.method}", parts)

    def _activations(self) -> Number:
        peak, trace = self.seen.call_peaks.get(self.seen.batch_size), self.seen.trace
        measured = self._measured(peak or 0, "B", "highest sum of torch's allocations during one call", n=1)
        if trace is None:
            return measured if peak is not None else Number(value=0, unit="B", source="assumed", method="not known: neither read nor followed")
        shapes = shapes_peak(trace, self.environment.id)
        if peak is None:
            return shapes
        # Fused layers hold less than the pass, which takes them apart; what was never allocated cannot be activations.
        value = min(peak, trace.activation_peak_bytes)
        return derived(value, "B", "live tensors by shapes, at most what was allocated", [("shapes", shapes), ("allocated", measured)])

    def _flops(self) -> Number | None:
        return None if self.seen.trace is None else count_flops(self.seen.trace, self.environment.id)

    def _modules(self, whole: Number) -> tuple[ModuleTime, ...]:
        names: dict[int, tuple[str, str]] = {}
        for name, module in self.workload.model.named_modules():
            names[id(module)] = (name, type(module).__name__)
        if not self.seen.rounds:
            return ()
        instrumented = self._measured(percentile(self.seen.instrumented_s, 50), "s", "median call with hooks", n=len(self.seen.instrumented_s))
        modules = time_modules(names, self.seen.rounds, whole=instrumented, environment=self.environment.id, quality=self.quality)
        shapes = self.seen.recording.input_shapes if self.seen.recording else {}
        if len(modules) > MOST_MODULES:
            self.seen.note("W-MODULES", f"of {len(modules)} modules, the {MOST_MODULES} that take the most time themselves are listed")
            modules = tuple(m for i, m in enumerate(modules) if i < MOST_MODULES or not m.name)
        return tuple(msgspec.structs.replace(m, input_shape=shapes[m.name]) if m.name in shapes else m for m in modules)

    def _host_residual(self, modules: tuple[ModuleTime, ...], latency: Number) -> Number:
        root = next((m for m in modules if m.name == ""), None)
        if root is not None:
            return root.self_time
        return self._measured(latency.value, "s", "the whole call: no module could be timed apart")

    def _overhead(self, latency: Number) -> Number:
        if not self.seen.instrumented_s:
            return Number(value=1.0, unit="ratio", source="assumed", method="no call was timed with hooks, so none is slower for them")
        hooked = self._measured(percentile(self.seen.instrumented_s, 50), "s", "median call with hooks", n=len(self.seen.instrumented_s))
        method = "median call with hooks over median call without"
        return derived(hooked.value / latency.value, "ratio", method, [("with hooks", hooked), ("latency_p50", latency)])

    def _binds(self, latency: Number) -> str:
        if self.seen.trace is None:
            return "not known: the model's operators could not be followed"
        if self.seen.rates is None:
            return "not known: the profile ended before the rates of this device were measured"
        return say_what_binds(self.seen.trace, self.seen.rates, latency.value, compiled=is_compiled(self.workload.model))
