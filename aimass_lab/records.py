"""The values that travel between rooms and processes: frozen, and JSON with a published schema.

A figure that a user can see is a `Number`: a value that knows its unit, where it comes
from, how sure it is and which environment it holds for. Everything else here is a frame
around numbers. Nothing in this file computes, measures or renders.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args

import msgspec

Source = Literal["measured", "user", "datasheet", "derived", "estimated", "assumed"]
"""Where a number comes from. *measured*: read off this machine; *user*: given by the person;
*datasheet*: a vendor's or standard's figure; *derived*: arithmetic on other numbers;
*estimated*: a model's prediction; *assumed*: a default that nobody checked."""

Unit = Literal[
    "s", "B", "B/s", "FLOP", "FLOP/s", "FLOP/B", "item", "item/s", "request", "request/s", "replica", "core", "device",
    "worker", "parameter", "layer", "ratio", "Hz", "W", "USD/h", "USD/month", "op",
]  # fmt: skip
"""Base units only; people's units are made in `aimass_lab.units`."""

Quality = Literal["ok", "noisy", "extrapolated"]

TRUST: tuple[Source, ...] = ("assumed", "estimated", "datasheet", "user", "measured")
"""From the least to the most trusted; a derived number takes the lowest of its inputs."""


class Number(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One value with its unit, its source and how sure it is.

    Raises:
        ValueError: the value is not finite, the interval is reversed, or a derived number
            does not say how far its inputs can be trusted.
    """

    value: int | float
    unit: Unit
    source: Source
    method: str
    """How it was obtained, in a few words: ``"median of 31 calls"``."""
    interval: tuple[float, float] | None = None
    """Lower and upper end of the spread or of the prediction band."""
    interval_kind: str | None = None
    """What the interval is: ``"95 % bootstrap of the median"``, ``"p5-p95"``, ``"90 % band"``."""
    n: int | None = None
    """How many observations stand behind it."""
    environment: str | None = None
    """The `Environment.id` it holds for."""
    trust: Source | None = None
    """Derived numbers only: the source of the weakest input."""
    inputs: tuple[str, ...] = ()
    """Derived numbers only: names of the numbers it was computed from."""
    quality: Quality = "ok"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a Number must be finite, got {self.value} {self.unit} ({self.method})")
        if self.interval is not None:
            low, high = self.interval
            if not (low <= high and math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"interval {self.interval} of {self.method!r} is not an interval")
        if (self.source == "derived") != (self.trust is not None):
            raise ValueError(f"{self.method!r}: a derived number, and only such, states its trust")

    @property
    def weakest_source(self) -> Source:
        """How far it can be trusted: its own source, or that of its weakest input."""
        return self.trust or self.source


def derived(
    value: float,
    unit: Unit,
    method: str,
    inputs: Iterable[tuple[str, Number]],
    *,
    interval: tuple[float, float] | None = None,
    interval_kind: str | None = None,
) -> Number:
    """Make a number computed from others; it is only as trusted as the weakest of them.

    Args:
        value: The result of the computation.
        unit: Its unit.
        method: The computation in a few words.
        inputs: Name and number of everything that went in; at least one.
        interval: The band, where the computation gives one.
        interval_kind: What the band is.
    """
    pairs = list(inputs)
    trust = min((number.weakest_source for _, number in pairs), key=TRUST.index)
    worst: Quality = "ok"
    for quality in get_args(Quality):  # in order of severity
        if any(number.quality == quality for _, number in pairs):
            worst = quality
    environments = {number.environment for _, number in pairs if number.environment}
    return Number(
        value=value,
        unit=unit,
        source="derived",
        method=method,
        interval=interval,
        interval_kind=interval_kind,
        trust=trust,
        inputs=tuple(name for name, _ in pairs),
        environment=environments.pop() if len(environments) == 1 else None,
        quality=worst,
    )


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", forbid_unknown_fields=True):
    """Base of everything that is stored, sent or printed as JSON."""


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something the reader of a result must know: a reading that is missing and why, a doubt, a remedy."""

    code: str
    """Stable and machine readable: ``"W-NOISY"``, ``"missing:power"``."""
    text: str


INTERRUPTED = "W-INTERRUPTED"
"""Code of the note on a result that the user cut short."""


class Environment(Record, frozen=True, kw_only=True, tag="environment"):
    """What a measurement holds for. Facts read from the operating system, torch and the driver."""

    device: str
    """torch's name of the device: ``"cpu"``, ``"cuda:0"``."""
    device_name: str
    """The processor's or the accelerator's own name."""
    driver: str | None = None
    memory_bytes: int
    """What this process may use on that device: a container's limit where it is lower than the machine's."""
    cpu_cores: float
    """Cores this process may use: affinity and container quota respected."""
    threads: int
    """torch's intra-op threads."""
    clock_hz: float | None = None
    python: str
    torch: str
    platform: str
    foreign_cores: float | None = None
    """Cores kept busy by other processes while measuring; None where it could not be read."""
    taken_at: str
    """UTC, ISO 8601."""

    @property
    def id(self) -> str:
        """Digest of what does not change from one run to the next on the same set-up."""
        stable = (self.device, self.device_name, self.driver, self.memory_bytes, self.cpu_cores, self.threads, self.python, self.torch, self.platform)
        return hashlib.sha256(repr(stable).encode()).hexdigest()[:12]


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output tensor."""

    name: str
    dtype: str
    """torch's word without the prefix: ``"float32"``."""
    shape: tuple[int, ...]
    """Sizes; -1 along the batch axis."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model a result is about."""

    name: str
    type: str
    """Qualified name of its class."""
    num_parameters: int
    weight_bytes: int
    """Parameters and buffers, tied tensors counted once."""
    dtype: str
    """Of most parameters: ``"float32"``."""
    digest: str
    """Of names, shapes, dtypes and a sample of the values, so that the same model is known again."""
    inputs: tuple[TensorSpec, ...] = ()


# --- profile -----------------------------------------------------------------------------


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


# --- demand ------------------------------------------------------------------------------


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


# --- trial -------------------------------------------------------------------------------

Verdict = Literal["faster", "no gain", "slower", "not equivalent"]


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The point that one trial tries."""

    technique: str
    options: dict[str, bool | int | float | str | None] = {}
    """Fields of the technique that differ from its defaults."""
    batch_size: int | None = None


class TrialResult(Record, frozen=True, kw_only=True, tag="trial"):
    """One setting on a copy of the model, beside the original."""

    model: ModelInfo
    environment: Environment
    setting: Setting
    batch_size: int
    verdict: Verdict
    reasons: tuple[str, ...]
    speedup: Number
    """Latency of the original over that of the variant: above 1 is faster."""
    latency_original: Number
    latency_variant: Number
    size_bytes: Number
    """Weights of the variant."""
    size_original_bytes: Number
    fidelity: Number
    """Mean cosine similarity of the outputs, sample by sample."""
    relative_error: Number
    """L2 norm of the outputs' difference over that of the original's outputs."""
    agreement: Number | None = None
    """Share of samples whose largest output is the same; None where outputs are not scores of classes."""
    metric_original: Number | None = None
    metric_variant: Number | None = None
    num_changed_layers: Number
    num_eligible_layers: Number
    """Layers that hold weights."""
    apply_time: Number
    """Copying the model and changing the copy."""
    compile_time: Number | None = None
    """What the variant's first call took more than later ones; None where nothing is compiled."""
    notes: tuple[Note, ...] = ()


class SearchResult(Record, frozen=True, kw_only=True, tag="search"):
    """Many settings tried, best first."""

    model: ModelInfo
    sampler: str
    trials: tuple[TrialResult, ...]
    failures: tuple[Note, ...] = ()
    """Settings that could not be tried: code is the technique, text the cause."""
    front: tuple[int, ...]
    """Indices of the trials that no other beats in speed and fidelity at once."""
    best: int | None = None
    stopped: str
    """Why the search ended."""


# --- plan --------------------------------------------------------------------------------


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the service."""

    requests_per_s: Number
    latency_p99: Number
    max_replicas: int = 1000
    headroom: float = 0.0
    """Spare share of the rate: 0.2 plans for 1.2 times `requests_per_s`."""


class PlanOption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One allocation that was considered."""

    device: str
    replicas: Number
    max_batch_size: Number
    max_wait: Number
    latency_p99: Number | None
    """None where the queue grows without bound, or where `reason` ruled it out before a simulation."""
    utilization: Number | None
    """Share of time a replica computes; None as for `latency_p99`."""
    cost: Number | None = None
    feasible: bool
    reason: str
    """Why it is not the answer, or that it is."""


class Plan(Record, frozen=True, kw_only=True, tag="plan"):
    """Devices, replicas and batching for a request rate under a latency target."""

    model: ModelInfo
    technique: str = "none"
    """What is served instead of the original; ``"none"`` is the original."""
    target: Target
    feasible: bool
    device: str
    replicas: Number
    max_batch_size: Number
    max_wait: Number
    scheduling_policy: str
    latency_p50: Number | None
    latency_p99: Number | None
    """None where the queue grows without bound."""
    utilization: Number
    """Share of time a replica computes; 1 where the queue grows without bound."""
    throughput_limit: Number
    """Requests per second at which the queue of these replicas starts to grow without bound."""
    cost: Number | None = None
    binding: str
    """What binds; for an infeasible plan also what would be feasible."""
    service_time: tuple[BatchPoint, ...] = ()
    """The latencies by batch size that the simulation ran on."""
    options: tuple[PlanOption, ...] = ()
    notes: tuple[Note, ...] = ()


# --- spec --------------------------------------------------------------------------------


class ServingSpec(Record, frozen=True, kw_only=True, tag="serving_spec"):
    """The resource spec: what to run, with how much, and where each number comes from."""

    api_version: str = "aimass.dev/v1"
    name: str
    """DNS label: lower-case letters, digits and hyphens."""
    model: ModelInfo
    setting: Setting
    environment: Environment | None = None
    device: str
    accelerators: Number
    """Per replica; 0 on a CPU."""
    replicas: Number
    min_replicas: Number
    max_replicas: Number
    cpu_cores: Number
    """Per replica."""
    memory_bytes: Number
    """Per replica: request and limit."""
    max_batch_size: Number
    max_wait: Number
    scheduling_policy: str = "fcfs"
    scale_at: Number
    """Requests per second and replica at which one more replica is wanted."""
    startup_time: Number
    requests_per_s: Number
    latency_p99_target: Number
    latency_p99: Number | None
    utilization: Number
    cost: Number | None = None
    image: str
    """Container image; the bundle's Dockerfile builds it."""
    export_format: str = "kubernetes"
    """The exporter it was asked for; no part of what is promised, so not of the digest."""
    notes: tuple[Note, ...] = ()

    @property
    def digest(self) -> str:
        """Of the canonical JSON; every export carries it."""
        content = msgspec.structs.replace(self, export_format="")
        read_back = msgspec.json.decode(msgspec.json.encode(content), type=ServingSpec)  # 4 becomes 4.0 where a float belongs
        return "sha256:" + hashlib.sha256(msgspec.json.encode(read_back, order="deterministic")).hexdigest()


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing a check found."""

    code: str
    """``"E-..."`` is an error, ``"W-..."`` a warning."""
    path: str
    """JSON pointer or file the finding is about."""
    text: str


# --- bundle ------------------------------------------------------------------------------


class Bundle(Record, frozen=True, kw_only=True, tag="bundle"):
    """A serving bundle that was written."""

    folder: str
    name: str
    version: str
    model: ModelInfo
    format: str
    size_bytes: Number
    num_files: int
    promises: tuple[Promise, ...]
    digest: str
    """Of the manifest, which holds the hash of every other file."""
    notes: tuple[Note, ...] = ()


class Promise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that a bundle promises and its own `verify` measures."""

    name: str
    relation: Literal["<=", ">=", "=="]
    limit: Number
    measured: Number | None = None
    """By the last proof, or when the bundle was written; None where it was not started then."""
    passed: bool | None = None
    """None until a proof was run."""


class Check(Record, frozen=True, kw_only=True, tag="check"):
    """A spec or bundle, verified."""

    subject: str
    passed: bool
    promises: tuple[Promise, ...] = ()
    findings: tuple[Finding, ...] = ()


# --- history -----------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the history."""

    id: int
    verb: str
    model: str
    model_digest: str
    taken_at: str
    summary: str


class Service(Record, frozen=True, kw_only=True, tag="service"):
    """A bundle that is being served."""

    folder: str
    url: str
    grpc_address: str | None
    pid: int


class History(Record, frozen=True, kw_only=True, tag="history"):
    """What was measured, newest first."""

    store: str
    runs: tuple[Run, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of two runs, side by side."""

    name: str
    before: Number
    after: Number
    ratio: Number | None
    """After over before; None when before is 0."""
    verdict: Literal["lower", "higher", "same within spread", "changed"]


class Comparison(Record, frozen=True, kw_only=True, tag="comparison"):
    """Two runs, side by side."""

    before: Run
    after: Run
    differences: tuple[Difference, ...]
    notes: tuple[Note, ...] = ()


# --- JSON --------------------------------------------------------------------------------

AnyRecord = Environment | Profile | CellProfile | Demand | TrialResult | SearchResult | Plan | ServingSpec | Bundle | Check | Service | History | Comparison
RECORDS: tuple[type[Record], ...] = get_args(AnyRecord)
R = TypeVar("R", bound=Record)


def to_json(record: Record, *, indent: int | None = 2) -> str:
    """Write `record` as JSON."""
    data = msgspec.json.encode(record)
    return (msgspec.json.format(data, indent=indent) if indent else data).decode()


def from_json(text: str | bytes, kind: type[R]) -> R:
    """Read a record of type `kind`, and check it.

    Raises:
        msgspec.ValidationError: the text is not such a record; the message has the path.
    """
    return msgspec.json.decode(text, type=kind)


def any_from_json(text: str | bytes) -> AnyRecord:
    """Read a record of whatever type its field ``record`` names.

    Raises:
        msgspec.ValidationError: the text is no record of ours; the message has the path.
    """
    return msgspec.json.decode(text, type=AnyRecord)


def json_schema(kind: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one record type."""
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind.__struct_config__.tag, **schema}
