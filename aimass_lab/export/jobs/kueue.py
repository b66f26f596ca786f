"""Kueue: jobs behind the queues of their tenants, which share the devices by weight and borrow from each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...records import JobPlan, PlannedJob
from ...spec import dns_label
from .._workload import mebibytes
from .._yaml import Said, dump
from ..base import provenance
from ..kueue import API, QUEUE_LABEL, cluster_queue
from ._objects import config_map, device_resource, header, job, metadata, priority_class, priority_name, priority_value
from .base import JOB_EXPORTERS, JobExporter, object_name

PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"


@JOB_EXPORTERS.register("kueue")
@dataclass(frozen=True, kw_only=True)
class KueueJobs(JobExporter):
    """Jobs, the queues and quotas of their tenants, and the priorities among them."""

    cohort: str | None = None
    """Queues that lend each other what they do not use; the plan's own if not given."""

    def write(self, plan: JobPlan) -> dict[str, str]:
        """One file an object."""
        tenants = sorted({one.tenant for one in plan.jobs})
        documents: dict[str, dict[str, Any]] = {}
        for one in plan.jobs:
            labels = {QUEUE_LABEL: _queue(plan, one.tenant), PRIORITY_LABEL: priority_name(plan, one.priority)}
            held = None if one.after or one.submitted.value else Said(True, "Kueue lets it go when its queue has room")
            documents[f"{object_name(plan, one)}.yaml"] = job(plan, one, labels=labels, suspend=held)
        for priority in sorted({one.priority for one in plan.jobs}):
            documents[f"priority-{priority}.yaml"] = priority_class(plan, priority)
            documents[f"workload-priority-{priority}.yaml"] = _workload_priority(plan, priority)
        documents["flavor.yaml"] = {"apiVersion": API, "kind": "ResourceFlavor", "metadata": metadata(plan, _flavor(plan)), "spec": _labels(plan)}
        for tenant, devices in zip(tenants, _shares(plan, tenants), strict=True):
            documents[f"cluster-queue-{dns_label(tenant)}.yaml"] = self._cluster_queue(plan, tenant, devices)
            documents[f"local-queue-{dns_label(tenant)}.yaml"] = {
                "apiVersion": API, "kind": "LocalQueue", "metadata": metadata(plan, _queue(plan, tenant)), "spec": {"clusterQueue": _queue(plan, tenant)},
            }  # fmt: skip
        documents["job-plan-configmap.yaml"] = config_map(plan)
        limits = [f"at most {t.max_jobs} jobs of {t.name} at once: Kueue has no such limit, its quotas are of resources" for t in plan.tenants if t.max_jobs]
        after = [f"{one.name} comes after {' and '.join(one.after)}: Kueue knows no order of jobs and would let it go at once, so apply it then"
                 for one in plan.jobs if one.after or one.submitted.value]  # fmt: skip
        lines = header(plan, *limits, *after)
        return {name: dump(document, lines) for name, document in documents.items()}

    def _cluster_queue(self, plan: JobPlan, tenant: str, devices: int) -> dict[str, Any]:
        most_cores, most_memory = max(plan.jobs, key=_cores), max(plan.jobs, key=_memory)
        why = f"{devices} of {plan.devices} devices, by weight; the rest is borrowed"
        assert most_cores.cores is not None and most_memory.memory_bytes is not None  # noqa: PT018  an exporter checks both
        quotas = [
            {"name": "cpu", "nominalQuota": Said(f"{math.ceil(_cores(most_cores) * 1000) * devices}m", f"{why}; {provenance(most_cores.cores)}")},
            {"name": "memory", "nominalQuota": Said(mebibytes(most_memory.memory_bytes, devices), f"{why}; {provenance(most_memory.memory_bytes)}")},
        ]
        if any(one.accelerators for one in plan.jobs):
            quotas.append({"name": device_resource(plan), "nominalQuota": Said(devices, why)})
        weight = next((t.weight for t in plan.tenants if t.name == tenant), 1.0)
        sharing = {
            "cohortName": self.cohort or f"{dns_label(plan.name)}-jobs",
            "fairSharing": {"weight": Said(f"{weight:g}", "the tenant's")},
            "preemption": {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"},
        }
        return cluster_queue(metadata(plan, _queue(plan, tenant)), _flavor(plan), quotas, sharing)


def _queue(plan: JobPlan, tenant: str) -> str:
    return dns_label(f"{plan.name}-{tenant}")


def _flavor(plan: JobPlan) -> str:
    return dns_label(f"{plan.name}-{plan.device}")


def _labels(plan: JobPlan) -> dict[str, Any]:
    return {"nodeLabels": dict(plan.node_selector)} if plan.node_selector else {}


def _cores(one: PlannedJob) -> float:
    return one.cores.value if one.cores else 0.0


def _memory(one: PlannedJob) -> float:
    return one.memory_bytes.value if one.memory_bytes else 0.0


def _shares(plan: JobPlan, tenants: list[str]) -> list[int]:
    """Whole devices by weight, all of them given out (largest remainder)."""
    weights = {t.name: t.weight for t in plan.tenants}
    total = sum(weights.get(tenant, 1.0) for tenant in tenants)
    exact = [plan.devices * weights.get(tenant, 1.0) / total for tenant in tenants]
    found = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(tenants)), key=lambda k: found[k] - exact[k])
    for k in by_remainder[: plan.devices - sum(found)]:
        found[k] += 1
    return found


def _workload_priority(plan: JobPlan, priority: int) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "WorkloadPriorityClass",
        "metadata": metadata(plan, priority_name(plan, priority)),
        "value": Said(priority_value(priority), f"priority {priority} of the plan, where 0 is the most urgent"),
        "description": f"Jobs of {plan.name} with priority {priority}.",
    }
