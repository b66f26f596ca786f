"""How the machine with its kernels, and what one kernel tells of itself, are shown without a side panel."""

from __future__ import annotations

from ...headlines import headline
from ...records import KernelState, Live
from ...units import format_quantity
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of


@lay_out.register
def _(record: Live) -> Page:
    kernels = tuple((k.path or k.name, k.num_processes, k.cpu, k.memory_bytes, k.gpu_memory_bytes, share(k.gpu_utilization)) for k in record.kernels)
    services = tuple((s.folder, s.url, s.grpc_address, str(s.pid)) for s in record.services)
    return Page(
        title="This Jupyter server",
        headline=headline(record),
        tables=(
            Table(title="Kernels", columns=("notebook", "processes", "cores busy", "memory", "GPU memory", "GPU busy"), rows=kernels),
            Table(title="Served", columns=("bundle", "REST", "gRPC", "process"), rows=services),
        ),
        notes=notes_of((*record.notes, *record.readings.notes)),
    )


@lay_out.register
def _(record: KernelState) -> Page:
    models = tuple((m.name, m.type, format_quantity(m.num_parameters, "parameter"), format_quantity(m.weight_bytes, "B"), m.device) for m in record.models)
    cells: tuple[tuple[Cell, ...], ...] = tuple(
        (f"[{c.number}]", c.first_line, c.wall_time, c.cpu_time, c.memory_growth_bytes, c.gpu_memory_growth_bytes, c.gpu_time, c.raised) for c in record.cells
    )
    accounts = tuple((g.index, g.tensors_bytes, g.cached_bytes, g.elsewhere_bytes, g.free_bytes) for g in record.gpus)
    return Page(
        title="This kernel",
        headline=headline(record),
        tables=(
            Table(title="Models", columns=("name", "type", "parameters", "weights", "on"), rows=models),
            Table(title="GPU memory", columns=("GPU", "tensors", "kept for tensors", "elsewhere", "free"), rows=accounts),
            Table(title="Cells", columns=("cell", "begins", "time", "CPU", "memory grew", "GPU memory grew", "GPU time", "raised"), rows=cells),
        ),
        notes=notes_of(record.notes),
    )
