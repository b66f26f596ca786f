"""Starts a bundle that was just written, by its own `run.py`, and reads what its own proof measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..records import Finding, Number, Promise, Unit, derived
from .folder import bundle_files, is_error, write_json, write_manifest
from .proof import run_proof

DURATION_S = 3.0
WIDE: dict[str, Unit] = {
    "errors": "request",
    "fidelity": "ratio",
    "latency_p50": "s",
    "latency_p99": "s",
    "throughput": "request/s",
    "memory": "B",
    "startup": "s",
}
"""What is measured, and its unit."""
KEPT_SHARE = 0.97
"""A server holds a rate when it answers at least this share of it while it is offered."""
ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One short run of the bundle's own proof."""

    requests_per_s: float
    measured: Mapping[str, Number]
    findings: tuple[Finding, ...] = ()

    def holds(self, latency_s: float) -> bool:
        """Whether every request was answered in time, with a p99 of at most `latency_s`."""
        kept = self.measured["throughput"].value >= KEPT_SHARE * self.requests_per_s
        return self.measured["errors"].value == 0 and kept and self.measured["latency_p99"].value <= latency_s


def calibrate(folder: Path, requests_per_s: float, *, duration_s: float = DURATION_S) -> Calibration:
    """Measure what the bundle does at a rate.

    Writes a draft of `promises.json`, and takes it into the manifest.

    Args:
        folder: A bundle with everything else that it needs to run, and a manifest of that.
        requests_per_s: Rate of the load.
        duration_s: Seconds of load.

    Raises:
        BundleError: the bundle does not start, or does not answer.
    """
    draft = [Promise(name=name, relation="<=", limit=Number(value=0, unit=unit, source="assumed", method="draft")) for name, unit in WIDE.items()]
    promises = folder / "promises.json"
    write_json(promises, {"schema": 1, "scenario": scenario(requests_per_s), "promises": draft})
    write_manifest(folder, kept=set(bundle_files(folder)) - {promises})
    check = run_proof(folder, duration_s=duration_s)
    for finding in check.findings:
        if is_error(finding):
            raise BundleError(f"the bundle does not run: {finding.text}", help="nothing was left behind")
    measured = {promise.name: promise.measured for promise in check.promises if promise.measured is not None}
    return Calibration(requests_per_s=requests_per_s, measured=measured, findings=check.findings)


def find_rate(folder: Path, start: Number, *, latency_limit_s: float) -> tuple[Number, Calibration]:
    """Halve the rate until the bundle holds it here.

    Args:
        folder: As for `calibrate`.
        start: The rate to begin with.
        latency_limit_s: What the p99 may be.

    Returns:
        The rate, and the run that held it.

    Raises:
        BundleError: none of the rates is held.
    """
    rate = float(start.value)
    for attempt in range(ATTEMPTS):
        run = calibrate(folder, rate)
        if run.holds(latency_limit_s):
            halved = f", halved {attempt} times until the server held it" if attempt else ", held by the server"
            return derived(rate, "request/s", f"{start.method}{halved}", [("start", start), ("throughput", run.measured["throughput"])]), run
        rate /= 2
    raise BundleError(
        f"the server did not hold {2 * rate:.3g} requests/s with a p99 of {latency_limit_s:.3g} s here",
        help="the machine is busy, or the model too slow for it: give a rate and a latency of your own",
    )


def scenario(requests_per_s: float, duration_s: float = 10.0) -> dict[str, Any]:
    """The load under which a bundle's promises hold."""
    return {"requests_per_s": requests_per_s, "duration_s": duration_s, "items_per_request": 1, "seed": 0}
