"""What was measured of one model, or of one notebook cell."""

from __future__ import annotations

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record


class ModelSummary(Record, frozen=True, kw_only=True, tag="model_summary"):
    """What is known of a model before it runs."""

    model: ModelInfo
    device: str
    """torch's name of where it is."""
    batch_size: int
    num_parameters: Number
    weight_bytes: Number
    flops: Number | None = None
    """Of one call; None before operators were counted, and where they cannot be followed without running the model."""
    activation_peak_bytes: Number | None = None
    """Of one call, beside weights and inputs; None likewise."""


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
    input_shape: tuple[int, ...] = ()
    """Of the first tensor it was called with; empty where it got none."""


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All calls of one operator in one call of the model."""

    name: str
    """``"aten::addmm"``."""
    family: str
    """Operators of one family reach a like share of a device's rates: ``"gemm"``, ``"elementwise"``."""
    calls: int
    self_time: Number
    """On the processor, without the operators it called itself; on a GPU that is its launching."""
    device_time: Number | None = None
    """Of the GPU kernels it launched itself; None where the model runs on the processor."""
    share: Number
    """Of the call: device time over all kernels' time where there is a GPU, else `self_time` over the call."""
    module: str = ""
    """Where most of its time goes."""
    source: str = ""
    """The user's line that most of its time goes to: ``"model.py:41"``; empty where it is not known."""


class KernelTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All runs of one GPU kernel in one call of the model."""

    name: str
    calls: int
    device_time: Number
    share: Number
    """Of all kernels' time."""
    operator: str = ""
    """What launched it most; empty where the driver did not say."""
    module: str = ""


class LineTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operators that one line of the user's code asked for, in one call of the model."""

    source: str
    """``"model.py:41"``, ``"In [7]:3"``."""
    calls: int
    """Operators."""
    time: Number
    """Of the operators, those they called included; of their kernels where there is a GPU."""
    share: Number
    operator: str
    """The one that takes most of it."""


class MemoryPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a memory ledger."""

    name: str
    bytes: Number


class LiveTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory that was held at the highest moment of a call."""

    bytes: Number
    operator: str
    """What asked for it; empty for what was asked for outside every operator."""
    module: str = ""
    source: str = ""


class MemoryTimeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory that torch's allocator held during one call, beyond what it held before."""

    times_s: tuple[float, ...]
    """Since the call began, profiler on; the highest moment is always among them."""
    held_bytes: tuple[int, ...]
    """From each of these times on."""
    method: str
    """How the two series were obtained: both are measured."""
    peak: Number
    peak_at: Number
    """Seconds since the call began."""
    operator: str = ""
    """What asked for memory at the highest moment."""
    module: str = ""
    source: str = ""
    alive: tuple[LiveTensor, ...] = ()
    """The largest held at that moment."""
    alive_rest: Number
    """All others held at that moment."""


class Advice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One next step."""

    name: str
    """Stable and machine readable: ``"keep_freed_memory"``."""
    text: str
    code: str
    """A line to run, in Python or in a shell."""
    gain: Number | None = None
    """How many times faster a call (or, where the text says so, an item) becomes; None for a step that is about correctness."""
    technique: str = ""
    """The technique that a trial can try, where there is one."""


class ColdStart(Record, frozen=True, kw_only=True, tag="cold_start"):
    """What it takes from nothing to steady calls."""

    environment: Environment
    how: str
    """``"a fresh process"`` or ``"this kernel, where torch was loaded"``."""
    import_time: Number | None = None
    """The interpreter and torch."""
    load_time: Number | None = None
    """Making the model and reading its weights."""
    load_growth_bytes: Number | None = None
    """Resident memory after loading less before."""
    first_call: Number
    compile_time: Number | None = None
    """What the first call of a compiled model takes beyond a steady one."""
    warmup_calls: int
    """Calls before the first that is as fast as steady ones, the very first included."""
    warmup_time: Number
    """Of these calls."""
    first_call_peak_bytes: Number | None = None
    """Most resident memory during the first call less before."""
    steady: Number
    """Median of the calls after that."""
    ready_after: Number
    """Sum of what was measured of import, load and warm-up."""
    notes: tuple[Note, ...] = ()


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
    operators: tuple[OperatorTime, ...] = ()
    """Those that take the most first; one call with torch's profiler on."""
    kernels: tuple[KernelTime, ...] = ()
    """Empty where the model runs on the processor."""
    lines: tuple[LineTime, ...] = ()
    outside_operators: Number | None = None
    """Time of the profiled call in no operator: Python, dispatch, and the profiler's own marks."""
    operator_overhead: Number | None = None
    """The call with torch's profiler over the calls without."""
    device_busy: Number | None = None
    """Share of a call, profiler off, that the GPU's kernels fill; None where the model runs on the processor."""
    cpu_time_per_call: Number | None = None
    """Of all threads of this process. Far below latency times threads, a call waits: for a device, for memory, or for other work to leave a core."""
    energy_per_call: Number | None = None
    memory: tuple[MemoryPart, ...] = ()
    """The ledger: parts of `memory_total`, which they add up to exactly."""
    memory_total: Number | None = None
    """What the driver (GPU) or the operating system (processor) reports at the highest moment of a call."""
    timeline: MemoryTimeline | None = None
    warmup_calls: int | None = None
    """Calls of this profile before the first that was as fast as steady ones, the very first included."""
    warmup_time: Number | None = None
    first_call_peak_bytes: Number | None = None
    """Most resident memory (GPU: most allocated) during the first call less before."""
    advice: tuple[Advice, ...] = ()
    """Next steps, the largest predicted gain first."""
    profiling_cost: Number | None = None
    """Wall time of the whole profile over that of the forward passes it reports on."""
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
