"""What a profile says beyond its latencies: where time and memory went, what it cost, and what to do next."""

from __future__ import annotations

from typing import Any

import torch

from ..compiled import is_compiled
from ..environment import LoadMeter
from ..records import Environment, MemoryPart, Note, Number, Profile, Quality, derived
from ..timing import calls_until_steady, median_interval, percentile
from ..units import format_count, format_seconds
from ..workload import Workload
from .advice import Situation, advise
from .bottleneck import share_compute_bound, split_time
from .kernels import Breakdown
from .ledger import device_ledger, processor_ledger
from .measure import Observations, main_dtype
from .timeline import make_timeline


class Explanation:
    """Adds to a profile what explains it.

    Args:
        workload: Model and inputs.
        seen: What was observed.
        load: Of the machine meanwhile.
        environment: What the numbers hold for.
    """

    def __init__(self, workload: Workload, seen: Observations, load: LoadMeter, environment: Environment) -> None:
        self.workload, self.seen, self.load, self.environment = workload, seen, load, environment
        self.device = workload.torch_device
        self.quality: Quality = "noisy" if load.noisy else "ok"
        self.notes: list[Note] = []
        self.breakdown = Breakdown(seen.recording, seen.trace, environment=environment.id, quality=self.quality) if seen.recording else None

    def _measured(self, value: float, unit: Any, method: str, **more: Any) -> Number:
        quality: Quality = "ok" if unit == "B" else self.quality
        return Number(value=value, unit=unit, source="measured", method=method, environment=self.environment.id, quality=quality, **more)

    def fields(self, profile: Profile) -> dict[str, Any]:
        """The fields to be put into `profile`; `notes` holds afterwards what the reader must know about them."""
        fields: dict[str, Any] = {**self._operators(profile.latency_p50), **self._memory(profile), **self._calls(profile.latency_p50)}
        self._processor_time(profile.latency_p50, fields["cpu_time_per_call"])
        fields["advice"] = advise(self._situation(profile))
        return fields

    # --- time

    def _operators(self, latency: Number) -> dict[str, Any]:
        if self.breakdown is None:
            return {}
        self.notes += self.breakdown.notes(self.seen.trace)
        call = self.breakdown.call
        both = [("recorded call", call), ("latency_p50", latency)]
        busy = None
        if self.breakdown.on_gpu:
            kernels = self.breakdown.all_kernels
            method = "time of one call's kernels, profiler on, over p50 latency, profiler off"
            busy = derived(kernels.value / latency.value, "ratio", method, [("kernels", kernels), ("latency_p50", latency)])
        return {
            "operators": self.breakdown.operators(),
            "kernels": self.breakdown.kernels(),
            "lines": self.breakdown.lines(),
            "outside_operators": self.breakdown.outside_operators(),
            "operator_overhead": derived(call.value / latency.value, "ratio", "one call with torch's profiler over median call without", both),
            "device_busy": busy,
            "timeline": make_timeline(self.breakdown, environment=self.environment.id),
        }

    def _calls(self, latency: Number) -> dict[str, Any]:
        """Warm-up, processor time, energy, and what the profile cost."""
        seen = self.seen
        first = seen.warmup_s
        cold = calls_until_steady(first, seen.samples[seen.batch_size])
        if cold is None:
            text = f"none of the {len(first)} first calls was as fast as later ones, and there was no time to watch more"
            self.notes.append(Note(code="missing:warmup", text=text))
        method = "calls before the first within the 95th percentile of steady ones"
        return {
            "warmup_calls": cold,
            "warmup_time": None if cold is None else self._measured(sum(first[:cold]), "s", method, n=max(1, cold)),
            "cpu_time_per_call": self._cpu_time(),
            "energy_per_call": self._energy(),
            "profiling_cost": derived(
                seen.wall_s / seen.forward_s, "ratio", "wall time of the whole profile over its forward passes",
                [("wall", self._measured(seen.wall_s, "s", "whole profile")), ("forward passes", self._measured(seen.forward_s, "s", "all reported calls"))],
            ),
        }  # fmt: skip

    def _cpu_time(self) -> Number | None:
        samples = self.seen.cpu_s
        if not samples:
            return None
        return self._measured(
            percentile(samples, 50), "s", f"median processor time, all threads of this process, of {len(samples)} calls, profiler off",
            interval=median_interval(samples), interval_kind="95 % interval of p50", n=len(samples),
        )  # fmt: skip

    def _processor_time(self, latency: Number, cpu: Number | None) -> None:
        """On a busy machine the processor time says more than the clock on the wall."""
        if not self.load.noisy or self.device.type != "cpu" or cpu is None:
            return
        threads = torch.get_num_threads()
        text = (
            f"a call took {format_seconds(latency.value)} on the clock, but all threads together {format_seconds(cpu.value)} of processor time: "
            f"shared evenly by {format_count(threads, 'thread')} on a quiet machine that is {format_seconds(cpu.value / threads)}"
        )
        self.notes.append(Note(code="W-PROCESSOR-TIME", text=text))

    def _energy(self) -> Number | None:
        meter = self.seen.energy
        if meter is None:
            return None
        if meter.note is not None:
            self.notes.append(meter.note)
        found = meter.per_call(self.seen.energy_calls)
        if found is None:
            return None
        more = {"interval": found.interval, "interval_kind": found.interval_kind, "n": found.n}
        return self._measured(found.value, "J", found.method, **more)

    # --- memory

    def _memory(self, profile: Profile) -> dict[str, Any]:
        first = self.seen.first_call_peak
        held = "what tensors hold on the GPU" if self.device.type == "cuda" else "the process's resident memory"
        grown = None if first is None else self._measured(first, "B", f"high-water mark of {held} during the first call less before")
        return {**self._ledger(profile), "first_call_peak_bytes": grown}

    def _ledger(self, profile: Profile) -> dict[str, Any]:
        seen = self.seen
        inputs = self._measured(seen.input_sizes.get(seen.batch_size, 0), "B", "sizes of the inputs")
        parts: tuple[MemoryPart, ...]
        if seen.device_account is not None:
            total = self._measured(seen.device_account.used, "B", "used on the device, all processes, as the driver counts")
            activations, account = profile.activation_peak_bytes, seen.device_account
            parts, notes = device_ledger(total, account, weights=profile.weight_bytes, inputs=inputs, activations=activations, environment=self.environment.id)
            self.notes += notes
            return {"memory": parts, "memory_total": total}
        call_peak = seen.call_peaks.get(seen.batch_size)
        if seen.total_peak is None or call_peak is None:
            self.notes.append(Note(code="missing:memory_ledger", text="the operating system does not tell the highest resident memory of a call here"))
            return {}
        total = self._measured(seen.total_peak, "B", "high-water mark of the process's resident memory over the timed calls")
        parts = processor_ledger(
            total,
            weights=profile.weight_bytes,
            inputs=inputs,
            activations=profile.activation_peak_bytes,
            call_peak=self._measured(call_peak, "B", "highest sum of torch's allocations during one call"),
            environment=self.environment.id,
        )
        return {"memory": parts, "memory_total": total}

    # --- next steps

    def _situation(self, profile: Profile) -> Situation:
        seen, split = self.seen, None
        if seen.trace is not None and seen.rates is not None:
            rates = seen.rates
            split = split_time(seen.trace, rates.flops_per_s.value, rates.memory_bytes_per_s.value, rates.overhead.value)
        return Situation(
            model=self.workload.model,
            device=self.device,
            dtype=str(main_dtype(self.workload.model)).removeprefix("torch."),
            batch_size=seen.batch_size,
            latency=profile.latency_p50,
            ladder=profile.ladder,
            recording=seen.recording,
            split=split,
            compute_share=share_compute_bound(seen.trace, seen.rates) if seen.trace is not None and seen.rates is not None else 1.0,
            evidence=seen.evidence,
            compiled=is_compiled(self.workload.model),
            in_training=any(module.training for module in self.workload.model.modules()),
        )
