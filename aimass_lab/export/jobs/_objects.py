"""A planned job as Kubernetes runs it, which several exporters write."""

from __future__ import annotations

import json
from typing import Any

from ...headlines import describe_policy
from ...manifests.server import USER
from ...records import JobPlan, PlannedJob, to_json
from ...spec import dns_label
from ...units import format_seconds
from .._workload import DIGEST, PROVENANCE, cores, mebibytes, offered_as
from .._yaml import Said
from ..base import provenance
from .base import JOBS_FILE, object_name

KEPT_S = 86_400
"""For which a job that has ended can still be looked at."""
RETRIES = 3


def header(plan: JobPlan, *more: str) -> list[str]:
    """Comment lines for the top of a file."""
    return [
        f"jobs of {plan.name} on {plan.devices} x {plan.device}, planned under {describe_policy(plan.chosen)}; behind each number stands where it comes from",
        "a cluster gives a pod its devices until it ends: that a job makes room between two of its calls, as it was simulated, is up to what runs it",
        *more,
    ]


def metadata(plan: JobPlan, name: str, labels: dict[str, str] | None = None, **annotations: str) -> dict[str, Any]:
    """Name, labels, and the plan's digest."""
    return {
        "name": name,
        "labels": {"app.kubernetes.io/part-of": dns_label(plan.name), "app.kubernetes.io/managed-by": "aimass-lab", **(labels or {})},
        "annotations": {DIGEST: plan.digest, **annotations},
    }


def job(plan: JobPlan, one: PlannedJob, *, labels: dict[str, str] | None = None, suspend: Said | None = None) -> dict[str, Any]:
    """A Job with a pod for each part, as many at once as the plan lets run.

    Args:
        plan: What it is of.
        one: The job.
        labels: Further labels of the object.
        suspend: That it is not to start by itself, and why.
    """
    name = object_name(plan, one)
    numbers = {"call_time": one.call_time, "work": one.work, "cores": one.cores, "memory_bytes": one.memory_bytes, "deadline": one.deadline}
    sources = {key: provenance(number) for key, number in numbers.items() if number is not None}
    told = {PROVENANCE: json.dumps(sources, separators=(",", ":")), **_promise(plan, one)}
    held = suspend or _held(one)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(plan, name, {"app.kubernetes.io/name": name, **(labels or {})}, **told),
        "spec": {
            **({"suspend": held} if held else {}),
            "completionMode": "Indexed",
            "completions": Said(one.parts, _parts(one)),
            "parallelism": Said(one.parallel, "most devices at once, as planned"),
            "backoffLimitPerIndex": Said(RETRIES, "attempts more of a part that failed, of our choice"),
            "ttlSecondsAfterFinished": Said(KEPT_S, "a day, of our choice"),
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": name}, "annotations": {DIGEST: plan.digest}},
                "spec": _pod(plan, one),
            },
        },
    }


def _pod(plan: JobPlan, one: PlannedJob) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "priorityClassName": priority_name(plan, one.priority),
    }
    if one.accelerators:
        pod["tolerations"] = [{"key": device_resource(plan), "operator": "Exists", "effect": "NoSchedule"}]
    if plan.node_selector:
        pod["nodeSelector"] = dict(plan.node_selector)
    assert one.image is not None  # an exporter checks it
    pod["containers"] = [
        {
            "name": "job",
            "image": one.image,
            "command": list(one.command),
            "env": [
                {"name": "AIMASS_JOB_PARTS", "value": str(one.parts)},
                {"name": "AIMASS_JOB_CALLS", "value": str(one.calls // one.parts)},
                {"name": "AIMASS_JOB_BATCH_SIZE", "value": str(one.batch_size)},
            ],
            "resources": _resources(plan, one),
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ]
    return pod


def _resources(plan: JobPlan, one: PlannedJob) -> dict[str, Any]:
    assert one.cores is not None and one.memory_bytes is not None  # noqa: PT018  an exporter checks both
    memory = Said(mebibytes(one.memory_bytes), provenance(one.memory_bytes))
    requests: dict[str, Any] = {"cpu": Said(cores(one.cores.value), provenance(one.cores)), "memory": memory}
    limits: dict[str, Any] = {"memory": Said(memory.value, "as requested")}
    if one.accelerators:
        count = Said(one.accelerators, f"{plan.device}: one a worker")
        requests[device_resource(plan)] = limits[device_resource(plan)] = count
    return {"requests": requests, "limits": limits}


def device_resource(plan: JobPlan) -> str:
    """The name under which the vendor's device plugin offers the plan's device.

    Raises:
        SpecError: nothing says so.
    """
    return plan.resource or offered_as(plan.device, plan.environment)


def _parts(one: PlannedJob) -> str:
    each = f"{one.calls // one.parts} {'calls' if one.kind == 'batch' else 'steps'} each"
    return {"batch": f"shards, {each}", "training": f"one run, {each}", "search": f"trials, {each}"}[one.kind]


def _promise(plan: JobPlan, one: PlannedJob) -> dict[str, str]:
    """When it should end, and by when it has to."""
    ends = next(outcome.ends for outcome in plan.chosen.jobs if outcome.job == one.name)
    found = {} if ends is None else {"aimass.dev/ends": f"{format_seconds(ends.value)} after the start of the plan, simulated"}
    return found if one.deadline is None else {**found, "aimass.dev/deadline": f"{format_seconds(one.deadline.value)} after the start of the plan"}


def _held(one: PlannedJob) -> Said | None:
    """Kubernetes knows neither an order of jobs nor a time to start one: such a job waits for somebody to let it go."""
    if one.after:
        return Said(True, f"set it to false when {' and '.join(one.after)} ended")
    if one.submitted.value:
        return Said(True, f"set it to false {format_seconds(one.submitted.value)} after the start of the plan")
    return None


def priority_name(plan: JobPlan, priority: int) -> str:
    """Of the priority class of all jobs that are as urgent."""
    return f"{dns_label(plan.name)}-jobs-{priority}"


def priority_value(priority: int) -> int:
    """Kubernetes counts the other way round: large is urgent; below 0, so that services without a class go before all jobs."""
    return -1 - priority


def priority_class(plan: JobPlan, priority: int) -> dict[str, Any]:
    """Who goes first when nodes are full."""
    preempts = plan.chosen.policy in ("priority", "edf")
    policy = Said("PreemptLowerPriority" if preempts else "Never", f"as {plan.chosen.policy} does")
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": metadata(plan, priority_name(plan, priority)),
        "value": Said(priority_value(priority), f"priority {priority} of the plan, where 0 is the most urgent"),
        "preemptionPolicy": policy,
        "globalDefault": False,
        "description": f"Jobs of {plan.name} with priority {priority}.",
    }


def config_map(plan: JobPlan) -> dict[str, Any]:
    """The plan itself, so that manifests can be checked against it with nothing else at hand."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan, f"{dns_label(plan.name)}-job-plan"),
        "data": {JOBS_FILE: to_json(plan)},
    }
