"""Manifests against what was measured, and against what the server in a bundle needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...records import Finding, ServingSpec
from ...spec import MEMORY_HEADROOM
from ...units import format_bytes, format_seconds
from ..objects import Objects, Workload, at, mapping, whole
from ..quantities import parse_quantity
from ..server import DRAIN_S, LIVE, READY, TOKEN_VARIABLE, is_server
from .base import RULES


@RULES.register("promises")
def check_promises(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Every container that runs a bundle's server."""
    for workload in objects.workloads():
        for path, container in workload.mains():
            if not is_server(container):
                continue
            yield from _server(workload, path, container)
            if spec is not None:
                yield from _measured(workload, path, container, spec)


def _server(workload: Workload, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    grace = whole(workload.pod.get("terminationGracePeriodSeconds"))
    grace = 30 if grace is None else grace
    if grace < DRAIN_S:
        text = f"the server is killed after {grace} s, and may take {DRAIN_S} s to answer what is in flight; raise it"
        yield workload.owner.finding("E-DRAIN", f"{workload.path}/terminationGracePeriodSeconds", text)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = at(container, f"{probe}/httpGet/path")
        if isinstance(asked, str) and asked not in (LIVE, READY):
            text = f"{probe} asks {asked!r}; the server answers probes without a token at {LIVE} and {READY} only"
            yield workload.owner.finding("E-PROBE-PATH", f"{path}/{probe}/httpGet/path", text)
    if "readinessProbe" not in container:
        text = "without a readinessProbe requests arrive before the model is loaded and while the server drains"
        yield workload.owner.finding("E-NO-READINESS", path, text)
    if at(container, "securityContext/readOnlyRootFilesystem") is True and not container.get("volumeMounts"):
        text = "the root file system is read-only and nothing is mounted to write to; give /tmp an emptyDir"
        yield workload.owner.finding("E-NOWHERE-TO-WRITE", path, text)
    names = {mapping(item).get("name") for item in container.get("env") or []}
    words = [str(word) for word in container.get("args") or []]
    if TOKEN_VARIABLE not in names and "--token-file" not in words and not container.get("envFrom"):
        text = f"the server listens beyond loopback only with a token; set {TOKEN_VARIABLE} from a secret"
        yield workload.owner.finding("E-NO-TOKEN", f"{path}/env", text)


def _measured(workload: Workload, path: str, container: dict[str, Any], spec: ServingSpec) -> Iterator[Finding]:
    peak = spec.memory_bytes.value / (1 + MEMORY_HEADROOM)
    limit = parse_quantity(at(container, "resources/limits/memory"))
    if limit is not None and limit < peak:
        text = f"limits memory to {format_bytes(limit)}, below the peak of {format_bytes(peak)} ({spec.memory_bytes.method}): it will be killed"
        yield workload.owner.finding("E-MEMORY", f"{path}/resources/limits/memory", text)
    elif limit is not None and limit < spec.memory_bytes.value:
        text = f"limits memory to {format_bytes(limit)}, less than the spec's {format_bytes(spec.memory_bytes.value)}"
        yield workload.owner.finding("W-MEMORY", f"{path}/resources/limits/memory", text)
    probe = mapping(container.get("startupProbe") or container.get("livenessProbe"))
    if probe:
        period, failures = (whole(probe.get(k)) or d for k, d in (("periodSeconds", 10), ("failureThreshold", 3)))
        budget = (whole(probe.get("initialDelaySeconds")) or 0) + period * failures
        if budget < spec.startup_time.value:
            text = f"gives {budget} s to start, which takes {format_seconds(spec.startup_time.value)} ({spec.startup_time.source}); twice that is safe"
            yield workload.owner.finding("E-STARTUP", f"{path}/{'startupProbe' if 'startupProbe' in container else 'livenessProbe'}", text)
