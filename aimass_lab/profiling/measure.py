"""Run a model again and again and write down what happens: the raw observations of a profile."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import nn

from ..compiled import is_compiled
from ..errors import AimassError, DoesNotFitError, InputError, ModelError, without_traceback
from ..formats.signature import mixing
from ..inputs import writes_inputs
from ..outputs import output_tensors
from ..preserve import preserved
from ..readings.energy import EnergyMeter
from ..records import INTERRUPTED, Note
from ..timing import percentile, sample_latency, stopwatch, timed, warm_up
from ..tracing.law import fit_batch_law
from ..tracing.trace import Trace, trace_call
from ..units import format_bytes, format_seconds
from ..workload import Call, Workload, call_model, is_out_of_memory
from .bottleneck import Rates, measure_rates
from .contradictions import find_contradicted
from .evidence import Evidence, gather_evidence
from .ledger import DeviceAccount, read_device_account
from .memory import address_space_capped, begin_peak, free_bytes, peak_of_call, peak_since, release_cached
from .modules import ModuleTimer, Times
from .probes import page_faults
from .recorder import Recording, record_call

DEFAULT_LADDER = tuple(2**k for k in range(9))
FEWEST_SAMPLES = 3
"""Timed calls at a batch size whatever they cost."""
INSTRUMENTED_CALLS = 3
"""Most calls with module hooks."""
MODULE_SHARE = 0.1
"""Share of the time budget for them; the first is always made."""
WARMUP_SHARE = 0.1
"""Most of the time budget for calls until two in a row take the same time."""
BASE_SHARE = 0.3
"""Share of the time budget that goes to the latency at the requested batch size."""

FIRST_PASS_SHARE = 0.6
"""Share of the ladder's time that goes to its first pass; the second goes over it from the top."""

CHEAP_SHARE = 0.02
"""A step of the ladder that takes no more than this share of the budget is made even when the time is up:
the first profile of a process spends a second on loading what traces it, and a small model's ladder costs nothing."""

COMPARED_VALUES = 2**20
"""Most numbers of an answer that are kept until a larger batch is answered."""

Progress = Callable[[float, str], None]


@dataclass
class Observations:
    """Everything that was seen, in the order it is seen in; an interrupted profile has the first part of it."""

    batch_size: int
    trace: Trace | None = None
    first_call_s: float = 0.0
    first_call_peak: int | None = None
    """Highest memory during the first call less what was held before."""
    warmup_s: list[float] = field(default_factory=list)
    """The first call and those right after it, nothing attached."""
    process_bytes: int = 0
    input_bytes: int = 0
    call_peaks: dict[int, int | None] = field(default_factory=dict)
    """Allocator peak of one call by batch size."""
    input_sizes: dict[int, int] = field(default_factory=dict)
    recording: Recording | None = None
    """One call at the requested batch size with torch's profiler on."""
    peak_calls_s: list[float] = field(default_factory=list)
    """Calls whose memory was read, on the ladder."""
    rounds: list[dict[int, Times]] = field(default_factory=list)
    """Times by module, one entry per call with hooks."""
    instrumented_s: list[float] = field(default_factory=list)
    samples: dict[int, list[float]] = field(default_factory=dict)
    """Seconds of the calls without hooks by batch size."""
    contradicted: set[int] = field(default_factory=set)
    """Batch sizes that take far longer than a larger one, and were not seen to take less when they were timed again."""
    cpu_s: list[float] = field(default_factory=list)
    """Processor seconds of those at the requested batch size."""
    total_peak: int | None = None
    """High-water mark during those: of the process's resident memory, or of what tensors hold on the GPU."""
    device_account: DeviceAccount | None = None
    energy: EnergyMeter | None = None
    energy_calls: int = 0
    """Calls at the requested batch size whose energy was metered; those timed later are not among them."""
    evidence: Evidence = field(default_factory=Evidence)
    wall_s: float = 0.0
    """Of the whole profile."""
    rates: Rates | None = None
    notes: list[Note] = field(default_factory=list)

    @property
    def forward_s(self) -> float:
        """Time of all calls of the model that the profile reports on."""
        recorded_s = self.recording.call_ns / 1e9 if self.recording else 0.0
        timed_s = sum(map(sum, self.samples.values()))
        return sum(self.warmup_s) + recorded_s + sum(self.instrumented_s) + sum(self.peak_calls_s) + timed_s

    def note(self, code: str, text: str) -> None:
        """Add a note."""
        self.notes.append(Note(code=code, text=text))


