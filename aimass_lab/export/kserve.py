"""KServe: the bundle as the custom predictor of an InferenceService, speaking the Open Inference Protocol v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..manifests.server import HTTP_PORT
from ..records import ServingSpec
from ..spec import CPU_SIGNAL_LIMIT
from ._workload import config_map, header, metadata, pod
from ._yaml import Said, dump
from .base import EXPORTERS, Exporter, provenance

REQUEST_TIMEOUT_S = 30


@EXPORTERS.register("kserve")
@dataclass(frozen=True, kw_only=True)
class KServe(Exporter):
    """An InferenceService; the pod is the one of the Kubernetes export."""

    mode: Literal["Standard", "Knative"] = "Standard"
    """Standard makes Deployment and autoscaler, Knative scales on requests per second; before KServe 0.16 they were called RawDeployment and Serverless."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """The service and its spec."""
        documents = {"inference-service.yaml": self._service(spec), "spec-configmap.yaml": config_map(spec)}
        return {name: dump(document, header(spec)) for name, document in documents.items()}

    def _service(self, spec: ServingSpec) -> dict[str, Any]:
        predictor: dict[str, Any] = {
            "minReplicas": Said(int(spec.min_replicas.value), provenance(spec.min_replicas)),
            "maxReplicas": Said(int(spec.max_replicas.value), provenance(spec.max_replicas)),
            **self._scaling(spec),
            "timeout": Said(REQUEST_TIMEOUT_S, "s: the server answers 504 by itself after that time"),
            **pod(spec),
        }
        server = predictor["containers"][0]
        server["name"] = "kserve-container"  # the name that KServe takes for the model's
        server["ports"] = [{"name": "http1", "containerPort": HTTP_PORT, "protocol": "TCP"}]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            server[probe]["httpGet"]["port"] = HTTP_PORT
        predictor.pop("topologySpreadConstraints")  # KServe labels the pods itself, so that ours would select none
        scaler = {"serving.kserve.io/autoscalerClass": "none" if spec.accelerators.value else "hpa"} if self.mode == "Standard" else {}
        return {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": metadata(spec, **{"serving.kserve.io/deploymentMode": self.mode, **scaler}),
            "spec": {"predictor": predictor},
        }

    def _scaling(self, spec: ServingSpec) -> dict[str, Any]:
        if self.mode == "Knative":
            return {"scaleMetric": "rps", "scaleTarget": Said(max(1, int(spec.scale_at.value)), f"per replica; {provenance(spec.scale_at)}")}
        if spec.accelerators.value:
            return {}
        load = max(10, round(100 * min(spec.utilization.value, CPU_SIGNAL_LIMIT)))
        return {"scaleMetric": "cpu", "scaleTarget": Said(load, f"% of the request; {provenance(spec.utilization)}")}
