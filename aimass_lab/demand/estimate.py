"""The demand of one call: FLOPs, bytes, memory and network traffic from one pass over shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import AimassError, InputError, UnsupportedError
from ..interrupts import sparing_imports
from ..network.payload import request_sizes, response_sizes
from ..prediction.target import TargetDevice, estimate_latency, find_target, operator_seconds
from ..records import BatchPoint, Demand, LengthPoint, MemoryPart, MemoryPoint, Note, Number, TrainingDemand, Unit, derived
from ..tracing.law import support
from ..tracing.trace import Trace, trace_call
from ..units import format_bytes
from ..workload import Call, Workload, storage_sizes
from .breakdown import Breakdown, intensity, roof_of
from .lengths import with_length
from .memory import CallMemory, Part
from .report import ledger, place_of, total_of
from .training import buffer_bytes, estimate_training
from .workspace import Calibration, calibration_of, measure_call_peaks

CALIBRATION_BATCHES = (2, 4)
"""A batch of one is often served by kernels of its own, which say little about the others."""

BATCHES_SHOWN = tuple(2**k for k in range(0, 11, 2))


@sparing_imports
def estimate_demand(
    workload: Workload,
    *,
    batch_size: int | None = None,
    device: str | None = None,
    training: bool = False,
    optimizer: str = "adamw",
    lengths: Sequence[int] = (),
    measured: Sequence[BatchPoint] = (),
    calibrate: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> Demand:
    """Estimate what one call asks for; the model is neither run nor touched, and may lie on the meta device.

    Everything is arithmetic on the rows of one pass over tensors without data. FLOPs and tensor sizes are
    exact; they carry the source *estimated*, because nothing ran. ``activation_peak_bytes`` is the most that
    is alive at once in tensors made during the call, outputs counted, weights and inputs not;
    ``peak_memory_bytes`` adds weights, inputs and what CPU kernels are known to take for themselves;
    ``driver_bytes`` adds what the allocator, libraries and driver keep, line by line in ``memory``.
    Where the model's shapes depend on its data the pass is made over a real call, and a note says so.

    Args:
        workload: Model and example inputs.
        batch_size: Items per call; those of the inputs if not given.
        device: What `fits`, `max_batch_size` and `latency` are about: ``cpu`` or ``cuda:0`` for the attached
            one, else a name of the catalogue; where the model is if not given.
        training: Follow a training step too.
        optimizer: Of that step: "adamw", "sgd" or "none".
        lengths: Sequence lengths to estimate memory and latency at as well, where an input holds token numbers.
        measured: A profile's ladder on the same device: its peaks calibrate memory at all other batch sizes.
        calibrate: Run the model at two batch sizes for that, where the device is the attached one it lies on.
        progress: Called now and then with the share that is done and what comes next.

    Raises:
        InputError: `batch_size`, `lengths` or `optimizer` cannot be used, or nothing can be trained.
        ModelError: the model raises on these inputs.
        UnknownNameError: no such device.
        UnsupportedError: a device that is not attached, or a calibration on one that the model is not on.
    """
    tell = progress or (lambda share, text: None)
    size = workload.call.batch_size if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"batch size {size!r} is not a positive integer")
    target = find_target(device, workload)
    tell(0.0, "following one call")
    trace = trace_call(workload.model, workload.call, batch_size=size)
    tell(0.3, "following the batch size")
    memory = call_memory(workload, trace, target)
    if calibrate:
        memory.calibration = _measured_here(workload, target)
    elif measured:
        memory.calibration = calibration_of(measured, memory)
    by_length = tuple(_at_length(workload, target, size, length) for length in lengths)
    step = None
    if training:
        tell(0.5, "following a training step")
        step = estimate_training(workload, size, target, optimizer)
    tell(0.8, "adding up")
    demand = _Assembly(workload, trace, memory, target).make(by_length, step)
    tell(1.0, "done")
    return demand


def call_memory(workload: Workload, trace: Trace, target: TargetDevice) -> CallMemory:
    """The memory of a call by batch size, from the trace at hand and what else must be followed for it."""
    resident = list(storage_sizes([*workload.model.parameters(), *workload.model.buffers()]).values())
    return CallMemory(trace, _pair(workload, trace), target, resident)


def _pair(workload: Workload, trace: Trace, call: Call | None = None) -> tuple[Trace, Trace] | None:
    try:
        first, second = (trace if size == trace.batch_size else trace_call(workload.model, call or workload.call, batch_size=size) for size in support(trace))
    except AimassError:  # inputs, or a model, that know one batch size only
        return None
    return first, second


def _measured_here(workload: Workload, target: TargetDevice) -> Calibration:
    if target.attached is None or target.attached.type != workload.torch_device.type:
        raise UnsupportedError(f"memory cannot be calibrated on {target.name}: the model is on {workload.torch_device}", help="leave the device out")
    return measure_call_peaks(workload, CALIBRATION_BATCHES)


def _at_length(workload: Workload, target: TargetDevice, batch_size: int, length: int) -> LengthPoint:
    call = with_length(workload.call, length)
    trace = trace_call(workload.model, call, batch_size=batch_size, may_run=False)
    memory = CallMemory(trace, _pair(workload, trace, call), target, list(storage_sizes([*workload.model.parameters(), *workload.model.buffers()]).values()))
    limit = target.memory
    largest = None if limit is None else memory.largest_batch(limit.value)
    how = f"followed by shapes at length {length}"
    return LengthPoint(
        length=length,
        flops=Number(value=trace.flops, unit="FLOP", source="estimated", method=how),
        peak_memory_bytes=band_number(memory.torch_bytes(batch_size), how),
        driver_bytes=band_number(memory.driver_bytes(batch_size), how),
        max_batch_size=None if largest is None else Number(value=largest, unit="item", source="estimated", method="largest batch whose whole band fits"),
        latency=estimate_latency(trace, target, workload.info().dtype)[0],
    )


def band_number(ends: tuple[float, float, float], how: str) -> Number:
    """Bytes as expected, at least and at most, as a prediction."""
    value = round(ends[0])
    return Number(
        value=value, unit="B", source="estimated", method=how, interval=(min(value, ends[1]), max(value, ends[2])),
        interval_kind="band: workspaces, slack and context at their least and most",
    )  # fmt: skip


class _Assembly:
    """Turns one trace into the record."""

    def __init__(self, workload: Workload, trace: Trace, memory: CallMemory, target: TargetDevice) -> None:
        self.workload, self.trace, self.memory, self.target = workload, trace, memory, target
        self.model = workload.info()
        self._how = "counted over one real call" if trace.ran else "exact arithmetic on shapes, one pass without data"
        if trace.assumptions:
            self._how = f"at most, {self._how}"

    def _number(self, value: float, unit: Unit, method: str, **more: Any) -> Number:
        return Number(value=value, unit=unit, source="measured" if self.trace.ran else "estimated", method=method, **more)

    def make(self, by_length: tuple[LengthPoint, ...], training: TrainingDemand | None) -> Demand:
        trace, workload, memory, size = self.trace, self.workload, self.memory, self.trace.batch_size
        flops = self._number(trace.flops, "FLOP", f"{self._how}: matrix products, convolutions, attention, recurrent layers, FFTs")
        moved = self._number(trace.bytes_moved, "B", f"{self._how}: what every operator reads and writes, no cache between operators")
        weights = self._weights()
        activations = self._number(trace.activation_peak_bytes, "B", f"{self._how}: tensors alive at once, outputs in, weights and inputs out")
        peak = self._peak(weights, activations)
        request = request_sizes(workload.model, workload.call, workload.name)
        response = response_sizes(workload.name, trace.outputs, workload.call, size)
        latency, latency_notes = estimate_latency(trace, self.target, self.model.dtype)
        limit = self.target.memory
        largest = self._largest_batch(limit)
        parts = self._ledger()
        driver = total_of(parts)
        roof = roof_of(self.target, self.model.dtype)
        tables = Breakdown(trace, roof, operator_seconds(trace, self.target, self.model.dtype), self._how)
        reserved = memory.peaks_at(size) if memory.on_gpu else None
        replayed = "the caching allocator's rules replayed over every allocation; not measured here"
        return Demand(
            model=self.model,
            batch_size=size,
            num_parameters=Number(value=self.model.num_parameters, unit="parameter", source="measured", method="counted, tied ones once"),
            flops=flops,
            light_flops=tables.light_flops(),
            bytes_moved=moved,
            arithmetic_intensity=intensity(flops, moved),
            weight_bytes=weights,
            activation_peak_bytes=activations,
            peak_memory_bytes=peak,
            driver_bytes=driver,
            memory=parts,
            allocated_bytes=None if reserved is None else self._number(reserved.allocated_bytes, "B", replayed),
            reserved_bytes=None if reserved is None else self._number(reserved.reserved_bytes, "B", replayed),
            peak_at=place_of(memory.row(memory.moment(size))),
            memory_by_batch=self._by_batch(largest),
            by_length=by_length,
            request_bytes=request.binary,
            response_bytes=response.binary,
            request_json_bytes=request.json,
            response_json_bytes=response.json,
            device=self.target.name,
            memory_limit_bytes=limit,
            fits=None if limit is None else driver.value <= limit.value,
            max_batch_size=largest,
            latency=latency,
            operators=tables.operators(),
            modules=tables.modules(),
            lines=tables.lines(),
            training=training,
            roof_flops_per_s=None if roof is None else roof.peak,
            roof_bytes_per_s=None if roof is None else roof.bytes_per_s,
            coverage=self._coverage(),
            notes=(*self._notes(driver, limit, largest), *latency_notes),
        )

    def _weights(self) -> Number:
        on_meta = any(p.device.type == "meta" for p in self.workload.model.parameters())
        method = "sizes of parameters and buffers, tied ones once"
        return Number(value=self.model.weight_bytes, unit="B", source="estimated" if on_meta else "measured", method=method)

    def _peak(self, weights: Number, activations: Number) -> Number:
        size = self.trace.batch_size
        value, least, most = self.memory.torch_bytes(size)
        moment = self.memory.moment(size)
        inputs = self._number(self.trace.input_bytes, "B", "sizes of the inputs")
        workspace = self._number(round(value) - weights.value - inputs.value - activations.value, "B", moment.basis or "kernels' own buffers by rule")
        how = f", {moment.basis}" if moment.basis else ""
        return derived(
            round(value), "B", f"weights, inputs, live activations and known workspaces{how}",
            [("weight_bytes", weights), ("input_bytes", inputs), ("activation_peak_bytes", activations), ("workspace_bytes", workspace)],
            interval=(min(least, round(value)), max(most, round(value))),
            interval_kind="band around the calibration" if moment.basis else "band: operators' own workspaces, from none to their bound by operator",
        )  # fmt: skip

    def _ledger(self) -> tuple[MemoryPart, ...]:
        buffers, inputs = buffer_bytes(self.workload.model), self.trace.input_bytes
        weights = sum(self.memory.resident_bytes) - buffers
        fixed = [
            Part("weights", weights, weights, weights, "sizes of parameters, tied ones once"),
            Part("buffers", buffers, buffers, buffers, "sizes of buffers"),
            Part("inputs", inputs, inputs, inputs, "sizes of the inputs"),
        ]
        return ledger([*fixed, *self.memory.parts(self.trace.batch_size)], measured=self.trace.ran)

    def _by_batch(self, largest: Number | None) -> tuple[MemoryPoint, ...]:
        if self.memory.pair is None:
            return ()
        most = BATCHES_SHOWN[-1] if largest is None else max(largest.value, self.trace.batch_size)
        shown = {*(size for size in BATCHES_SHOWN if size <= most), self.trace.batch_size, *((int(largest.value),) if largest and largest.value else ())}
        how = self.memory.calibration.basis if self.memory.calibration else self._law
        memory = self.memory
        return tuple(
            MemoryPoint(batch_size=b, peak_memory_bytes=band_number(memory.torch_bytes(b), how), driver_bytes=band_number(memory.driver_bytes(b), how))
            for b in sorted(shown)
        )

    @property
    def _law(self) -> str:
        exact = "bytes of every operator are affine in the batch"
        return exact if self.memory.exact else "straight line through two batch sizes, whose operators differ"

    def _largest_batch(self, limit: Number | None) -> Number | None:
        if limit is None:
            return None
        safe = self.memory.largest_batch(limit.value)
        most = self.memory.largest_batch(limit.value, optimistic=True)
        if safe is None or most is None:
            return None
        basis = self.memory.calibration.basis if self.memory.calibration else self._law
        return Number(
            value=safe, unit="item", source="estimated", method=f"largest batch whose upper end of the memory band stays below the limit; {basis}",
            interval=(safe, max(safe, most)), interval_kind="by the upper and by the lower end of the memory band",
            quality="ok" if self.memory.exact else "extrapolated",
        )  # fmt: skip

    def _coverage(self) -> Number:
        total = self.trace.bytes_moved
        unknown = sum(row.bytes_read + row.bytes_written for row in self.trace.rows if row.kind == "unknown")
        return self._number(1 - unknown / total if total else 1.0, "ratio", "share of the bytes moved by operators whose FLOPs are known")

    def _notes(self, driver: Number, limit: Number | None, largest: Number | None) -> list[Note]:
        trace, notes = self.trace, []

        def note(code: str, text: str) -> None:
            notes.append(Note(code=code, text=text))

        if trace.ran:
            note("W-REAL-RUN", f"the model was called for counting, because a pass over shapes was not possible: {trace.why_ran}")
        if trace.assumptions:
            note("W-AT-MOST", f"sizes that depend on data were taken at their most: {'; '.join(trace.assumptions)}")
        if trace.uncovered:
            listed = ", ".join(f"{op} ({n} calls)" for op, n in sorted(trace.uncovered.items()))
            note("W-COVERAGE", f"FLOPs are a lower bound: no formula for {listed}")
        if trace.slow_path:
            note("W-FUSED", "torch's transformer layers were taken apart for counting; run fused they hold less memory than estimated")
        if self.memory.on_gpu:
            note("missing:context", "the CUDA context is assumed: what a driver takes beside the tensors was not measured here")
        if self.memory.pair is None:
            note("missing:max_batch_size", "the inputs do not give another batch size, so the largest one is not known")
        elif limit is None:
            note("missing:memory_limit_bytes", f"the memory of {self.target.name} is unknown")
        elif largest is None:
            note("missing:max_batch_size", "memory does not grow with the batch size")
        if limit is not None and driver.interval and driver.value <= limit.value < driver.interval[1]:
            note("W-TIGHT", f"with workspaces and slack at their most it needs {format_bytes(driver.interval[1])}, and there are {format_bytes(limit.value)}")
        return notes
