"""A bundle run at a planned load on this machine: what was foretold, what happened, and what the difference is made of."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record
from .profile import BatchPoint

LoadPattern = Literal["poisson", "bursty", "steady"]

RehearsalVerdict = Literal["measured", "starved", "interrupted"]
"""*starved*: other work on the machine, or its lack of cores, was in the figures, so they judge no prediction. *interrupted*: the user ended it early; the
figures are of what was answered until then."""


RehearsalQuantity = Literal["latency p50", "latency p99", "throughput", "batch size", "utilization"]
"""*batch size*: mean items. *utilization*: share of the time that a worker has a batch."""


class ServerTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server adds to a request beside queue and model, the client on the same machine included."""

    typical: Number
    """Median; the interval is how much it differed between stretches of the measurement."""
    quantiles_s: tuple[float, ...]
    """Equally likely times in seconds, sorted."""


class Experience(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the runs of earlier plans taught."""

    p50: tuple[float, float] = (1.0, 1.0)
    """A predicted p50 was multiplied by the first, the logarithms of its band's ends over it by the second."""
    p99: tuple[float, float] = (1.0, 1.0)
    p50_reach: tuple[float, float] = (1.0, 0.0)
    """The lower end of its band was then multiplied by the first, and the second, in seconds, added to the upper: so far beyond their bands the runs were."""
    p99_reach: tuple[float, float] = (1.0, 0.0)
    n: int = 0
    """Runs that it was learnt from."""


class RehearsalMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure: as planned, as predicted on what the server showed just before, measured, and replayed."""

    name: RehearsalQuantity
    measured: Number
    predicted: Number
    """For arrivals of the same law, from service times and server time measured on this server; with its band."""
    planned: Number | None = None
    """What the plan said; None where no plan stands behind the run, or it says nothing of this figure."""
    replayed: Number
    """The simulation given the arrivals and the batch times of the run: what is left of the error is the mechanism's."""
    error: Number
    """Predicted over measured, less 1."""
    mechanism_error: Number
    """Replayed over measured, less 1."""
    service_error: Number
    """The simulation given the arrivals of the run but the times foretold, over replayed, less 1."""
    arrivals_error: Number
    """Predicted over that, less 1: what these very arrivals did otherwise than their law does on average."""
    planned_error: Number | None = None
    """Planned over measured, less 1."""
    inside: bool
    """Whether the measured value lies in the predicted band."""


class Recovery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker that ended during a run, and what became of its work; read off the server's journal."""

    ended_at: Number
    """From the start of the run."""
    handed_on: int
    """Requests that it had, and another worker answered."""
    failed: int
    """Requests that it had, and that were answered with an error."""
    ready_after: Number | None
    """Until another worker stood in for it; None: not before the run's end."""


class Rehearsal(Record, frozen=True, kw_only=True, tag="rehearsal"):
    """One bundle, run on this machine at the load of a plan."""

    model: ModelInfo
    technique: str = "none"
    environment: Environment
    bundle: str
    """Name and version."""
    format: str
    verdict: RehearsalVerdict
    pattern: LoadPattern
    requests_per_s: Number
    """At all replicas that were run."""
    span: Number
    num_requests: int
    """Sent."""
    num_failed: int
    """Not answered with 200."""
    replicas: int
    """That were run here."""
    planned_replicas: int | None = None
    plan_server_time: ServerTime | None = None
    """What the plan took the server to add."""
    plan_experience: Experience | None = None
    """What the plan's latencies were corrected by."""
    workers: int
    """Of one replica."""
    threads: int
    """Of one worker."""
    max_batch_size: int
    max_wait: Number
    metrics: tuple[RehearsalMetric, ...]
    service_time: tuple[BatchPoint, ...]
    """By batch size, in the server under load: from sending a batch to its worker until its outputs are back."""
    server_time: ServerTime
    capacity: Number
    """Requests per second that one replica answered in full batches, all of its own work included."""
    front_end: Number
    """Processor time of the server's front end by request."""
    startup: Number
    """Of the server, until it was ready."""
    worker_startup: Number
    """Of one worker, until it took batches: what a killed one costs at least."""
    recoveries: tuple[Recovery, ...] = ()
    notes: tuple[Note, ...] = ()

    def metric(self, name: str) -> RehearsalMetric:
        """The metric of this name.

        Raises:
            KeyError: there is none.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)
