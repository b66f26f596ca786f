"""Docker compose: ports, health checks, durations and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, at, mapping, whole
from ..quantities import parse_size, parse_span
from ..server import DRAIN_S, is_server, listens_on
from .base import RULES

_PORT = re.compile(r"(?:(?P<host>\d+\.\d+\.\d+\.\d+|\[[0-9a-f:]+\]):)?(?:(?P<first>\d+)(?:-(?P<last>\d+))?:)?(?P<inside>\d+)(?:-\d+)?(?:/(?:tcp|udp))?")
_ADDRESS = re.compile(r"https?://([^/:'\"\s]+)(?::(\d+))?")
_LOCAL = {"localhost", "127.0.0.1", "[::1]"}


@RULES.register("compose")
def check_compose(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Every service of a compose file."""
    for item in objects.every:
        if item.kind or not isinstance(item.document.get("services"), dict):
            continue
        services = item.document["services"]
        for name, service in services.items():
            yield from _service(item, f"services/{name}", mapping(service), set(services), spec)


def _service(item: Object, path: str, service: dict[str, Any], names: set[str], spec: ServingSpec | None) -> Iterator[Finding]:
    if not service.get("image") and not service.get("build"):
        yield item.finding("E-COMPOSE", path, "has neither image nor build")
    needs = service.get("depends_on") or []
    for other in needs:
        if other not in names:
            yield item.finding("E-COMPOSE", f"{path}/depends_on", f"depends on {other!r}, which is no service here")
    yield from _ports(item, path, service)
    yield from _health(item, path, service, spec)
    yield from _resources(item, path, service)
    grace = parse_span(service.get("stop_grace_period", "10s"))
    if grace is None:
        yield item.finding("E-DURATION", f"{path}/stop_grace_period", f"{service['stop_grace_period']!r} is no duration; write 30s or 1m30s")
    elif is_server(service) and grace < DRAIN_S:
        text = f"the server is killed after {grace:g} s, and may take {DRAIN_S} s to answer what is in flight; raise stop_grace_period"
        yield item.finding("E-DRAIN", f"{path}/stop_grace_period", text)


def _ports(item: Object, path: str, service: dict[str, Any]) -> Iterator[Finding]:
    replicas = whole(at(service, "deploy/replicas")) or 1
    listening = listens_on(service)
    taken: list[tuple[int, int]] = []
    for index, port in enumerate(service.get("ports") or []):
        field = f"{path}/ports/{index}"
        if isinstance(port, dict):
            continue
        match = _PORT.fullmatch(str(port))
        if match is None:
            yield item.finding("E-COMPOSE-PORT", field, f"{port!r} is no port; write 127.0.0.1:8000:8000")
            continue
        if listening and int(match["inside"]) not in listening:
            yield item.finding("E-COMPOSE-PORT", field, f"publishes port {match['inside']}, and the server listens on {sorted(listening)}")
        if match["first"] is None:
            continue
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if last - first + 1 < replicas:
            text = (
                f"{replicas} replicas cannot share {last - first + 1} port of this machine; give a range of {replicas}, such as {first}-{first + replicas - 1}"
            )
            yield item.finding("E-COMPOSE-PORT", field, text)
        if any(first <= high and low <= last for low, high in taken):
            yield item.finding("E-COMPOSE-PORT", field, f"overlaps ports that are published already: {first}-{last}")
        taken.append((first, last))
        if match["host"] is None or match["host"] == "0.0.0.0":
            yield item.finding("W-PUBLIC-PORT", field, "is open to every network of this machine; 127.0.0.1: in front keeps it here")


def _health(item: Object, path: str, service: dict[str, Any], spec: ServingSpec | None) -> Iterator[Finding]:
    check = mapping(service.get("healthcheck"))
    if not check:
        if is_server(service):
            yield item.finding("W-NO-HEALTHCHECK", path, "nothing asks whether the server is ready; ask /v2/health/ready")
        return
    test = check.get("test")
    words = test if isinstance(test, list) else ["CMD-SHELL", str(test)]
    text = " ".join(map(str, words))
    if isinstance(test, list) and test and test[0] not in ("CMD", "CMD-SHELL", "NONE"):
        yield item.finding("E-HEALTHCHECK", f"{path}/healthcheck/test", f"begins with {test[0]!r}; a list begins with CMD, CMD-SHELL or NONE")
    program = next((p for p in ("curl", "wget") if re.search(rf"\b{p}\b", text)), None)
    if program and is_server(service):
        yield item.finding("E-HEALTHCHECK", f"{path}/healthcheck/test", f"runs {program}, which the bundle's image does not have; use its python")
    elif program:
        yield item.finding("W-HEALTHCHECK", f"{path}/healthcheck/test", f"runs {program}; make sure that the image has it")
    for host, port in _ADDRESS.findall(text):
        if host not in _LOCAL:
            yield item.finding("E-HEALTHCHECK", f"{path}/healthcheck/test", f"asks {host}, which says nothing about this service; ask 127.0.0.1")
        elif port and (listening := listens_on(service)) and int(port) not in listening:
            yield item.finding("E-HEALTHCHECK", f"{path}/healthcheck/test", f"asks port {port}, and the server listens on {sorted(listening)}")
    for key in ("interval", "timeout", "start_period", "start_interval"):
        if key in check and parse_span(check[key]) is None:
            yield item.finding("E-DURATION", f"{path}/healthcheck/{key}", f"{check[key]!r} is no duration; write 30s or 1m30s")
    start = parse_span(check.get("start_period", "0s"))
    if spec is not None and start is not None and is_server(service) and start < spec.startup_time.value:
        text = f"failures count after {start:g} s, and starting takes {spec.startup_time.value:g} s ({spec.startup_time.source}); twice that is safe"
        yield item.finding("E-STARTUP", f"{path}/healthcheck/start_period", text)


def _resources(item: Object, path: str, service: dict[str, Any]) -> Iterator[Finding]:
    resources = mapping(at(service, "deploy/resources"))
    found = {}
    for part in ("limits", "reservations"):
        value = mapping(resources.get(part)).get("memory")
        if value is None:
            continue
        size = parse_size(value)
        if size is None:
            yield item.finding("E-QUANTITY", f"{path}/deploy/resources/{part}/memory", f"{value!r} is no size; write 700M or 2G")
        else:
            found[part] = size
    if found.get("reservations", 0) > found.get("limits", float("inf")):
        yield item.finding("E-REQUEST-LIMIT", f"{path}/deploy/resources/reservations/memory", "is above the limit; lower one or raise the other")
