"""The replicas as Kubernetes runs them, which several exporters write: Deployment, Service, pod, and the spec beside them."""

from __future__ import annotations

import json
import math
from typing import Any

from ..devices import load_devices, resource_name
from ..errors import SpecError
from ..manifests.server import DRAIN_S, GRPC_PORT, HTTP_PORT, LIVE, READY, TOKEN_VARIABLE, USER, command
from ..records import Environment, Number, ServingSpec, to_json
from ..spec import spec_numbers
from ..units import format_quantity, format_seconds
from ._yaml import Said
from .base import provenance
from .json import SPEC_FILE

DIGEST = "aimass.dev/spec-digest"
PROVENANCE = "aimass.dev/provenance"
_PROBE_PERIOD_S = 5
_MIB = 2**20


def header(spec: ServingSpec, *more: str) -> list[str]:
    """Comment lines for the top of a file."""
    return [
        f"{spec.name}: {format_quantity(spec.requests_per_s.value, 'request/s')} with p99 within "
        f"{format_seconds(spec.latency_p99_target.value)}; behind each number stands where it comes from",
        f"before the first apply: kubectl create secret generic {spec.name}-token --from-literal=token=...",
        *more,
    ]


def metadata(spec: ServingSpec, ending: str = "", **annotations: str) -> dict[str, Any]:
    """Name, labels, and the spec's digest."""
    return {
        "name": spec.name + ending,
        "labels": {**selector(spec), "app.kubernetes.io/managed-by": "aimass-lab"},
        "annotations": {DIGEST: spec.digest, **annotations},
    }


def selector(spec: ServingSpec) -> dict[str, str]:
    """The label that all pods of the service carry, and nothing else does."""
    return {"app.kubernetes.io/name": spec.name}


# --- Deployment --------------------------------------------------------------------------


def deployment(spec: ServingSpec) -> dict[str, Any]:
    """The replicas. They start at the planned number; afterwards an autoscaler owns it where there is one."""
    sources = {field: provenance(number) for field, number in spec_numbers(spec)}
    annotations = {PROVENANCE: json.dumps(sources, separators=(",", ":")), "aimass.dev/scale-at": f"{spec.scale_at.value:.6g} request/s per replica"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(spec, **annotations),
        "spec": {
            "replicas": Said(int(spec.replicas.value), provenance(spec.replicas)),
            "selector": {"matchLabels": selector(spec)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": Said(0, "the planned replicas stay up")}},
            "template": {
                "metadata": {"labels": selector(spec), "annotations": {DIGEST: spec.digest}},
                "spec": pod(spec),
            },
        },
    }


def pod(spec: ServingSpec) -> dict[str, Any]:
    """What one replica is."""
    one: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace(spec),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(spec)},
            }
        ],
    }
    if spec.accelerators.value:
        one["tolerations"] = [{"key": accelerator_resource(spec), "operator": "Exists", "effect": "NoSchedule"}]
    if spec.node_selector:
        one["nodeSelector"] = dict(spec.node_selector)
    one["containers"] = [container(spec)]
    one["volumes"] = [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}]
    return one


def container(spec: ServingSpec) -> dict[str, Any]:
    """The server of the bundle."""
    program, arguments = command()
    return {
        "name": "server",
        "image": spec.image,
        "command": program,
        "args": arguments,
        "env": [
            {
                # The server listens beyond loopback only with a token.
                "name": TOKEN_VARIABLE,
                "valueFrom": {"secretKeyRef": {"name": f"{spec.name}-token", "key": "token"}},
            }
        ],
        "ports": [{"name": "http", "containerPort": HTTP_PORT}, {"name": "grpc", "containerPort": GRPC_PORT}],
        "resources": resources(spec),
        "startupProbe": _probe(READY, startup_failures(spec)),
        "readinessProbe": _probe(READY, 1),
        "livenessProbe": _probe(LIVE, 3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def resources(spec: ServingSpec) -> dict[str, Any]:
    """Memory: limit equals request. Processor: no limit, as throttling would lengthen the tail."""
    memory = Said(mebibytes(spec.memory_bytes), provenance(spec.memory_bytes))
    requests: dict[str, Any] = {"cpu": Said(cores(spec.cpu_cores.value), provenance(spec.cpu_cores)), "memory": memory}
    limits: dict[str, Any] = {"memory": Said(memory.value, "as requested")}
    if spec.accelerators.value:
        count = Said(int(spec.accelerators.value), f"{spec.device}; {provenance(spec.accelerators)}")
        requests[accelerator_resource(spec)] = limits[accelerator_resource(spec)] = count
    return {"requests": requests, "limits": limits}


def cores(value: float) -> str:
    """As Kubernetes writes them: whole ones, or thousandths."""
    return str(int(value)) if value == int(value) else f"{math.ceil(value * 1000)}m"


def mebibytes(number: Number, times: int = 1) -> str:
    """Bytes as Kubernetes writes them."""
    return f"{math.ceil(number.value / _MIB) * times}Mi"


def accelerator_resource(spec: ServingSpec) -> str:
    """The name under which the vendor's device plugin offers it.

    Raises:
        SpecError: nothing says so.
    """
    return spec.resource or offered_as(spec.device, spec.environment)


def offered_as(device: str, environment: Environment | None) -> str:
    """The name under which a cluster offers a device.

    Raises:
        SpecError: nothing says so.
    """
    found = resource_name(device, environment.device_name if environment else "")
    if found is None:
        text = f"nothing says under which name a cluster offers {device}"
        raise SpecError(text, help=f'add what its device plugin calls it to the table [{device}] of your device catalogue: resource = "vendor.com/name"')
    return found


def is_gpu(spec: ServingSpec) -> bool:
    """Whether its accelerators are GPUs, which some platforms know by that name only."""
    entry = load_devices().get(spec.device)
    return entry is None or entry.kind == "gpu"


def startup_budget(spec: ServingSpec) -> tuple[float, str]:
    """Seconds in which a replica must have started, twice the start-up time and 30 at least; and why."""
    why = f"2 x start-up {format_seconds(spec.startup_time.value)}, at least 30 s; {provenance(spec.startup_time)}"
    return max(2 * spec.startup_time.value, 30), why


def startup_failures(spec: ServingSpec) -> Said:
    """Probes that may fail while a replica starts."""
    seconds, why = startup_budget(spec)
    return Said(math.ceil(seconds / _PROBE_PERIOD_S), f"{_PROBE_PERIOD_S} s apart: {why}")


def _probe(path: str, failures: int | Said) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": _PROBE_PERIOD_S, "timeoutSeconds": 2, "failureThreshold": failures}


def grace(spec: ServingSpec) -> Said:
    """Time to answer what is in flight: what the server may take to drain, ten times the target at least."""
    seconds = max(DRAIN_S, math.ceil(10 * spec.latency_p99_target.value))
    why = f"10 x p99 target {format_seconds(spec.latency_p99_target.value)}, at least the {DRAIN_S} s in which the server drains"
    return Said(seconds, f"{why}; {provenance(spec.latency_p99_target)}")


# --- what stands around it ---------------------------------------------------------------


def service(spec: ServingSpec) -> dict[str, Any]:
    """One address for all replicas; it spreads connections over them at random."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(spec),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(spec),
            "ports": [
                {"name": "http", "port": HTTP_PORT, "targetPort": "http"},
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc"},
            ],
        },
    }


def config_map(spec: ServingSpec) -> dict[str, Any]:
    """The spec itself, so that manifests can be checked against it with nothing else at hand."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(spec, "-spec"), "data": {SPEC_FILE: to_json(spec)}}
