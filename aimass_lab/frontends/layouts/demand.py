"""How demand is shown."""

from __future__ import annotations

import re
from collections import defaultdict

import msgspec

from ...headlines import format_interval, headline
from ...records import Demand, MemoryPart, ModuleDemand, Number, PeakPlace, TrainingDemand
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of

TOP_ROWS = 12
TOP_LINES = 8
WRAPPED = 0.95
"""A module is left out of the table where one submodule has so much of it: it would be the same row again."""


@lay_out.register
def _(record: Demand) -> Page:
    return Page(
        title=f"Demand of {record.model.name}",
        headline=headline(record),
        tone="bad" if record.fits is False else "plain",
        facts=(
            ("parameters", record.num_parameters),
            ("FLOPs per call", record.flops),
            ("  light, not in it", record.light_flops),
            ("bytes moved", record.bytes_moved),
            ("intensity", record.arithmetic_intensity),
            ("peak memory", record.peak_memory_bytes),
            ("  reached in", _place(record.peak_at)),
            (_driver(record), record.driver_bytes),
            ("memory there", record.memory_limit_bytes),
            ("largest batch", record.max_batch_size),
            ("latency there", record.latency),
            ("request, binary", record.request_bytes),
            ("request, JSON", record.request_json_bytes),
            ("response, binary", record.response_bytes),
            ("response, JSON", record.response_json_bytes),
            ("FLOPs known for", share(record.coverage)),
        ),
        tables=(
            _ledger("Memory", record.memory, record.driver_bytes, _driver(record)),
            _by_batch(record),
            _by_length(record),
            *(_training(record.training, _driver(record)) if record.training else ()),
            _operators(record),
            _modules(record),
            _lines(record),
        ),
        notes=notes_of(record.notes),
    )


def _driver(record: Demand) -> str:
    return "the driver shows" if record.reserved_bytes is not None else "the process grows by"


def _place(place: PeakPlace | None) -> str | None:
    if place is None:
        return None
    phase = "" if place.phase == "forward" else f", {place.phase}"
    where = f" in {place.module}" if place.module else ""
    return f"{place.operator}{where}{phase}" + (f" ({place.source})" if place.source else "")


def _ledger(title: str, parts: tuple[MemoryPart, ...], total: Number | None, shown_by: str) -> Table:
    rows: list[tuple[Cell, ...]] = [(part.name, part.bytes, format_interval(part.bytes), part.bytes.method) for part in parts]
    if parts and total is not None:
        rows.append((shown_by, total, format_interval(total), "sum"))
    return Table(title=title, columns=("part", "bytes", "band", "how"), rows=tuple(rows))


def _by_batch(record: Demand) -> Table:
    rows = tuple((p.batch_size, p.peak_memory_bytes, p.driver_bytes, format_interval(p.driver_bytes)) for p in record.memory_by_batch)
    return Table(title="Memory by batch size", columns=("batch", "peak memory", _driver(record), "band"), rows=rows, folded=True)


def _by_length(record: Demand) -> Table:
    rows = tuple(
        (p.length, p.flops, p.latency, p.peak_memory_bytes, p.driver_bytes, format_interval(p.driver_bytes), p.max_batch_size) for p in record.by_length
    )
    return Table(
        title="By sequence length", columns=("length", "FLOPs", "latency", "peak memory", _driver(record), "band", "largest batch"), rows=rows, folded=True
    )


def _training(step: TrainingDemand, shown_by: str) -> tuple[Table, ...]:
    rows: tuple[tuple[str, Cell], ...] = (
        ("FLOPs forward", step.forward_flops),
        ("FLOPs backward", step.backward_flops),
        ("gradients", step.gradient_bytes),
        ("optimizer state", step.optimizer_state_bytes),
        ("saved for the backward pass", step.saved_activation_bytes),
        ("peak memory", step.peak_memory_bytes),
        ("  reached in", _place(step.peak_at)),
        ("fits", None if step.fits is None else "yes" if step.fits else "no"),
        ("largest batch", step.max_batch_size),
    )
    return (
        Table(title=f"One training step with {step.optimizer}", columns=("", ""), rows=tuple(row for row in rows if row[1] is not None)),
        _ledger("Memory at the highest moment of the step", step.memory, step.driver_bytes, shown_by),
    )


