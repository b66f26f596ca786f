"""Ray Serve on KubeRay: a RayService, with its Serve configuration in it and as a file of its own."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ..records import ServingSpec
from ._workload import config_map, cores, header, is_gpu, metadata, pod
from ._yaml import Said, dump
from .base import EXPORTERS, Exporter, provenance

SPARE_CORES = 0.5
"""Of a worker pod, for Ray's own processes beside the actor."""


@EXPORTERS.register("ray")
@dataclass(frozen=True, kw_only=True)
class Ray(Exporter):
    """A RayService whose workers each hold one replica."""

    application: str = "serve_app:app"
    """Module and name of the Serve application in the image: a bundle has none, so this one is yours."""
    ray_version: str = "2.46.0"
    """Of the image; head and workers must agree."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """The service, its spec, and the Serve configuration for ``serve deploy``."""
        lines = header(spec, f"the image must hold Ray {self.ray_version} and the Serve application {self.application}")
        documents = {"ray-service.yaml": self._service(spec), "spec-configmap.yaml": config_map(spec)}
        made = {name: dump(document, lines) for name, document in documents.items()}
        return {**made, "serve-config.yaml": dump(self._serve_config(spec), [*lines, f"spec aimass.dev/spec-digest: {spec.digest}"])}

    def _serve_config(self, spec: ServingSpec) -> dict[str, Any]:
        actor: dict[str, Any] = {"num_cpus": Said(spec.cpu_cores.value, provenance(spec.cpu_cores))}
        if spec.accelerators.value:
            count = Said(int(spec.accelerators.value), provenance(spec.accelerators))
            actor |= {"num_gpus": count} if is_gpu(spec) else {"resources": {spec.device: count}}
        ongoing = max(1, math.ceil(spec.scale_at.value * spec.latency_p99_target.value))
        why = f"{spec.scale_at.value:.4g}/s per replica x p99 target (Little's law); {provenance(spec.scale_at)}"
        most = max(2 * int(spec.max_batch_size.value), 2 * ongoing)
        deployment = {
            "name": spec.name,
            "max_ongoing_requests": Said(most, f"twice the batch limit or the target; {provenance(spec.max_batch_size)}"),
            "autoscaling_config": {
                "min_replicas": Said(int(spec.min_replicas.value), provenance(spec.min_replicas)),
                "max_replicas": Said(int(spec.max_replicas.value), provenance(spec.max_replicas)),
                "target_ongoing_requests": Said(ongoing, why),
            },
            "ray_actor_options": actor,
        }
        return {"applications": [{"name": spec.name, "route_prefix": "/", "import_path": self.application, "deployments": [deployment]}]}

    def _service(self, spec: ServingSpec) -> dict[str, Any]:
        workers = {
            "groupName": "workers",
            "replicas": Said(int(spec.replicas.value), provenance(spec.replicas)),
            "minReplicas": Said(int(spec.min_replicas.value), provenance(spec.min_replicas)),
            "maxReplicas": Said(int(spec.max_replicas.value), provenance(spec.max_replicas)),
            "rayStartParams": _ray_resources(spec),
            "template": {"spec": self._pod(spec, "ray-worker")},
        }
        head = self._pod(spec, "ray-head")
        head["containers"][0] |= {
            "resources": {
                "requests": {"cpu": Said("1", "assumed: Ray's own advice for a small cluster"), "memory": Said("4Gi", "assumed: the same")},
                "limits": {"memory": Said("4Gi", "as requested")},
            },
            "ports": [{"name": "gcs", "containerPort": 6379}, {"name": "dashboard", "containerPort": 8265}, {"name": "serve", "containerPort": 8000}],
        }
        head.pop("tolerations", None)
        head.pop("nodeSelector", None)
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": metadata(spec),
            "spec": {
                "serveConfigV2": dump(self._serve_config(spec)).rstrip("\n"),
                "rayClusterConfig": {
                    "rayVersion": self.ray_version,
                    "enableInTreeAutoscaling": True,
                    "headGroupSpec": {"rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"}, "template": {"spec": head}},
                    "workerGroupSpecs": [workers],
                },
            },
        }

    def _pod(self, spec: ServingSpec, name: str) -> dict[str, Any]:
        """Ray starts its own processes and writes where it likes, so probes, command and the read-only root of the plain pod do not apply."""
        one = pod(spec)
        server = one["containers"][0]
        kept: dict[str, Any] = {key: server[key] for key in ("image", "resources")}
        asked = Said(cores(spec.cpu_cores.value + SPARE_CORES), f"the actor's and {SPARE_CORES:g} for Ray; {provenance(spec.cpu_cores)}")
        kept["resources"]["requests"] = {**kept["resources"]["requests"], "cpu": asked}
        shared = ("automountServiceAccountToken", "enableServiceLinks", "tolerations", "nodeSelector", "terminationGracePeriodSeconds")
        found: dict[str, Any] = {key: one[key] for key in shared if key in one}
        return {**found, "containers": [{"name": name, **kept}]}


def _ray_resources(spec: ServingSpec) -> dict[str, str]:
    """Ray finds GPUs by itself; of other devices a worker has to say what it holds, in JSON that a shell is to read as one word."""
    if not spec.accelerators.value or is_gpu(spec):
        return {}
    return {"resources": "'" + json.dumps({spec.device: int(spec.accelerators.value)}) + "'"}
