"""Kubernetes manifests: Deployment, Service, autoscaler, disruption budget, the spec beside them, and what the options ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import SpecError
from ..manifests.server import GRPC_PORT, HTTP_PORT
from ..records import ServingSpec
from ..spec import CPU_SIGNAL_LIMIT
from ._alerts import prometheus_rule, service_monitor
from ._workload import accelerator_resource, config_map, deployment, header, mebibytes, metadata, selector, service
from ._yaml import Said, dump
from .base import EXPORTERS, Exporter, provenance


@EXPORTERS.register("kubernetes")
@dataclass(frozen=True, kw_only=True)
class Kubernetes(Exporter):
    """One file an object; together they are what ``kubectl apply -f FOLDER`` wants."""

    scaler: Literal["auto", "hpa", "keda", "none"] = "auto"
    """hpa scales on processor load, keda on requests per second; auto is hpa on a processor and none for an accelerator, about which that load says nothing."""
    prometheus: str = "http://prometheus.monitoring:9090"
    """Where KEDA asks for the request rate."""
    alerts: bool = False
    """Alert rules from the spec's promises, and the monitor that has the servers scraped, for the Prometheus operator."""
    release: str | None = None
    """Label release of the Prometheus operator's rules and monitors, where it selects by it."""
    network_policy: bool = False
    """Let in only what comes to the two ports, and nothing out: the server calls nobody."""
    quota: bool = False
    """Bound the namespace to what the most replicas need, one more for a roll-out; for a namespace of its own."""
    priority: int | None = None
    """Value of a priority class made for the service."""
    gateway: str | None = None
    """Name of the Gateway to attach an HTTP route to."""
    ingress: str | None = None
    """Class of an Ingress, where there is no Gateway API."""
    host: str | None = None
    """Host name of the route or Ingress."""
    dra: str | None = None
    """Device class to claim accelerators by (dynamic resource allocation, Kubernetes 1.34 or newer) instead of the device plugin's count."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """One file an object."""
        lines = header(spec, *self._remarks(spec))
        return {name: dump(document, lines) for name, document in self.documents(spec).items()}

    def documents(self, spec: ServingSpec) -> dict[str, dict[str, Any]]:
        """File name -> the object in it.

        Raises:
            SpecError: an option does not go with the spec.
        """
        if self.dra is not None and not spec.accelerators.value:
            raise SpecError("dra claims accelerators, and the spec has none", help="leave dra out")
        workload = deployment(spec)
        found = {
            "deployment.yaml": workload,
            "service.yaml": service(spec),
            "disruption-budget.yaml": disruption_budget(spec),
            "spec-configmap.yaml": config_map(spec),
        }
        scaler = self._scaler(spec)
        if scaler == "hpa":
            found["autoscaler.yaml"] = autoscaler(spec)
        elif scaler == "keda":
            found["scaled-object.yaml"] = scaled_object(spec, self.prometheus)
        if self.alerts:
            found |= {"alerts.yaml": prometheus_rule(spec, self.release), "service-monitor.yaml": service_monitor(spec, self.release)}
        if self.network_policy:
            found["network-policy.yaml"] = network_policy(spec)
        if self.quota:
            found["quota.yaml"] = quota(spec, counts=self.dra is None)
        if self.priority is not None:
            found["priority-class.yaml"] = priority_class(spec, self.priority)
            workload["spec"]["template"]["spec"]["priorityClassName"] = spec.name
        if self.gateway is not None:
            found["route.yaml"] = route(spec, self.gateway, self.host)
        if self.ingress is not None:
            found["ingress.yaml"] = ingress(spec, self.ingress, self.host)
        if self.dra is not None:
            found["claim-template.yaml"] = claim_template(spec, self.dra)
            _claim(workload["spec"]["template"]["spec"], spec)
        return found

    def _scaler(self, spec: ServingSpec) -> str:
        if self.scaler != "auto":
            if self.scaler == "hpa" and spec.accelerators.value:
                raise SpecError("processor load says nothing about an accelerator, so hpa cannot scale it", help="scaler=keda scales on requests per second")
            return self.scaler
        return "none" if spec.accelerators.value else "hpa"

    def _remarks(self, spec: ServingSpec) -> list[str]:
        if self._scaler(spec) != "none":
            return []
        why = "processor load says nothing about an accelerator; " if spec.accelerators.value else ""
        return [
            f"no autoscaler: {why}scale on requests per second by a custom metric, "
            f"at {spec.scale_at.value:.4g} per replica ({provenance(spec.scale_at)}), for example with scaler=keda"
        ]


# --- scaling -----------------------------------------------------------------------------


def autoscaler(spec: ServingSpec) -> dict[str, Any]:
    """Scaling on processor load, for replicas that compute on the processor."""
    load = max(10, round(100 * min(spec.utilization.value, CPU_SIGNAL_LIMIT)))
    capped = f", at most {100 * CPU_SIGNAL_LIMIT:.0f} %" if spec.utilization.value > CPU_SIGNAL_LIMIT else ""
    comment = f"computing {100 * spec.utilization.value:.0f} % of the time at the planned rate{capped}; {provenance(spec.utilization)}"
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(spec),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name},
            "minReplicas": Said(int(spec.min_replicas.value), provenance(spec.min_replicas)),
            "maxReplicas": Said(int(spec.max_replicas.value), provenance(spec.max_replicas)),
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": Said(load, comment)}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": Said(300, "the platform's default, written down")}},
        },
    }


def scaled_object(spec: ServingSpec, prometheus: str) -> dict[str, Any]:
    """Scaling on requests per second; KEDA makes the autoscaler."""
    query = f'sum(rate(aimass_requests_total{{job="{spec.name}"}}[1m]))'
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(spec),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name},
            "minReplicaCount": Said(int(spec.min_replicas.value), provenance(spec.min_replicas)),
            "maxReplicaCount": Said(int(spec.max_replicas.value), provenance(spec.max_replicas)),
            "pollingInterval": Said(15, "s, of our choice: half of KEDA's default, as bursts are short"),
            "fallback": {"failureThreshold": Said(3, "failed queries, of our choice"), "replicas": Said(int(spec.replicas.value), provenance(spec.replicas))},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": prometheus,
                        "query": query,
                        "threshold": Said(f"{spec.scale_at.value:.6g}", f"requests per second and replica; {provenance(spec.scale_at)}"),
                    },
                }
            ],
        },
    }


# --- what bounds it ----------------------------------------------------------------------


def disruption_budget(spec: ServingSpec) -> dict[str, Any]:
    """Nodes are drained one replica at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(spec),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(spec)}},
    }


