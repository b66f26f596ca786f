"""Kubernetes manifests: Deployment, Service, autoscaler, disruption budget, and the spec beside them."""

from __future__ import annotations

import json
import math
from typing import Any

from ..devices import load_devices
from ..records import ServingSpec, to_json
from ..spec import CPU_SIGNAL_LIMIT, spec_numbers
from ..units import format_quantity, format_seconds
from ._yaml import Said, dump
from .base import EXPORTERS, checked, provenance
from .json import SPEC_FILE

DIGEST = "aimass.dev/spec-digest"
PROVENANCE = "aimass.dev/provenance"
HTTP_PORT, GRPC_PORT = 8000, 8001
_PROBE_PERIOD_S = 5
_MIB = 2**20


@EXPORTERS.register("kubernetes")
@checked
def export(spec: ServingSpec) -> dict[str, str]:
    """One file an object; together they are what ``kubectl apply -f FOLDER`` wants."""
    documents = {
        "deployment.yaml": deployment(spec),
        "service.yaml": service(spec),
        "disruption-budget.yaml": disruption_budget(spec),
        "spec-configmap.yaml": config_map(spec),
    }
    if not spec.accelerators.value:
        documents["autoscaler.yaml"] = autoscaler(spec)
    return {name: dump(document, _header(spec)) for name, document in documents.items()}


def _header(spec: ServingSpec) -> list[str]:
    lines = [
        f"{spec.name}: {format_quantity(spec.requests_per_s.value, 'request/s')} with p99 within "
        f"{format_seconds(spec.latency_p99_target.value)}; behind each number stands where it comes from",
        f"before the first apply: kubectl create secret generic {spec.name}-token --from-literal=token=...",
    ]
    if spec.accelerators.value:
        lines.append(
            "no autoscaler: processor load says nothing about an accelerator; scale on requests per second by a custom metric, "
            f"at {spec.scale_at.value:.4g} per replica ({provenance(spec.scale_at)})"
        )
    return lines


def _metadata(spec: ServingSpec, ending: str = "", **annotations: str) -> dict[str, Any]:
    return {
        "name": spec.name + ending,
        "labels": {**_selector(spec), "app.kubernetes.io/managed-by": "aimass-lab"},
        "annotations": {DIGEST: spec.digest, **annotations},
    }


def _selector(spec: ServingSpec) -> dict[str, str]:
    return {"app.kubernetes.io/name": spec.name}


# --- Deployment --------------------------------------------------------------------------


def deployment(spec: ServingSpec) -> dict[str, Any]:
    """The replicas. They start at the planned number; afterwards an autoscaler owns it where there is one."""
    sources = {field: provenance(number) for field, number in spec_numbers(spec)}
    annotations = {PROVENANCE: json.dumps(sources, separators=(",", ":")), "aimass.dev/scale-at": f"{spec.scale_at.value:.6g} request/s per replica"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(spec, **annotations),
        "spec": {
            "replicas": Said(int(spec.replicas.value), provenance(spec.replicas)),
            "selector": {"matchLabels": _selector(spec)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": Said(0, "the planned replicas stay up")}},
            "template": {
                "metadata": {"labels": _selector(spec), "annotations": {DIGEST: spec.digest}},
                "spec": _pod(spec),
            },
        },
    }


def _pod(spec: ServingSpec) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _grace(spec),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _selector(spec)},
            }
        ],
    }
    if spec.accelerators.value:
        pod["tolerations"] = [{"key": _accelerator_resource(spec), "operator": "Exists", "effect": "NoSchedule"}]
    pod["containers"] = [_container(spec)]
    pod["volumes"] = [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}]
    return pod


