"""Decides what a bundle promises: limits that follow from what was asked and what was measured, never from hope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..records import Note, Number, Promise, derived
from ..units import format_bytes, format_seconds
from .calibrate import KEPT_SHARE, Calibration

FIDELITY_FLOOR = 1e-4
"""Another processor sums in another order: float32 outputs then differ by 1e-6 to 1e-5, a wrong model by far more than this."""
FIDELITY_FACTOR = 2.0
"""A lossy copy's roundings fall elsewhere on another processor."""
LATENCY_FACTOR, LATENCY_FLOOR_S = 3.0, 0.025
"""For a p99 that nobody asked for: a short run sees few of the rare pauses; below the floor, the operating system's own decide."""
MEMORY_FACTOR, SHARED_BYTES = 1.2, 32 * 2**20
"""Pages of libraries that other processes here use as well are counted in part only; elsewhere nobody may share them."""
STARTUP_FACTOR, STARTUP_FLOOR_S = 2.0, 5.0
"""Files that are not cached are read from disk."""
UNMEASURED_STARTUP_S, DISK_BYTES_PER_S = 20.0, 50e6
UNMEASURED_MEMORY_BYTES = 300 * 2**20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one replica is to hold."""

    requests_per_s: Number
    latency_p99: Number | None
    """The user's target, or the upper end of a prediction; None: neither."""
    memory_bytes: Number | None = None
    """What the spec gives a replica."""
    startup_time: Number | None = None


def make_promises(asked: Asked, fidelity: Number, *, model_bytes: int, workers: int, calibration: Calibration | None) -> tuple[Promise, ...]:
    """The promises of a bundle, each with where its limit comes from and what was measured when it was made.

    Args:
        asked: What one replica is to hold.
        fidelity: Measured error on the stored vectors: of the server, where it ran, else of the file alone.
        model_bytes: Size of the model's file.
        workers: Processes that hold the model.
        calibration: What the bundle's own proof measured; None where it did not run.
    """
    measured: Mapping[str, Number] = calibration.measured if calibration else {}
    limits = [
        ("errors", "==", Number(value=0, unit="request", source="assumed", method="every request is answered: a promise of every bundle")),
        ("fidelity", "<=", _fidelity(fidelity)),
        ("latency_p99", "<=", asked.latency_p99 or _latency(measured.get("latency_p99"))),
        ("throughput", ">=", _throughput(asked.requests_per_s)),
        ("memory", "<=", _memory(measured.get("memory"), model_bytes, workers)),
        ("startup", "<=", _startup(measured.get("startup"), model_bytes)),
    ]
    seen = {"fidelity": fidelity, **measured}
    return tuple(
        Promise(name=name, relation=relation, limit=limit, measured=seen.get(name))  # type: ignore[arg-type]
        for name, relation, limit in limits
        if limit is not None
    )


def _fidelity(measured: Number) -> Number:
    value = FIDELITY_FACTOR * measured.value + FIDELITY_FLOOR
    method = f"{FIDELITY_FACTOR:g} × the {measured.value:.2g} measured here, plus {FIDELITY_FLOOR:g} for processors that sum in another order"
    return derived(value, "ratio", method, [("fidelity", measured)])


def _latency(measured: Number | None) -> Number | None:
    if measured is None:
        return None
    value = max(LATENCY_FACTOR * measured.value, LATENCY_FLOOR_S)
    method = f"{LATENCY_FACTOR:g} × the p99 of {format_seconds(measured.value)} measured here ({measured.method}), at least {format_seconds(LATENCY_FLOOR_S)}"
    return derived(value, "s", method, [("latency_p99", measured)])


def _throughput(rate: Number) -> Number:
    return derived(KEPT_SHARE * rate.value, "request/s", f"{100 * KEPT_SHARE:g} % of the rate per replica", [("requests_per_s", rate)])


def _memory(measured: Number | None, model_bytes: int, workers: int) -> Number:
    if measured is not None:
        method = (
            f"{MEMORY_FACTOR:g} × the {format_bytes(measured.value)} measured here ({measured.method}), "
            f"plus {format_bytes(SHARED_BYTES)} for libraries that processes share here"
        )
        return derived(MEMORY_FACTOR * measured.value + SHARED_BYTES, "B", method, [("memory", measured)])
    # ONNX Runtime keeps its own copy beside the file it reads, and packs the weights once more for its kernels
    value = UNMEASURED_MEMORY_BYTES + 3 * model_bytes * workers
    return Number(value=value, unit="B", source="estimated", method="3 × the model's file per worker and 300 MiB; the bundle was not started")


def _startup(measured: Number | None, model_bytes: int) -> Number:
    if measured is not None:
        value = max(STARTUP_FACTOR * measured.value, STARTUP_FLOOR_S)
        method = f"{STARTUP_FACTOR:g} × the {format_seconds(measured.value)} measured here, at least {format_seconds(STARTUP_FLOOR_S)}"
        return derived(value, "s", method, [("startup", measured)])
    value = UNMEASURED_STARTUP_S + model_bytes / DISK_BYTES_PER_S
    return Number(value=value, unit="s", source="estimated", method="20 s and the model's file read at 50 MB/s; the bundle was not started")


def risk_notes(asked: Asked, promises: tuple[Promise, ...], calibration: Calibration | None) -> tuple[Note, ...]:
    """Where what was measured here speaks against what is promised or asked."""
    if calibration is None:
        text = "the bundle was not started: memory and startup are estimates, and nothing shows yet that it holds its rate; run its verify"
        return (Note(code="missing:calibration", text=text),)
    notes = [Note(code=finding.code, text=finding.text) for finding in calibration.findings]
    limits = {promise.name: promise.limit for promise in promises}
    for name, risk in (
        ("latency_p99", _above(calibration, "latency_p99", limits.get("latency_p99"))),
        ("throughput", _below(calibration, limits["throughput"])),
        ("errors", _failed(calibration)),
        ("memory", _above(calibration, "memory", asked.memory_bytes)),
        ("startup", _above(calibration, "startup", asked.startup_time)),
    ):
        if risk:
            notes.append(Note(code="W-PROMISE-AT-RISK", text=f"{name}: {risk}, at {calibration.requests_per_s:.4g} requests/s on this machine"))
    return tuple(notes)


def _above(calibration: Calibration, name: str, limit: Number | None) -> str | None:
    measured = calibration.measured.get(name)
    if limit is None or measured is None or measured.value <= limit.value:
        return None
    show = format_bytes if limit.unit == "B" else format_seconds
    return f"{show(measured.value)} were measured where {show(limit.value)} are asked ({limit.method})"


def _below(calibration: Calibration, limit: Number) -> str | None:
    measured = calibration.measured["throughput"]
    return None if measured.value >= limit.value else f"{measured.value:.4g} of the promised {limit.value:.4g} requests/s were answered in time"


def _failed(calibration: Calibration) -> str | None:
    failed = calibration.measured["errors"].value
    return f"{failed:g} requests got no good answer" if failed else None