def _operators(record: Demand) -> Table:
    moving = [o for o in record.operators if o.bytes_moved.value]
    top = moving[:TOP_ROWS]
    # What no formula covers is shown wherever it stands: it is what the totals lack.
    top += [o for o in moving[TOP_ROWS:] if not o.has_formula]
    rows = tuple((o.name, o.calls, o.flops, o.light_flops, o.bytes_moved, share(o.bytes_share), "" if o.has_formula else "no FLOP formula") for o in top)
    return Table(
        title=_title("By operator", len(top), len(moving)),
        columns=("operator", "calls", "FLOPs", "light", "bytes moved", "of bytes", ""),
        rows=rows,
        folded=True,
    )


def _modules(record: Demand) -> Table:
    groups: dict[tuple[object, ...], list[ModuleDemand]] = defaultdict(list)
    for module in _unwrapped(record.modules):
        groups[re.sub(r"\d+", "*", module.name), module.type, module.flops.value, module.bytes_moved.value].append(module)
    ordered = sorted(groups.values(), key=lambda alike: -sum(map(_weight, alike)))
    rows = tuple(_module_row(alike) for alike in ordered[:TOP_ROWS])
    columns = ("module", "type", "alike", "FLOPs", "bytes moved", "intensity", "alive at most", "limited by", "of time")
    title = _title("By module", len(rows), len(ordered)) + ("; of time: all that are alike" if any(len(alike) > 1 for alike in ordered[:TOP_ROWS]) else "")
    return Table(title=title, columns=columns, rows=rows, bar=len(columns) - 1)


def _module_row(alike: list[ModuleDemand]) -> tuple[Cell, ...]:
    one = alike[0]
    of_time = one.time_share and msgspec.structs.replace(one.time_share, value=min(1.0, sum(_weight(m) for m in alike)))
    return (
        _common_name(alike) or "(the model itself)",
        one.type,
        len(alike),
        one.flops,
        one.bytes_moved,
        one.arithmetic_intensity,
        one.live_bytes,
        one.bound or "–",
        share(of_time),
    )


def _common_name(alike: list[ModuleDemand]) -> str:
    """``layers.0…31.mlp`` for ``layers.0.mlp`` to ``layers.31.mlp``."""
    first, last = alike[0].name.split("."), alike[-1].name.split(".")
    if len(first) != len(last):
        return f"{alike[0].name} … {alike[-1].name}"
    return ".".join(a if a == b else f"{a}…{b}" for a, b in zip(first, last, strict=True))


def _unwrapped(modules: tuple[ModuleDemand, ...]) -> list[ModuleDemand]:
    """Without those that hold little beside one submodule."""
    largest: dict[str, float] = {}
    for module in modules:
        parent = module.name.rpartition(".")[0]
        if module.name:
            largest[parent] = max(largest.get(parent, 0.0), _weight(module))
    return [m for m in modules if largest.get(m.name, 0.0) < WRAPPED * _weight(m) or not m.name]


def _weight(module: ModuleDemand) -> float:
    return module.time_share.value if module.time_share else module.flops.value


def _lines(record: Demand) -> Table:
    top = record.lines[:TOP_LINES]
    rows = tuple((line.source, line.calls, line.flops, line.bytes_moved, share(line.time_share)) for line in top)
    return Table(
        title=_title("By line", len(top), len(record.lines)), columns=("line", "operators", "FLOPs", "bytes moved", "of time"), rows=rows, bar=4, folded=True
    )


def _title(title: str, shown: int, there: int) -> str:
    return title if shown == there else f"{title} (the {shown} largest of {there})"
