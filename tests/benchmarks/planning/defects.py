"""Wrong manifests to measure the check with: real mistakes from public issues, and mechanical mutations along the schemas.

The real mistakes were written down before the linter's rules were; each names the issue or pull request in which somebody made it, and makes it in
manifests of ours. They are split once, by the parity of their place in the list: rules may be tuned on the first half, the second is only measured.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

DROP = object()
"""In the place of a value: the field is left out."""


@dataclass(frozen=True)
class Rename:
    """In the place of a value: the field gets another name."""

    name: str


@dataclass(frozen=True)
class Twice:
    """In the place of a value: the document is there a second time, under this name."""

    name: str


Change = tuple[str, str, Any]
"""Kind of the document, slash-separated path in it (behind ``::``, in the YAML text that stands there), and the new value."""


@dataclass(frozen=True)
class Mistake:
    """One mistake that somebody made."""

    name: str
    source: str
    """Repository and number of the issue or pull request."""
    to: str
    """The export it is made in."""
    changes: tuple[Change, ...]


def apply(documents: Sequence[Mapping[str, Any]], changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Copies of `documents` with `changes` made.

    Raises:
        LookupError: there is no such document or field, so that the mistake was not made.
    """
    changed = [copy.deepcopy(dict(d)) for d in documents]
    for kind, path, value in changes:
        document = next((d for d in changed if d.get("kind", "compose") == kind), None)
        if document is None:
            raise LookupError(kind)
        if isinstance(value, Twice):
            twin = copy.deepcopy(document)
            twin["metadata"]["name"] = value.name
            changed.append(twin)
            continue
        outer, _, inner = path.partition("::")
        if inner:
            text = yaml.safe_load(_get(document, outer))
            _set(text, inner, value)
            _set(document, outer, yaml.safe_dump(text))
        else:
            _set(document, outer, value)
    return changed


def _steps(path: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part.replace("~1", "/") for part in path.split("/")]


def _get(node: Any, path: str) -> Any:
    for step in _steps(path):
        node = node[step]
    return node


def _set(node: Any, path: str, value: Any) -> None:
    *way, last = _steps(path)
    for step in way:
        node = node[step]
    if value is DROP:
        del node[last]
    elif isinstance(value, Rename):
        node[value.name] = node.pop(last)
    else:
        node[last] = value


POD = "spec/template/spec"
BOX = f"{POD}/containers/0"
KEDA = "kubernetes(scaler=keda)"
ROUTE = "kubernetes(gateway=edge, host=digits.example)"

