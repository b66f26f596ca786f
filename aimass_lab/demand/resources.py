"""What a request rate asks of a device: C, S and N with their units, and R, the devices that are busy with them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..environment import read_environment
from ..errors import InputError, UnsupportedError
from ..interrupts import sparing_imports
from ..network.payload import Part, request_parts, request_sizes, response_parts, response_sizes
from ..network.serialisation import Codec, measure_codec
from ..prediction.target import TargetDevice, find_target
from ..records import BatchPoint, Note, Number, Unit, derived
from ..records.resources import Coefficients, Form, FormName, ResourceDemand
from ..scheduling.base import Queue, Request, make_policy
from ..tracing.rows import Trace
from ..tracing.trace import trace_call
from ..units import format_share
from ..workload import Workload
from .coefficients import FORMULAS, Fit, fit_coefficients, given_coefficients, parse_coefficients, rated_coefficients
from .operators import cache_bytes

Codecs = Callable[[str, Sequence[Part], Sequence[Part]], Mapping[str, Codec | str]]
"""Model name, request and response -> by form a codec, or why there is none."""

GAMMA_BUDGET_S = 0.3

DECISIONS = 2000
"""Scheduling decisions that are timed together."""


@dataclass(frozen=True)
class Measured:
    """A ladder that was measured on the device."""

    ladder: Sequence[BatchPoint]
    threads: int
    """Cores that one call held; 1 on a GPU."""


@sparing_imports
def estimate_resources(
    workload: Workload,
    *,
    requests_per_s: float,
    utilization: float = 0.7,
    batch_size: int | None = None,
    device: str | None = None,
    jobs: int | None = None,
    measured: Measured | None = None,
    codecs: Codecs | None = None,
    coefficients: Mapping[str, str | float] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> ResourceDemand:
    """Say what a rate asks for, and how many devices it keeps busy, by every form side by side.

    With λ requests per second of one item each, served b at a time, F(b) FLOPs and M(b) bytes in a call:

    * ``C = λ F(b)/b`` [FLOP/s]; ``S`` as room: weights + inputs + live activations at b [B]; ``S`` as traffic: ``λ M(b)/b`` [B/s];
      ``N = λ (request + response bytes)`` [B/s].
    * ``R = α C + β S_traffic + γ N + ε λ n(b)/b``, n operators in a call: device-seconds asked for per second, so the
      number of busy devices. On a processor a device-second is a core-second, and R counts cores.
    * replicas ≥ ``ceil(R / utilization)``, on a processor over the threads that one replica has: without a queue, so a
      lower bound.

    The coefficients of an attached device are fitted to operators timed here, those of the catalogue are the inverse of its rates.

    Args:
        workload: Model and example inputs.
        requests_per_s: λ.
        utilization: Highest share of its time that a device should be busy.
        batch_size: b; that of the inputs if not given.
        device: An attached device or one of the catalogue; where the model is if not given.
        jobs: Requests that the readings of T_schedule are about; those of one second if not given.
        measured: The ladder of a profile on this device, where there is one.
        codecs: Makes the codec that γ is measured on: the time in which a server reads a request and writes its response.
        coefficients: The user's own, by name: alpha, beta, gamma, epsilon.
        progress: Called now and then with the share that is done and what comes next.

    Raises:
        InputError: a number that cannot be used.
        UnsupportedError: a device that is not attached, or whose rates are unknown.
        UnknownNameError: no such device.
        ModelError: the model raises on these inputs.
    """
    size = workload.call.batch_size if batch_size is None else batch_size
    for what, value in (("batch size", size), ("number of jobs", jobs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"the {what} {value!r} is not a positive integer")
    if not (math.isfinite(requests_per_s) and requests_per_s > 0):
        raise InputError(f"a rate of {requests_per_s!r} requests per second asks for nothing that can be planned", help="give a number above 0")
    if not 0 < utilization <= 1:
        raise InputError(f"a utilisation of {utilization!r} is not between 0 and 1", help="0.7 leaves 30 % for waiting and bursts to be absorbed")
    given = parse_coefficients(coefficients)
    target = find_target(device, workload)
    trace = trace_call(workload.model, workload.call, batch_size=size)
    fit = _coefficients(target, workload.info().dtype, given, progress)
    gamma = given.get("gamma") or (measure_gamma(workload, trace, codecs) if codecs else None)
    return _Asked(workload, target, trace, fit, requests_per_s, utilization, jobs, measured, gamma).make()


def _coefficients(target: TargetDevice, dtype: str, given: Mapping[str, Number], progress: Callable[[float, str], None] | None) -> Fit:
    near = cache_bytes(target.attached) if target.attached is not None else 0
    if set(given) - {"gamma"}:
        return given_coefficients(given, near)
    if target.attached is not None:
        return fit_coefficients(target.attached, getattr(torch, dtype, torch.float32), progress=progress)
    dtype = "float32" if dtype == "none" else dtype
    entry = target.entry
    rate = next((number for name, number in entry.flops_per_s.items() if name == dtype), None) if entry else None
    if entry is None or rate is None or entry.memory_bytes_per_s is None:
        missing = f"{dtype} rate" if rate is None else "memory rate"
        raise UnsupportedError(
            f"the {missing} of {target.name} is unknown", help="give the coefficients yourself: alpha, beta, epsilon, or add the figure to your catalogue"
        )
    return rated_coefficients(target.name, rate, entry.memory_bytes_per_s, near)


class _Asked:
    """Turns demand and coefficients into the record."""

    def __init__(
        self,
        workload: Workload,
        target: TargetDevice,
        trace: Trace,
        fit: Fit,
        rate: float,
        utilization: float,
        jobs: int | None,
        measured: Measured | None,
        gamma: Number | None,
    ) -> None:
        self.workload, self.target, self.trace, self.fit, self.gamma = workload, target, trace, fit, gamma
        self.size = trace.batch_size
        self.rate = Number(value=rate, unit="request/s", source="user", method="asked for")
        self.utilization = Number(value=utilization, unit="ratio", source="user", method="asked for")
        one_second = derived(max(1, math.ceil(rate)), "request", "of one second", [("requests_per_s", self.rate)])
        self.jobs = Number(value=jobs, unit="request", source="user", method="asked for") if jobs else one_second
        self.point = next((p for p in measured.ladder if p.batch_size == self.size), None) if measured else None
        on_cpu = target.attached is not None and target.kind == "cpu"
        # What the codec takes is time of a core: beside a GPU it is not the device's.
        self.gamma_counts = gamma is not None and (on_cpu or gamma.source == "user")
        self.unit: Unit = "core" if on_cpu else "device"
        self.width = (measured.threads if measured else torch.get_num_threads()) if on_cpu else 1
        self.has_ladder = measured is not None
        self.message = self._message()

    def make(self) -> ResourceDemand:
        per_request = {"compute": self.trace.flops / self.size, "traffic": self.trace.bytes_moved / self.size, "launches": len(self.trace.rows) / self.size}
        forms = self._forms()
        chosen = self._chosen(forms)
        difference, notes = self._difference(forms), self._notes()
        decision = measure_decision(int(self.jobs.value))
        return ResourceDemand(
            model=self.workload.info(),
            device=self.target.name,
            batch_size=self.size,
            requests_per_s=self.rate,
            utilization=self.utilization,
            compute_flops_per_s=self._flow(per_request["compute"], "FLOP", "FLOP/s", "rate x FLOPs of a call over its items"),
            memory_capacity_bytes=self._capacity(),
            memory_bytes_per_s=self._flow(per_request["traffic"], "B", "B/s", "rate x bytes that the operators of a call move over its items"),
            network_bytes_per_s=derived(
                self.rate.value * self.message.value, "B/s", "rate x bytes of request and response", [("rate", self.rate), ("message", self.message)]
            ),
            launches_per_s=self._flow(per_request["launches"], "op", "op/s", "rate x operators of a call over its items"),
            coefficients=tuple(dict.fromkeys((self.fit.all, self.fit.roofline, *self.fit.families.values()))),
            gamma=self.gamma,
            forms=forms,
            chosen=chosen.name,
            replica_width=Number(value=self.width, unit=self.unit, source="measured" if self.target.attached else "assumed", method=self._width_method()),
            busy_devices=chosen.busy_devices,
            replicas=chosen.replicas,
            difference=difference,
            decision_time=decision,
            jobs=self.jobs,
            schedule_overhead=self._overhead(decision, chosen),
            makespan=self._makespan(chosen),
            notes=notes,
        )

    def _chosen(self, forms: Sequence[Form]) -> Form:
        """The table, if the machine was quiet; else the formula with the least error on networks, or the first where none was checked."""
        by_name = {form.name: form for form in forms}
        if "table" in by_name and not self._noisy:
            return by_name["table"]
        formulas = [by_name[name] for name in FORMULAS if name in by_name]
        return min(formulas, key=lambda form: form.network_error.value if form.network_error else 0.0)

    @property
    def _noisy(self) -> bool:
        """The model was measured while other work kept the machine busy: shown, and not relied on."""
        return self.point is not None and self.point.latency_p50.quality == "noisy"

    def _width_method(self) -> str:
        return "torch's threads, each holding a core" if self.unit == "core" else "one device a replica"

    def _number(self, value: float, unit: Unit, method: str) -> Number:
        return Number(value=value, unit=unit, source="measured" if self.trace.ran else "estimated", method=method)

    def _flow(self, per_request: float, unit: Unit, unit_per_s: Unit, method: str) -> Number:
        one = self._number(per_request, unit, "exact arithmetic on shapes")
        return derived(self.rate.value * per_request, unit_per_s, method, [("requests_per_s", self.rate), ("per request", one)])

    def _network(self) -> Number:
        method = "rate x bytes of request and response"
        return derived(self.rate.value * self.message.value, "B/s", method, [("requests_per_s", self.rate), ("message", self.message)])

    def _capacity(self) -> Number:
        trace = self.trace
        fixed = trace.weight_bytes + trace.input_bytes
        live, most = trace.activation_peak_bytes, trace.activation_bound_bytes
        return Number(
            value=fixed + live, unit="B", source="measured" if trace.ran else "estimated", method="weights, inputs and live activations of one call, by shapes",
            interval=(fixed + 0.98 * live, fixed + max(most, live) + self.target.context_bytes),
            interval_kind="band: operators' own workspaces, from none to their bound by operator",
        )  # fmt: skip

    def _message(self) -> Number:
        request = request_sizes(self.workload.model, self.workload.call, self.workload.name).binary
        response = response_sizes(self.workload.name, self.trace.outputs, self.workload.call, self.size).binary
        return derived(request.value + response.value, "B", "binary request and response of one item", [("request", request), ("response", response)])

    def _network_s(self) -> float:
        return self.gamma.value * self.message.value if self.gamma and self.gamma_counts else 0.0

    def _gamma_part(self) -> list[tuple[str, Number]]:
        return [("gamma", self.gamma)] if self.gamma and self.gamma_counts else []

    def _forms(self) -> tuple[Form, ...]:
        fit = self.fit
        basis = {
            "additive": (fit.all, fit.all.held_out_error),
            "roofline": (fit.roofline, fit.roofline.held_out_error),
            "per family": (fit.all, fit.family_error),
        }
        made = [self._form(name, *basis[name]) for name in FORMULAS if fit.families or name != "per family"]
        if self.point is not None:
            made.append(self._table(self.point))
        return tuple(made)

    def _form(self, name: FormName, basis: Coefficients, error: Number | None) -> Form:
        own, network_s = self.fit.seconds(name, self.trace.rows) / self.size, self._network_s()
        parts = [("alpha", basis.alpha), ("beta", basis.beta), ("epsilon", basis.epsilon), ("demand", self._number(self.trace.flops, "FLOP", "by shapes"))]
        checked = self.fit.network_errors.get(name)
        band = None
        if error is not None and checked is not None and checked.interval is not None:
            # What networks really took of what the form said; single operators' error on top where that is more.
            least, most = 1 / (1 + checked.interval[1]), 1 / (1 + checked.interval[0])
            band = (own * min(least, 1 - min(error.value, 1.0)) + network_s, own * max(most, 1 + error.value) + network_s)
        per_request = derived(
            own + network_s, "s", f"{name} form, {'with' if self.gamma_counts else 'without'} the network's part", [*parts, *self._gamma_part()],
            interval=band, interval_kind="errors on small networks, least to greatest" if band else None,
        )  # fmt: skip
        return self._of(name, per_request, error, checked)

    def _table(self, point: BatchPoint) -> Form:
        p50, network_s = point.latency_p50, self._network_s()
        low, high = (end * self.width / self.size + network_s for end in p50.ends)
        per_request = derived(
            p50.value * self.width / self.size + network_s, "s", f"measured p50 of a call x {self.width} {self.unit}s held, over its items",
            [("latency_p50", p50), *self._gamma_part()], interval=(low, high), interval_kind=p50.interval_kind or "as measured",
        )  # fmt: skip
        return self._of("table", per_request, None, None)

    def _of(self, name: FormName, per_request: Number, error: Number | None, checked: Number | None) -> Form:
        room = self.utilization.value * self.width
        ends = None if per_request.interval is None else (self.rate.value * per_request.interval[0], self.rate.value * per_request.interval[1])
        busy = derived(
            self.rate.value * per_request.value, self.unit, f"rate x {self.unit}-seconds of a request",
            [("requests_per_s", self.rate), ("time_per_request", per_request)], interval=ends, interval_kind=per_request.interval_kind,
        )  # fmt: skip
        least = derived(
            _replicas(busy.value, room), "replica",
            f"busy {self.unit}s over {format_share(self.utilization.value)} of {self.width}, rounded up: without waiting",
            [("busy_devices", busy), ("utilization", self.utilization)],
            interval=None if ends is None else (_replicas(ends[0], room), _replicas(ends[1], room)), interval_kind=busy.interval_kind,
        )  # fmt: skip
        return Form(name=name, time_per_request=per_request, busy_devices=busy, replicas=least, held_out_error=error, network_error=checked)

    def _difference(self, forms: Sequence[Form]) -> str | None:
        by_name = {form.name: form for form in forms}
        table = by_name.get("table")
        formula = self._chosen([form for form in forms if form.name != "table"])
        if table is None:
            return None
        gap = formula.time_per_request.value / table.time_per_request.value - 1
        head = f"measured {table.replicas.value:g}, by the {formula.name} form {formula.replicas.value:g}"
        return f"{head}: the formula's time is {100 * gap:+.0f} % off the measured one; {self._reason(gap, formula)}"

    def _reason(self, gap: float, formula: Form) -> str:
        error = formula.network_error or formula.held_out_error
        if error is None:
            return "its coefficients are not fitted to this device"
        if abs(gap) <= error.value:
            return f"no more than its usual error on small networks, {format_share(error.value)}"
        if gap > 0:
            return "operators reach more within this model than the median of their families does alone"
        launched = self.fit.all.epsilon.value * len(self.trace.rows) / self.size / formula.time_per_request.value
        causes = ["operators were timed one by one, with their data in cache and without the Python between them"]
        if self._noisy:
            causes.insert(0, "other work kept the machine busy while the model was measured")
        if self.width > 1:
            causes.insert(0, f"the measured call holds {self.width} cores, also where some of them wait")
        if launched > 0.3:
            causes.append(f"starting its {len(self.trace.rows)} operators is {format_share(launched)} of the formula's time")
        return "; ".join(causes)

    def _overhead(self, decision: Number, chosen: Form) -> Number:
        return derived(decision.value * self.jobs.value / chosen.replicas.value, "s", "first reading: δ·J/P, the time spent deciding",
                       [("decision_time", decision), ("jobs", self.jobs), ("replicas", chosen.replicas)])  # fmt: skip

    def _makespan(self, chosen: Form) -> Number:
        """Calls of b requests in any list schedule (Graham 1969): max(ΣW/P, W_max) <= T <= ΣW/P + (1 - 1/P) W_max."""
        calls, replicas = math.ceil(self.jobs.value / self.size), int(chosen.replicas.value)
        call_s = chosen.time_per_request.value * self.size / self.width
        low = max(calls * call_s / replicas, call_s)
        high = calls * call_s / replicas + (1 - 1 / replicas) * call_s
        value = math.ceil(calls / replicas) * call_s
        return derived(
            value, "s", f"second reading: {calls} equal calls of {self.size} on {replicas} replicas, none idle while one waits",
            [("time_per_request", chosen.time_per_request), ("jobs", self.jobs), ("replicas", chosen.replicas)],
            interval=(min(low, value), max(high, value)), interval_kind="least possible, and Graham's bound of list scheduling",
        )  # fmt: skip

    def _notes(self) -> tuple[Note, ...]:
        notes = []
        if self.trace.ran:
            notes.append(Note(code="W-REAL-RUN", text=f"the model was called for counting, because a pass over shapes was not possible: {self.trace.why_ran}"))
        if self.trace.uncovered:
            notes.append(Note(code="W-COVERAGE", text=f"C is a lower bound: no formula for {', '.join(sorted(self.trace.uncovered))}"))
        if self.gamma is None:
            notes.append(Note(code="missing:gamma", text="the time per byte of network traffic is unknown here, so R leaves the network's part out"))
        elif not self.gamma_counts:
            text = "γ is the time of a core of this machine to read requests and write responses; R counts the device alone, and leaves it out"
            notes.append(Note(code="gamma-host", text=text))
        if self.point is None:
            why = f"batch {self.size} is not on the measured ladder" if self.has_ladder else f"the model was not profiled on {self.target.name}"
            notes.append(Note(code="missing:table", text=f"{why}, so the figures come from formulas"))
        if self._noisy:
            notes.append(
                Note(code="W-NOISY-TABLE", text="the model was measured on a busy machine, so the formula goes before that; profile again when it is quiet")
            )
        if self.fit.family_error is None:
            notes.append(Note(code="W-NOT-FITTED", text="the coefficients were not fitted to measurements, so how far they are off is not known"))
        elif self.fit.all.alpha.quality == "noisy":
            notes.append(Note(code="W-NOISY", text="other processes kept the machine busy while operators were timed"))
        return tuple(notes)


def _replicas(busy: float, room: float) -> int:
    # Beyond rounding: 7.000000001 replicas are 7.
    return max(1, math.ceil(busy / room - 1e-9))


def measure_decision(num_waiting: int) -> Number:
    """δ: seconds to let one request wait and to pick the next one, first come first served, with `num_waiting` in the queue."""
    queue = Queue(make_policy("fcfs"))
    waiting = min(num_waiting, 100_000)
    for i in range(waiting):
        queue.add(Request(i, float(i)), float(i))
    samples = []
    for start in range(waiting, waiting + 5 * DECISIONS, DECISIONS):
        requests = [Request(i, float(i)) for i in range(start, start + DECISIONS)]
        begin = time.thread_time()
        for request in requests:
            queue.add(request, request.arrival_s)
            queue.take(1)
        samples.append((time.thread_time() - begin) / DECISIONS)
    return Number(
        value=sorted(samples)[2], unit="s", source="measured", method=f"CPU time to add one request and take one, {waiting} waiting, first come first served",
        interval=(min(samples), max(samples)), interval_kind="over 5 runs", n=5 * DECISIONS,
    )  # fmt: skip


def measure_gamma(workload: Workload, trace: Trace, codecs: Codecs) -> Number | None:
    """γ: CPU seconds per byte in which the server reads the binary request of one item and writes its response; None where no codec can."""
    parts = request_parts(workload.model, workload.call), response_parts(trace.outputs, workload.call, trace.batch_size)
    codec = codecs(workload.name, *parts).get("binary")
    if codec is None or isinstance(codec, str):
        return None
    environment = read_environment(torch.device("cpu")).id
    _, read, write, _ = measure_codec(codec, budget_s=GAMMA_BUDGET_S, environment=environment)
    size = Number(value=codec.request_bytes + codec.response_bytes, unit="B", source="measured", method="bodies of request and response")
    low, high = (sum(n.interval[i] if n.interval else n.value for n in (read, write)) / size.value for i in range(2))
    return derived(
        (read.value + write.value) / size.value, "s/B", "CPU time to read a request and write its response over their bytes, at this size",
        [("read", read), ("write", write), ("bytes", size)], interval=(low, high), interval_kind=read.interval_kind,
    )  # fmt: skip


__all__ = ["Measured", "estimate_resources", "measure_decision", "measure_gamma"]
