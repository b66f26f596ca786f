"""Parsed manifests as the rules look at them: whatever is missing or of a wrong type reads as empty, since the schemas speak of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..records import Finding


def mapping(node: Any) -> dict[str, Any]:
    """The node, where it is a mapping."""
    return node if isinstance(node, dict) else {}


def entries(node: Any) -> list[tuple[int, dict[str, Any]]]:
    """The mappings of a list, with their places."""
    return [(i, item) for i, item in enumerate(node) if isinstance(item, dict)] if isinstance(node, list) else []


def at(node: Any, path: str) -> Any:
    """What stands at a slash-separated path of keys; None where there is nothing."""
    for step in path.split("/"):
        node = mapping(node).get(step)
    return node


def whole(node: Any) -> int | None:
    """The node, where it is a whole number."""
    return node if isinstance(node, int) and not isinstance(node, bool) else None


@dataclass(frozen=True)
class Object:
    """One document of a file."""

    file: str
    document: dict[str, Any]

    @property
    def kind(self) -> str:
        """Of a Kubernetes object; empty for others."""
        return str(self.document.get("kind") or "")

    @property
    def api(self) -> str:
        """``"apps/v1"``."""
        return str(self.document.get("apiVersion") or "")

    @property
    def name(self) -> str:
        """Of a Kubernetes object."""
        return str(at(self.document, "metadata/name") or "")

    @property
    def namespace(self) -> str:
        """Of a Kubernetes object; empty where it leaves that to whoever applies it."""
        return str(at(self.document, "metadata/namespace") or "")

    @property
    def spec(self) -> dict[str, Any]:
        """Its specification."""
        return mapping(self.document.get("spec"))

    def finding(self, code: str, path: str, text: str) -> Finding:
        """Something about the field at `path`: slash-separated, a slash in a key written as ``~1``."""
        return Finding(code=code, path=f"{self.file}#/{path}".rstrip("/"), text=f"{self.kind} {self.name}: {text}" if self.kind else text)


@dataclass(frozen=True)
class Workload:
    """Pods that an object makes, all alike."""

    owner: Object
    pod: dict[str, Any]
    path: str
    """Of the pod's specification in the owner."""
    labels: dict[str, Any]
    replicas: int | None
    """As written; None where something else decides."""

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Those that run, with their paths."""
        for part in ("containers", "initContainers"):
            for index, container in entries(self.pod.get(part)):
                yield f"{self.path}/{part}/{index}", container

    def mains(self) -> list[tuple[str, dict[str, Any]]]:
        """Those that run all the time."""
        return [(f"{self.path}/containers/{i}", c) for i, c in entries(self.pod.get("containers"))]

    def request(self, resource: str) -> Any:
        """What one container asks for, explicitly or by its limit; the last that does."""
        found = None
        for _, container in self.mains():
            resources = mapping(container.get("resources"))
            for part in ("requests", "limits"):
                value = mapping(resources.get(part)).get(resource)
                if value is not None:
                    found = value
                    break
        return found


@dataclass(frozen=True)
class Objects:
    """All documents that are checked together."""

    every: tuple[Object, ...]

    @classmethod
    def of(cls, files: Mapping[str, list[Any]]) -> Objects:
        """From file name -> parsed documents; a List's items count as documents."""
        found = []
        for file, documents in files.items():
            for document in documents:
                items = document.get("items") if isinstance(document, dict) and document.get("kind") == "List" else None
                found += [Object(file, item) for item in (items if isinstance(items, list) else [document]) if isinstance(item, dict)]
        return cls(tuple(found))

    def of_kind(self, *kinds: str) -> list[Object]:
        """Those of these kinds."""
        return [item for item in self.every if item.kind in kinds]

    def named(self, kind: str, name: Any, beside: Object) -> Object | None:
        """The one of this kind and name in the same namespace."""
        return next((item for item in self.of_kind(kind) if item.name == name and item.namespace == beside.namespace), None)

    def workloads(self) -> list[Workload]:
        """The pods of Deployments and their like, of single pods, of InferenceServices and of Ray's groups."""
        return [workload for item in self.every for workload in _workloads(item)]

    def selected(self, selector: Mapping[str, Any], beside: Object) -> list[Workload]:
        """Those whose pods carry all these labels."""
        return [w for w in self.workloads() if w.owner.namespace == beside.namespace and selector.items() <= w.labels.items()]

    @property
    def complete(self) -> bool:
        """Whether there is a workload, so that a reference to none is a mistake and not merely outside of what is checked."""
        return bool(self.of_kind("Deployment", "StatefulSet", "DaemonSet", "Pod", "Job"))


def _workloads(item: Object) -> Iterator[Workload]:
    spec = item.spec
    if item.kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"):
        count = None if item.kind == "DaemonSet" else whole(spec.get("parallelism" if item.kind == "Job" else "replicas"))
        yield Workload(item, mapping(at(spec, "template/spec")), "spec/template/spec", mapping(at(spec, "template/metadata/labels")), count)
    elif item.kind == "CronJob":
        template = "jobTemplate/spec/template"
        yield Workload(item, mapping(at(spec, f"{template}/spec")), f"spec/{template}/spec", mapping(at(spec, f"{template}/metadata/labels")), None)
    elif item.kind == "Pod":
        yield Workload(item, spec, "spec", mapping(at(item.document, "metadata/labels")), 1)
    elif item.kind == "InferenceService":
        for part in ("predictor", "transformer", "explainer"):
            if mapping(spec.get(part)).get("containers"):
                yield Workload(item, mapping(spec[part]), f"spec/{part}", {}, None)
    elif item.kind in ("RayService", "RayCluster"):
        where = "rayClusterConfig/" if item.kind == "RayService" else ""
        cluster = mapping(spec.get("rayClusterConfig")) if where else spec
        yield Workload(item, mapping(at(cluster, "headGroupSpec/template/spec")), f"spec/{where}headGroupSpec/template/spec", {}, 1)
        for index, group in entries(cluster.get("workerGroupSpecs")):
            yield Workload(item, mapping(at(group, "template/spec")), f"spec/{where}workerGroupSpecs/{index}/template/spec", {}, whole(group.get("replicas")))
