"""What objects say of each other: selectors, ports, routes, and objects that are there twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, Workload, at, entries, mapping, whole
from .base import RULES


@RULES.register("references")
def check_references(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Every reference whose other end should be here."""
    seen: set[tuple[str, str, str, str]] = set()
    for item in objects.every:
        which = (item.api.rpartition("/")[0], item.kind, item.namespace, item.name)
        if item.kind and item.name and which in seen:
            yield item.finding("E-TWICE", "metadata/name", "is there twice, and the later one wins")
        seen.add(which)
    for workload in objects.workloads():
        yield from _selector(workload)
    for service in objects.of_kind("Service"):
        yield from _service(objects, service)
    for budget in objects.of_kind("PodDisruptionBudget"):
        yield from _selects(objects, budget, at(budget.spec, "selector/matchLabels"), "spec/selector/matchLabels")
    for policy in objects.of_kind("NetworkPolicy"):
        yield from _selects(objects, policy, at(policy.spec, "podSelector/matchLabels"), "spec/podSelector/matchLabels")
        yield from _policy(objects, policy)
    for monitor in objects.of_kind("ServiceMonitor"):
        yield from _monitor(objects, monitor)
    for route in objects.of_kind("HTTPRoute", "GRPCRoute", "Ingress"):
        yield from _route(objects, route)
    yield from _claims(objects)


def _selector(workload: Workload) -> Iterator[Finding]:
    owner = workload.owner
    if owner.kind not in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
        return
    labels = mapping(at(owner.spec, "selector/matchLabels"))
    if not labels and not at(owner.spec, "selector/matchExpressions"):
        yield owner.finding("E-SELECTOR", "spec/selector", "has no selector; repeat the template's labels in selector.matchLabels")
    elif not labels.items() <= workload.labels.items():
        text = f"selects {_labels(labels)}, and its own pods carry {_labels(workload.labels)}: the API server refuses it"
        yield owner.finding("E-SELECTOR", "spec/selector/matchLabels", text)
    for constraint, item in entries(workload.pod.get("topologySpreadConstraints")):
        wanted = mapping(at(item, "labelSelector/matchLabels"))
        if wanted and not wanted.items() <= workload.labels.items():
            text = f"spreads pods that carry {_labels(wanted)}, and these carry {_labels(workload.labels)}"
            yield owner.finding("W-SPREAD", f"{workload.path}/topologySpreadConstraints/{constraint}/labelSelector", text)


def _selects(objects: Objects, item: Object, labels: Any, path: str) -> Iterator[Finding]:
    wanted = mapping(labels)
    if wanted and objects.complete and not objects.selected(wanted, item):
        yield item.finding("E-SELECTS-NONE", path, f"selects pods that carry {_labels(wanted)}, and no pod here does")


def _service(objects: Objects, service: Object) -> Iterator[Finding]:
    ports = entries(service.spec.get("ports"))
    if len(ports) > 1:
        for index, port in ports:
            if not port.get("name"):
                yield service.finding("E-PORT-NAME", f"spec/ports/{index}", "a service of several ports needs a name for each")
    labels = mapping(service.spec.get("selector"))
    yield from _selects(objects, service, labels, "spec/selector")
    pods = objects.selected(labels, service) if labels else []
    for index, port in ports:
        target = port.get("targetPort", port.get("port"))
        for pod in pods:
            have = [p for _, container in pod.mains() for _, p in entries(container.get("ports"))]
            names, numbers = {p.get("name") for p in have} - {None}, {p.get("containerPort") for p in have}
            if isinstance(target, str) and target not in names:
                text = f"sends to the port {target!r}, and the pods have {', '.join(sorted(map(str, names))) or 'none with a name'}"
                yield service.finding("E-TARGET-PORT", f"spec/ports/{index}/targetPort", text)
            elif whole(target) is not None and numbers and target not in numbers:
                text = f"sends to port {target}, and the pods have {', '.join(sorted(map(str, numbers)))}"
                yield service.finding("E-TARGET-PORT", f"spec/ports/{index}/targetPort", text)


