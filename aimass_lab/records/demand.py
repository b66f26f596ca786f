"""What one call of a model asks of any device."""

from __future__ import annotations

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record


class OperatorDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All calls of one operator in one pass."""

    name: str
    calls: int
    flops: Number
    bytes_moved: Number
    has_formula: bool
    """False: an operator that may compute and that no FLOP formula covers; its FLOPs are not in the total."""


class ModuleDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one module asks for, its submodules included."""

    name: str
    type: str
    num_parameters: int
    flops: Number
    bytes_moved: Number


class Demand(Record, frozen=True, kw_only=True, tag="demand"):
    """What one call of a model asks of any device; nothing was run."""

    model: ModelInfo
    batch_size: int
    num_parameters: Number
    flops: Number
    bytes_moved: Number
    arithmetic_intensity: Number
    weight_bytes: Number
    activation_peak_bytes: Number
    peak_memory_bytes: Number
    request_bytes: Number
    """One item's request in the binary form of the Open Inference Protocol."""
    response_bytes: Number
    request_json_bytes: Number
    response_json_bytes: Number
    device: str | None = None
    """The catalogue entry that `fits` and `latency` are about."""
    memory_limit_bytes: Number | None = None
    fits: bool | None = None
    max_batch_size: Number | None = None
    """Largest batch whose predicted peak stays below the limit."""
    latency: Number | None = None
    """Of one call on `device`."""
    operators: tuple[OperatorDemand, ...]
    modules: tuple[ModuleDemand, ...]
    coverage: Number
    """Share of the bytes moved by operators whose FLOPs are known."""
    notes: tuple[Note, ...] = ()
