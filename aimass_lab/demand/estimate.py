"""The demand of one call: FLOPs, bytes, memory and network traffic from one pass over shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import InputError
from ..prediction.target import TargetDevice, estimate_latency, find_target
from ..records import Demand, ModuleDemand, Note, Number, OperatorDemand, Unit, derived
from ..tracing.law import BatchLaw, fit_batch_law
from ..tracing.trace import Trace, trace_call
from ..units import format_bytes
from ..workload import Workload
from .payload import request_sizes, response_sizes

LIGHT = "no model FLOPs by definition: element-wise, reduction or data movement"


def estimate_demand(
    workload: Workload, *, batch_size: int | None = None, device: str | None = None, progress: Callable[[float, str], None] | None = None
) -> Demand:
    """Estimate what one call asks for; the model is neither run nor touched, and may lie on the meta device.

    Everything is arithmetic on the rows of one pass over tensors without data. FLOPs and tensor sizes are
    exact; they carry the source *estimated*, because nothing ran. ``activation_peak_bytes`` is the most that
    is alive at once in tensors made during the call, outputs counted, weights and inputs not;
    ``peak_memory_bytes`` adds weights and inputs, and its interval holds the workspaces that operators may
    take. Where the model's shapes depend on its data the pass is made over a real call, and a note says so.

    Args:
        workload: Model and example inputs.
        batch_size: Items per call; those of the inputs if not given.
        device: What `fits`, `max_batch_size` and `latency` are about: ``cpu`` or ``cuda:0`` for the attached
            one, else a name of the catalogue; where the model is if not given.
        progress: Called now and then with the share that is done and what comes next.

    Raises:
        InputError: `batch_size` cannot be used.
        ModelError: the model raises on these inputs.
        UnknownNameError: no such device.
        UnsupportedError: a device that is not attached.
    """
    tell = progress or (lambda share, text: None)
    size = workload.call.batch_size if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"batch size {size!r} is not a positive integer")
    target = find_target(device, workload)
    tell(0.0, "following one call")
    trace = trace_call(workload.model, workload.call, batch_size=size)
    tell(0.4, "following the batch size")
    law = fit_batch_law(workload.model, workload.call, known=trace)
    tell(0.8, "adding up")
    demand = _Assembly(workload, trace, law, target).make()
    tell(1.0, "done")
    return demand


class _Assembly:
    """Turns one trace into the record."""

    def __init__(self, workload: Workload, trace: Trace, law: BatchLaw | None, target: TargetDevice) -> None:
        self.workload, self.trace, self.law, self.target = workload, trace, law, target
        self.model = workload.info()
        self._how = "counted over one real call" if trace.ran else "exact arithmetic on shapes, one pass without data"

    def _number(self, value: float, unit: Unit, method: str, **more: Any) -> Number:
        return Number(value=value, unit=unit, source="measured" if self.trace.ran else "estimated", method=method, **more)

    def make(self) -> Demand:
        trace, workload = self.trace, self.workload
        flops = self._number(trace.flops, "FLOP", f"{self._how}: matrix products, convolutions, attention, recurrent layers, FFTs")
        moved = self._number(trace.bytes_moved, "B", f"{self._how}: what every operator reads and writes, no cache between operators")
        weights = self._weights()
        activations = self._number(trace.activation_peak_bytes, "B", f"{self._how}: tensors alive at once, outputs in, weights and inputs out")
        peak = self._peak(weights, activations)
        request, request_json = request_sizes(workload.model, workload.call)
        response, response_json = response_sizes(workload.name, trace.outputs, workload.call, trace.batch_size)
        latency, latency_notes = estimate_latency(trace, self.target, self.model.dtype)
        limit = self.target.memory
        largest = self._largest_batch(limit)
        return Demand(
            model=self.model,
            batch_size=trace.batch_size,
            num_parameters=Number(value=self.model.num_parameters, unit="parameter", source="measured", method="counted, tied ones once"),
            flops=flops,
            bytes_moved=moved,
            arithmetic_intensity=derived(
                flops.value / moved.value if moved.value else 0.0, "FLOP/B", "FLOPs over bytes moved", [("flops", flops), ("bytes_moved", moved)]
            ),
            weight_bytes=weights,
            activation_peak_bytes=activations,
            peak_memory_bytes=peak,
            request_bytes=request,
            response_bytes=response,
            request_json_bytes=request_json,
            response_json_bytes=response_json,
            device=self.target.name,
            memory_limit_bytes=limit,
            fits=None if limit is None else peak.value <= limit.value,
            max_batch_size=largest,
            latency=latency,
            operators=tuple(self._operators()),
            modules=tuple(self._modules()),
            coverage=self._coverage(),
            notes=(*self._notes(peak, limit, largest), *latency_notes),
        )

    def _weights(self) -> Number:
        on_meta = any(p.device.type == "meta" for p in self.workload.model.parameters())
        method = "sizes of parameters and buffers, tied ones once"
        return Number(value=self.model.weight_bytes, unit="B", source="estimated" if on_meta else "measured", method=method)

    def _peak(self, weights: Number, activations: Number) -> Number:
        trace = self.trace
        inputs = self._number(trace.input_bytes, "B", "sizes of the inputs")
        fixed = weights.value + inputs.value
        # Fused transformer layers, taken apart by the pass, hold less when they run; elsewhere a reused block may save a little.
        least = fixed + activations.value * (0.4 if trace.slow_path else 0.98)
        most = fixed + trace.activation_bound_bytes + self.target.context_bytes
        return derived(
            fixed + activations.value, "B", "weights, inputs and live activations",
            [("weight_bytes", weights), ("input_bytes", inputs), ("activation_peak_bytes", activations)],
            interval=(least, most), interval_kind="band: operators' own workspaces, from none to their bound by operator",
        )  # fmt: skip

    def _largest_batch(self, limit: Number | None) -> Number | None:
        if limit is None or self.law is None:
            return None
        room = limit.value - self.target.context_bytes
        safe, most = self.law.largest_batch(room, bound=True), self.law.largest_batch(limit.value, bound=False)
        if safe is None or most is None:
            return None
        exact = self.law.exact
        law = "bytes of every operator are affine in the batch" if exact else "straight line through two batch sizes, whose operators differ"
        return Number(
            value=safe, unit="item", source="estimated", method=f"largest batch whose upper end of the memory band stays below the limit; {law}",
            interval=(safe, max(safe, most)), interval_kind="with workspaces at their bound, and without any", quality="ok" if exact else "extrapolated",
        )  # fmt: skip

    def _operators(self) -> list[OperatorDemand]:
        calls, flops, moved = Counter[str](), Counter[str](), Counter[str]()
        unknown: set[str] = set()
        light = {row.op for row in self.trace.rows if row.kind == "light"}
        for row in self.trace.rows:
            calls[row.op] += 1
            flops[row.op] += row.flops
            moved[row.op] += row.bytes_read + row.bytes_written
            if row.kind == "unknown":
                unknown.add(row.op)
        return [
            OperatorDemand(
                name=op,
                calls=calls[op],
                flops=self._number(flops[op], "FLOP", LIGHT if op in light else ("no formula" if op in unknown else self._how)),
                bytes_moved=self._number(moved[op], "B", self._how),
                has_formula=op not in unknown,
            )
            for op in sorted(calls, key=lambda op: (-flops[op], -moved[op], op))
        ]

    def _modules(self) -> list[ModuleDemand]:
        flops, moved = Counter[str](), Counter[str]()
        for row in self.trace.rows:
            for name in {"", *row.scope}:
                flops[name] += row.flops
                moved[name] += row.bytes_read + row.bytes_written
        return [
            ModuleDemand(
                name=name,
                type=type(module).__name__,
                num_parameters=_count_parameters(module),
                flops=self._number(flops[name], "FLOP", self._how),
                bytes_moved=self._number(moved[name], "B", self._how),
            )
            for name, module in self.trace.modules.items()
            if name in moved
        ]

    def _coverage(self) -> Number:
        total = self.trace.bytes_moved
        unknown = sum(row.bytes_read + row.bytes_written for row in self.trace.rows if row.kind == "unknown")
        return self._number(1 - unknown / total if total else 1.0, "ratio", "share of the bytes moved by operators whose FLOPs are known")

    def _notes(self, peak: Number, limit: Number | None, largest: Number | None) -> list[Note]:
        trace, notes = self.trace, []

        def note(code: str, text: str) -> None:
            notes.append(Note(code=code, text=text))

        if trace.ran:
            note("W-REAL-RUN", f"the model was called for counting, because a pass over shapes was not possible: {trace.why_ran}")
        if trace.uncovered:
            listed = ", ".join(f"{op} ({n} calls)" for op, n in sorted(trace.uncovered.items()))
            note("W-COVERAGE", f"FLOPs are a lower bound: no formula for {listed}")
        if trace.slow_path:
            note("W-FUSED", "torch's transformer layers were taken apart for counting; run fused they hold less memory than estimated")
        if self.law is None:
            note("missing:max_batch_size", "the inputs do not give another batch size, so the largest one is not known")
        elif limit is None:
            note("missing:memory_limit_bytes", f"the memory of {self.target.name} is unknown")
        elif largest is None:
            note("missing:max_batch_size", "memory does not grow with the batch size")
        if limit is not None and peak.interval and peak.value <= limit.value < peak.interval[1]:
            note("W-TIGHT", f"with operator workspaces it may need {format_bytes(peak.interval[1])}, more than the {format_bytes(limit.value)} there are")
        return notes


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