class Measurement:
    """One profile in the making.

    Args:
        workload: Model and inputs.
        batch_size: Items per call.
        ladder: Batch sizes to measure as well; None picks powers of two for as long as the time allows.
        budget_s: Seconds for everything.
        force: Run even if the estimate says that memory will not suffice.
        progress: Told the share that is done and what comes next.
        trace: The pass over shapes; None where only a real call can follow the model.
    """

    def __init__(
        self, workload: Workload, *, batch_size: int, ladder: Sequence[int] | None, budget_s: float, force: bool, progress: Progress | None,
        trace: Trace | None = None,
    ) -> None:  # fmt: skip
        self.workload, self.model = workload, workload.model
        self.device = workload.torch_device
        self.seen = Observations(batch_size, trace=trace)
        self._ladder, self._budget_s, self._force = ladder, budget_s, force
        self._deadline = time.perf_counter() + budget_s
        self._progress = progress or (lambda share, text: None)
        self._grad_mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.inference_mode
        self._answers: list[tuple[str, torch.Tensor]] = []
        """Of the first call, to hold against those of a larger batch, once."""

    def run(self) -> Observations:
        """Observe everything; an interrupt after the first latency keeps what is there.

        Raises:
            DoesNotFitError: the batch needs more memory than there is.
            ModelError: the model raised.
        """
        started = time.perf_counter()
        self._foresee()
        if any(module.training for module in self.model.modules()):
            self.seen.note("W-TRAINING-MODE", "the model is in training mode; it was measured in eval mode and put back")
        guard = address_space_capped(self.device) if self._force else contextlib.nullcontext()
        device = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        try:
            with guard, device, preserved(self.model):
                self._observe()
        except DoesNotFitError as error:
            without_traceback(error)  # what it holds could not be given back
            release_cached(self.device)
            raise error  # a bare raise would bring the traceback back, in Python 3.10
        self.seen.wall_s = time.perf_counter() - started
        return self.seen

    def _foresee(self) -> None:
        """Refuse what cannot fit."""
        trace = self.seen.trace
        if trace is None or self._force:
            return
        needed, free = trace.input_bytes + trace.activation_peak_bytes, free_bytes(self.device)
        if needed <= free:
            return
        law = fit_batch_law(self.model, self.workload.call, known=trace, may_run=False)
        largest = law.largest_batch(trace.weight_bytes + free, bound=True) if law else None
        advice = f"a batch of {largest} is predicted to fit; " if largest else ""
        raise DoesNotFitError(
            f"a batch of {self.seen.batch_size} does not fit: it needs about {format_bytes(needed)} beside the weights, "
            f"and {format_bytes(free)} are free on {self.device}",
            help=f"{advice}force=True (--force) tries nevertheless",
        )

    def _observe(self) -> None:
        try:
            call = self._call_with(self.seen.batch_size)
            self._first_call(call)
            budget_s = WARMUP_SHARE * self._budget_s
            self.seen.warmup_s = warm_up(lambda: self._run(call), self.device, first_s=self.seen.first_call_s, budget_s=budget_s)
            self._memory_and_modules(call)
            self._progress(0.3, f"timing batch {self.seen.batch_size}")
            self._sample(call)
            self._progress(0.6, "measuring what the device reaches")
            dtype = main_dtype(self.model)
            self.seen.rates = measure_rates(self.device, dtype)
            self.seen.evidence = gather_evidence(self.model, self.device, dtype, self.seen.recording, self.seen.evidence.faults_per_call)
            self._climb()
        except KeyboardInterrupt:
            if not any(self.seen.samples.values()):
                raise
            self.seen.note(INTERRUPTED, "the profile was interrupted; it holds what was measured until then")
        self._progress(1.0, "done")

    def _call_with(self, batch_size: int) -> Call:
        try:
            return self.workload.call.with_batch(batch_size)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DoesNotFitError(f"the inputs of a batch of {batch_size} do not fit into memory", help="use a smaller batch size") from None
            raise

    def _run(self, call: Call) -> Any:
        with self._grad_mode():
            return call_model(self.model, call)

    def _first_call(self, call: Call) -> None:
        self._progress(0.1, "first call")
        random_state = torch.get_rng_state()
        try:
            outputs = self._timed_first(call)
        except ModelError:
            self._grad_mode = torch.no_grad
            outputs = self._timed_first(call)
            self.seen.note("W-NO-INFERENCE-MODE", "the model cannot run under torch.inference_mode; it was measured under torch.no_grad")
        self.seen.process_bytes = int(psutil.Process().memory_info().rss)
        self._check_finite(outputs)
        if torch.equal(random_state, torch.get_rng_state()):  # what is drawn is another answer each time
            answers = _comparable(outputs, call)
            if sum(tensor.numel() for _, tensor in answers) <= COMPARED_VALUES:
                self._answers = [(name, tensor.clone()) for name, tensor in answers if torch.isfinite(tensor).all()]
        if writes_inputs(self.model):
            self.seen.note("W-WRITES-INPUTS", "the model writes into its inputs; each call gets copies of them, and the time of copying is in the latencies")
        if self.seen.trace is None:
            with contextlib.suppress(AimassError):
                self.seen.trace = trace_call(self.model, call)
        if self.seen.trace is None:
            self.seen.note("missing:trace", "the model's operators could not be followed; FLOPs and activations are not known")
        elif self.seen.trace.ran:
            self.seen.note("W-REAL-RUN", f"operators were counted over one real call, because {self.seen.trace.why_ran}")

    def _timed_first(self, call: Call) -> Any:
        outputs: list[Any] = []
        before = begin_peak(self.device)
        self.seen.first_call_s = timed(lambda: outputs.append(self._run(call)), self.device)
        if before is not None:
            self.seen.first_call_peak = max(0, peak_since(self.device) - before)
        return outputs[0]

    def _sample(self, call: Call) -> None:
        """Time the calls at the requested batch size, and watch what they take: memory, pages, processor time, energy."""
        samples = self.seen.samples.setdefault(call.batch_size, [])
        held, faults = begin_peak(self.device), page_faults()
        meter = EnergyMeter(self.device)
        try:
            with meter:
                sample_latency(
                    lambda: self._run(call), self.device, budget_s=BASE_SHARE * self._budget_s, warmup=0, min_samples=FEWEST_SAMPLES,
                    into=samples, cpu_into=self.seen.cpu_s,
                )  # fmt: skip
        finally:
            if samples:
                self.seen.energy, self.seen.energy_calls = meter, len(samples)
                self.seen.evidence.faults_per_call = None if faults is None else ((page_faults() or 0) - faults) / len(samples)
                self._read_account(held)

    def _read_account(self, held: int | None) -> None:
        if held is None:
            return
        self.seen.total_peak = peak_since(self.device)
        if self.device.type == "cuda":
            self.seen.device_account = read_device_account(self.device, allocated_before=held, allocated_peak=self.seen.total_peak)

    def _check_finite(self, outputs: Any) -> None:
        for name, tensor in output_tensors(outputs):
            if tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_quantized:
                bad = int((~torch.isfinite(tensor)).sum())
                if bad:
                    self.seen.note("W-NAN", f"{bad} of {tensor.numel()} values of the output {name!r} are NaN or infinite")

    def _memory_and_modules(self, call: Call) -> None:
        self._progress(0.15, "recording operators and memory")
        self._record(call)
        if is_compiled(self.model):
            self.seen.note("missing:modules", "the model is compiled: its modules run fused and cannot be timed apart")
            return
        self._progress(0.2, "timing modules")
        with stopwatch() as elapsed:
            self._time_modules(call, elapsed)

    def _record(self, call: Call) -> None:
        self._note_input_size(call)
        model = None if is_compiled(self.model) else self.model
        held = begin_peak(self.device) if self.device.type == "cuda" else None
        recording = self.seen.recording = record_call(lambda: self._run(call), self.device, model)
        if held is not None:
            self.seen.call_peaks[call.batch_size] = peak_since(self.device) - held
        else:
            self.seen.call_peaks[call.batch_size] = recording.peak_bytes if recording else None
        if recording is None:
            text = "another profiler is running, so operators and allocations could not be read; memory is estimated from shapes"
            self.seen.note("missing:allocator", text)

    def _time_modules(self, call: Call, elapsed: Callable[[], float]) -> None:
        for number in range(INSTRUMENTED_CALLS):
            if number and elapsed() > MODULE_SHARE * self._budget_s:
                return
            timer = ModuleTimer(self.device)
            with timer:
                self.seen.instrumented_s.append(timed(lambda: self._run(call), self.device))
            self.seen.rounds.append(timer.totals())

    def _note_input_size(self, call: Call) -> None:
        self.seen.input_sizes[call.batch_size] = sum(t.numel() * t.element_size() for t in call.tensors())

    def _read_peak(self, call: Call) -> None:
        self._note_input_size(call)
        seconds: list[float] = []
        outputs: list[Any] = []
        compares = bool(self._answers) and call.batch_size > self.seen.batch_size

        def run() -> None:
            answer = self._run(call)
            if compares:
                outputs.append(answer)

        self.seen.call_peaks[call.batch_size] = peak_of_call(lambda: seconds.append(timed(run, self.device)), self.device)
        self.seen.peak_calls_s += seconds
        if compares:
            self._compare_items(call, outputs[-1])

    def _compare_items(self, call: Call, outputs: Any) -> None:
        """Note where the example's items are answered otherwise in a larger batch, which repeats them: its times are then of other work.

        So it is where items influence each other, and where an input does not bear being repeated, such as offsets into another.
        """
        usual, self._answers = self._answers, []
        names = [name for name, _ in usual]
        found = [(name, tensor) for name, tensor in _comparable(outputs, call) if name in names]
        reason = mixing(usual, found, list(range(self.seen.batch_size))) if len(found) == len(usual) else None
        if reason is not None:
            what = f"in a batch of {call.batch_size}, which repeats the {self.seen.batch_size} of the example, {reason}"
            why = "so they influence each other, or an input does not bear being repeated, such as offsets into another"
            self.seen.note("W-ITEMS-DIFFER", f"{what}: {why}. Times at batch sizes other than the example's are of such inputs; give an example of each size")

    # --- the ladder

    def _climb(self) -> None:
        base = self.seen.batch_size
        wanted = DEFAULT_LADDER if self._ladder is None else sorted(set(self._ladder))
        steps = [size for size in wanted if size != base]
        for number, size in enumerate(steps):
            self._progress(0.65 + 0.35 * number / len(steps), f"timing batch {size}")
            reason = self._why_not(size)
            if reason is None:
                reason = self._step(size, steps_left=len(steps) - number)
                if reason is not None:
                    release_cached(self.device)
            if reason:
                self.seen.note("W-LADDER", f"the ladder ends before batch {size}: {reason}")
            if reason is not None:
                break
        self._descend()
        self._look_again()

    def _descend(self) -> None:
        """Go over the ladder once more, from the top: what changed in the meantime then disturbs no batch size alone."""
        sizes = sorted(self.seen.samples, reverse=True)
        for number, size in enumerate(sizes if len(sizes) > 1 else ()):
            samples, again = self.seen.samples[size], list[float]()
            share_s = (self._deadline - time.perf_counter()) / (len(sizes) - number)
            if share_s < percentile(samples, 50):
                continue
            self._progress(0.95, f"timing batch {size} again")
            cpu_s = self.seen.cpu_s if size == self.seen.batch_size else None
            try:
                with contextlib.suppress(AimassError):  # the first pass stands
                    call = self._call_with(size)
                    sample_latency(
                        functools.partial(self._run, call), self.device, budget_s=share_s, warmup=0, min_samples=1, max_samples=len(samples),
                        into=again, cpu_into=cpu_s,
                    )  # fmt: skip
            finally:
                samples += again

    def _look_again(self) -> None:
        """Time what the rest of the ladder contradicts once more; the new times take the place of the old, whichever are longer."""
        samples = self.seen.samples
        found = find_contradicted(samples)
        self.seen.contradicted = set(found)  # until they were timed again, which an interrupt may prevent
        before_s = {size: percentile(samples[size], 50) for size in found}
        for number, (size, larger) in enumerate(found.items()):
            share_s = (self._deadline - time.perf_counter()) / (len(before_s) - number)
            self._time_again(size, max(CHEAP_SHARE * self._budget_s, share_s), expected_s=percentile(samples[larger], 50))
        still = find_contradicted(samples)
        self.seen.contradicted = set(still)
        for size in before_s.keys() - still.keys():
            now = format_seconds(percentile(samples[size], 50))
            self.seen.note("timed-again", f"a batch of {size} took {format_seconds(before_s[size])}, longer than larger ones; timed again, it took {now}")
        for size, larger in still.items():
            now, less = (format_seconds(percentile(samples[k], 50)) for k in (size, larger))
            text = f"a batch of {size} took {now} and one of {larger} only {less}, so other work may have slowed it down: its times are marked noisy"
            self.seen.note("W-CONTRADICTED", text)

    def _time_again(self, size: int, budget_s: float, *, expected_s: float) -> None:
        if FEWEST_SAMPLES * expected_s > budget_s:
            return
        self._progress(0.98, f"timing batch {size} again")
        again, cpu_s = list[float](), list[float]()
        with contextlib.suppress(AimassError):  # the old ones stand
            call = self._call_with(size)
            sample_latency(lambda: self._run(call), self.device, budget_s=budget_s, min_samples=FEWEST_SAMPLES, into=again, cpu_into=cpu_s)
            self.seen.samples[size] = again
            if size == self.seen.batch_size:
                self.seen.cpu_s = cpu_s

    def _why_not(self, size: int) -> str | None:
        """Why a step cannot be made; an empty text where only the time is up, which needs no words."""
        if self._ladder is None:
            below = max((b for b in self.seen.samples if b <= size), default=self.seen.batch_size)
            predicted_s = percentile(self.seen.samples[below], 50) * max(1.0, size / below)
            step_s = (FEWEST_SAMPLES + 1) * predicted_s
            if step_s > CHEAP_SHARE * self._budget_s and time.perf_counter() + step_s > self._deadline:
                return ""
        peak = self.seen.call_peaks.get(self.seen.batch_size)
        base_bytes = (peak or 0) + self.seen.input_sizes.get(self.seen.batch_size, 0)
        needed, free = base_bytes * max(1.0, size / self.seen.batch_size), free_bytes(self.device)
        if needed > 0.9 * free:
            return f"it needs about {format_bytes(needed)}, and {format_bytes(free)} are free"
        return None

    def _step(self, size: int, *, steps_left: int) -> str | None:
        samples: list[float] = []
        try:
            call = self._call_with(size)
            self._read_peak(call)
            budget_s = max(CHEAP_SHARE * self._budget_s, FIRST_PASS_SHARE * (self._deadline - time.perf_counter()) / steps_left)
            self.seen.samples[size] = samples
            sample_latency(lambda: self._run(call), self.device, budget_s=budget_s, warmup=0, min_samples=FEWEST_SAMPLES, into=samples)
        except (DoesNotFitError, ModelError, InputError) as error:
            return error.message
        finally:
            if not samples:
                self.seen.samples.pop(size, None)
        return None


def _comparable(outputs: Any, call: Call) -> list[tuple[str, torch.Tensor]]:
    """The outputs that hold one entry of numbers for each item of `call` along the first axis."""
    if call.batch_axis != 0:
        return []
    plain = [(name, t) for name, t in output_tensors(outputs) if t.is_floating_point() and t.layout == torch.strided and not t.is_quantized]
    return [(name, t) for name, t in plain if t.dim() and len(t) == call.batch_size]


def main_dtype(model: nn.Module) -> torch.dtype:
    """What most of the model's weights are kept in."""
    sizes: dict[torch.dtype, int] = {}
    for p in model.parameters():
        sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
    return max(sizes, key=lambda d: sizes[d]) if sizes else torch.float32
