"""What one call of a model asks of any device."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record
from .profile import MemoryPart

Bound = Literal["compute", "memory", "launch"]
"""What a roofline says that the time goes to: arithmetic, memory traffic, or starting the operators."""


class OperatorDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All calls of one operator in one pass."""

    name: str
    calls: int
    flops: Number
    bytes_moved: Number
    has_formula: bool
    """False: an operator that may compute and that no FLOP formula covers; its FLOPs are not in the total."""
    light_flops: Number | None = None
    """Element-wise and reduction arithmetic, one FLOP an element."""
    bytes_share: Number | None = None
    """Of the bytes that the whole call moves."""
    time_share: Number | None = None
    """Of the predicted time of the whole call."""


class ModuleDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one module asks for, its submodules included."""

    name: str
    type: str
    num_parameters: int
    flops: Number
    bytes_moved: Number
    light_flops: Number | None = None
    arithmetic_intensity: Number | None = None
    live_bytes: Number | None = None
    """Most that is alive at once while it runs, in tensors that the call made."""
    bound: Bound | None = None
    """What limits it on the device; None where the device's rates are unknown."""
    time_share: Number | None = None


class LineDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operators that one line of the user's code asked for."""

    source: str
    """``"model.py:41"``, ``"In [7]:3"``."""
    calls: int
    """Operators."""
    flops: Number
    bytes_moved: Number
    time_share: Number | None = None


class PeakPlace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the most memory is held."""

    operator: str
    module: str
    """Dotted path; ``""`` is the model itself."""
    source: str
    phase: str
    """``"forward"``, ``"backward"`` or ``"optimizer"``."""


class MemoryPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory at another batch size."""

    batch_size: int
    peak_memory_bytes: Number
    driver_bytes: Number


class LengthPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same call with sequences of another length."""

    length: int
    flops: Number
    peak_memory_bytes: Number
    driver_bytes: Number
    max_batch_size: Number | None = None
    latency: Number | None = None
    """Of one call on the demand's device."""


class TrainingDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one training step asks for, once the optimizer's state exists."""

    optimizer: str
    forward_flops: Number
    backward_flops: Number
    gradient_bytes: Number
    optimizer_state_bytes: Number
    saved_activation_bytes: Number
    """Alive at the end of the forward pass: what the backward pass needs, and the outputs."""
    peak_memory_bytes: Number
    memory: tuple[MemoryPart, ...]
    """The ledger at the highest moment of the step: parts of `driver_bytes`, which they add up to exactly."""
    driver_bytes: Number
    peak_at: PeakPlace | None = None
    fits: bool | None = None
    max_batch_size: Number | None = None


class Demand(Record, frozen=True, kw_only=True, tag="demand"):
    """What one call of a model asks of any device; nothing was run."""

    model: ModelInfo
    batch_size: int
    num_parameters: Number
    flops: Number
    light_flops: Number | None = None
    """Element-wise and reduction arithmetic, one FLOP an element; no part of `flops`."""
    bytes_moved: Number
    arithmetic_intensity: Number
    weight_bytes: Number
    activation_peak_bytes: Number
    peak_memory_bytes: Number
    """What torch's tensors and operators hold at the highest moment: weights, inputs, activations and workspaces."""
    driver_bytes: Number | None = None
    """What the device's driver would show for it; on a CPU, what the process's resident memory would grow by."""
    memory: tuple[MemoryPart, ...] = ()
    """The ledger: parts of `driver_bytes`, which they add up to exactly."""
    allocated_bytes: Number | None = None
    """GPU only: blocks that torch's allocator hands out at most (``max_memory_allocated``)."""
    reserved_bytes: Number | None = None
    """GPU only: what it takes from the driver for them (``max_memory_reserved``)."""
    peak_at: PeakPlace | None = None
    memory_by_batch: tuple[MemoryPoint, ...] = ()
    by_length: tuple[LengthPoint, ...] = ()
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
    """Largest batch whose memory stays below the limit, its whole band included."""
    latency: Number | None = None
    """Of one call on `device`."""
    operators: tuple[OperatorDemand, ...]
    modules: tuple[ModuleDemand, ...]
    lines: tuple[LineDemand, ...] = ()
    training: TrainingDemand | None = None
    roof_flops_per_s: Number | None = None
    """The rates that say what limits a module on `device`: of arithmetic in the model's dtype, and of memory traffic."""
    roof_bytes_per_s: Number | None = None
    coverage: Number
    """Share of the bytes moved by operators whose FLOPs are known."""
    notes: tuple[Note, ...] = ()
