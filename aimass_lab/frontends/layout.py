"""Decides what of each record is shown, and in which order."""

from __future__ import annotations

from functools import singledispatch

from ..export import EXPORTERS
from ..headlines import format_number, headline
from ..records import (
    BatchPoint,
    Bundle,
    CellProfile,
    Check,
    Comparison,
    Demand,
    Environment,
    History,
    ModuleTime,
    Note,
    Number,
    Plan,
    Profile,
    Promise,
    Record,
    SearchResult,
    Service,
    ServingSpec,
    TrialResult,
)
from .page import Cell, Page, Table

TOP_MODULES = 12
TOP_OPTIONS = 8


@singledispatch
def lay_out(record: Record) -> Page:
    """Lay out `record`."""
    raise TypeError(f"no layout for {type(record).__name__}")


def _notes(notes: tuple[Note, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((note.code, note.text) for note in notes)


def _where(environment: Environment) -> str:
    return f"{environment.device_name}, {environment.threads} threads of {environment.cpu_cores:g} cores, torch {environment.torch}"


def _modules(modules: tuple[ModuleTime, ...]) -> Table:
    top = sorted(modules, key=lambda m: -m.self_time.value)[:TOP_MODULES]
    left = len(modules) - len(top)
    title = "Time by module" + (f" (the {len(top)} largest of {len(modules)})" if left else "")
    rows = tuple((m.name or "(the model itself)", m.type, m.calls, m.self_time, m.total_time, m.share) for m in top)
    return Table(title=title, columns=("module", "type", "calls", "own time", "with submodules", "share"), rows=rows, bar=5)


def _ladder(points: tuple[BatchPoint, ...], title: str = "By batch size") -> Table:
    rows = tuple((p.batch_size, p.latency_p50, p.latency_p95, p.latency_p99, p.throughput, p.peak_memory_bytes) for p in points)
    return Table(title=title, columns=("batch", "p50", "p95", "p99", "throughput", "peak memory"), rows=rows)


@lay_out.register
def _(record: Profile) -> Page:
    return Page(
        title=f"Profile of {record.model.name}",
        headline=record.binds,
        facts=(
            ("latency p50", record.latency_p50),
            ("latency p95", record.latency_p95),
            ("latency p99", record.latency_p99),
            ("throughput", record.throughput),
            ("batch size", record.batch_size),
            ("peak memory", record.peak_memory_bytes),
            ("  weights", record.weight_bytes),
            ("  activations", record.activation_peak_bytes),
            ("  the rest", record.other_memory_bytes),
            ("whole process", record.process_memory_bytes),
            ("in no submodule", record.host_residual),
            ("first call", record.first_call),
            ("FLOPs", record.flops),
            ("achieved", record.flops_per_s),
            ("measured on", _where(record.environment)),
        ),
        tables=(_ladder(record.ladder), _modules(record.modules)),
        remarks=(_about_hooks(record),) if record.modules else (),
        notes=_notes(record.notes),
    )


def _about_hooks(record: Profile) -> str:
    return f"Times by module come from calls with hooks, which took {record.profiling_overhead.value:.2f} times as long; latencies are taken without."


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
            ("measured on", _where(record.environment)),
        ),
        tables=(_modules(record.modules),) if record.modules else (),
        notes=_notes(record.notes),
    )


@lay_out.register
def _(record: Demand) -> Page:
    operators = sorted((o for o in record.operators if o.bytes_moved.value), key=lambda o: -o.flops.value)[:TOP_MODULES]
    modules = sorted(record.modules, key=lambda m: -m.flops.value)[:TOP_MODULES]
    return Page(
        title=f"Demand of {record.model.name}",
        headline=headline(record),
        tone="bad" if record.fits is False else "plain",
        facts=(
            ("parameters", record.num_parameters),
            ("FLOPs per call", record.flops),
            ("bytes moved", record.bytes_moved),
            ("intensity", record.arithmetic_intensity),
            ("weights", record.weight_bytes),
            ("activations, peak", record.activation_peak_bytes),
            ("peak memory", record.peak_memory_bytes),
            ("memory there", record.memory_limit_bytes),
            ("largest batch", record.max_batch_size),
            ("latency there", record.latency),
            ("request, binary", record.request_bytes),
            ("request, JSON", record.request_json_bytes),
            ("response, binary", record.response_bytes),
            ("response, JSON", record.response_json_bytes),
            ("FLOPs known for", record.coverage),
        ),
        tables=(
            Table(
                title="By operator",
                columns=("operator", "calls", "FLOPs", "bytes moved", ""),
                rows=tuple((o.name, o.calls, o.flops, o.bytes_moved, "" if o.has_formula else "no FLOP formula") for o in operators),
            ),
            Table(
                title="By module",
                columns=("module", "type", "FLOPs", "bytes moved"),
                rows=tuple((m.name or "(the model itself)", m.type, m.flops, m.bytes_moved) for m in modules),
            ),
        ),
        notes=_notes(record.notes),
    )


_TONES = {"faster": "good", "no gain": "warn", "slower": "bad", "not equivalent": "bad"}


@lay_out.register
def _(record: TrialResult) -> Page:
    options = ", ".join(f"{k}={v}" for k, v in record.setting.options.items())
    return Page(
        title=f"Trial of {record.setting.technique}{f' ({options})' if options else ''} on {record.model.name}",
        headline=headline(record).partition(": ")[2],
        tone="warn" if record.speedup.quality == "noisy" else _TONES[record.verdict],
        facts=(
            ("speed-up", record.speedup),
            ("latency, original", record.latency_original),
            ("latency, variant", record.latency_variant),
            ("weights, original", record.size_original_bytes),
            ("weights, variant", record.size_bytes),
            ("cosine similarity", record.fidelity),
            ("relative error", record.relative_error),
            ("same top class", record.agreement),
            ("metric, original", record.metric_original),
            ("metric, variant", record.metric_variant),
            ("layers changed", record.num_changed_layers),
            ("layers eligible", record.num_eligible_layers),
            ("time to apply", record.apply_time),
            ("time to compile", record.compile_time),
            ("measured on", _where(record.environment)),
        ),
        remarks=record.reasons,
        notes=_notes(record.notes),
    )


