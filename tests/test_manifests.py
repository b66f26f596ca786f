"""The check of manifests: its schemas against the official ones, what we write against the official checkers, and the measured share of mistakes."""

import gzip
import json
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent / "benchmarks" / "planning"))

import kubernetes_closure
import measure
from defects import LATER, MISTAKES
from specs import gpu, make

from aimass_lab.errors import SpecError
from aimass_lab.export import check_spec_path, exporter_text, read_exporter
from aimass_lab.export.files import write_files
from aimass_lab.frontends.arguments import HelpShown, get_verb, parse_arguments
from aimass_lab.frontends.cli import main
from aimass_lab.manifests import Schemas, lint_manifests, server
from aimass_lab.manifests.quantities import parse_quantity, parse_size, parse_span
from aimass_lab.serving.__main__ import make_parser
from aimass_lab.serving.config import ServingConfig
from aimass_lab.serving.metrics import Metrics

ROOT = Path(__file__).parents[1]
CRDS = next((f for f in (ROOT / "shared/data/crd", ROOT.parent / "shared/data/crd") if f.is_dir()), ROOT / "shared/data/crd")
EVERYTHING = "kubernetes(scaler=keda, alerts=true, network_policy=true, quota=true, priority=1000, gateway=edge, ingress=nginx, host=digits.example)"
EXPORTS = (EVERYTHING, "kserve", "kserve(mode=Knative)", "ray", "kueue(cohort=team)", "compose", "helm(alerts=true)", "prometheus")


# --- what we write -----------------------------------------------------------------------


@pytest.mark.parametrize("to", EXPORTS)
@pytest.mark.parametrize("spec", [make(), gpu()], ids=["cpu", "gpu"])
def test_what_is_exported_passes_with_every_option(to, spec, tmp_path):
    exporter = read_exporter(to)
    assert exporter_text(exporter) == to
    write_files(tmp_path, exporter.export(spec))
    check = check_spec_path(tmp_path)
    assert check.passed
    assert {f.code for f in check.findings} <= {"W-NO-SCHEMA", "W-NOT-MEASURED"}


@pytest.mark.parametrize("to", [EVERYTHING, "kueue"])
def test_the_official_schemas_accept_every_object_of_kubernetes(to):
    checked = [d for d in measure.documents(to, make()) if Schemas().resolved(f"{d['apiVersion']}/{d['kind']}")]
    assert len(checked) >= 3
    for document in checked:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_accelerators_by_claim():
    found = {d["kind"]: d for d in measure.documents("kubernetes(dra=gpu.nvidia.com)", gpu())}
    kubernetes_validate.validate(found["ResourceClaimTemplate"], kubernetes_validate.latest_version(), strict=True)
    kubernetes_validate.validate(found["Deployment"], kubernetes_validate.latest_version(), strict=True)
    assert "nvidia.com/gpu" not in json.dumps(found["Deployment"]["spec"]["template"]["spec"]["containers"])
    with pytest.raises(SpecError, match="the spec has none"):
        read_exporter("kubernetes(dra=gpu.nvidia.com)").export(make())


@pytest.mark.skipif(not CRDS.is_dir(), reason="the definitions of the custom resources are not here")
def test_the_definitions_of_custom_resources_accept_what_we_write():
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definitions = [d for path in sorted(CRDS.glob("*.yaml.gz")) for d in yaml.load_all(gzip.decompress(path.read_bytes()), Loader=loader) if d]
    schemas = Schemas(definitions)
    seen = set()
    for to in ("kserve", "kserve(mode=Knative)", "ray", "kubernetes(scaler=keda)"):
        for spec in (make(), gpu()):
            documents = measure.documents(to, spec)
            assert not lint_manifests({"m.yaml": documents}, spec=spec, schemas=schemas)
            seen |= {d["kind"] for d in documents}
    assert {"InferenceService", "RayService", "ScaledObject"} <= seen