def _monitor(objects: Objects, monitor: Object) -> Iterator[Finding]:
    wanted = mapping(at(monitor.spec, "selector/matchLabels"))
    services = [s for s in objects.of_kind("Service") if wanted.items() <= mapping(at(s.document, "metadata/labels")).items()]
    if wanted and objects.of_kind("Service") and not services:
        yield monitor.finding("E-SELECTS-NONE", "spec/selector", f"selects services that carry {_labels(wanted)}, and none here does")
    for index, endpoint in entries(monitor.spec.get("endpoints")):
        names = {p.get("name") for s in services for _, p in entries(s.spec.get("ports"))}
        if services and endpoint.get("port") is not None and endpoint["port"] not in names:
            yield monitor.finding("E-TARGET-PORT", f"spec/endpoints/{index}/port", f"scrapes the port {endpoint['port']!r}, which the service does not have")


def _route(objects: Objects, route: Object) -> Iterator[Finding]:
    for path, name, port in _backends(route):
        service = objects.named("Service", name, route)
        if service is None:
            if objects.of_kind("Service"):
                yield route.finding("E-BACKEND", path, f"leads to the service {name!r}, which is not here")
            continue
        have = {p.get("port") for _, p in entries(service.spec.get("ports"))} | {p.get("name") for _, p in entries(service.spec.get("ports"))}
        if port is None:
            yield route.finding("E-BACKEND", path, "leads to a service without saying which port; give its number")
        elif port not in have:
            yield route.finding("E-BACKEND", path, f"leads to port {port} of {name}, which has {', '.join(sorted(map(str, have - {None})))}")


def _backends(route: Object) -> Iterator[tuple[str, Any, Any]]:
    for r, rule in entries(route.spec.get("rules")):
        for b, backend in entries(rule.get("backendRefs")):
            if backend.get("kind", "Service") == "Service" and not backend.get("namespace"):
                yield f"spec/rules/{r}/backendRefs/{b}", backend.get("name"), backend.get("port")
        for p, path in entries(at(rule, "http/paths")):
            service = mapping(at(path, "backend/service"))
            if service:
                port = mapping(service.get("port"))
                yield f"spec/rules/{r}/http/paths/{p}/backend/service", service.get("name"), port.get("number", port.get("name"))


def _policy(objects: Objects, policy: Object) -> Iterator[Finding]:
    rules = entries(policy.spec.get("egress"))
    ports = [p for _, rule in rules for _, p in entries(rule.get("ports"))]
    if rules and all(rule.get("ports") for _, rule in rules) and not any(p.get("port") in (53, "dns", "dns-tcp") for p in ports):
        text = "lets pods out, but not to port 53, so that they cannot look up the names of what they may reach; add UDP and TCP 53"
        yield policy.finding("E-NO-DNS", "spec/egress", text)
    labels = mapping(at(policy.spec, "podSelector/matchLabels"))
    for r, rule in entries(policy.spec.get("ingress")):
        for p, port in entries(rule.get("ports")):
            number = port.get("port")
            have = {
                value
                for pod in objects.selected(labels, policy)
                for _, container in pod.mains()
                for _, one in entries(container.get("ports"))
                for value in (one.get("containerPort"), one.get("name"))
            }
            if have and number not in have:
                text = f"lets traffic in to port {number}, and the pods have {', '.join(sorted(map(str, have - {None})))}"
                yield policy.finding("E-TARGET-PORT", f"spec/ingress/{r}/ports/{p}/port", text)


def _claims(objects: Objects) -> Iterator[Finding]:
    if not objects.of_kind("ResourceClaimTemplate"):
        return
    for workload in objects.workloads():
        for index, claim in entries(workload.pod.get("resourceClaims")):
            name = claim.get("resourceClaimTemplateName")
            if name is not None and objects.named("ResourceClaimTemplate", name, workload.owner) is None:
                yield workload.owner.finding("E-CLAIM", f"{workload.path}/resourceClaims/{index}", f"claims by the template {name!r}, which is not here")


def _labels(labels: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in mapping(labels).items()) or "none"
