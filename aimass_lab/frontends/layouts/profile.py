"""How profiles are shown."""

from __future__ import annotations

from ...headlines import format_interval, format_number, headline
from ...records import CellProfile, ColdStart, LiveTensor, ModelSummary, ModuleTime, Profile
from ..page import Cell, Page, Table, share
from .base import ladder_table, lay_out, notes_of, where

TOP_MODULES = 12
TOP_ROWS = 8
"""Of every other table."""
LONGEST_NAME = 60
"""Of a GPU kernel, whose whole name can run over many lines."""


def module_table(modules: tuple[ModuleTime, ...]) -> Table:
    """The modules that take the most time themselves."""
    top = sorted(modules, key=lambda m: -m.self_time.value)[:TOP_MODULES]
    left = len(modules) - len(top)
    title = "Time by module" + (f" (the {len(top)} largest of {len(modules)})" if left else "")
    rows = tuple((m.name or "(the model itself)", m.type, m.calls, m.self_time, m.total_time, share(m.share)) for m in top)
    return Table(title=title, columns=("module", "type", "calls", "own time", "with submodules", "share"), rows=rows, bar=5)


def operator_table(record: Profile) -> Table:
    """The operators that take the most time themselves, and what belongs to none."""
    top = record.operators[:TOP_ROWS]
    on_gpu = bool(record.kernels)
    rows: list[tuple[Cell, ...]] = [(o.name, o.family, o.calls, o.device_time if on_gpu else o.self_time, share(o.share), o.module, o.source) for o in top]
    if record.outside_operators is not None and not on_gpu:
        rows.append(("(in no operator)", "Python, dispatch", "", record.outside_operators, None, "", ""))
    columns = ("operator", "family", "calls", "GPU time" if on_gpu else "own time", "share", "mostly in", "line")
    return Table(title=_title("Time by operator", len(top), len(record.operators)), columns=columns, rows=tuple(rows), bar=4, folded=True)


def kernel_table(record: Profile) -> Table:
    """The GPU kernels that take the most time."""
    top = record.kernels[:TOP_ROWS]
    rows = tuple((_short(k.name), k.calls, k.device_time, share(k.share), k.operator, k.module) for k in top)
    columns = ("kernel", "runs", "time", "share", "launched by", "in")
    return Table(title=_title("Time by GPU kernel", len(top), len(record.kernels)), columns=columns, rows=rows, bar=3)


def line_table(record: Profile) -> Table:
    """The lines of the user's code that ask for the most time."""
    top = record.lines[:TOP_ROWS]
    rows = tuple((line.source, line.calls, line.time, share(line.share), line.operator) for line in top)
    return Table(
        title=_title("Time by line", len(top), len(record.lines)), columns=("line", "operators", "time", "share", "mostly"), rows=rows, bar=3, folded=True
    )


def memory_table(record: Profile) -> Table:
    """The ledger, the total last."""
    rows: list[tuple[Cell, ...]] = [(part.name, part.bytes) for part in record.memory]
    if record.memory_total is not None:
        rows.append(("total", record.memory_total))
    return Table(title="Memory at the highest moment of a call", columns=("what", "bytes"), rows=tuple(rows), folded=True)


def advice_table(record: Profile) -> Table:
    """Next steps, each with its predicted gain and the band."""
    rows = tuple((a.gain, format_interval(a.gain), a.code, a.text) for a in record.advice)
    return Table(title="Next steps (gain: predicted, times faster)", columns=("gain", "band", "code", "why"), rows=rows)


def _title(what: str, shown: int, there: int) -> str:
    return what if shown == there else f"{what} (the {shown} largest of {there})"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


@lay_out.register
def _(record: ModelSummary) -> Page:
    return Page(
        title=f"Profile of {record.model.name}",
        headline="nothing was run yet",
        facts=(
            ("class", record.model.type.rpartition(".")[2]),
            ("parameters", record.num_parameters),
            ("weights", record.weight_bytes),
            ("dtype", record.model.dtype),
            ("device", record.device),
            ("batch size", record.batch_size),
            ("FLOPs of a call", record.flops),
            ("activations", record.activation_peak_bytes),
        ),
    )


