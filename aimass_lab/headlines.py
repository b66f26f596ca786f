"""Every record in one line: for the history, and as the first line of what is shown."""

from __future__ import annotations

from functools import singledispatch
from pathlib import PurePath

from .options import write_call
from .records import (
    Bundle,
    CellProfile,
    Check,
    ColdStart,
    Comparison,
    Demand,
    Environment,
    FleetAllocation,
    HeldVariants,
    History,
    JobPlan,
    JobPolicyRun,
    JobsRun,
    KernelState,
    Ledger,
    Live,
    ModelSummary,
    Monitoring,
    NetworkDemand,
    Number,
    Plan,
    Prediction,
    Profile,
    Readings,
    Record,
    Rehearsal,
    ResourceDemand,
    Rotation,
    RotationRun,
    ScalePlan,
    SearchResult,
    SequenceDemand,
    Service,
    ServingSpec,
    TraceSummary,
    TrialResult,
)
from .units import format_count, format_quantity, format_share


def format_number(number: Number | None) -> str:
    """``12.3 ms``; ``unknown`` for None."""
    return "unknown" if number is None else format_quantity(number.value, number.unit)


def format_interval(number: Number | None) -> str:
    """``[11.9, 12.8] ms``, ``[950 µs, 1.20 ms]`` where the units differ, or nothing where there is no interval."""
    if number is None or number.interval is None:
        return ""
    low, high = (format_quantity(end, number.unit).partition(" ") for end in number.interval)
    if low[2] == high[2]:
        return f"[{low[0]}, {high[0]}]{low[1]}{low[2]}"
    return f"[{' '.join(low).strip()}, {' '.join(high).strip()}]".replace("   ", " ")


def format_measured(number: Number) -> str:
    """``150 [148, 152] items/s``; the value with its own unit where that of the interval is another."""
    value, interval = format_number(number), format_interval(number)
    figure, _, unit = value.partition(" ")
    return f"{figure if unit and interval.endswith(f' {unit}') else value} {interval}".strip()


@singledispatch
def headline(record: Record) -> str:
    """Say in one line what `record` found."""
    raise TypeError(f"no headline for {type(record).__name__}")


@headline.register
def _(record: ModelSummary) -> str:
    call = "" if record.flops is None else f", {format_number(record.flops)} at batch {record.batch_size}"
    return f"{format_number(record.num_parameters)}, weights {format_number(record.weight_bytes)} of {record.model.dtype} on {record.device}{call}"


@headline.register
def _(record: Profile) -> str:
    latencies = f"p50 {format_number(record.latency_p50)}, p99 {format_number(record.latency_p99)}"
    where = f"on {record.environment.device_name}{_doubt(record.latency_p50)}"
    return f"{latencies} at batch {record.batch_size}, peak {format_number(record.peak_memory_bytes)} {where}"


@headline.register
def _(record: CellProfile) -> str:
    return f"cell: {format_number(record.wall_time)} wall, {format_number(record.cpu_time)} CPU, peak {format_number(record.peak_memory_bytes)}"


@headline.register
def _(record: ColdStart) -> str:
    ready = f"ready after {format_number(record.ready_after)}, first call {format_number(record.first_call)}"
    return f"{ready}, steady ones {format_number(record.steady)} after {record.warmup_calls} calls; in {record.how}"


@headline.register
def _(record: Demand) -> str:
    fits = "" if record.fits is None else ", fits" if record.fits else ", does not fit"
    where = f" on {record.device}" if record.device else ""
    memory = f"weights {format_number(record.weight_bytes)}, peak {format_number(record.peak_memory_bytes)}"
    room = ""
    if record.fits is False and record.memory_limit_bytes is not None:
        most = "" if record.max_batch_size is None else f"; the largest batch that does is {record.max_batch_size.value:,.0f}"
        room = f", which has {format_number(record.memory_limit_bytes)}{most}"
    return f"{format_number(record.flops)}, {memory} at batch {record.batch_size:,}{fits}{where}{room}"


@headline.register
def _(record: SequenceDemand) -> str:
    fits = "" if record.fits is None else ", fits" if record.fits else ", does not fit"
    times = ""
    if record.time_to_first_token and record.time_per_output_token:
        times = f"first token {format_number(record.time_to_first_token)}, then {format_number(record.time_per_output_token)} each, "
    cache = f"cache {format_number(record.cache_bytes_end)}" if record.cache_bytes_end else "no cache"
    tokens = f"{record.prompt_tokens} + {record.new_tokens} tokens × {record.batch_size}"
    return f"{tokens}: {times}{format_number(record.total_flops)}, {cache}, peak {format_number(record.peak_memory_bytes)}{fits} on {record.device}"


