"""Serving specs whose every number is fixed."""

from aimass_lab.records import Environment, ModelInfo, Number, Recipe, ServingSpec, Step, derived

ENVIRONMENT = Environment(
    device="cpu",
    device_name="Some CPU",
    memory_bytes=8 * 2**30,
    cpu_cores=4,
    threads=2,
    python="3.11",
    torch="2.13",
    platform="linux",
    taken_at="2025-01-01T00:00:00Z",
)


def number(value, unit="s", source="measured", interval=None, method="median of 31 calls"):
    return Number(value=value, unit=unit, source=source, method=method, interval=interval)


def make(**changes):
    """A spec whose every number is fixed, so that golden files move only when the exporter does."""
    rate = number(400, "request/s", "user", method="asked for")
    replicas = derived(2, "replica", "fewest whose simulated p99 is within the target", [("requests_per_s", rate)])
    fields = {
        "name": "digits",
        "model": ModelInfo(name="Digits", type="app.Digits", num_parameters=1000, weight_bytes=4000, dtype="float32", digest="0123456789ab"),
        "recipe": Recipe(steps=(Step(technique="int8_dynamic"),)),
        "environment": ENVIRONMENT,
        "device": "cpu",
        "accelerators": derived(0, "device", "one worker a replica", [("replicas", replicas)]),
        "replicas": replicas,
        "min_replicas": derived(2, "replica", "as planned", [("replicas", replicas)]),
        "max_replicas": derived(4, "replica", "2 x planned, at most 1000", [("replicas", replicas)]),
        "cpu_cores": number(1.5, "core", method="p95 of the load test: 1.5 cores"),
        "memory_bytes": derived(700 * 2**20 + 1, "B", "583 MiB (p99 of resident memory) + 20 %", [("memory", number(583 * 2**20, "B"))]),
        "max_batch_size": derived(8, "item", "best that was simulated", [("replicas", replicas)]),
        "max_wait": derived(0.0, "s", "best that was simulated", [("replicas", replicas)]),
        "scale_at": derived(200, "request/s", "planned rate / replicas", [("requests_per_s", rate)]),
        "startup_time": number(21.4, method='3 starts # of the "bundle": it\'s slow'),
        "requests_per_s": rate,
        "latency_p99_target": number(0.050, source="user", method="asked for"),
        "latency_p99": derived(0.031, "s", "simulated", [("requests_per_s", rate)], interval=(0.029, 0.034), interval_kind="90 % band"),
        "utilization": derived(0.72, "ratio", "simulated share of time that a replica computes", [("requests_per_s", rate)]),
        "image": "registry.example/digits:1",
    }
    return ServingSpec(**(fields | changes))


def gpu(**changes):
    one = derived(1, "device", "one worker a replica", [("replicas", make().replicas)])
    return make(**({"name": "digits-gpu", "device": "l4", "accelerators": one} | changes))