@lay_out.register
def _(record: Profile) -> Page:
    tables = (
        ladder_table(record.ladder),
        advice_table(record),
        module_table(record.modules),
        operator_table(record),
        kernel_table(record),
        line_table(record),
        memory_table(record),
    )
    return Page(
        title=f"Profile of {record.model.name}",
        headline=record.binds,
        facts=(
            ("latency p50", record.latency_p50),
            ("latency p95", record.latency_p95),
            ("latency p99", record.latency_p99),
            ("throughput", record.throughput),
            ("processor time", record.cpu_time_per_call),
            ("GPU busy", share(record.device_busy)),
            ("energy", record.energy_per_call),
            ("batch size", record.batch_size),
            ("peak memory", record.peak_memory_bytes),
            ("  weights", record.weight_bytes),
            ("  activations", record.activation_peak_bytes),
            ("  the rest", record.other_memory_bytes),
            ("in no submodule", record.host_residual),
            ("first call", record.first_call),
            ("  its memory", record.first_call_peak_bytes),
            ("steady after", record.warmup_time if record.warmup_calls else None),
            ("FLOPs", record.flops),
            ("achieved", record.flops_per_s),
            ("measured on", where(record.environment)),
        ),
        tables=tuple(table for table in tables if table.rows),
        remarks=tuple(filter(None, (_about_memory(record), _about_cost(record)))),
        notes=notes_of(record.notes),
    )


def _about_memory(record: Profile) -> str:
    timeline = record.timeline
    if timeline is None:
        return ""
    place = "".join((f" in {timeline.module}" if timeline.module else "", f" ({timeline.source})" if timeline.source else ""))
    largest = "; ".join(_live(tensor) for tensor in timeline.alive[:3])
    moment = f"{format_number(timeline.peak)}, {format_number(timeline.peak_at)} after it began, at {timeline.operator or 'no operator'}{place}"
    return f"A call holds the most memory, {moment}. The largest blocks then: {largest}."


def _live(tensor: LiveTensor) -> str:
    return f"{format_number(tensor.bytes)} from {tensor.operator or 'outside operators'}" + (f" in {tensor.module}" if tensor.module else "")


def _about_cost(record: Profile) -> str:
    parts = []
    if record.modules:
        parts.append(f"Times by module come from calls with hooks, which took {format_number(record.profiling_overhead)} times as long")
    if record.operator_overhead is not None:
        parts.append(f"times by operator from one call with torch's profiler, which took {format_number(record.operator_overhead)} times as long")
    if parts:
        parts.append("latencies are taken without either")
    cost = f" The whole profile took {format_number(record.profiling_cost)} times as long as the calls it reports on." if record.profiling_cost else ""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}.{cost}" if text else cost.strip()


@lay_out.register
def _(record: CellProfile) -> Page:
    return Page(
        title="Profile of a cell",
        headline=headline(record) if record.raised is None else f"the cell raised {record.raised}",
        tone="plain" if record.raised is None else "bad",
        facts=(
            ("wall time", record.wall_time),
            ("CPU time", record.cpu_time),
            ("outside models", record.outside_modules),
            ("peak memory", record.peak_memory_bytes),
            ("memory growth", record.memory_growth_bytes),
            ("measured on", where(record.environment)),
        ),
        tables=(module_table(record.modules),) if record.modules else (),
        notes=notes_of(record.notes),
    )


@lay_out.register
def _(record: ColdStart) -> Page:
    return Page(
        title="Cold start",
        headline=headline(record),
        facts=(
            ("measured in", record.how),
            ("interpreter and torch", record.import_time),
            ("loading the model", record.load_time),
            ("  its memory", record.load_growth_bytes),
            ("first call", record.first_call),
            ("  of it compiling", record.compile_time),
            ("  its memory", record.first_call_peak_bytes),
            ("calls until steady", record.warmup_calls),
            ("time until steady", record.warmup_time),
            ("steady call", record.steady),
            ("ready after", record.ready_after),
            ("measured on", where(record.environment)),
        ),
        notes=notes_of(record.notes),
    )
