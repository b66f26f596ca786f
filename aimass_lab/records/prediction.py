"""What was predicted, on what basis, and how earlier predictions fared once they were measured."""

from __future__ import annotations

from typing import Literal

import msgspec

from .model import Environment, ModelInfo
from .number import Note, Number, Record, Unit
from .profile import BatchPoint

Basis = Literal["measured", "interpolated", "extrapolated", "calibrated roofline", "datasheet", "effect"]
"""*measured*: this very point. *interpolated*: between points that were measured on the same device. *extrapolated*: beyond them.
*calibrated roofline*: arithmetic and traffic against rates that were measured. *datasheet*: the same against a vendor's
rates. *effect*: any of these, times what a technique is predicted to change."""

Quantity = Literal["latency", "memory", "speedup", "size", "latency p50", "latency p99", "throughput", "batch size", "utilization"]
"""*latency*: of one call. *memory*: weights, inputs and the rest at the highest moment of one call. *speedup*: latency of
the original over that of the copy. *size*: weights of the copy. The others: of a service under a load."""


class PredictedPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One batch size."""

    batch_size: int
    basis: Basis
    latency: Number
    """Median of one call."""
    throughput: Number
    peak_memory_bytes: Number | None = None


class Prediction(Record, frozen=True, kw_only=True, tag="prediction"):
    """How one model would run at some batch sizes on one device."""

    model: ModelInfo
    device: str
    environment: Environment | None = None
    """Where the measurements behind it were taken; None where there are none."""
    technique: str = "none"
    points: tuple[PredictedPoint, ...]
    max_batch_size: Number | None = None
    """Largest batch whose predicted memory stays below the limit, the band's upper end included."""
    memory_limit_bytes: Number | None = None
    speedup: Number | None = None
    """What the technique is predicted to change: latency of the original over that of the copy."""
    weight_bytes: Number | None = None
    """Of the copy that the technique would make, as predicted."""
    effect_batch_size: int | None = None
    """Items per call that these two are about."""
    measured: tuple[BatchPoint, ...] = ()
    """What it rests on."""
    notes: tuple[Note, ...] = ()


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prediction, and what was measured later."""

    id: int = 0
    """Its number in the ledger; 0 before it is there."""
    predicted_at: str
    """UTC, ISO 8601."""
    model: str
    model_digest: str
    device: str
    environment: str
    """`Environment.id`, or ``catalogue:NAME`` for a device that was not attached."""
    technique: str
    batch_size: int
    """Items of a call; of a service, the batch limit."""
    point: str = ""
    """Of a service: its load."""
    quantity: Quantity
    kind: str
    """What is scored together: ``"interpolated latency"``, ``"effect: speedup"``."""
    unit: Unit
    value: float
    interval: tuple[float, float]
    correction: float = 1.0
    """What the prediction was multiplied by because of earlier errors; the value has it, what it is learnt from has not."""
    stretch: float = 1.0
    """What the band was widened by because of earlier errors, as a power; the interval has it."""
    measured: float | None = None
    measured_at: str | None = None

    @property
    def inside(self) -> bool | None:
        """Whether the measured value lies in the band; None before it is measured."""
        return None if self.measured is None else self.interval[0] <= self.measured <= self.interval[1]


class LedgerKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The running error of one kind of prediction."""

    kind: str
    open: int
    """Predictions that nothing has been measured for yet."""
    scored: int
    inside: int
    """How many of these lie in their band."""
    median_error: Number | None = None
    """Median of the absolute logarithm of measured over predicted, as a share; None before anything was scored."""
    p90_error: Number | None = None
    bias: Number | None = None
    """Median of measured over predicted: above 1 is predicted too low."""
    coverage: Number | None = None
    """`inside` over `scored`; 90 % bands should come near 0.9."""


class Ledger(Record, frozen=True, kw_only=True, tag="ledger"):
    """Predictions and what became of them."""

    store: str
    model: str | None = None
    """Of one model only, where it was asked for."""
    kinds: tuple[LedgerKind, ...]
    entries: tuple[LedgerEntry, ...]
    """The newest first."""
    notes: tuple[Note, ...] = ()
