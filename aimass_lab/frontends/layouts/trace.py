"""How traces are shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import Number, TraceModule, TraceSummary, derived
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of, where

TOP_ROWS = 12
TOP_MODULES = 30


@lay_out.register
def _(record: TraceSummary) -> Page:
    step = record.step
    idle = "" if step.kernel is None else ", GPU idle"
    parts = (
        ("GPU kernels", step.kernel),
        ("copies", step.memcpy),
        ("fills", step.memset),
        ("communication", step.communication),
        ("the GPU's runtime, GPU idle", step.runtime),
        ("data loading", step.data_loader),
        (f"operators on the host{idle}", step.cpu),
        ("the rest", step.other),
    )
    return Page(
        title=f"Trace of {record.model.name}" if record.model else "Trace",
        headline=headline(record),
        tone="warn" if step.total.quality == "noisy" else "plain",
        facts=(
            ("steps", record.num_steps),
            ("mean step", step.total),
            *(
                (f"GPU {g.index}{f' ({g.name})' if g.name else ''} {words}", share(number))
                for g in record.gpus
                for words, number in (("busy", g.utilization), ("multiprocessors", g.sm_efficiency), ("occupancy", g.occupancy))
            ),
            *((f"memory peak, {m.device}", m.peak_bytes) for m in record.memory),
            ("events", record.num_events),
            ("file", record.path),
            ("size", record.size_bytes),
            ("measured on", where(record.environment) if record.environment else None),
        ),
        tables=(
            Table(
                title="Where a step's time goes",
                columns=("", "time", "share"),
                rows=tuple((words, part, share(_of(part, step.total))) for words, part in parts if part is not None),
                bar=2,
            ),
            _operator_table(record),
            _kernel_table(record),
            _module_table(record),
        ),
        remarks=(*record.recommendations, *_views(record)),
        notes=notes_of(record.notes),
    )


def _of(part: Number, total: Number) -> Number | None:
    return derived(part.value / total.value, "ratio", "of the mean step", [("part", part), ("step", total)]) if total.value > 0 else None


def _views(record: TraceSummary) -> tuple[str, ...]:
    board = f"; in a notebook: {record.tensorboard} (once: %load_ext tensorboard)" if record.tensorboard else ""
    return (f"See every event: open the file in https://ui.perfetto.dev{board}",)


def _operator_table(record: TraceSummary) -> Table:
    top = record.operators[:TOP_ROWS]
    columns = (
        ("operator", tuple(o.name for o in top)),
        ("calls", tuple(o.calls for o in top)),
        ("GPU, own", tuple(o.device_self for o in top)),
        ("host, own", tuple(o.host_self for o in top)),
        ("host", tuple(o.host_total for o in top)),
        ("allocated, own", tuple(o.allocated_bytes for o in top)),
    )
    return _table("By operator", columns, record.num_operators)


def _kernel_table(record: TraceSummary) -> Table:
    top = record.kernels[:TOP_ROWS]
    columns = (
        ("kernel", tuple(k.name for k in top)),
        ("calls", tuple(k.calls for k in top)),
        ("time", tuple(k.total for k in top)),
        ("mean", tuple(k.mean for k in top)),
        ("occupancy", tuple(k.occupancy for k in top)),
        ("tensor cores", tuple("yes" if k.uses_tensor_cores else "" for k in top)),
        ("launched by", tuple(k.operator for k in top)),
    )
    return _table("By GPU kernel", columns, record.num_kernels)


def _module_table(record: TraceSummary) -> Table:
    top = record.modules[:TOP_MODULES]
    columns = (
        ("module", tuple(_path(m) for m in top)),
        ("type", tuple(m.type for m in top)),
        ("calls", tuple(m.calls for m in top)),
        ("GPU", tuple(m.device_total for m in top)),
        ("host", tuple(m.host_total for m in top)),
        ("host, own Python", tuple(m.host_self for m in top)),
    )
    return _table("By module", columns, record.num_modules)


def _table(title: str, columns: tuple[tuple[str, tuple[Cell, ...]], ...], there: int) -> Table:
    """A table of the columns of which anything is known."""
    known = [(name, cells) for name, cells in columns if any(cell is not None for cell in cells)]
    rows = tuple(zip(*(cells for _, cells in known), strict=True)) if known else ()
    whole = title if len(rows) == there else f"{title} (the first {len(rows)} of {there})"
    return Table(title=whole, columns=tuple(name for name, _ in known), rows=rows)


def _path(module: TraceModule) -> str:
    return f"{'· ' * module.depth}{module.name or '(the model itself)'}"
