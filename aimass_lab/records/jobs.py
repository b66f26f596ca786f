"""Batch, training and search jobs that share devices with models online: when each ends, what it costs, and what it costs the others."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record, digest_of
from .recipe import OptionValue
from .rotation import RotationMetric

JobKind = Literal["batch", "training", "search"]


class OnlineModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, or an ensemble, that answers requests as they come."""

    name: str
    models: tuple[ModelInfo, ...]
    """More than one: every request goes to all of them at the same time, and is answered when all have."""
    tenant: str
    priority: int = 0
    """0 is the most urgent."""
    requests_per_s: Number
    latency_target: Number
    """That 99 % of its requests must stay under."""
    call_time: Number
    """Device time of one request, of all models together."""


class PlannedJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job, as it is asked for."""

    name: str
    kind: JobKind
    model: ModelInfo
    tenant: str
    priority: int
    """0 is the most urgent."""
    batch_size: int
    """Items of one call or step."""
    calls: int
    """Calls (batch) or steps (training, search) in all; it makes room for others between two of them."""
    parts: int
    """Pieces of equal length that need not wait for each other: shards of a batch, trials of a search; 1 for a training run."""
    parallel: int
    """Most devices that it uses at once."""
    call_time: Number
    """Device time of one call or step."""
    work: Number
    """Device time of all of it."""
    submitted: Number
    """From the start of the plan."""
    deadline: Number | None = None
    """From the start of the plan."""
    after: tuple[str, ...] = ()
    """Jobs that must have ended before it begins."""
    refused: str | None = None
    """Why it is not let in; None: it is."""
    cores: Number | None = None
    """Of one worker; None where nothing says how many."""
    memory_bytes: Number | None = None
    """Of one worker's host memory; None where nothing says how much."""
    accelerators: int = 0
    """Of one worker."""
    image: str | None = None
    """What runs it on a cluster."""
    command: tuple[str, ...] = ()


class JobTenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who asks for jobs, or owns a model."""

    name: str
    weight: float = 1.0
    """Share of the devices under load, relative to the others', where the policy is fair."""
    max_jobs: int | None = None
    """Most jobs at once."""
    device_seconds: Number | None = None
    """Most device time of all its jobs together."""


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of one job under a policy."""

    job: str
    begins: Number | None
    ends: Number | None
    """None: it was not let in, or does not surely end within the simulated time."""
    on_time: Number | None = None
    """Share of the simulations in which it ends by its deadline; None: it has none."""
    meets: bool | None = None
    """Whether it ends by its deadline in all of them."""
    cost: Number | None = None
    """Its device time at the device's price."""
    text: str


class OnlineOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What jobs do to one model online, while there are any."""

    model: str
    latency_p99_alone: Number
    """With the other models online and no job."""
    latency_p99: Number
    """With the jobs; the same requests."""
    added: Number
    """The difference, simulation by simulation."""
    meets: bool
    """Whether the upper end of the p99 is within the target."""


class JobPolicyRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scheduling policy."""

    policy: str
    options: dict[str, OptionValue] = {}
    """Those that differ from their defaults."""
    feasible: bool
    """All jobs are let in, deadlines hold, and so do the targets of the models online."""
    jobs: tuple[JobOutcome, ...]
    online: tuple[OnlineOutcome, ...]
    all_ended: Number | None
    """When the last job ends; None as for a job."""
    utilization: Number
    """Share of the devices' time that is used, while there are jobs."""


class JobRemedy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One limit less strict than it is, simulated again."""

    change: str
    feasible: bool
    """Whether everything holds then."""


class JobsRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs and requests run for real, shortened, under one policy."""

    policy: str
    options: dict[str, OptionValue] = {}
    """Those that differ from their defaults."""
    device: str
    environment: str
    """`Environment.id` of the run; one thread a call."""
    shortened: Number
    """How much more the jobs are than what was run of them."""
    num_requests: int
    """To models online."""
    metrics: tuple[RotationMetric, ...]
    """``"end"`` of each job, ``"mean latency"`` and ``"p99 latency"`` of each model online."""


class JobPlan(Record, frozen=True, kw_only=True, tag="job_plan"):
    """Jobs beside models online on the same devices, under one or more policies."""

    name: str
    device: str
    devices: int
    price: Number | None = None
    """Of one device."""
    environment: Environment | None = None
    """Where times were measured; None: nowhere."""
    online: tuple[OnlineModel, ...]
    jobs: tuple[PlannedJob, ...]
    tenants: tuple[JobTenant, ...]
    max_jobs: int | None = None
    """Most jobs at once, of all tenants."""
    span: Number
    """Simulated time, within which requests come."""
    runs: tuple[JobPolicyRun, ...]
    ran: JobsRun | None = None
    """What came of it when it was run on this machine; None: it was not."""
    recommended: int
    """Place of the policy in `runs` that breaks the fewest promises."""
    feasible: bool
    """Under the recommended policy."""
    binding: str
    """What binds, in words."""
    remedies: tuple[JobRemedy, ...] = ()
    resource: str | None = None
    """Name under which a cluster offers the device, where the device's table gives one."""
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)
    """Labels of the nodes that have the device, as the device's table gives them."""
    export_format: str = "kubernetes"
    """The exporter it was asked for; not of the digest."""
    notes: tuple[Note, ...] = ()

    @property
    def digest(self) -> str:
        """Of the canonical JSON; every export carries it."""
        return digest_of(self)

    @property
    def chosen(self) -> JobPolicyRun:
        """The recommended run."""
        return self.runs[self.recommended]

    def job(self, name: str) -> PlannedJob:
        """The job of this name.

        Raises:
            KeyError: there is none.
        """
        for job in self.jobs:
            if job.name == name:
                return job
        raise KeyError(name)
