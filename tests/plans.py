"""What a plan is made from: a model, its latencies by batch size, a target."""

from aimass_lab.records import BatchPoint, ModelInfo, Number, Target

MODEL = ModelInfo(name="net", type="test.Net", num_parameters=10, weight_bytes=40, dtype="float32", digest="0" * 12)


def number(value, unit="s", source="measured", interval=None, quality="ok"):
    return Number(value=value, unit=unit, source=source, method="median of 31 calls", interval=interval, n=31, quality=quality)


def ladder(fixed, slope, sizes=(1, 2, 4, 8, 16), *, doubt=0.02, source="measured", quality="ok", peak=None):
    def point(size):
        typical = fixed + slope * size
        return BatchPoint(
            batch_size=size,
            latency_p50=number(typical, source=source, interval=(typical * (1 - doubt), typical * (1 + doubt)), quality=quality),
            latency_p95=number(1.05 * typical, source=source),
            latency_p99=number(1.1 * typical, source=source),
            throughput=number(size / typical, "item/s", source=source),
            peak_memory_bytes=None if peak is None else number(peak * size, "B"),
        )

    return tuple(point(size) for size in sizes)


def target(rate, p99, **limits):
    return Target(requests_per_s=number(rate, "request/s", "user"), latency_p99=number(p99, source="user"), **limits)


LADDER = ladder(0.004, 0.0012)
"""Alone 5.2 ms; in batches of 16 up to about 670 items/s."""
