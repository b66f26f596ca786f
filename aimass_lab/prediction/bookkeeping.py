"""Passes each new result through the ledger: what it predicts is kept and corrected, what it measures scores earlier predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from ..environment import read_environment
from ..records import Demand, Environment, LedgerEntry, Note, Number, PredictedPoint, Prediction, Profile, Record, Rehearsal, TrialResult, derived
from .ledger import Correction, apply_correction, basis_of, kind_of, learn, ledger_notes, measurements_of, outcomes_of, predictions_of, score, scored_note

R = TypeVar("R", bound=Record)


class EntryStore(Protocol):
    """Where the ledger is kept."""

    def entries(self, *, model: str | None = None, environment: str | None = None) -> Sequence[LedgerEntry]:
        """The newest first."""

    def predict(self, entries: Sequence[LedgerEntry]) -> None:
        """Keep predictions."""

    def settle(self, entries: Sequence[LedgerEntry]) -> None:
        """Keep what was measured of them."""


def through_ledger(record: R, store: EntryStore, *, digest: str, technique: str = "none") -> R:
    """Score, correct and keep; return `record` as it should be shown.

    Args:
        record: A new result; those that neither predict nor measure come back as they are.
        store: Where the ledger is kept.
        digest: Of the user's own model, whose copies are known by the technique.
        technique: What a profile was taken of.

    Raises:
        StoreError: the ledger cannot be read or written.
    """
    environment = _environment_of(record)
    if environment is None:
        return record
    entries = store.entries(environment=environment)
    if isinstance(record, Rehearsal):
        outcomes = outcomes_of(record, digest=digest, corrections=learnt_by_kind(entries))
        store.settle(outcomes)
        return _with_notes(record, ledger_notes([*outcomes, *entries], {entry.kind for entry in outcomes}))
    if isinstance(record, (Profile, TrialResult)):
        of_this = [e for e in entries if e.model_digest == digest]
        settled = score([e for e in of_this if e.measured is None], measurements_of(record, technique=technique))
        store.settle(settled)
        return _with_notes(record, scored_note(settled))
    corrections = learnt_by_kind(entries)
    corrected = _corrected(record, environment, corrections)
    made = predictions_of(corrected, environment=environment, digest=digest, corrections=corrections)
    store.predict(made)
    return _with_notes(corrected, ledger_notes(entries, {e.kind for e in made}))


def learnt_by_kind(entries: Sequence[LedgerEntry]) -> dict[str, Correction]:
    """What the entries of each kind teach the next prediction of it."""
    return {kind: learn([e for e in entries if e.kind == kind]) for kind in {e.kind for e in entries}}


def _environment_of(record: Record) -> str | None:
    """What `record` holds for; None for one that neither predicts nor measures."""
    if isinstance(record, (Profile, TrialResult, Rehearsal)):
        return record.environment.id
    if isinstance(record, (Demand, Prediction)):
        known: Environment | None = getattr(record, "environment", None)
        return known.id if known else environment_key(record.device or "cpu")
    return None


def environment_key(device: str) -> str:
    """What predictions for `device` hold for: an attached one's `Environment.id`, or ``catalogue:NAME``."""
    import torch

    if device != "cpu" and device.partition(":")[0] != "cuda":
        return f"catalogue:{device}"
    return read_environment(torch.device(device)).id


def _corrected(record: R, environment: str, corrections: dict[str, Correction]) -> R:
    def correct(number: Number, basis: str) -> Number:
        learnt = corrections.get(kind_of("latency", basis, number))
        return apply_correction(number, learnt) if learnt and number.weakest_source != "measured" else number

    if isinstance(record, Demand) and record.latency is not None:
        return msgspec.structs.replace(record, latency=correct(record.latency, basis_of(record.latency, environment)))
    if isinstance(record, Prediction):
        points = tuple(p if p.basis == "measured" else _repoint(p, correct(p.latency, p.basis)) for p in record.points)
        learnt = corrections.get("effect: speedup")
        speedup = apply_correction(record.speedup, learnt) if record.speedup and learnt else record.speedup
        return msgspec.structs.replace(record, points=points, speedup=speedup)
    return record


def _repoint(point: PredictedPoint, latency: Number) -> PredictedPoint:
    """The point with another latency, and the throughput that goes with it."""
    return point if latency is point.latency else msgspec.structs.replace(point, latency=latency, throughput=throughput_of(point.batch_size, latency))


def throughput_of(batch_size: int, latency: Number) -> Number:
    """Items per second of calls one after the other."""
    low, high = latency.ends
    return derived(
        batch_size / latency.value, "item/s", "batch size over latency", [("latency", latency)], interval=(batch_size / high, batch_size / low),
        interval_kind=latency.interval_kind,
    )  # fmt: skip


def _with_notes(record: R, notes: tuple[Note, ...]) -> R:
    if not notes or not hasattr(record, "notes"):
        return record
    return msgspec.structs.replace(record, notes=(*record.notes, *notes))