@headline.register
def _(record: ResourceDemand) -> str:
    rate = f"{record.requests_per_s.value:g} requests/s keep {record.busy_devices.value:.3g} × {record.device} busy"
    demand = f"C {format_number(record.compute_flops_per_s)}, S {format_number(record.memory_bytes_per_s)}, N {format_number(record.network_bytes_per_s)}"
    return f"{rate} ({record.chosen}): at least {record.replicas.value:g} at {format_share(record.utilization.value)}; {demand}"


@headline.register
def _(record: NetworkDemand) -> str:
    forms = {form.form: form for form in record.forms}
    binary, plain = forms["binary"], forms["json"]
    sizes = f"{format_number(binary.request_wire_bytes)} in, {format_number(binary.response_wire_bytes)} out a request in binary"
    sizes += f", {format_number(plain.request_wire_bytes)} in, {format_number(plain.response_wire_bytes)} out in JSON"
    share = "" if binary.link_share is None else f", {100 * binary.link_share.value:.3g} % of the link"
    step = "" if record.step_bytes is None else f"; {record.strategy} on {record.ranks}: {format_number(record.step_bytes)} a step and rank"
    return f"{sizes}{share}{step}"


@headline.register
def _(record: TrialResult) -> str:
    speeds = ", ".join(f"{p.speedup.value:.2f} × {_ratio_band(p.speedup)} at batch {p.batch_size}" for p in record.points)
    size = record.stored_bytes.value / record.stored_original_bytes.value if record.stored_original_bytes.value else 1.0
    smaller = "" if 0.99 < size < 1.01 else f", {size:.2f} of the bytes on disk"
    kept = f"fidelity {record.fidelity.value:.4f}" if record.metric_variant is None else f"metric {record.metric_variant.value:.4g}"
    return f"{record.setting.recipe.name}: {record.verdict}, {speeds}{smaller}, {kept}{_doubt(record.speedup)}"


@headline.register
def _(record: HeldVariants) -> str:
    if not record.items:
        return f"no copy of {record.model} is in memory"
    copies = "1 copy" if len(record.items) == 1 else f"{len(record.items)} copies"
    return f"{copies} of {record.model} in memory, {format_number(record.memory)}"


@headline.register
def _(record: SearchResult) -> str:
    tried = f"{sum(c.status == 'measured' for c in record.candidates)} of {format_number(record.num_points)} measured"
    if record.best is None:
        return f"{tried}, none to be recommended; {record.stopped}"
    best, first = record.candidates[record.best], record.objectives[0].name
    setting = best.setting
    threads = f"{setting.threads} thread{'' if setting.threads == 1 else 's'}" if setting.threads else ""
    several = f"{setting.instances} instances" if setting.instances > 1 else ""
    load = [f"batch {setting.batch_size}" if setting.batch_size else "", " of ".join(filter(None, (several, threads)))]
    where = f" ({', '.join(filter(None, load))})" if any(load) else ""
    number = best.numbers[first]
    found = f"{first.replace('_', ' ')} {format_measured(number)}"
    return f"{tried}; best {setting.recipe.name}{where}: {found}{'' if best.status == 'measured' else ', predicted'}{_doubt(number)}; {record.stopped}"


@headline.register
def _(record: Plan) -> str:
    if not record.feasible:
        return f"not feasible on {record.device}: {record.binding}"
    beside = " and the server's own time" if any(note.code == "missing:overhead" for note in record.notes) else ""
    latency = f"p99 {format_number(record.latency_p99)} {format_interval(record.latency_p99)}{beside}"
    busy = f"{format_share(record.utilization.value)} busy{_doubt(record.replicas)}"
    return f"{record.replicas.value:g} × {record.device}, batch ≤ {record.max_batch_size.value:g}, {latency}, {busy}"


@headline.register
def _(record: Rotation) -> str:
    means = [(run.metric("mean latency"), run) for run in record.runs]
    best, run = min(means, key=lambda pair: pair[0].measured.value)
    shown = ", ".join(f"{describe_policy(r)} {format_number(m.measured)}" for m, r in means)
    foretold = "" if best.error is None else f"; {describe_policy(run)} was predicted {100 * best.error.value:+.0f} %"
    mechanism = max(abs(m.mechanism_error.value) for m, _ in means if m.mechanism_error is not None)
    return f"mean latency {shown}{foretold}; replayed within {100 * mechanism:.1f} %{_doubt(best.measured)}"


