"""KServe, Ray and Kueue: what their definitions allow and their controllers do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...records import Finding, ServingSpec
from ..objects import Object, Objects, Workload, at, entries, mapping, whole
from ..quantities import parse_quantity
from .base import RULES

MODE = "serving.kserve.io/deploymentMode"
STANDARD, KNATIVE = ("Standard", "RawDeployment"), ("Knative", "Serverless")
QUEUE = "kueue.x-k8s.io/queue-name"
ACCELERATORS = ("nvidia.com/gpu", "amd.com/gpu")


@RULES.register("platforms")
def check_platforms(objects: Objects, spec: ServingSpec | None) -> Iterator[Finding]:
    """Objects of the three."""
    for item in objects.of_kind("InferenceService"):
        yield from _inference_service(item)
    for item in objects.of_kind("RayService"):
        yield from _ray(objects, item)
    yield from _kueue(objects)


def _annotations(item: Object) -> dict[str, Any]:
    return mapping(at(item.document, "metadata/annotations"))


def _inference_service(item: Object) -> Iterator[Finding]:
    mode = _annotations(item).get(MODE)
    if mode is not None and mode not in (*STANDARD, *KNATIVE, "ModelMesh"):
        yield item.finding("E-MODE", f"metadata/annotations/{MODE.replace('/', '~1')}", f"is {mode!r}; it can be Standard or Knative")
    for part in ("predictor", "transformer", "explainer"):
        component = mapping(item.spec.get(part))
        low, high = whole(component.get("minReplicas")), whole(component.get("maxReplicas"))
        if low is not None and high and low > high:
            yield item.finding("E-BOUNDS", f"spec/{part}/minReplicas", f"at least {low} replicas and at most {high} cannot both hold")
        if mode in STANDARD:
            if low == 0:
                text = "the mode Standard does not scale to zero: at least 1, or the mode Knative"
                yield item.finding("E-MODE", f"spec/{part}/minReplicas", text)
            if component.get("scaleMetric") not in (None, "cpu", "memory"):
                text = f"the mode Standard scales on cpu or memory, not on {component['scaleMetric']}; the mode Knative does"
                yield item.finding("E-MODE", f"spec/{part}/scaleMetric", text)
        if mode in KNATIVE:
            for index, container in entries(component.get("containers")):
                if len(container.get("ports") or []) > 1:
                    yield item.finding("E-MODE", f"spec/{part}/containers/{index}/ports", "the mode Knative allows one port")


# --- Ray ---------------------------------------------------------------------------------


def _ray(objects: Objects, item: Object) -> Iterator[Finding]:
    groups = entries(at(item.spec, "rayClusterConfig/workerGroupSpecs"))
    for index, group in groups:
        low, now, high = (whole(group.get(key)) for key in ("minReplicas", "replicas", "maxReplicas"))
        if (low is not None and high is not None and low > high) or (now is not None and high is not None and now > high):
            path = f"spec/rayClusterConfig/workerGroupSpecs/{index}"
            yield item.finding("E-BOUNDS", path, f"min {low} <= replicas {now} <= max {high} does not hold")
    text = item.spec.get("serveConfigV2")
    if not isinstance(text, str):
        return
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield item.finding("E-SERVE-CONFIG", "spec/serveConfigV2", f"is no YAML: {error}"[:200])
        return
    pods = [w for w in objects.workloads() if w.owner == item]
    workers = [w for w in pods if "workerGroupSpecs" in w.path] or pods
    applications = entries(mapping(config).get("applications"))
    if not applications:
        yield item.finding("E-SERVE-CONFIG", "spec/serveConfigV2", "lists no applications")
    for a, application in applications:
        if not application.get("import_path"):
            yield item.finding("E-SERVE-CONFIG", f"spec/serveConfigV2/applications/{a}", "an application needs import_path: MODULE:NAME")
        for d, deployment in entries(application.get("deployments")):
            yield from _deployment(item, workers, deployment, f"spec/serveConfigV2/applications/{a}/deployments/{d}")


def _deployment(item: Object, workers: list[Workload], deployment: dict[str, Any], path: str) -> Iterator[Finding]:
    scaling, actor = mapping(deployment.get("autoscaling_config")), mapping(deployment.get("ray_actor_options"))
    low, high = scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)
    if isinstance(low, int) and isinstance(high, int) and low > high:
        yield item.finding("E-BOUNDS", f"{path}/autoscaling_config", f"at least {low} replicas and at most {high} cannot both hold")
    target, most = scaling.get("target_ongoing_requests"), deployment.get("max_ongoing_requests")
    if isinstance(target, (int, float)) and isinstance(most, (int, float)) and target >= most:
        text = f"a replica takes {most:g} requests at once and more are wanted above {target:g}, never reached; keep it below max_ongoing_requests"
        yield item.finding("E-NEVER-SCALES", f"{path}/autoscaling_config/target_ongoing_requests", text)
    if scaling and isinstance(deployment.get("num_replicas"), int):
        yield item.finding("E-SERVE-CONFIG", f"{path}/num_replicas", "a number of replicas and autoscaling_config exclude each other")
    room = [max((_offer(w, "cpu") for w in workers), default=0.0), max((_accelerators(w) for w in workers), default=0.0)]
    for key, most_there, what in (("num_cpus", room[0], "cores"), ("num_gpus", room[1], "accelerators")):
        wanted = actor.get(key)
        if isinstance(wanted, (int, float)) and workers and wanted > most_there:
            text = f"an actor wants {wanted:g} {what}, and the largest worker has {most_there:g}: it waits for ever"
            yield item.finding("E-NO-WORKER", f"{path}/ray_actor_options/{key}", text)


def _offer(worker: Workload, resource: str) -> float:
    return parse_quantity(worker.request(resource)) or 0.0


def _accelerators(worker: Workload) -> float:
    return max(_offer(worker, name) for name in ACCELERATORS)


# --- Kueue -------------------------------------------------------------------------------


def _kueue(objects: Objects) -> Iterator[Finding]:
    flavors = {item.name for item in objects.of_kind("ResourceFlavor")}
    queues = {item.name: item for item in objects.of_kind("ClusterQueue")}
    for queue in queues.values():
        yield from _cluster_queue(queue, flavors)
    for local in objects.of_kind("LocalQueue"):
        if queues and local.spec.get("clusterQueue") not in queues:
            yield local.finding("E-QUEUE", "spec/clusterQueue", f"stands for the cluster queue {local.spec.get('clusterQueue')!r}, which is not here")
    for workload in objects.workloads():
        name = mapping(at(workload.owner.document, "metadata/labels")).get(QUEUE)
        if name is None:
            continue
        local_queue = objects.named("LocalQueue", name, workload.owner)
        if local_queue is None:
            if objects.of_kind("LocalQueue"):
                text = f"waits in the queue {name!r}, which is not here: its pods stay pending"
                yield workload.owner.finding("E-QUEUE", f"metadata/labels/{QUEUE.replace('/', '~1')}", text)
            continue
        cluster_queue = queues.get(str(local_queue.spec.get("clusterQueue")))
        if cluster_queue is not None:
            yield from _covered(workload, cluster_queue, _lenders(cluster_queue, queues))


def _cluster_queue(queue: Object, flavors: set[str]) -> Iterator[Finding]:
    for g, group in entries(queue.spec.get("resourceGroups")):
        covered = group.get("coveredResources") or []
        for f, flavor in entries(group.get("flavors")):
            path = f"spec/resourceGroups/{g}/flavors/{f}"
            if flavors and flavor.get("name") not in flavors:
                yield queue.finding("E-QUEUE", f"{path}/name", f"uses the flavour {flavor.get('name')!r}, which is not here")
            quotas = entries(flavor.get("resources"))
            if [quota.get("name") for _, quota in quotas] != covered:
                text = f"gives quotas of {[q.get('name') for _, q in quotas]} for the covered resources {covered}; they must be the same, in the same order"
                yield queue.finding("E-QUEUE", f"{path}/resources", text)
            for index, quota in quotas:
                if parse_quantity(quota.get("nominalQuota")) is None:
                    yield queue.finding("E-QUANTITY", f"{path}/resources/{index}/nominalQuota", f"{quota.get('nominalQuota')!r} is no quantity")


def _lenders(queue: Object, queues: Mapping[str, Object]) -> list[Object]:
    """Queues of the same cohort: what they do not use, it may borrow."""
    cohort = queue.spec.get("cohortName")
    return [other for other in queues.values() if other is not queue and cohort and other.spec.get("cohortName") == cohort]


def _covered(workload: Workload, queue: Object, lenders: Sequence[Object]) -> Iterator[Finding]:
    quotas: dict[str, float] = {}
    for one in (queue, *lenders):
        for _, group in entries(one.spec.get("resourceGroups")):
            for _, flavor in entries(group.get("flavors")):
                for _, quota in entries(flavor.get("resources")):
                    name = str(quota.get("name"))
                    if one is queue or name in quotas:
                        quotas[name] = quotas.get(name, 0.0) + (parse_quantity(quota.get("nominalQuota")) or 0.0)
    for path, container in workload.mains():
        for name, value in mapping(at(container, "resources/requests")).items():
            field = f"{path}/resources/requests/{str(name).replace('/', '~1')}"
            needed = (parse_quantity(value) or 0.0) * (workload.replicas or 1)
            if name not in quotas:
                text = f"requests {name}, which the queue {queue.name} does not cover: its pods stay pending"
                yield workload.owner.finding("E-QUEUE", field, text)
            elif needed > quotas[name]:
                text = f"needs {needed:g} of {name} for all replicas, and the queue {queue.name} has {quotas[name]:g}{' with its cohort' if lenders else ''}"
                yield workload.owner.finding("E-QUEUE", field, text)