def quota(spec: ServingSpec, *, counts: bool) -> dict[str, Any]:
    """What the most replicas need, and one more while a new version rolls out."""
    pods = int(spec.max_replicas.value) + 1
    why = f"{pods} pods: at most {pods - 1} replicas ({provenance(spec.max_replicas)}), one more in a roll-out"
    memory = mebibytes(spec.memory_bytes, pods)
    hard: dict[str, Any] = {
        "pods": Said(str(pods), why),
        "requests.cpu": Said(f"{math.ceil(spec.cpu_cores.value * 1000) * pods}m", f"{pods} x {provenance(spec.cpu_cores)}"),
        "requests.memory": Said(memory, f"{pods} x {provenance(spec.memory_bytes)}"),
        "limits.memory": Said(memory, "as requested"),
    }
    if spec.accelerators.value and counts:
        hard[f"requests.{accelerator_resource(spec)}"] = Said(str(int(spec.accelerators.value) * pods), f"{pods} x {provenance(spec.accelerators)}")
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata(spec), "spec": {"hard": hard}}


def network_policy(spec: ServingSpec) -> dict[str, Any]:
    """In to the two ports, out to nowhere."""
    ports = [{"protocol": "TCP", "port": HTTP_PORT}, {"protocol": "TCP", "port": GRPC_PORT}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(spec),
        "spec": {"podSelector": {"matchLabels": selector(spec)}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"ports": ports}], "egress": []},
    }


def priority_class(spec: ServingSpec, value: int) -> dict[str, Any]:
    """Who goes first when nodes are full."""
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": metadata(spec),
        "value": Said(value, "user: asked for"),
        "globalDefault": False,
        "description": f"Replicas of {spec.name}.",
    }


# --- ways in -----------------------------------------------------------------------------


def route(spec: ServingSpec, gateway: str, host: str | None) -> dict[str, Any]:
    """From a Gateway to the service."""
    hosts = {"hostnames": [host]} if host else {}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata(spec),
        "spec": {
            "parentRefs": [{"name": gateway}],
            **hosts,
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": [{"name": spec.name, "port": HTTP_PORT}]}],
        },
    }


def ingress(spec: ServingSpec, kind: str, host: str | None) -> dict[str, Any]:
    """From an Ingress controller to the service."""
    paths = [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": spec.name, "port": {"name": "http"}}}}]
    rule = {"host": host, "http": {"paths": paths}} if host else {"http": {"paths": paths}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(spec),
        "spec": {"ingressClassName": kind, "rules": [rule]},
    }


# --- dynamic resource allocation ---------------------------------------------------------


def claim_template(spec: ServingSpec, device_class: str) -> dict[str, Any]:
    """A claim of its own for each pod."""
    count = Said(int(spec.accelerators.value), f"{spec.device}; {provenance(spec.accelerators)}")
    exactly = {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata(spec),
        "spec": {"spec": {"devices": {"requests": [{"name": "accelerator", "exactly": exactly}]}}},
    }


def _claim(pod: dict[str, Any], spec: ServingSpec) -> None:
    """Let the pod have its accelerators by claim instead of by count."""
    pod["resourceClaims"] = [{"name": "accelerator", "resourceClaimTemplateName": spec.name}]
    resources = pod["containers"][0]["resources"]
    for part in ("requests", "limits"):
        resources[part] = {name: value for name, value in resources[part].items() if name != accelerator_resource(spec)}
    resources["claims"] = [{"name": "accelerator"}]
    pod.pop("tolerations", None)  # the driver's taint is its own affair; a count no longer names it