@headline.register
def _(record: Rehearsal) -> str:
    metric = record.metric("latency p99")
    where = "inside" if metric.inside else "outside"
    said = f"p99 {format_number(metric.measured)}, predicted {format_measured(metric.predicted)}, {where} its band"
    planned = "" if metric.planned is None else f", planned {format_number(metric.planned)}"
    load = f"{record.num_requests:,} requests at {format_number(record.requests_per_s)}"
    lost = f", {record.num_failed:,} of them failed" if record.num_failed else ""
    verdict = {"measured": "", "starved": "NOT JUDGED, other work kept the machine busy: ", "interrupted": "ended early: "}[record.verdict]
    return f"{verdict}{said}{planned}; mechanism {100 * metric.mechanism_error.value:+.1f} %; {load}{lost}"


@headline.register
def _(record: ScalePlan) -> str:
    best = record.options[record.recommended]
    way = format_quantity(best.min_replicas, "replica")
    if best.kind != "static":
        way = f"{best.scaler} from {way}, {best.replicas.value:.2f} on average"
    kept = "" if best.held_out is None else f", {format_share(best.held_out.value, decimals=2)} on arrivals held out"
    attained = f"{format_share(best.attainment.value, decimals=2)} within {format_number(record.latency_target)}{kept}"
    return f"{'' if record.feasible else 'not feasible; nearest: '}{way}: {attained}"


@headline.register
def _(record: FleetAllocation) -> str:
    nodes = ", ".join(f"{t.used} × {t.name}" for t in record.node_types if t.used) or "no node"
    cost = "" if record.cost is None else f" for {format_number(record.cost)}"
    served = sum(m.share.value > 0 for m in record.models)
    whole = record.status == "all served"
    reached = (
        f"{'all ' if len(record.models) > 1 else ''}{format_count(len(record.models), 'model')} served"
        if whole
        else f"not everything fits: {served} of {len(record.models)} models served"
    )
    least = "" if whole else f", the least to {format_share(record.least_share.value)}"
    missed = sum(not m.meets for m in record.models if m.replicas is not None)
    doubt = f"; {missed} may miss the target when simulated together" if missed else ""
    return f"{reached}{least}, on {nodes}{cost}{doubt}"


@headline.register
def _(record: JobPlan) -> str:
    run = record.chosen
    due = [job for job in run.jobs if job.meets is not None]
    held = f"{sum(job.meets is True for job in due)} of {len(due)} deadlines hold" if due else "no deadline"
    ended = "" if run.all_ended is None else f", the last job ends after {format_measured(run.all_ended)}"
    online = ""
    if run.online:
        most = max(run.online, key=lambda model: model.added.value)
        online = f"; {most.model} p99 {format_number(most.latency_p99_alone)} → {format_number(most.latency_p99)}"
    return f"{'' if record.feasible else 'not everything holds: '}{held} under {describe_policy(run)}{ended}{online}"


def describe_policy(run: JobPolicyRun | JobsRun | RotationRun) -> str:
    """``"priority(ageing_s=inf)"``: what `scheduling.read_policy` makes the policy of."""
    return write_call(run.policy, run.options)


@headline.register
def _(record: ServingSpec) -> str:
    return f"{record.name}: {record.replicas.value:g} × {record.device}, {record.cpu_cores.value:g} cores and {format_number(record.memory_bytes)} each"


@headline.register
def _(record: Bundle) -> str:
    size, folder = format_number(record.size_bytes), PurePath(record.folder).name
    return f"{record.name} {record.version}: {record.format}, {size} in {folder}, {len(record.promises)} promises"


@headline.register
def _(record: Check) -> str:
    failed = [p.name for p in record.promises if p.passed is False] + [f.code for f in record.findings if f.code.startswith("E-")]
    failed += [f"{change.name} worse than {record.baseline}" for change in record.changes if change.verdict == "worse"]
    if record.passed is None:
        unjudged = [p.name for p in record.promises if p.passed is None] + [c.name for c in record.changes if c.verdict == "not judged"]
        return f"NOT JUDGED: {record.subject}: other work kept the machine too busy for {', '.join(unjudged)}"
    return f"PASS: {record.subject}" if record.passed else f"FAIL: {record.subject}: {', '.join(failed)}"


