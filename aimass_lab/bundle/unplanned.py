"""The resource spec of a bundle that nobody planned: one replica, as it was measured on this machine."""

from __future__ import annotations

from ..records import ModelInfo, Note, Number, Promise, ServingSpec, Unit, derived
from .calibrate import Calibration
from .choices import Choices


def unplanned_spec(
    choices: Choices, model: ModelInfo, *, rate: Number, capacity: Number, promises: tuple[Promise, ...], run: Calibration | None
) -> ServingSpec:
    """Fill in a spec from what the bundle promises and what was measured.

    Args:
        choices: How the bundle is served.
        model: What is served.
        rate: Requests per second of the one replica.
        capacity: Items per second of the model alone.
        promises: Of the bundle.
        run: What its own proof measured, if it ran.
    """

    def chosen(value: float, unit: Unit, method: str) -> Number:
        return Number(value=value, unit=unit, source="assumed", method=method)

    one = chosen(1, "replica", "not planned: one replica")
    limits = {promise.name: promise.limit for promise in promises}
    latency = run.measured.get("latency_p99") if run else None
    target = limits.get("latency_p99") or chosen(1.0, "s", "no latency was asked for, and none was measured")
    return ServingSpec(
        name=choices.name,
        model=model,
        recipe=choices.recipe,
        device="cpu",
        accelerators=chosen(0, "device", "the bundle's runtime computes on the processor"),
        replicas=one,
        min_replicas=one,
        max_replicas=one,
        cpu_cores=chosen(choices.workers * choices.threads, "core", "workers x threads"),
        memory_bytes=limits["memory"],
        max_batch_size=chosen(choices.max_batch_size, "item", "as the bundle is configured"),
        max_wait=chosen(choices.max_wait_s, "s", "as the bundle is configured"),
        scale_at=rate,
        startup_time=limits["startup"],
        requests_per_s=rate,
        latency_p99_target=target,
        latency_p99=latency,
        utilization=derived(rate.value / capacity.value, "ratio", "rate over what the model alone can do", [("rate", rate), ("capacity", capacity)]),
        image=f"{choices.name}:{choices.version}",
        notes=(Note(code="W-NOT-PLANNED", text="no plan stands behind this spec: one replica at a rate that it held on this machine"),),
    )
