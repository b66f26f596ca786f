"""How trials, and the copies that they leave in memory, are shown."""

from __future__ import annotations

from ...headlines import format_interval, format_number, headline
from ...records import HeldVariants, Number, StepReport, TrialPoint, TrialResult
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of, where


@lay_out.register
def _(record: TrialResult) -> Page:
    several_callers = f"{record.setting.instances} at once, in one process" if record.setting.instances > 1 else None
    return Page(
        title=f"Trial of {record.setting.recipe.name} on {record.model.name}",
        headline=_sentence(record),
        tone=_tone(record),
        facts=(
            ("verdict", record.verdict),
            ("speed-up", record.speedup if len(record.points) == 1 else None),
            ("metric, original", record.metric_original),
            ("metric, variant", record.metric_variant),
            ("  its drop", record.metric_drop),
            ("cosine similarity", record.fidelity),
            ("relative error", record.relative_error),
            ("same top class", record.agreement),
            ("divergence of classes", record.divergence),
            ("on disk, original", record.stored_original_bytes),
            ("on disk, variant", record.stored_bytes),
            ("in memory, original", record.size_original_bytes),
            ("in memory, variant", record.size_bytes),
            ("time to apply", record.apply_time),
            ("  its peak memory", record.peak_memory),
            ("callers", several_callers),
            ("measured on", where(record.environment)),
        ),
        tables=(_speeds(record.points), *_steps(record.steps), _worst(record), *(_layers(number, step) for number, step in enumerate(record.steps, 1))),
        remarks=record.reasons,
        notes=(*notes_of(record.notes), *((note.code, f"{step.step.technique}: {note.text}") for step in record.steps for note in step.notes)),
    )


def _sentence(record: TrialResult) -> str:
    """What to do, and at what gain or for which reason."""
    if not record.setting.recipe.steps:
        return f"The control, an identical copy: {headline(record).partition(': ')[2]}"
    words = record.recommendation or headline(record).partition(": ")[2]
    return words[:1].upper() + words[1:]


def _tone(record: TrialResult) -> str:
    if record.verdict in ("slower", "not equivalent"):
        return "bad"
    return "good" if record.recommended else "warn"


def _speeds(points: tuple[TrialPoint, ...]) -> Table:
    """Both models side by side; columns that no size fills are left out."""
    columns: dict[str, list[Cell]] = {
        "batch": [p.batch_size for p in points],
        "verdict": [p.verdict for p in points],
        "speed-up": [p.speedup for p in points],
        "interval": [format_interval(p.speedup) for p in points],
        "decided by": [f"{p.clock} time" for p in points],
        "latency": [p.latency_original for p in points],
        "→ variant": [p.latency_variant for p in points],
        "p99": [p.latency_p99_original for p in points],
        "→ variant ": [p.latency_p99_variant for p in points],
        "throughput": [p.throughput_original for p in points],
        "→ variant  ": [p.throughput_variant for p in points],
        "compiling": [p.compile_time for p in points],
    }
    filled = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    rows = tuple(zip(*filled.values(), strict=True))
    return Table(title="Original → variant, by batch size", columns=tuple(name.rstrip() for name in filled), rows=rows)


def _steps(steps: tuple[StepReport, ...]) -> tuple[Table, ...]:
    if len(steps) < 2:
        return ()
    rows = tuple((n, s.step.name, _changed(s), share(s.weight_share), s.apply_time, s.peak_memory) for n, s in enumerate(steps, 1))
    return (Table(title="Step by step", columns=("", "step", "layers changed", "of the weights", "time", "memory above"), rows=rows),)


def _changed(step: StepReport) -> str:
    return f"{format_number(step.num_changed_layers).partition(' ')[0]} of {format_number(step.num_layers).partition(' ')[0]}"


def _worst(record: TrialResult) -> Table:
    classes = any(s.same_class is not None for s in record.worst_samples)
    rows: list[tuple[Cell, ...]] = []
    for s in record.worst_samples:
        same = ("the same" if s.same_class else "another",) if classes else ()
        rows.append((s.index, f"{s.relative_error:.3g}", f"{s.cosine:.4f}", *same))
    columns = ("sample", "relative error", "cosine", *(("top class",) if classes else ()))
    return Table(title=f"Samples that differ most ({len(rows)} of {record.fidelity.n})", columns=columns, rows=tuple(rows), folded=True)


def _layers(number: int, step: StepReport) -> Table:
    rows = tuple((layer.name or "(the model itself)", layer.type, "changed" if layer.changed else "left", layer.detail) for layer in step.layers)
    title = f"Layers, step {number}: {step.step.name} ({_changed(step)} changed)"
    return Table(title=title, columns=("layer", "type", "", "what, or why not"), rows=rows, folded=True)


@lay_out.register
def _(record: HeldVariants) -> Page:
    rows: list[tuple[Cell, ...]] = [(i.name, i.verdict or "not tried", i.memory, i.apply_time) for i in record.items]
    total: Number | None = record.memory if record.items else None
    return Page(
        title=f"Copies of {record.model}",
        headline=headline(record),
        facts=(("memory", total),),
        tables=(Table(title="study.release(name) gives the memory back", columns=("name", "verdict", "memory", "time to make"), rows=tuple(rows)),),
    )