@headline.register
def _(record: Live) -> str:
    served = f", {format_count(len(record.services), 'bundle')} served" if record.services else ""
    return f"{headline(record.readings)}; {format_count(len(record.kernels), 'kernel')}{served}"


@headline.register
def _(record: KernelState) -> str:
    names = ", ".join(model.name for model in record.models) or "none"
    doing = f", running {record.running.verb}" if record.running else ""
    return f"models: {names}; {len(record.cells)} cells counted{doing}"


@headline.register
def _(record: Service) -> str:
    grpc = f", gRPC {record.grpc_address}" if record.grpc_address else ""
    return f"{record.folder} answers at {record.url}{grpc} (process {record.pid})"


@headline.register
def _(record: Monitoring) -> str:
    latency = "nothing answered" if record.latency_p99 is None else f"p99 {format_number(record.latency_p99)} {format_interval(record.latency_p99)}"
    failed = f", {record.failed.value:,.0f} failed" if record.failed.value else ""
    restarts = f", {record.restarts.value:g} workers restarted" if record.restarts.value else ""
    budget = "" if record.budget is None else f", {format_share(record.budget.spent.value)} of the error budget spent"
    return f"{format_number(record.throughput)}, {latency}, {format_share(record.utilization.value)} busy{failed}{restarts}{budget}"


@headline.register
def _(record: History) -> str:
    return f"{len(record.runs)} runs in {record.store}"


@headline.register
def _(record: Prediction) -> str:
    best = max(record.points, key=lambda p: p.throughput.value)
    technique = "" if record.technique == "none" else f" with {record.technique}"
    largest = "" if record.max_batch_size is None else f", largest batch {format_number(record.max_batch_size)}"
    return f"best throughput {format_number(best.throughput)} at batch {best.batch_size} ({best.basis}){largest}{technique} on {record.device}"


@headline.register
def _(record: Ledger) -> str:
    scored, inside, unmeasured = (sum(getattr(kind, name) for kind in record.kinds) for name in ("scored", "inside", "open"))
    return f"{scored} predictions measured, {inside} inside their band; {unmeasured} not measured yet"


@headline.register
def _(record: Comparison) -> str:
    changed = [f"{d.name} {100 * (d.ratio.value - 1):+.0f} %" for d in record.differences if d.ratio and d.verdict in ("lower", "higher")]
    untold = any(d.verdict == "cannot tell" for d in record.differences)
    nothing = "the machine was too busy to tell" if untold else "no difference beyond the spread"
    return f"run {record.before.id} → run {record.after.id}: {', '.join(changed[:4]) or nothing}"


@headline.register
def _(record: Readings) -> str:
    cpu, memory = record.cpu, record.memory
    cores = f"{'unknown' if cpu.machine is None else f'{cpu.machine.value:.1f}'} cores busy of {cpu.usable_cores.value:g} usable"
    stolen = [f"{format_share(cpu.stolen.value)} of the processor taken by the host"] if cpu.stolen is not None and cpu.stolen.value >= 0.01 else []
    usable = f"{format_number(memory.usable_bytes)} of memory usable"
    known = [(gpu.index, gpu.utilization) for gpu in record.gpus if gpu.mig_instance is None]
    gpus = [f"GPU {index} {'not readable' if busy is None else f'{format_share(busy.value)} busy'}" for index, busy in known]
    return ", ".join([cores, *stolen, usable, *(gpus or ["no GPU readings"])])


@headline.register
def _(record: TraceSummary) -> str:
    step = record.step
    parts = {"GPU kernels": step.kernel, "operators on the host": step.cpu, "the GPU's runtime": step.runtime, "copies": step.memcpy, "the rest": step.other}
    name, longest = max(((name, part) for name, part in parts.items() if part is not None), key=lambda pair: pair[1].value)
    share = f"{format_share(longest.value / step.total.value)} of it {name}" if step.total.value > 0 else "nothing of it known"
    operator = f"; most own time in {record.operators[0].name}" if record.operators else ""
    return f"{record.num_steps} steps of {format_number(step.total)}, {share}{operator}{_doubt(step.total)}"


@headline.register
def _(record: Environment) -> str:
    return f"{record.device_name}, {record.cpu_cores:g} cores, torch {record.torch}"


def _doubt(number: Number) -> str:
    return " (measured while other work kept the machine busy)" if number.quality == "noisy" else ""


def _ratio_band(number: Number) -> str:
    return "" if number.interval is None else f"[{number.interval[0]:.2f}, {number.interval[1]:.2f}]"
