"""What a trace of some calls says, in a size that a browser can take however long the trace is."""

from __future__ import annotations

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record


class TraceStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the time of one call went; every moment counts once, for the first of these that was at work.

    The order is: GPU kernels, copies, fills, communication, the GPU's runtime, data loading, operators on
    the processor, anything else. None stands for what the trace cannot contain: there was no GPU.
    """

    name: str
    """As the profiler counts; ``"mean"`` for all together."""
    total: Number
    kernel: Number | None = None
    memcpy: Number | None = None
    memset: Number | None = None
    communication: Number | None = None
    runtime: Number | None = None
    """The host inside CUDA's functions while the GPU did nothing."""
    data_loader: Number
    cpu: Number
    """Operators on the host while the GPU did nothing."""
    other: Number
    """In none of these: Python, the profiler itself, waiting."""


class TraceOperator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All calls of one operator in the trace."""

    name: str
    calls: int
    host_self: Number
    """Without the operators it called, and without the GPU's runtime."""
    host_total: Number
    device_self: Number | None = None
    """GPU kernels that it launched itself; None where there was no GPU."""
    device_total: Number | None = None
    allocated_bytes: Number | None = None
    """Memory it asked for itself, frees not taken off; None where memory was not traced."""
    tensor_core_share: Number | None = None
    """Of its kernels' time, with tensor cores."""


class TraceKernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All runs of one GPU kernel in the trace."""

    name: str
    calls: int
    total: Number
    mean: Number
    """Interval: shortest and longest run."""
    operator: str | None = None
    """The operator that launched most of it; None where no operator did."""
    blocks_per_sm: float | None = None
    """Below 1, some multiprocessors have nothing to do."""
    occupancy: Number | None = None
    """Estimated share of the warps that the hardware could hold; None where the driver does not tell."""
    uses_tensor_cores: bool


class TraceModule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One module of the tree; parents stand before their children."""

    name: str
    """Dotted path, ``""`` for the model itself; what the trace calls it in a trace of somebody else."""
    type: str
    """Class; empty where the trace does not say."""
    depth: int
    calls: int
    operators: int
    """Operators that it called itself."""
    host_total: Number
    host_self: Number
    device_total: Number | None = None
    device_self: Number | None = None


class TraceMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory of one device over time, thinned so that its shape stays.

    On the processor only what was allocated while tracing counts; on a GPU all that torch's allocator holds.
    """

    device: str
    """``"CPU"``, ``"GPU0"``."""
    peak_bytes: Number
    times_s: tuple[float, ...]
    """Since the trace began."""
    allocated_bytes: tuple[int, ...]
    reserved_bytes: tuple[int, ...]


class TraceGpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How busy one GPU was over all steps."""

    index: int
    name: str | None = None
    utilization: Number
    """Share of the time in which any kernel ran."""
    sm_efficiency: Number | None = None
    """The same, each kernel weighted with the share of the multiprocessors that had a block of it."""
    occupancy: Number | None = None


class TraceSummary(Record, frozen=True, kw_only=True, tag="trace"):
    """A trace, read and added up by torch's own TensorBoard plugin.

    Times are taken with the profiler on, which makes small operators look slower than they are.
    """

    model: ModelInfo | None = None
    """None for a trace that was not made here."""
    environment: Environment | None = None
    path: str
    """The trace, for https://ui.perfetto.dev, ``chrome://tracing`` or TensorBoard."""
    size_bytes: Number
    num_events: int
    tensorboard: str | None = None
    """What shows it in a notebook; None where the file's name is not one that the plugin looks for."""
    num_steps: int
    step: TraceStep
    """The mean of all steps."""
    steps: tuple[TraceStep, ...]
    """The first ones."""
    num_operators: int
    operators: tuple[TraceOperator, ...]
    """Those with the most own time: on the GPU if there was one, else on the host."""
    num_kernels: int = 0
    kernels: tuple[TraceKernel, ...] = ()
    num_modules: int = 0
    modules: tuple[TraceModule, ...] = ()
    gpus: tuple[TraceGpu, ...] = ()
    memory: tuple[TraceMemory, ...] = ()
    recommendations: tuple[str, ...] = ()
    """In the plugin's own words."""
    notes: tuple[Note, ...] = ()
