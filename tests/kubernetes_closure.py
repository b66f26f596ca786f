"""Makes the shipped closure of Kubernetes' schemas out of the package kubernetes-validate, which carries the official ones.

``python tests/kubernetes_closure.py`` writes it again; a test holds the shipped file against it.
"""

import json
from importlib.metadata import version
from pathlib import Path

import kubernetes_validate

FILE = Path(__file__).parents[1] / "aimass_lab" / "manifests" / "schemas" / "kubernetes.json"
RELEASE = "1.37.0"
KINDS = (
    "configmap-v1", "secret-v1", "service-v1", "serviceaccount-v1", "pod-v1", "namespace-v1", "persistentvolumeclaim-v1", "resourcequota-v1", "limitrange-v1",
    "deployment-apps-v1", "statefulset-apps-v1", "daemonset-apps-v1", "replicaset-apps-v1", "job-batch-v1", "cronjob-batch-v1",
    "horizontalpodautoscaler-autoscaling-v2", "horizontalpodautoscaler-autoscaling-v1", "poddisruptionbudget-policy-v1", "priorityclass-scheduling-v1",
    "networkpolicy-networking-v1", "ingress-networking-v1", "ingressclass-networking-v1",
    "resourceclaim-resource-v1", "resourceclaimtemplate-resource-v1", "deviceclass-resource-v1",
    "role-rbac-v1", "rolebinding-rbac-v1", "clusterrole-rbac-v1", "clusterrolebinding-rbac-v1",
)  # fmt: skip


def closure():
    """The schemas of `KINDS` and all that they refer to, without descriptions."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{RELEASE}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    made, kinds = {}, {}

    def lean(node):
        if isinstance(node, list):
            return [lean(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            if name not in made:
                made[name] = None
                made[name] = lean(definitions[name])
            return {"$ref": f"#/definitions/{name}"}
        found = {
            key: value for key, value in node.items() if not (key in ("description", "$schema", "$id", "format", "default") and not isinstance(value, dict))
        }
        return {key: {k: lean(v) for k, v in value.items()} if key == "properties" else lean(value) for key, value in found.items()}

    for name in KINDS:
        schema = json.loads((folder / f"{name}.json").read_text())
        which = schema["x-kubernetes-group-version-kind"][0]
        api = f"{which['group']}/{which['version']}" if which["group"] else which["version"]
        kinds[f"{api}/{which['kind']}"] = lean(schema)
    about = {
        "source": f"the package kubernetes-validate {version('kubernetes-validate')}, which carries Kubernetes {RELEASE}'s own API schemas",
        "licence": "Apache-2.0",
        "release": RELEASE,
    }
    return {"about": about, "definitions": dict(sorted(made.items())), "kinds": kinds}


def text():
    """As the file holds it: a line a schema, so that a change is a diff."""
    found = closure()
    parts = [f'"about":{json.dumps(found["about"])}']
    for part in ("definitions", "kinds"):
        lines = ",\n".join(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in found[part].items())
        parts.append(f'"{part}":{{\n{lines}\n}}')
    return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    FILE.write_text(text())
