"""How many pods there may be: scalers, disruption budgets, quotas."""

from __future__ import annotations

from collections.abc import Iterator

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, Workload, at, entries, mapping, whole
from ..quantities import parse_quantity
from .base import RULES

BOUNDS = {"HorizontalPodAutoscaler": ("minReplicas", "maxReplicas"), "ScaledObject": ("minReplicaCount", "maxReplicaCount")}


@RULES.register("scaling")
def check_scaling(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Scalers, budgets and quotas against the workloads they are for."""
    targets: dict[tuple[str, str, str], Object] = {}
    for scaler in objects.of_kind(*BOUNDS):
        yield from _scaler(objects, scaler, targets)
    for budget in objects.of_kind("PodDisruptionBudget"):
        yield from _budget(objects, budget)
    for quota in objects.of_kind("ResourceQuota"):
        yield from _quota(objects, quota)
    for workload in objects.workloads():
        update = mapping(at(workload.owner.spec, "strategy/rollingUpdate"))
        if {str(update.get(key)).rstrip("%") for key in ("maxSurge", "maxUnavailable")} == {"0"}:
            yield workload.owner.finding("E-ROLLOUT", "spec/strategy/rollingUpdate", "may neither add nor remove a pod, so no new version can roll out")


def _scaler(objects: Objects, scaler: Object, targets: dict[tuple[str, str, str], Object]) -> Iterator[Finding]:
    reference = mapping(scaler.spec.get("scaleTargetRef"))
    kind, name = str(reference.get("kind") or "Deployment"), reference.get("name")
    which = (scaler.namespace, kind, str(name))
    if which in targets and name:
        text = f"{targets[which].kind} {targets[which].name} scales {kind} {name} already; two scalers undo each other's work, keep one"
        yield scaler.finding("E-TWO-SCALERS", "spec/scaleTargetRef", text)
    targets.setdefault(which, scaler)
    low, high = (whole(scaler.spec.get(key)) for key in BOUNDS[scaler.kind])
    for key in (*BOUNDS[scaler.kind], "idleReplicaCount"):
        count = whole(scaler.spec.get(key))
        if count is not None and count < (1 if key.startswith("max") else 0):
            yield scaler.finding("E-BOUNDS", f"spec/{key}", f"{count} is no number of replicas")
    idle = whole(scaler.spec.get("idleReplicaCount"))
    if idle is not None and idle >= (low or 0):
        yield scaler.finding("E-BOUNDS", "spec/idleReplicaCount", f"is {idle}, and must be below minReplicaCount, which is {low or 0}")
    if low is not None and high is not None and low > high:
        yield scaler.finding("E-BOUNDS", f"spec/{BOUNDS[scaler.kind][0]}", f"at least {low} replicas and at most {high} cannot both hold")
    if not name:
        yield scaler.finding("E-SCALE-TARGET", "spec/scaleTargetRef", "does not name what it scales; give scaleTargetRef.name")
        return
    workload = next((w for w in objects.workloads() if w.owner.kind == kind and w.owner.name == name and w.owner.namespace == scaler.namespace), None)
    if workload is None:
        if objects.complete:
            yield scaler.finding("E-SCALE-TARGET", "spec/scaleTargetRef/name", f"scales {kind} {name}, which is not here")
        return
    yield from _signals(scaler, workload)
    if scaler.kind == "ScaledObject":
        yield from _triggers(scaler)


def _signals(scaler: Object, workload: Workload) -> Iterator[Finding]:
    for index, metric in entries(scaler.spec.get("metrics")):
        resource = mapping(metric.get("resource"))
        name, kind = resource.get("name"), at(resource, "target/type")
        if kind == "Utilization" and name and workload.request(str(name)) is None:
            text = f"scales on the share of the {name} request that is used, and the pods request none; add resources.requests.{name}"
            yield scaler.finding("E-NO-REQUEST", f"spec/metrics/{index}", text)
        share = whole(at(resource, "target/averageUtilization"))
        if share is not None and not 1 <= share <= 100:
            yield scaler.finding("W-UTILIZATION", f"spec/metrics/{index}/resource/target/averageUtilization", f"is {share} % of the request")
        if name == "cpu" and any("gpu" in key for _, c in workload.mains() for key in mapping(at(c, "resources/limits"))):
            text = "processor load says nothing about how busy an accelerator is; scale on requests per second"
            yield scaler.finding("W-CPU-SIGNAL", f"spec/metrics/{index}", text)


def _triggers(scaler: Object) -> Iterator[Finding]:
    for index, trigger in entries(scaler.spec.get("triggers")):
        settings, field = mapping(trigger.get("metadata")), f"spec/triggers/{index}/metadata"
        for key, value in settings.items():
            if not isinstance(value, str):
                yield scaler.finding("E-TRIGGER", f"{field}/{key}", f"{value!r} is no text, as which a trigger takes every setting; put quotes around it")
        if trigger.get("metricType") == "Utilization" and trigger.get("type") not in ("cpu", "memory"):
            yield scaler.finding("E-TRIGGER", f"spec/triggers/{index}/metricType", "Utilization is for cpu and memory; use AverageValue or Value")
        if trigger.get("type") != "prometheus":
            continue
        for key in ("serverAddress", "query", "threshold"):
            if not settings.get(key):
                yield scaler.finding("E-TRIGGER", field, f"a prometheus trigger needs {key}")
        try:
            useless = "threshold" in settings and float(settings["threshold"]) <= 0
        except (TypeError, ValueError):
            yield scaler.finding("E-TRIGGER", f"{field}/threshold", f"{settings['threshold']!r} is no number")
        else:
            if useless:
                yield scaler.finding("E-TRIGGER", f"{field}/threshold", f"{settings['threshold']!r} asks for replicas without end")


def _budget(objects: Objects, budget: Object) -> Iterator[Finding]:
    least, most = budget.spec.get("minAvailable"), budget.spec.get("maxUnavailable")
    if (least is None) == (most is None):
        yield budget.finding("E-BUDGET", "spec", "needs one of minAvailable and maxUnavailable, and not both")
        return
    if not budget.spec.get("selector"):
        yield budget.finding("E-BUDGET", "spec/selector", "has no selector, so it protects no pod")
    if str(most) in ("0", "0%") or str(least) == "100%":
        field = "maxUnavailable" if most is not None else "minAvailable"
        yield budget.finding("E-BUDGET-BLOCKS", f"spec/{field}", "lets no pod be evicted, so that no node can be drained; maxUnavailable: 1 lets one at a time")
        return
    for workload in objects.selected(mapping(at(budget.spec, "selector/matchLabels")), budget):
        floor = _floor(objects, workload)
        if whole(least) is not None and floor is not None and least is not None and least >= floor:
            text = f"wants {least} of as few as {floor} pods available, so that no node can be drained; maxUnavailable: 1 lets one at a time"
            yield budget.finding("E-BUDGET-BLOCKS", "spec/minAvailable", text)


def _floor(objects: Objects, workload: Workload) -> int | None:
    """The fewest replicas that there may be."""
    for scaler in objects.of_kind(*BOUNDS):
        if at(scaler.spec, "scaleTargetRef/name") == workload.owner.name:
            return whole(scaler.spec.get(BOUNDS[scaler.kind][0]))
    return 1 if workload.replicas is None and workload.owner.kind in ("Deployment", "StatefulSet") else workload.replicas


def _quota(objects: Objects, quota: Object) -> Iterator[Finding]:
    hard = mapping(quota.spec.get("hard"))
    for name, value in hard.items():
        field = f"spec/hard/{name.replace('/', '~1')}"
        most = parse_quantity(value)
        if most is None:
            yield quota.finding("E-QUANTITY", field, f"{value!r} is no quantity")
            continue
        if name.startswith("limits.") and "/" in name:
            yield quota.finding("E-QUOTA", field, f"the limit of an extended resource cannot be bounded; use requests.{name.removeprefix('limits.')}")
            continue
        yield from _bounded(objects, quota, name, most, field)


def _bounded(objects: Objects, quota: Object, name: str, most: float, field: str) -> Iterator[Finding]:
    part, _, resource = name.partition(".")
    if part not in ("requests", "limits") and name not in ("cpu", "memory", "pods"):
        return
    needed = 0.0
    for workload in objects.workloads():
        if workload.owner.namespace != quota.namespace:
            continue
        count = workload.replicas or 1
        if name == "pods":
            needed += count
            continue
        for path, container in workload.mains():
            resources = mapping(container.get("resources"))
            kept = mapping(resources.get(part if resource else "requests"))
            key = resource or name
            value = kept.get(key, mapping(resources.get("limits")).get(key) if part != "limits" else None)
            if value is None and key in ("cpu", "memory"):
                text = f"bounds {name}, which a container of {workload.owner.kind} {workload.owner.name} ({path}) does not state: its pods are refused"
                yield quota.finding("E-QUOTA", field, text)
                return
            needed += count * (parse_quantity(value) or 0.0)
    if needed > most:
        yield quota.finding("E-QUOTA", field, f"allows {most:g}, and what is here needs {needed:g}")
