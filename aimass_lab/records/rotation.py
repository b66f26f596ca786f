"""Several models on one device in turn: what was predicted, what happened, and the two laid over each other."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record
from .recipe import OptionValue

RotationClock = Literal["device", "wall"]


class RotatedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of a rotation."""

    model: ModelInfo
    batch_size: int
    """Items of one call."""
    segments: int
    """Pieces that a call is cut into; 1: it makes room between calls only."""
    service_time: Number
    """Device time of one call, with the others in between."""
    rate: Number
    """Calls per second."""
    priority: int = 0
    """0 is the most urgent."""
    weight: float = 1.0
    deadline: Number | None = None
    """Counted from the arrival."""


class RotationMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of a run, as predicted before it, measured, and computed again from what the run's segments took."""

    name: str
    """``"mean latency"``, ``"p99 latency"``, ``"mean slowdown"``, ``"deadlines met"`` ..."""
    model: str = ""
    """Of which model's calls; empty: of all."""
    measured: Number
    predicted: Number
    replayed: Number
    """The simulation once more, with the segment times of the run: what is left of the error is the mechanism's."""
    error: Number | None = None
    """Predicted over measured, less 1; None where nothing was measured."""
    mechanism_error: Number | None = None
    """Replayed over measured, less 1."""
    service_error: Number | None = None
    """Predicted over replayed, less 1: what segments took otherwise than in the profile."""


class Gantt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Turns of jobs on lanes, in order of their ends; one entry a turn in each field."""

    lane: tuple[int, ...] = ()
    job: tuple[int, ...] = ()
    """Number of the call, in order of arrival."""
    model: tuple[int, ...] = ()
    """Place of its model in `Rotation.models`."""
    start_s: tuple[float, ...] = ()
    end_s: tuple[float, ...] = ()
    finished: tuple[bool, ...] = ()
    """Whether the call ended with it, or made room."""


class RotationRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One policy."""

    policy: str
    options: dict[str, OptionValue] = {}
    """Those that differ from their defaults."""
    num_jobs: int
    metrics: tuple[RotationMetric, ...]
    interruptions: Number
    """Turns after which a call was not at its end."""
    utilization: Number
    """Share of the lanes' time in which models ran."""
    overhead: Number
    """Choosing and handing over, by segment."""
    fairness: Number
    """Jain's index of the models' device time by weight, from when all had work: 1 is in proportion."""
    longest_wait: Number
    """From an arrival to the beginning."""
    real: Gantt
    replayed: Gantt
    predicted: Gantt
    """One of the predictions."""

    def metric(self, name: str, model: str = "") -> RotationMetric:
        """The metric of this name.

        Raises:
            KeyError: there is none.
        """
        for metric in self.metrics:
            if (metric.name, metric.model) == (name, model):
                return metric
        raise KeyError(name)


class Rotation(Record, frozen=True, kw_only=True, tag="rotation"):
    """Several models on one device in turn, under one or more scheduling policies: predicted, run, and compared."""

    models: tuple[RotatedModel, ...]
    environment: Environment
    clock: RotationClock
    lanes: int
    """Cores or devices that share one waiting line."""
    load: Number
    """Share of the lanes' time that the calls were to take."""
    span: Number
    """Time over which calls arrived."""
    runs: tuple[RotationRun, ...]
    notes: tuple[Note, ...] = ()