def _container(spec: ServingSpec) -> dict[str, Any]:
    return {
        "name": "server",
        "image": spec.image,
        "command": ["python", "run.py"],
        "args": ["serve", "--host", "0.0.0.0", "--port", str(HTTP_PORT), "--grpc-port", str(GRPC_PORT)],
        "env": [
            {
                # The server listens beyond loopback only with a token.
                "name": "AIMASS_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": f"{spec.name}-token", "key": "token"}},
            }
        ],
        "ports": [{"name": "http", "containerPort": HTTP_PORT}, {"name": "grpc", "containerPort": GRPC_PORT}],
        "resources": _resources(spec),
        "startupProbe": _probe("ready", _startup_failures(spec)),
        "readinessProbe": _probe("ready", 1),
        "livenessProbe": _probe("live", 3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _resources(spec: ServingSpec) -> dict[str, Any]:
    """Memory: limit equals request. Processor: no limit, as throttling would lengthen the tail."""
    memory = Said(f"{math.ceil(spec.memory_bytes.value / _MIB)}Mi", provenance(spec.memory_bytes))
    requests: dict[str, Any] = {"cpu": Said(_cores(spec.cpu_cores.value), provenance(spec.cpu_cores)), "memory": memory}
    limits: dict[str, Any] = {"memory": Said(memory.value, "as requested")}
    if spec.accelerators.value:
        count = Said(int(spec.accelerators.value), f"{spec.device}; {provenance(spec.accelerators)}")
        requests[_accelerator_resource(spec)] = limits[_accelerator_resource(spec)] = count
    return {"requests": requests, "limits": limits}


def _cores(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{math.ceil(value * 1000)}m"


def _accelerator_resource(spec: ServingSpec) -> str:
    """The name under which the vendor's device plugin offers it."""
    device = load_devices().get(spec.device)
    attached = spec.environment.device_name if spec.environment else ""
    return "amd.com/gpu" if (device.title if device else attached).startswith("AMD ") else "nvidia.com/gpu"


def _startup_failures(spec: ServingSpec) -> Said:
    """Probes that may fail while a replica starts: twice the start-up time, 30 s at least."""
    budget = max(2 * spec.startup_time.value, 30)
    comment = f"{_PROBE_PERIOD_S} s apart: 2 x start-up {format_seconds(spec.startup_time.value)}, at least 30 s; {provenance(spec.startup_time)}"
    return Said(math.ceil(budget / _PROBE_PERIOD_S), comment)


def _probe(kind: str, failures: int | Said) -> dict[str, Any]:
    path = f"/v2/health/{kind}"
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": _PROBE_PERIOD_S, "timeoutSeconds": 2, "failureThreshold": failures}


def _grace(spec: ServingSpec) -> Said:
    """Time to answer what is in flight: ten times the target, 30 s at least."""
    seconds = max(30, math.ceil(10 * spec.latency_p99_target.value))
    return Said(seconds, f"10 x p99 target {format_seconds(spec.latency_p99_target.value)}, at least 30 s; {provenance(spec.latency_p99_target)}")


# --- what stands around it ---------------------------------------------------------------


def service(spec: ServingSpec) -> dict[str, Any]:
    """One address for all replicas; it spreads connections over them at random."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec),
        "spec": {
            "type": "ClusterIP",
            "selector": _selector(spec),
            "ports": [
                {"name": "http", "port": HTTP_PORT, "targetPort": "http"},
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc"},
            ],
        },
    }


def autoscaler(spec: ServingSpec) -> dict[str, Any]:
    """Scaling on processor load, for replicas that compute on the processor."""
    load = max(10, round(100 * min(spec.utilization.value, CPU_SIGNAL_LIMIT)))
    capped = f", at most {100 * CPU_SIGNAL_LIMIT:.0f} %" if spec.utilization.value > CPU_SIGNAL_LIMIT else ""
    comment = f"computing {100 * spec.utilization.value:.0f} % of the time at the planned rate{capped}; {provenance(spec.utilization)}"
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(spec),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name},
            "minReplicas": Said(int(spec.min_replicas.value), provenance(spec.min_replicas)),
            "maxReplicas": Said(int(spec.max_replicas.value), provenance(spec.max_replicas)),
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": Said(load, comment)}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": Said(300, "the platform's default, written down")}},
        },
    }


def disruption_budget(spec: ServingSpec) -> dict[str, Any]:
    """Nodes are drained one replica at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(spec),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(spec)}},
    }


def config_map(spec: ServingSpec) -> dict[str, Any]:
    """The spec itself, so that manifests can be checked against it with nothing else at hand."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(spec, "-spec"), "data": {SPEC_FILE: to_json(spec)}}
