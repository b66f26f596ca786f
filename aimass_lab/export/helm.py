"""A Helm chart: the Kubernetes export with its figures as values, each with its provenance."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

from ..records import ServingSpec, to_json
from ._chart import BRACES
from ._workload import header
from ._yaml import Said, dump
from .base import EXPORTERS, Exporter
from .json import SPEC_FILE
from .kubernetes import Kubernetes

_POD = ("spec", "template", "spec")
_BOX = (*_POD, "containers", 0)
VALUES: dict[str, tuple[tuple[str, tuple[str | int, ...]], ...]] = {
    "image": (("deployment.yaml", (*_BOX, "image")),),
    "replicas": (("deployment.yaml", ("spec", "replicas")),),
    "cpu": (("deployment.yaml", (*_BOX, "resources", "requests", "cpu")),),
    "memory": (("deployment.yaml", (*_BOX, "resources", "requests", "memory")), ("deployment.yaml", (*_BOX, "resources", "limits", "memory"))),
    "startupFailures": (("deployment.yaml", (*_BOX, "startupProbe", "failureThreshold")),),
    "gracePeriod": (("deployment.yaml", (*_POD, "terminationGracePeriodSeconds")),),
    "minReplicas": (("autoscaler.yaml", ("spec", "minReplicas")), ("scaled-object.yaml", ("spec", "minReplicaCount"))),
    "maxReplicas": (("autoscaler.yaml", ("spec", "maxReplicas")), ("scaled-object.yaml", ("spec", "maxReplicaCount"))),
}
"""Value -> where it goes: the template, and the way to the field."""


@EXPORTERS.register("helm")
@dataclass(frozen=True, kw_only=True)
class Helm(Exporter):
    """A chart whose templates hold nothing but values."""

    version: str = "0.1.0"
    """Of the chart."""
    scaler: Literal["auto", "hpa", "keda", "none"] = "auto"
    """As for Kubernetes."""
    alerts: bool = False
    """As for Kubernetes."""
    network_policy: bool = False
    """As for Kubernetes."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """Chart.yaml, values.yaml, the templates, and the spec beside them."""
        documents = Kubernetes(scaler=self.scaler, alerts=self.alerts, network_policy=self.network_policy).documents(spec)
        del documents["spec-configmap.yaml"]  # the chart carries the spec itself, which a template may not hold: Helm would read its braces
        values: dict[str, Any] = {}
        templates = {f"templates/{name}": _template(name, document, values) for name, document in documents.items()}
        about = {
            "apiVersion": "v2",
            "name": spec.name,
            "description": f"Serves {spec.model.name}; made from its resource spec",
            "type": "application",
            "version": self.version,
            "annotations": {"aimass.dev/spec-digest": spec.digest},
        }
        return {
            "Chart.yaml": dump(about),
            "values.yaml": dump(values, [*header(spec), "made from the resource spec aimass.dev/v1"]),
            **templates,
            SPEC_FILE: to_json(spec) + "\n",
        }


def _template(name: str, document: dict[str, Any], values: dict[str, Any]) -> str:
    """The document with marks for values, then the marks as what Helm replaces; fills `values`."""
    document = copy.deepcopy(document)
    marks: dict[str, str] = {}
    for value, places in VALUES.items():
        for file, way in places:
            if file == name:
                *first, last = way
                node: Any = document
                for step in first:
                    node = node[step]
                values.setdefault(value, node[last])
                plain = node[last].value if isinstance(node[last], Said) else node[last]
                mark = f"MARK/{len(marks)}/MARK"
                marks[mark] = f"{{{{ .Values.{value}{' | quote' if isinstance(plain, str) else ''} }}}}"
                node[last] = mark
    text = dump(document).replace("{{", BRACES)
    for mark, action in marks.items():
        text = text.replace(mark, action)
    return text