MISTAKES = (
    Mistake("selector of another label", "MaximilianMeister/kuberneteth#16", "kubernetes",
            (("Deployment", "spec/selector/matchLabels", {"app": "other"}),)),
    Mistake("no selector", "devspace-cloud/devspace-cloud#5", "kubernetes", (("Deployment", "spec/selector", DROP),)),
    Mistake("template without the selector's label", "kubernetes/kubernetes#28475", "kubernetes",
            (("Deployment", "spec/template/metadata/labels", {"tier": "web"}),)),
    Mistake("probe on a port that was moved", "apache/apisix-helm-chart#741", "kubernetes",
            (("Deployment", f"{BOX}/readinessProbe/httpGet/port", 9080),)),
    Mistake("container listens elsewhere than its ports say", "nextcloud/helm#328", "kubernetes",
            (("Deployment", f"{BOX}/ports/0/containerPort", 80),)),
    Mistake("budget equal to the replicas", "helm/charts#7098", "kubernetes",
            (("PodDisruptionBudget", "spec", {"minAvailable": 2, "selector": {"matchLabels": {"app.kubernetes.io/name": "digits"}}}),)),
    Mistake("budget of one for one replica", "devantler-tech/platform#1880", "kubernetes",
            (("Deployment", "spec/replicas", 1), ("HorizontalPodAutoscaler", "spec/minReplicas", 1),
             ("PodDisruptionBudget", "spec", {"minAvailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": "digits"}}}))),
    Mistake("budget of 100 %", "kubernetes/website#4140", "kubernetes",
            (("PodDisruptionBudget", "spec", {"minAvailable": "100%", "selector": {"matchLabels": {"app.kubernetes.io/name": "digits"}}}),)),
    Mistake("utilization without a request", "kubernetes/kubernetes#78787", "kubernetes",
            (("Deployment", f"{BOX}/resources/requests/cpu", DROP),)),
    Mistake("two scalers of one workload", "kedacore/keda#3755", KEDA, (("ScaledObject", "", Twice("second")),)),
    Mistake("scale target of the first version of KEDA", "kedacore/keda-docs#211", KEDA,
            (("ScaledObject", "spec/scaleTargetRef", {"deploymentName": "digits"}),)),
    Mistake("fewer accelerators requested than limited", "NVIDIA/k8s-device-plugin#154", "kubernetes",
            (("Deployment", f"{BOX}/resources/limits/nvidia.com~1gpu", 3), ("Deployment", f"{BOX}/resources/requests/nvidia.com~1gpu", 1))),
    Mistake("accelerator requested without a limit", "kubernetes/kubernetes#50218", "kubernetes",
            (("Deployment", f"{BOX}/resources/requests/nvidia.com~1gpu", 1),)),
    Mistake("limit of an accelerator in a quota", "loft-sh/kiosk#69", "kubernetes(quota=true)",
            (("ResourceQuota", "spec/hard/limits.nvidia.com~1gpu", 4),)),
    Mistake("scale to zero where the mode cannot", "kserve/kserve#3514", "kserve", (("InferenceService", "spec/predictor/minReplicas", 0),)),
    Mistake("scale metric of another mode", "kserve/website#312", "kserve", (("InferenceService", "spec/predictor/scaleMetric", "concurrency"),)),
    Mistake("most replicas without least", "kserve/kserve#2156", "kserve",
            (("InferenceService", "spec/predictor/maxReplicas", 1), ("InferenceService", "spec/predictor/minReplicas", 6))),
    Mistake("actor larger than any worker", "ray-project/kuberay#4555", "ray",
            (("RayService", "spec/serveConfigV2::applications/0/deployments/0/ray_actor_options/num_cpus", 64),)),
    Mistake("actor wants an accelerator that no worker has", "ray-project/ray#32222", "ray",
            (("RayService", "spec/serveConfigV2::applications/0/deployments/0/ray_actor_options/num_gpus", 1),)),
    Mistake("target as high as what a replica takes", "ray-project/ray#24793", "ray",
            (("RayService", "spec/serveConfigV2::applications/0/deployments/0/max_ongoing_requests", 1),
             ("RayService", "spec/serveConfigV2::applications/0/deployments/0/autoscaling_config/target_ongoing_requests", 1))),
    Mistake("queue that is not there", "kubernetes-sigs/kueue#7929", "kueue",
            (("Deployment", "metadata/labels/kueue.x-k8s.io~1queue-name", "nowhere"),)),
    Mistake("resource that the queue does not cover", "kubernetes-sigs/kueue#4848", "kueue",
            (("Deployment", f"{BOX}/resources/requests/ephemeral-storage", "1Gi"),)),
    Mistake("health check by a program that the image lacks", "BerriAI/litellm#9295", "compose",
            (("compose", "services/digits/healthcheck/test", ["CMD", "curl", "-f", "http://localhost:8000/v2/health/ready"]),)),
    Mistake("health check of a foreign address", "moby/moby#30320", "compose",
            (("compose", "services/digits/healthcheck/test", ["CMD-SHELL", "wget -q http://example.com || exit 1"]),)),
    Mistake("route to a port the service lacks", "kgateway-dev/kgateway#11998", ROUTE,
            (("HTTPRoute", "spec/rules/0/backendRefs/0/port", 800),)),
    Mistake("route without a port", "stakater/application#602", ROUTE, (("HTTPRoute", "spec/rules/0/backendRefs/0/port", DROP),)),
    Mistake("quota of limits that pods do not state", "rancher/rancher#17316", "kubernetes(quota=true)",
            (("ResourceQuota", "spec/hard/limits.cpu", "2"),)),
    Mistake("quota smaller than the service", "hmcts/cnp-flux-config#2122", "kubernetes(quota=true)",
            (("ResourceQuota", "spec/hard/requests.memory", "1Gi"),)),
    Mistake("liveness kills a model that loads", "gke-labs/kube-agents#712", "kubernetes", (("Deployment", f"{BOX}/startupProbe", DROP),)),
    Mistake("start-up probe too short", "treeverse/charts#143", "kubernetes", (("Deployment", f"{BOX}/startupProbe/failureThreshold", 3),)),
    Mistake("egress without names", "DandyDeveloper/charts#151", "kubernetes(network_policy=true)",
            (("NetworkPolicy", "spec/policyTypes", ["Ingress", "Egress"]), ("NetworkPolicy", "spec/egress", [{"ports": [{"port": 443, "protocol": "TCP"}]}]))),
    Mistake("GiB for Gi", "dynamical-org/reformatters#158", "kubernetes",
            (("Deployment", f"{BOX}/resources/limits/memory", "6GiB"), ("Deployment", f"{BOX}/resources/requests/memory", "6GiB"))),
    Mistake("1g for 1G", "mlrun/mlrun#779", "kubernetes", (("Deployment", f"{BOX}/resources/requests/memory", "1g"),)),
    Mistake("upper-case K", "kubeflow/pipelines#14333", "kubernetes", (("Deployment", f"{BOX}/resources/limits/memory", "900000K"),)),
    Mistake("mount of a volume by a wrong name", "kubevious/kubevious#81", "kubernetes", (("Deployment", f"{BOX}/volumeMounts/0/name", "tmpp"),)),
    Mistake("mount written into the volume", "arthur-c/thanos-helm-chart#3", "kubernetes", (("Deployment", f"{POD}/volumes/0/mountPath", "/tmp"),)),
    Mistake("volumes indented away", "cloud-bulldozer/benchmark-operator#85", "kubernetes", (("Deployment", f"{POD}/volumes", DROP),)),
    Mistake("autoscaler of a removed version", "loft-sh/component-chart#97", "kubernetes",
            (("HorizontalPodAutoscaler", "apiVersion", "autoscaling/v2beta1"),)),
    Mistake("budget of a removed version", "helm/community#279", "kubernetes", (("PodDisruptionBudget", "apiVersion", "policy/v1beta1"),)),
    Mistake("hook longer than the grace period", "useparagon/enterprise-installer#145", "kubernetes",
            (("Deployment", f"{BOX}/lifecycle", {"preStop": {"exec": {"command": ["sleep", "65"]}}}),)),
    Mistake("killed in the middle of draining", "kubernetes/kubernetes#23515", "kubernetes",
            (("Deployment", f"{POD}/terminationGracePeriodSeconds", 5),)),
    Mistake("number in an environment variable", "kubernetes/kubernetes#12889", "kubernetes",
            (("Deployment", f"{BOX}/env/0", {"name": "OMP_NUM_THREADS", "value": 2}),)),
    Mistake("expression with a bracket missing", "prometheus/prometheus#3761", "kubernetes(alerts=true)",
            (("PrometheusRule", "spec/groups/0/rules/0/expr", "sum(rate(aimass_requests_total[5m]) / 2 > 1"),)),
    Mistake("memory limit below what it needs", "helm/monocular#473", "kubernetes",
            (("Deployment", f"{BOX}/resources", {"requests": {"cpu": "1500m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}}),)),
    Mistake("memory limit a little below what it needs", "operator-framework/operator-sdk-samples#156", "kubernetes",
            (("Deployment", f"{BOX}/resources", {"requests": {"cpu": "1500m", "memory": "500Mi"}, "limits": {"memory": "500Mi"}}),)),
    Mistake("service selects nothing", "kubernetes/kubernetes#7341", "kubernetes", (("Service", "spec/selector", {"name": "digits"}),)),
    Mistake("containerPort in a service", "kubernetes/website#26681", "kubernetes", (("Service", "spec/ports/0/targetPort", Rename("containerPort")),)),
    Mistake("target port by a name that no container has", "kubernetes/website#26790", "kubernetes", (("Service", "spec/ports/0/targetPort", "web"),)),
    Mistake("ports of a service without names", "kubernetes/kubernetes#79732", "kubernetes", (("Service", "spec/ports/0/name", DROP),)),
    Mistake("port 80 as a user who may not", "grokability/snipe-it#18617", "kubernetes",
            (("Deployment", f"{BOX}/ports/0/containerPort", 80), ("Deployment", f"{BOX}/args/4", "80"))),
    Mistake("non-root, with root's number", "dotnet/dotnet-docker#5120", "kubernetes", (("Deployment", f"{POD}/securityContext/runAsUser", 0),)),
    Mistake("protocol of the application in a service", "kgateway-dev/kgateway#11998", "kubernetes", (("Service", "spec/ports/0/protocol", "HTTP"),)),
    Mistake("budget without a selector", "openshift/openshift-docs#17793", "kubernetes",
            (("PodDisruptionBudget", "spec", {"maxUnavailable": None}),)),
    Mistake("request above the limit", "openshift/origin#10953", "kubernetes", (("Deployment", f"{BOX}/resources/limits/memory", "256Mi"),)),
)  # fmt: skip


INGRESS = "kubernetes(ingress=nginx, host=digits.example)"
PATH = "spec/rules/0/http/paths/0"

LATER = (
    Mistake("backend of the old Ingress", "camunda/camunda-platform-helm#23", INGRESS,
            (("Ingress", f"{PATH}/backend", {"serviceName": "digits", "servicePort": 8000}),)),
    Mistake("no pathType", "carlosedp/cluster-monitoring#115", INGRESS, (("Ingress", f"{PATH}/pathType", DROP),)),
    Mistake("old fields beside the new ones", "same7ammar/kube-composer#46", INGRESS, (("Ingress", f"{PATH}/serviceName", "digits"),)),
    Mistake("threshold of zero", "kedacore/keda#5857", KEDA, (("ScaledObject", "spec/triggers/0/metadata/threshold", "0"),)),
    Mistake("no threshold", "kedacore/keda#2793", KEDA, (("ScaledObject", "spec/triggers/0/metadata/threshold", DROP),)),
    Mistake("metric type that a trigger cannot have", "kedacore/keda#6786", KEDA, (("ScaledObject", "spec/triggers/0/metricType", "Utilization"),)),
    Mistake("most replicas below zero", "kedacore/keda#6356", KEDA, (("ScaledObject", "spec/maxReplicaCount", -1),)),
    Mistake("behaviour indented away", "kedacore/keda#2724", KEDA,
            (("ScaledObject", "spec/advanced", {"horizontalPodAutoscalerConfig": None, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}}),)),
    Mistake("replica counts in the trigger, as numbers", "kedacore/keda-docs#302", KEDA, (("ScaledObject", "spec/triggers/0/metadata/minReplicaCount", 0),)),
    Mistake("bracket missing in the query", "kedacore/keda#3855", KEDA,
            (("ScaledObject", "spec/triggers/0/metadata/query", 'rate(aimass_queue_items{job="digits"[1m]})'),)),
    Mistake("idle replicas as many as the least", "kedacore/keda#2619", KEDA,
            (("ScaledObject", "spec/idleReplicaCount", 2),)),
    Mistake("one host port for all replicas", "docker/compose#7770", "compose", (("compose", "services/digits/ports/0", "127.0.0.1:9999:8000"),)),
    Mistake("name of a port too long", "osbuild/image-builder-crc#34", "kubernetes",
            (("Deployment", f"{BOX}/ports/0/name", "image-builder-api"), ("Service", "spec/ports/0/targetPort", "image-builder-api"),
             ("Deployment", f"{BOX}/startupProbe/httpGet/port", "image-builder-api"), ("Deployment", f"{BOX}/readinessProbe/httpGet/port", "image-builder-api"),
             ("Deployment", f"{BOX}/livenessProbe/httpGet/port", "image-builder-api"))),
    Mistake("upper case in the name of a port", "kube-compose/kube-compose#29", "kubernetes", (("Service", "spec/ports/0/name", "TCP-8080"),)),
    Mistake("dot in the name of a container", "inspursoft/board#449", "kubernetes", (("Deployment", f"{BOX}/name", "oadb2.0"),)),
    Mistake("read-only root and nowhere to write", "trueforge-org/truecharts#1094", "kubernetes",
            (("Deployment", f"{BOX}/volumeMounts", DROP), ("Deployment", f"{POD}/volumes", DROP))),
    Mistake("checksum as a label", "istio/istio#2993", "kubernetes", (("Deployment", "spec/template/metadata/labels/checksum", "0123456789abcdef" * 4),)),
    Mistake("digest of an image as a label", "paritytech/helm-charts#350", "kubernetes", (("Deployment", "metadata/labels/version", "latest@sha256:8bc3"),)),
)  # fmt: skip
"""Collected when the rules stood, and measured before any rule was changed for them; MANIFESTS.md has that figure."""


ALERTS = "kubernetes(alerts=true)"

LAST = (
    Mistake("settings of a rolling update with Recreate", "docker-mailserver/docker-mailserver-helm#6", "kubernetes",
            (("Deployment", "spec/strategy/type", "Recreate"),)),
    Mistake("node port out of the range", "prometheus-operator/prometheus-operator#496", "kubernetes",
            (("Service", "spec/type", "NodePort"), ("Service", "spec/ports/0/nodePort", 9090))),
    Mistake("monitor by the port's number in quotes", "prometheus-operator/prometheus-operator#3244", ALERTS,
            (("ServiceMonitor", "spec/endpoints/0/port", "8000"),)),
    Mistake("monitor of a port that is not there", "Altinity/clickhouse-operator#1287", ALERTS,
            (("ServiceMonitor", "spec/endpoints/0/port", "metrics"),)),
    Mistake("monitor by the port's number", "sstarcher/helm-exporter#31", ALERTS,
            (("ServiceMonitor", "spec/endpoints/0/port", 8000),)),
    Mistake("name and key of a secret exchanged", "xtf-cz/xtf#548", "kubernetes",
            (("Deployment", f"{BOX}/env/0/valueFrom/secretKeyRef", {"name": "token", "key": "digits-token"}),)),
)  # fmt: skip
"""Collected after the rules were changed for `LATER`, and not tuned for."""


def halves() -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    """Those that rules may be tuned on, and those held out."""
    return MISTAKES[0::2], MISTAKES[1::2]


# --- along the schemas -------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """One mechanical change of one document."""

    how: str
    kind: str
    path: str
    document: Mapping[str, Any]


def mutate(documents: Sequence[Mapping[str, Any]], schema_of: Any, *, seed: int, per_document: int) -> Iterator[Mutation]:
    """Break each document in up to `per_document` places that its schema speaks of.

    Args:
        documents: Right ones.
        schema_of: Document -> its JSON Schema with every reference resolved, or None.
        seed: The same gives the same.
        per_document: Most mutations of one document.
    """
    source = random.Random(seed)
    for document in documents:
        schema = schema_of(document)
        if schema is None:
            continue
        places = list(_places(document, schema, ""))
        for how, path, value in source.sample(places, min(per_document, len(places))):
            changed = copy.deepcopy(dict(document))
            _set(changed, path, value)
            yield Mutation(how=how, kind=str(document["kind"]), path=path, document=changed)


def _places(node: Any, schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    properties = schema.get("properties")
    if isinstance(node, dict) and properties and path not in ("metadata",):
        for key, value in node.items():
            if key not in properties or (not path and key in ("apiVersion", "kind", "metadata")):
                continue
            here = f"{path}/{key}".lstrip("/")
            yield "misspelt", here, Rename(_misspell(key))
            if key in schema.get("required", ()):
                yield "left out", here, DROP
            yield from _wrong_types(here, value, properties[key])
            yield from _places(value, properties[key], here)
    elif isinstance(node, list) and isinstance(schema.get("items"), dict):
        for index, value in enumerate(node):
            yield from _places(value, schema["items"], f"{path}/{index}")


def _misspell(key: str) -> str:
    middle = len(key) // 2
    return key[:middle] + key[middle + 1 :] + key[middle] if len(set(key[middle:])) > 1 else key + "s"


def _wrong_types(path: str, value: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    types = schema.get("type")
    types = set(types if isinstance(types, list) else [types])
    if schema.get("x-kubernetes-int-or-string") or "oneOf" in schema or "anyOf" in schema:
        return
    if "string" in types and not types & {"integer", "number"}:
        yield "number for text", path, 7
    if "integer" in types and not types & {"string"}:
        yield "text for a number", path, "seven"
    if "boolean" in types:
        yield "text for a truth value", path, "yes"
    if "array" in types and isinstance(value, list):
        yield "one for a list", path, value[0] if value else "one"
    if "object" in types and isinstance(value, dict):
        yield "text for a mapping", path, "text"
    if schema.get("enum"):
        yield "no such choice", path, "Nonsense"
