"""How profiles are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import CellProfile, ModuleTime, Profile
from ..page import Page, Table
from .base import ladder_table, lay_out, notes_of, where

TOP_MODULES = 12


def module_table(modules: tuple[ModuleTime, ...]) -> Table:
    """The modules that take the most time themselves."""
    top = sorted(modules, key=lambda m: -m.self_time.value)[:TOP_MODULES]
    left = len(modules) - len(top)
    title = "Time by module" + (f" (the {len(top)} largest of {len(modules)})" if left else "")
    rows = tuple((m.name or "(the model itself)", m.type, m.calls, m.self_time, m.total_time, m.share) for m in top)
    return Table(title=title, columns=("module", "type", "calls", "own time", "with submodules", "share"), rows=rows, bar=5)


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
            ("measured on", where(record.environment)),
        ),
        tables=(ladder_table(record.ladder), module_table(record.modules)),
        remarks=(_about_hooks(record),) if record.modules else (),
        notes=notes_of(record.notes),
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
            ("measured on", where(record.environment)),
        ),
        tables=(module_table(record.modules),) if record.modules else (),
        notes=notes_of(record.notes),
    )
