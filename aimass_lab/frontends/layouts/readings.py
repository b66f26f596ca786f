"""How live readings of the machine are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import GpuReading, Readings
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of


@lay_out.register
def _(record: Readings) -> Page:
    cpu, memory, storage = record.cpu, record.memory, record.storage
    return Page(
        title=f"Readings of this machine over {record.interval.value:.2f} s",
        headline=headline(record),
        facts=(
            ("processor", cpu.name),
            ("cores usable", cpu.usable_cores),
            ("cores busy, machine", cpu.machine),
            ("  container", cpu.container),
            ("  this process", cpu.process),
            ("held back by its quota", share(cpu.throttled)),
            ("clock", cpu.frequency),
            ("power, processor and memory", cpu.power),
            ("tasks running or blocked", cpu.load_1min),
            ("waited for a core", share(cpu.stalled)),
            ("taken by the host", share(cpu.stolen)),
            ("memory of this process", memory.process_bytes),
            ("  its own", memory.process_unique_bytes),
            ("memory used, machine", memory.machine_used_bytes),
            ("  of", memory.machine_total_bytes),
            ("memory used, container", memory.container_used_bytes),
            ("  of at most", memory.container_limit_bytes),
            ("memory usable", memory.usable_bytes),
            ("swapped out, machine", memory.swap_used_bytes),
            ("waited for memory", share(memory.stalled)),
            ("read from storage", storage.read),
            ("written to storage", storage.write),
            ("waited for storage", share(storage.stalled)),
        ),
        tables=(_gpu_table(record.gpus), _process_table(record.gpus), _network_table(record)),
        notes=notes_of(record.notes),
    )


def _gpu_table(gpus: tuple[GpuReading, ...]) -> Table:
    columns = ("GPU", "name", "busy", "memory used", "memory", "power", "limit", "temperature", "SM clock", "from host", "to host", "held back by")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            f"{g.index}" if g.mig_instance is None else f"{g.index}, instance {g.mig_instance}", g.name, share(g.utilization), g.memory_used_bytes,
            g.memory_total_bytes, g.power, g.power_limit, g.temperature, g.sm_clock, g.pcie_receive, g.pcie_transmit, ", ".join(g.throttled),
        )
        for g in gpus
    )  # fmt: skip
    return Table(title="GPUs", columns=columns, rows=rows)


def _process_table(gpus: tuple[GpuReading, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (g.index, str(p.pid), "this process" if p.ours else p.name or "unknown", p.memory_bytes, share(p.utilization)) for g in gpus for p in g.processes
    ]
    return Table(title="Processes on GPUs", columns=("GPU", "process", "name", "memory", "busy"), rows=tuple(rows))


def _network_table(record: Readings) -> Table:
    rows = tuple((n.interface, n.receive, n.transmit) for n in record.network)
    return Table(title="Network", columns=("interface", "received", "sent"), rows=rows)
