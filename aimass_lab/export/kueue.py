"""Kueue: the replicas behind a queue, with the quota that the spec says they need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..records import ServingSpec
from ._workload import accelerator_resource, config_map, deployment, header, mebibytes, metadata, service
from ._yaml import Said, dump
from .base import EXPORTERS, Exporter, provenance

API = "kueue.x-k8s.io/v1beta2"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@EXPORTERS.register("kueue")
@dataclass(frozen=True, kw_only=True)
class Kueue(Exporter):
    """Deployment and Service, admitted through a LocalQueue, and the ClusterQueue and flavour behind it."""

    cohort: str | None = None
    """Queues that may lend each other what they do not use."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """One file an object."""
        workload = deployment(spec)
        workload["metadata"]["labels"][QUEUE_LABEL] = spec.name
        documents = {
            "deployment.yaml": workload,
            "service.yaml": service(spec),
            "flavor.yaml": {"apiVersion": API, "kind": "ResourceFlavor", "metadata": metadata(spec), "spec": {}},
            "cluster-queue.yaml": self._cluster_queue(spec),
            "local-queue.yaml": {"apiVersion": API, "kind": "LocalQueue", "metadata": metadata(spec), "spec": {"clusterQueue": spec.name}},
            "spec-configmap.yaml": config_map(spec),
        }
        return {name: dump(document, header(spec)) for name, document in documents.items()}

    def _cluster_queue(self, spec: ServingSpec) -> dict[str, Any]:
        pods = int(spec.max_replicas.value) + 1
        times = f"{pods} pods: at most {pods - 1} replicas, one more in a roll-out;"
        quotas = [
            {"name": "cpu", "nominalQuota": Said(f"{math.ceil(spec.cpu_cores.value * 1000) * pods}m", f"{times} {provenance(spec.cpu_cores)}")},
            {"name": "memory", "nominalQuota": Said(mebibytes(spec.memory_bytes, pods), f"{times} {provenance(spec.memory_bytes)}")},
        ]
        if spec.accelerators.value:
            count = Said(int(spec.accelerators.value) * pods, f"{times} {provenance(spec.accelerators)}")
            quotas.append({"name": accelerator_resource(spec), "nominalQuota": count})
        return cluster_queue(metadata(spec), spec.name, quotas, {"cohortName": self.cohort} if self.cohort else {})


def cluster_queue(named: dict[str, Any], flavor: str, quotas: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
    """A ClusterQueue with quotas of one flavour.

    Args:
        named: Its metadata.
        flavor: Of the nodes.
        quotas: Resource and nominal quota of each.
        more: What its spec has besides.
    """
    group = {"coveredResources": [quota["name"] for quota in quotas], "flavors": [{"name": flavor, "resources": quotas}]}
    return {"apiVersion": API, "kind": "ClusterQueue", "metadata": named, "spec": {**more, "namespaceSelector": {}, "resourceGroups": [group]}}