def test_a_chart_says_what_the_manifests_say(tmp_path):
    write_files(tmp_path, read_exporter("helm").export(make()))
    path = tmp_path / "values.yaml"
    path.write_text(path.read_text().replace("replicas: 2", "replicas: 1"))
    assert "E-EDITED" in {f.code for f in check_spec_path(tmp_path).findings}
    (tmp_path / "templates" / "service.yaml").write_text('{{ include "x" . }}\n')
    with pytest.raises(SpecError, match="only Helm understands"):
        check_spec_path(tmp_path)


# --- what it rests on --------------------------------------------------------------------


def test_the_shipped_closure_is_what_the_official_schemas_give():
    assert json.loads(kubernetes_closure.FILE.read_text()) == json.loads(kubernetes_closure.text())


def test_manifests_know_the_server():
    serve = make_parser().parse_args(["serve"])
    assert (serve.port, serve.grpc_port) == (server.HTTP_PORT, server.GRPC_PORT)
    fields = ServingConfig.__dataclass_fields__
    assert fields["drain_grace_s"].default + fields["request_timeout_s"].default + 1 <= server.DRAIN_S
    assert {family.name for family in Metrics().registry.collect()} == server.METRIC_NAMES


@pytest.mark.parametrize(
    ("text", "value"), [("1500m", 1.5), ("2Gi", 2 * 2**30), ("1e3", 1000), (4, 4), ("6GiB", None), ("1g", None), ("9K", None), ("", None), (True, None)]
)
def test_quantities(text, value):
    assert parse_quantity(text) == value


def test_sizes_and_spans_of_compose():
    assert (parse_size("700M"), parse_size("2gb"), parse_size("1Gi")) == (700 * 2**20, 2 * 2**30, None)
    assert (parse_span("1m30s"), parse_span("500ms"), parse_span("30")) == (90, 0.5, None)


# --- what it finds -----------------------------------------------------------------------


def test_real_mistakes_are_caught():
    found = measure.mistakes((*MISTAKES, *LATER), Schemas())
    missed = [name for name, codes in found.items() if not codes]
    assert len(found) >= 60
    assert len(missed) <= 0.05 * len(found), missed


def test_mutations_along_the_schemas_are_caught():
    found = measure.mutations(Schemas(), per_document=4)
    assert len(found) > 40
    assert [name for name, codes in found.items() if not codes] == []


def test_manifests_of_others_are_checked_for_form(tmp_path):
    (tmp_path / "pod.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: b, image: c, imagePullPolicy: Sometimes}]}\n"
    )
    codes = {f.code for f in check_spec_path(tmp_path / "pod.yaml").findings}
    assert {"W-NO-SPEC", "E-CHOICE"} <= codes


def test_definitions_of_a_cluster_are_named_on_the_command_line_one_or_more(tmp_path, capsys):
    """In a folder that has none yet, and in files; what may be repeated and is empty by default was a crash."""
    manifests, definitions = tmp_path / "deploy", tmp_path / "crds"
    definitions.mkdir()
    write_files(manifests, read_exporter("kubernetes(scaler=keda)").export(make()))
    assert main(["check", str(manifests), "--crd", str(definitions)]) == 0
    assert "no schema of keda.sh/v1alpha1" in capsys.readouterr().out
    names = {"kind": "ScaledObject", "plural": "scaledobjects"}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "scaledobjects.keda.sh"}}
    definition["spec"] = {"group": "keda.sh", "names": names, "scope": "Namespaced", "versions": [version]}
    (definitions / "keda.json").write_text(json.dumps(definition))
    assert main(["check", str(manifests), "--crd", str(definitions), "--crd", str(definitions / "keda.json")]) == 0
    assert "no schema of keda.sh/v1alpha1" not in capsys.readouterr().out
    with pytest.raises(HelpShown):
        parse_arguments(get_verb("check"), ["--help"], model_required=True)
    assert "()" not in capsys.readouterr().out


def test_a_definition_that_is_none(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SpecError, match="CustomResourceDefinition"):
        check_spec_path(tmp_path / "x.json", [str(tmp_path / "x.json")])
