"""How demand is shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import Demand
from ..page import Page, Table
from .base import lay_out, notes_of

TOP_ROWS = 12


@lay_out.register
def _(record: Demand) -> Page:
    operators = sorted((o for o in record.operators if o.bytes_moved.value), key=lambda o: -o.flops.value)[:TOP_ROWS]
    modules = sorted(record.modules, key=lambda m: -m.flops.value)[:TOP_ROWS]
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
        notes=notes_of(record.notes),
    )