@lay_out.register
def _(record: SearchResult) -> Page:
    front = set(record.front)
    rows: list[tuple[Cell, ...]] = [
        (t.setting.technique, t.batch_size, t.verdict, t.speedup, t.size_bytes, t.fidelity, "best" if i == record.best else "front" if i in front else "")
        for i, t in enumerate(record.trials)
    ]
    return Page(
        title=f"Search on {record.model.name} ({record.sampler})",
        headline=headline(record),
        tone="good" if record.best is not None else "warn",
        tables=(Table(title="Tried", columns=("technique", "batch", "verdict", "speed-up", "weights", "similarity", ""), rows=tuple(rows)),),
        notes=_notes(record.failures),
    )


@lay_out.register
def _(record: Plan) -> Page:
    options: list[tuple[Cell, ...]] = [
        (o.device, o.replicas, o.max_batch_size, o.max_wait, o.latency_p99, o.utilization, o.cost, o.reason) for o in record.options[:TOP_OPTIONS]
    ]
    shown = "Considered" if len(record.options) <= TOP_OPTIONS else f"Considered (the best {TOP_OPTIONS} of {len(record.options)})"
    return Page(
        title=f"Plan for {record.model.name}: {format_number(record.target.requests_per_s)}, p99 under {format_number(record.target.latency_p99)}",
        headline=headline(record),
        tone="warn" if record.replicas.quality == "noisy" else "good" if record.feasible else "bad",
        facts=(
            ("device", record.device),
            ("replicas", record.replicas),
            ("batch limit", record.max_batch_size),
            ("waits for a batch", record.max_wait),
            ("latency p50", record.latency_p50),
            ("latency p99", record.latency_p99),
            ("utilization", record.utilization),
            ("grows unstable at", record.throughput_limit),
            ("cost", record.cost),
            ("policy", record.scheduling_policy),
            ("served", "the original" if record.technique == "none" else record.technique),
        ),
        tables=(
            Table(title=shown, columns=("device", "replicas", "batch limit", "wait", "p99", "utilization", "cost", ""), rows=tuple(options)),
            _ladder(record.service_time, "Latencies the simulation ran on"),
        ),
        remarks=(record.binding,),
        notes=_notes(record.notes),
    )


@lay_out.register
def _(record: ServingSpec) -> Page:
    fields = ((name.replace("_", " "), getattr(record, name)) for name in record.__struct_fields__)
    numbers = [(name, value) for name, value in fields if isinstance(value, Number)]
    return Page(
        title=f"Resource spec of {record.name}",
        headline=headline(record),
        facts=(*numbers, ("image", record.image), ("digest", record.digest)),
        notes=_notes(record.notes),
        listing=tuple(EXPORTERS[record.export_format](record).items()),
    )


def _promises(promises: tuple[Promise, ...]) -> Table:
    words = {True: "PASS", False: "FAIL", None: ""}
    rows = tuple((words[p.passed], p.name, p.measured, f"{p.relation} {format_number(p.limit)}", p.limit.method) for p in promises)
    return Table(title="Promises", columns=("", "promise", "measured", "limit", "limit comes from"), rows=rows)


@lay_out.register
def _(record: Bundle) -> Page:
    return Page(
        title=f"Bundle of {record.name}",
        headline=headline(record),
        facts=(("folder", record.folder), ("format", record.format), ("size", record.size_bytes), ("files", record.num_files), ("digest", record.digest)),
        tables=(_promises(record.promises),),
        notes=_notes(record.notes),
        remarks=(f"Serve it with: python {record.folder}/run.py serve", f"Prove it with: python {record.folder}/run.py verify"),
    )


@lay_out.register
def _(record: Check) -> Page:
    findings = tuple((f.code, f.path, f.text) for f in record.findings)
    return Page(
        title=f"Check of {record.subject}",
        headline="PASS" if record.passed else "FAIL",
        tone="good" if record.passed else "bad",
        tables=((_promises(record.promises),) if record.promises else ())
        + ((Table(title="Findings", columns=("code", "where", "what"), rows=findings),) if findings else ()),
    )


@lay_out.register
def _(record: Service) -> Page:
    return Page(title="Serving", headline=headline(record), facts=(("REST", record.url), ("gRPC", record.grpc_address), ("process", str(record.pid))))


@lay_out.register
def _(record: History) -> Page:
    rows = tuple((str(r.id), r.taken_at, r.verb, r.model, r.summary) for r in record.runs)
    return Page(
        title="History", headline=headline(record), tables=(Table(title="Runs", columns=("run", "taken at (UTC)", "verb", "model", "found"), rows=rows),)
    )


@lay_out.register
def _(record: Comparison) -> Page:
    rows: list[tuple[Cell, ...]] = [(d.name, d.before, d.after, d.ratio, d.verdict) for d in record.differences]
    return Page(
        title=f"Run {record.before.id} and run {record.after.id} of {record.after.model}",
        headline=headline(record),
        tables=(Table(title="Side by side", columns=("number", "before", "after", "after / before", ""), rows=tuple(rows)),),
        notes=_notes(record.notes),
    )
