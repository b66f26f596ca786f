"""Puts together what a server showed of its batches and what the model's profile says of those that the server was not given."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..records import BatchPoint, Number, derived


def join_ladders(served: Sequence[BatchPoint], profiled: Sequence[BatchPoint]) -> tuple[BatchPoint, ...]:
    """The server's own points, and above them the profile's at the pace of the server.

    Args:
        served: Measured in a server under load, up to its batch limit.
        profiled: Of the model alone; memory is only known here.
    """
    memory = {point.batch_size: point.peak_memory_bytes for point in profiled}
    points = [msgspec.structs.replace(point, peak_memory_bytes=memory.get(point.batch_size)) for point in served]
    known = {point.batch_size: point for point in profiled}
    common = [point for point in points if point.batch_size in known]
    if not common:
        return tuple(points)
    last = max(common, key=lambda point: point.batch_size)
    pace = derived(
        last.latency_p50.value / known[last.batch_size].latency_p50.value,
        "ratio",
        f"server over profile at batch {last.batch_size}",
        [("server", last.latency_p50), ("profile", known[last.batch_size].latency_p50)],
    )
    largest = max(point.batch_size for point in points)
    return (*points, *(_at_pace(point, pace) for point in profiled if point.batch_size > largest))


def _at_pace(point: BatchPoint, pace: Number) -> BatchPoint:
    def moved(number: Number) -> Number:
        interval = None if number.interval is None else (number.interval[0] * pace.value, number.interval[1] * pace.value)
        beyond = derived(
            number.value * pace.value, "s", f"profile, {pace.method}", [("profile", number), ("pace", pace)], interval=interval,
            interval_kind=number.interval_kind,
        )  # fmt: skip
        return msgspec.structs.replace(beyond, trust="estimated", quality="extrapolated")

    middle = moved(point.latency_p50)
    throughput = derived(point.batch_size / middle.value, "item/s", "batch size over latency", [("latency", middle)])
    return msgspec.structs.replace(
        point, latency_p50=middle, latency_p95=moved(point.latency_p95), latency_p99=moved(point.latency_p99), throughput=throughput
    )  # fmt: skip
