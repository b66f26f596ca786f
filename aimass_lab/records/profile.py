"""What was measured of one model, or of one notebook cell."""

from __future__ import annotations

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record


class BatchPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured at one batch size."""

    batch_size: int
    latency_p50: Number
    latency_p95: Number
    latency_p99: Number
    throughput: Number
    peak_memory_bytes: Number | None = None


class ModuleTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time spent in one module of the model, over one call."""

    name: str
    """Dotted path; ``""`` is the model itself."""
    type: str
    calls: int
    total_time: Number
    """With its submodules."""
    self_time: Number
    """Without its submodules."""
    share: Number
    """`self_time` over the whole call."""


class Profile(Record, frozen=True, kw_only=True, tag="profile"):
    """One model on one input, measured on one device."""

    model: ModelInfo
    environment: Environment
    batch_size: int
    latency_p50: Number
    latency_p95: Number
    latency_p99: Number
    throughput: Number
    peak_memory_bytes: Number
    """Weights, activations and the rest at the highest moment of one call."""
    weight_bytes: Number
    activation_peak_bytes: Number
    other_memory_bytes: Number
    """Peak less weights and activations: operator workspaces, allocator slack."""
    process_memory_bytes: Number
    """Resident memory of the whole process, libraries and the notebook's own data included."""
    flops: Number | None = None
    flops_per_s: Number | None = None
    host_residual: Number
    """Time of a call that belongs to no submodule."""
    first_call: Number
    """The first call of this profile; the process's first, if nothing ran the model before."""
    profiling_overhead: Number
    """Call with hooks over call without; latencies are taken without."""
    ladder: tuple[BatchPoint, ...]
    modules: tuple[ModuleTime, ...]
    binds: str
    """One plain sentence on what limits the model here."""
    notes: tuple[Note, ...] = ()


class CellProfile(Record, frozen=True, kw_only=True, tag="cell_profile"):
    """One notebook cell, run once."""

    environment: Environment
    wall_time: Number
    cpu_time: Number
    peak_memory_bytes: Number
    """Highest resident memory of the process during the cell."""
    memory_growth_bytes: Number
    """Resident memory after the cell less before."""
    modules: tuple[ModuleTime, ...]
    """Modules of every model that the cell called."""
    outside_modules: Number
    """Wall time outside every model's call."""
    raised: str | None = None
    notes: tuple[Note, ...] = ()
