"""Every record in one line: for the history, and as the first line of what is shown."""

from __future__ import annotations

from functools import singledispatch

from .records import (
    Bundle,
    CellProfile,
    Check,
    Comparison,
    Demand,
    Environment,
    History,
    Number,
    Plan,
    Profile,
    Record,
    SearchResult,
    Service,
    ServingSpec,
    TrialResult,
)
from .units import format_quantity


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


@singledispatch
def headline(record: Record) -> str:
    """Say in one line what `record` found."""
    raise TypeError(f"no headline for {type(record).__name__}")


@headline.register
def _(record: Profile) -> str:
    latencies = f"p50 {format_number(record.latency_p50)}, p99 {format_number(record.latency_p99)}"
    where = f"on {record.environment.device_name}{_doubt(record.latency_p50)}"
    return f"{latencies} at batch {record.batch_size}, peak {format_number(record.peak_memory_bytes)} {where}"


@headline.register
def _(record: CellProfile) -> str:
    return f"cell: {format_number(record.wall_time)} wall, {format_number(record.cpu_time)} CPU, peak {format_number(record.peak_memory_bytes)}"


@headline.register
def _(record: Demand) -> str:
    fits = "" if record.fits is None else ", fits" if record.fits else ", does not fit"
    where = f" on {record.device}" if record.device else ""
    memory = f"weights {format_number(record.weight_bytes)}, peak {format_number(record.peak_memory_bytes)}"
    return f"{format_number(record.flops)}, {memory} at batch {record.batch_size}{fits}{where}"


@headline.register
def _(record: TrialResult) -> str:
    speed = f"{record.speedup.value:.2f}× {_ratio_band(record.speedup)}"
    return f"{record.setting.technique}: {record.verdict}, {speed} at batch {record.batch_size}, fidelity {record.fidelity.value:.4f}{_doubt(record.speedup)}"


@headline.register
def _(record: SearchResult) -> str:
    if record.best is None:
        return f"{len(record.trials)} tried, none better than the original; {record.stopped}"
    best = record.trials[record.best]
    return f"{len(record.trials)} tried; best {best.setting.technique} at batch {best.batch_size}, {best.speedup.value:.2f}×; {record.stopped}"


@headline.register
def _(record: Plan) -> str:
    if not record.feasible:
        return f"not feasible on {record.device}: {record.binding}"
    beside = " and the server's own time" if any(note.code == "missing:overhead" for note in record.notes) else ""
    latency = f"p99 {format_number(record.latency_p99)} {format_interval(record.latency_p99)}{beside}"
    busy = f"{100 * record.utilization.value:.0f} % busy{_doubt(record.replicas)}"
    return f"{record.replicas.value:g} × {record.device}, batch ≤ {record.max_batch_size.value:g}, {latency}, {busy}"


@headline.register
def _(record: ServingSpec) -> str:
    return f"{record.name}: {record.replicas.value:g} × {record.device}, {record.cpu_cores.value:g} cores and {format_number(record.memory_bytes)} each"


@headline.register
def _(record: Bundle) -> str:
    return f"{record.name} {record.version}: {record.format}, {format_number(record.size_bytes)} in {record.folder}, {len(record.promises)} promises"


@headline.register
def _(record: Check) -> str:
    failed = [p.name for p in record.promises if p.passed is False] + [f.code for f in record.findings if f.code.startswith("E-")]
    return f"PASS: {record.subject}" if record.passed else f"FAIL: {record.subject}: {', '.join(failed)}"


@headline.register
def _(record: Service) -> str:
    grpc = f", gRPC {record.grpc_address}" if record.grpc_address else ""
    return f"{record.folder} answers at {record.url}{grpc} (process {record.pid})"


@headline.register
def _(record: History) -> str:
    return f"{len(record.runs)} runs in {record.store}"


@headline.register
def _(record: Comparison) -> str:
    changed = [f"{d.name} {100 * (d.ratio.value - 1):+.0f} %" for d in record.differences if d.ratio and d.verdict in ("lower", "higher")]
    return f"run {record.before.id} → run {record.after.id}: {', '.join(changed[:4]) or 'no difference beyond the spread'}"


@headline.register
def _(record: Environment) -> str:
    return f"{record.device_name}, {record.cpu_cores:g} cores, torch {record.torch}"


def _doubt(number: Number) -> str:
    return " (measured while other work kept the machine busy)" if number.quality == "noisy" else ""


def _ratio_band(number: Number) -> str:
    return "" if number.interval is None else f"[{number.interval[0]:.2f}, {number.interval[1]:.2f}]"
