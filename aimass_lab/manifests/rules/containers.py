"""One pod by itself: quantities, probes, ports, volumes, users, and choices that the schemas leave open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, Workload, at, entries, mapping, whole
from ..quantities import parse_quantity
from ..server import is_server, listens_on
from .base import RULES

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CHOICES = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "pathType": {"Prefix", "Exact", "ImplementationSpecific"},
}
"""Fields that mean the same wherever they stand in an object of Kubernetes' own, and the values they can have."""
PLACED = {
    "Deployment": {"spec/strategy/type": {"RollingUpdate", "Recreate"}},
    "StatefulSet": {"spec/updateStrategy/type": {"RollingUpdate", "OnDelete"}, "spec/podManagementPolicy": {"OrderedReady", "Parallel"}},
    "Service": {"spec/type": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}, "spec/sessionAffinity": {"None", "ClientIP"}},
}
_OPERATORS = {"tolerations": {"Exists", "Equal", "Lt", "Gt"}, "matchExpressions": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"}}


@RULES.register("containers")
def check_containers(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Every container of every pod."""
    for item in objects.every:
        if item.kind not in ("ConfigMap", "Secret"):
            yield from _choices(item, item.document, "", "")
            yield from _placed(item)
    for workload in objects.workloads():
        volumes = {v.get("name") for _, v in entries(workload.pod.get("volumes"))} | _claimed(workload)
        claims = {c.get("name") for _, c in entries(workload.pod.get("resourceClaims"))}
        for path, container in workload.containers():
            yield from _resources(workload.owner, path, container)
            yield from _ports(workload, path, container)
            yield from _user(workload, path, container)
            yield from _named_twice(workload.owner, f"{path}/env", container.get("env"))
            for index, mount in entries(container.get("volumeMounts")):
                if mount.get("name") not in volumes:
                    text = f"mounts the volume {mount.get('name')!r}, which the pod does not have; it has {_listed(volumes)}"
                    yield workload.owner.finding("E-VOLUME", f"{path}/volumeMounts/{index}/name", text)
            for index, claim in entries(mapping(container.get("resources")).get("claims")):
                if claim.get("name") not in claims:
                    text = f"uses the claim {claim.get('name')!r}, which the pod does not have; list it in resourceClaims"
                    yield workload.owner.finding("E-CLAIM", f"{path}/resources/claims/{index}/name", text)
        yield from _named_twice(workload.owner, f"{workload.path}/volumes", workload.pod.get("volumes"))
        yield from _named_twice(workload.owner, f"{workload.path}/containers", workload.pod.get("containers"))
        yield from _grace(workload)


def _claimed(workload: Workload) -> set[Any]:
    """Volumes that a StatefulSet makes for each pod."""
    return {at(template, "metadata/name") for _, template in entries(workload.owner.spec.get("volumeClaimTemplates"))}


def _resources(owner: Object, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    resources = mapping(container.get("resources"))
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    for part, values in (("requests", requests), ("limits", limits)):
        for name, value in values.items():
            field = f"{path}/resources/{part}/{name.replace('/', '~1')}"
            amount = parse_quantity(value)
            if amount is None:
                yield owner.finding("E-QUANTITY", field, f"{value!r} is no quantity; write 512Mi, 2Gi, 1500m or 2")
            elif amount < 0:
                yield owner.finding("E-QUANTITY", field, f"{value!r} is below 0")
            elif name == "memory" and 0 < amount < 2**20:
                yield owner.finding("W-UNIT", field, f"{value!r} is {amount:g} bytes of memory; Mi or Gi is probably meant")
            elif name == "cpu" and amount > 1024:
                yield owner.finding("W-UNIT", field, f"{value!r} is {amount:g} cores; 1500m is one and a half")
    for name in requests.keys() | limits.keys():
        field = f"{path}/resources/requests/{name.replace('/', '~1')}"
        asked, most = parse_quantity(requests.get(name)), parse_quantity(limits.get(name))
        if "/" in name:
            if name not in limits:
                yield owner.finding("E-EXTENDED", field, f"{name} is requested without a limit; extended resources need the limit, with the same number")
            elif asked is not None and asked != most:
                yield owner.finding("E-EXTENDED", field, f"{name}: request {requests[name]} and limit {limits[name]} must be the same number")
            elif most is not None and most != int(most):
                yield owner.finding("E-EXTENDED", field, f"{name} comes in whole numbers, not {limits[name]}")
        elif asked is not None and most is not None and asked > most:
            yield owner.finding("E-REQUEST-LIMIT", field, f"requests {requests[name]}, above the limit {limits[name]}; lower one or raise the other")
    if owner.kind != "Job" and "/initContainers/" not in path and "memory" not in limits:
        text = "memory has no limit, so a leak takes the node with it; set it at the measured peak and some more"
        yield owner.finding("W-NO-MEMORY-LIMIT", f"{path}/resources/limits", text)


def _ports(workload: Workload, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    ports = [port for _, port in entries(container.get("ports"))]
    names, numbers = {p.get("name") for p in ports} - {None}, {p.get("containerPort") for p in ports}
    listening = listens_on(container)
    yield from _named_twice(workload.owner, f"{path}/ports", container.get("ports"))
    for index, port in entries(container.get("ports")):
        number = port.get("containerPort")
        if listening and number not in listening:
            text = f"the server listens on {_listed(listening)}, by its arguments, not on {number}"
            yield workload.owner.finding("E-LISTEN-PORT", f"{path}/ports/{index}/containerPort", text)
    for probe in PROBES:
        for how in ("httpGet", "tcpSocket", "grpc"):
            port, field = at(container, f"{probe}/{how}/port"), f"{path}/{probe}/{how}/port"
            if isinstance(port, str) and port not in names:
                yield workload.owner.finding("E-PROBE-PORT", field, f"{probe} asks the port {port!r}, and the container has {_listed(names)}")
            elif whole(port) is not None and (numbers or listening) and port not in numbers | listening:
                code = "E-PROBE-PORT" if listening else "W-PROBE-PORT"
                yield workload.owner.finding(code, field, f"{probe} asks port {port}, and the container has {_listed(numbers | listening)}")
    if is_server(container) and "livenessProbe" in container and "startupProbe" not in container:
        text = "without a startupProbe the livenessProbe kills a model that is still loading; give it one with at least twice the measured start-up time"
        yield workload.owner.finding("E-NO-STARTUP", f"{path}/livenessProbe", text)
    elif "livenessProbe" in container and "startupProbe" not in container and not mapping(container["livenessProbe"]).get("initialDelaySeconds"):
        text = "nothing keeps the livenessProbe from killing a container that is still starting; add a startupProbe"
        yield workload.owner.finding("W-NO-STARTUP", f"{path}/livenessProbe", text)


def _user(workload: Workload, path: str, container: dict[str, Any]) -> Iterator[Finding]:
    outer, inner = mapping(workload.pod.get("securityContext")), mapping(container.get("securityContext"))
    context = {**outer, **inner}
    if not context.get("runAsNonRoot"):
        return
    if context.get("runAsUser") == 0:
        text = "runAsNonRoot, as user 0, which is root: the kubelet will not start it; give another number"
        yield workload.owner.finding("E-ROOT", f"{workload.path}/securityContext/runAsUser", text)
    may = at(inner, "capabilities/add") or []
    allowed = any(s.get("name") == "net.ipv4.ip_unprivileged_port_start" for _, s in entries(outer.get("sysctls")))
    for index, port in entries(container.get("ports")):
        number = whole(port.get("containerPort"))
        if number is not None and number < 1024 and "NET_BIND_SERVICE" not in may and not allowed:
            text = f"a user other than root may not listen on port {number}; choose one from 1024"
            yield workload.owner.finding("E-PRIVILEGED-PORT", f"{path}/ports/{index}/containerPort", text)


def _grace(workload: Workload) -> Iterator[Finding]:
    grace = whole(workload.pod.get("terminationGracePeriodSeconds"))
    grace = 30 if grace is None else grace
    for path, container in workload.mains():
        hook = mapping(at(container, "lifecycle/preStop"))
        sleep = _sleep(hook)
        if sleep is not None and sleep >= grace:
            text = f"preStop sleeps {sleep:g} s, and the pod is killed after {grace} s; raise terminationGracePeriodSeconds above it"
            yield workload.owner.finding("E-GRACE", f"{path}/lifecycle/preStop", text)


def _sleep(hook: dict[str, Any]) -> float | None:
    seconds = at(hook, "sleep/seconds")
    command = at(hook, "exec/command")
    words = " ".join(map(str, command)).replace(";", " ").split() if isinstance(command, list) else []
    if "sleep" in words[:-1]:
        seconds = words[words.index("sleep") + 1]
    try:
        return None if seconds is None else float(seconds)
    except ValueError:
        return None


def _choices(item: Object, node: Any, path: str, under: str) -> Iterator[Finding]:
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from _choices(item, value, f"{path}{index}/", under)
    for key, value in mapping(node).items():
        allowed = CHOICES.get(key) or (_OPERATORS.get(under) if key == "operator" else None)
        if isinstance(value, str) and allowed is not None and value not in allowed and key not in ("labels", "annotations"):
            yield item.finding("E-CHOICE", f"{path}{key}", f"{key} is {value!r}; it can be {_listed(allowed)}")
        if key not in ("labels", "annotations", "matchLabels", "data"):
            yield from _choices(item, value, f"{path}{key.replace('/', '~1')}/", key)


def _placed(item: Object) -> Iterator[Finding]:
    for path, allowed in PLACED.get(item.kind, {}).items():
        value = at(item.document, path)
        if isinstance(value, str) and value not in allowed:
            yield item.finding("E-CHOICE", path, f"is {value!r}; it can be {_listed(allowed)}")


def _named_twice(owner: Object, path: str, items: Any) -> Iterator[Finding]:
    seen = set()
    for index, item in entries(items):
        name = item.get("name")
        if name is not None and name in seen:
            yield owner.finding("E-TWICE", f"{path}/{index}/name", f"{name!r} is there twice")
        seen.add(name)


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
