"""Exporters: promises of the whole family, the official Kubernetes schemas, golden files, and drift.

Golden files are rewritten on purpose by ``AIMASS_OVERWRITE_GOLDEN=1 pytest tests/test_export.py``.
"""

import json
import os
import re
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from specs import gpu, make, number

from aimass_lab.errors import InputError, SpecError, UnknownNameError
from aimass_lab.export import EXPORTERS, check_spec_path, read_exporter
from aimass_lab.export._manifests import check_manifests
from aimass_lab.export._yaml import Said, dump, plain
from aimass_lab.export.files import write_files
from aimass_lab.frontends.arguments import get_verb
from aimass_lab.records import ServingSpec, derived, from_json
from aimass_lab.spec import lint_spec, write_spec

GOLDEN = Path(__file__).parent / "golden" / "kubernetes"
OVERWRITE = os.environ.get("AIMASS_OVERWRITE_GOLDEN") == "1"
KUBERNETES_VERSIONS = ("1.31", kubernetes_validate.latest_version())
everyone = pytest.mark.parametrize("name", sorted(EXPORTERS))


SPECS = {"cpu": make(), "gpu": gpu()}
kinds_of_spec = pytest.mark.parametrize("kind", sorted(SPECS))


def documents(files):
    return {(doc["kind"], doc["metadata"]["name"]): doc for text in files.values() for doc in yaml.safe_load_all(text)}


def manifests(spec):
    return {kind: doc for (kind, _), doc in documents(read_exporter("kubernetes").export(spec)).items()}


def container(spec):
    return manifests(spec)["Deployment"]["spec"]["template"]["spec"]["containers"][0]


# --- the family --------------------------------------------------------------------------


@everyone
@kinds_of_spec
def test_files_are_relative_and_the_same_every_time(name, kind):
    files = EXPORTERS[name]().export(SPECS[kind])
    assert files
    assert files == EXPORTERS[name]().export(SPECS[kind])
    for path, text in files.items():
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts
        assert text.endswith("\n")


@everyone
def test_nothing_touches_the_disk(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EXPORTERS[name]().export(make())
    assert list(tmp_path.iterdir()) == []


@everyone
@kinds_of_spec
def test_every_export_holds_the_whole_spec(name, kind):
    found = [spec for path, text in EXPORTERS[name]().export(SPECS[kind]).items() for spec in specs_in(path, text)]
    assert found == [msgspec.structs.replace(SPECS[kind], export_format=name)]
    assert found[0].digest == SPECS[kind].digest


def specs_in(path, text):
    """The specs in a file: the file itself, or what its ConfigMaps hold."""
    if path.endswith(".json"):
        return [from_json(text, ServingSpec)]
    if path.startswith("templates/") or not path.endswith(".yaml"):
        return []
    docs = [doc for doc in yaml.safe_load_all(text) if doc and doc.get("kind") == "ConfigMap"]
    return [from_json(value, ServingSpec) for doc in docs for value in doc["data"].values()]


@everyone
@pytest.mark.parametrize("wrong", [{"name": "Not_A_Label"}, {"latency_p99": None}, {"image": "$(evil)"}])
def test_nothing_is_made_from_a_spec_with_errors(name, wrong):
    with pytest.raises(SpecError, match="E-"):
        EXPORTERS[name]().export(make(**wrong))


@everyone
@kinds_of_spec
def test_what_was_written_passes_the_check(name, kind, tmp_path):
    write_files(tmp_path, EXPORTERS[name]().export(SPECS[kind]))
    check = check_spec_path(tmp_path)
    assert check.passed
    assert [f for f in check.findings if f.code != "W-NO-SCHEMA"] == list(lint_spec(SPECS[kind]))
    for path in tmp_path.iterdir():
        if path.is_file() and path.suffix in (".json", ".yaml") and name != "helm" and path.name != "serve-config.yaml":
            assert check_spec_path(path).passed


def test_unknown_format():
    with pytest.raises(UnknownNameError, match="exporter"):
        EXPORTERS["nomad"]


def test_the_help_of_the_verb_names_every_format():
    (format,) = (parameter for parameter in get_verb("spec").parameters if parameter.name == "format")
    assert sorted(re.findall(r"\w+", format.help.partition("(")[2].partition(")")[0])) == sorted(EXPORTERS)


# --- Kubernetes --------------------------------------------------------------------------


@kinds_of_spec
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_official_schemas_accept_every_document(kind, version):
    for document in documents(read_exporter("kubernetes").export(SPECS[kind])).values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_official_schemas_would_find_a_wrong_field():
    document = manifests(make())["Deployment"]
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES_VERSIONS[-1], strict=True)


@kinds_of_spec
def test_golden_files(kind):
    files = read_exporter("kubernetes").export(SPECS[kind])
    folder = GOLDEN / kind
    if OVERWRITE:
        for old in folder.glob("*"):
            old.unlink()
        write_files(folder, files)
    assert {path.name: path.read_text() for path in folder.iterdir()} == files


def test_the_numbers_of_the_spec_arrive():
    found = manifests(make())
    server = container(make())
    assert found["Deployment"]["spec"]["replicas"] == 2
    assert server["resources"] == {"requests": {"cpu": "1500m", "memory": "701Mi"}, "limits": {"memory": "701Mi"}}
    assert found["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == 2
    assert found["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 4
    metric = found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["resource"]
    assert metric == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 72}}


def test_startup_gets_twice_its_measured_time():
    for startup in (0.5, 21.4, 300.0):
        probe = container(make(startup_time=number(startup)))["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= max(2 * startup, 30)


def test_objects_refer_to_each_other():
    found = manifests(make())
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    ports = {port["name"] for port in container(make())["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == ports
    assert {container(make())[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} <= ports


def test_it_listens_beyond_loopback_only_with_a_token_and_runs_unprivileged():
    server = container(make())
    assert server["command"] == ["python", "run.py"]  # the bundle's own entry; its image has no other
    assert server["args"][server["args"].index("--host") + 1] == "0.0.0.0"
    assert server["env"] == [{"name": "AIMASS_TOKEN", "valueFrom": {"secretKeyRef": {"name": "digits-token", "key": "token"}}}]
    assert "Secret" not in manifests(make())
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert server["securityContext"]["allowPrivilegeEscalation"] is False
    assert manifests(make())["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_an_accelerator_is_asked_for_whole_and_not_scaled_by_processor_load():
    files = read_exporter("kubernetes").export(gpu())
    resources = container(gpu())["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1
    assert "HorizontalPodAutoscaler" not in manifests(gpu())
    assert "custom metric" in files["deployment.yaml"]
    assert "amd.com/gpu" in container(gpu(device="mi300x"))["resources"]["limits"]


def test_a_processor_that_is_always_busy_scales_when_it_is_full():
    busy = derived(0.98, "ratio", "simulated", [("requests_per_s", make().requests_per_s)])
    target = manifests(make(utilization=busy))["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["resource"]["target"]
    assert target["averageUtilization"] == 90


@kinds_of_spec
def test_every_number_of_the_spec_carries_its_provenance(kind):
    text = read_exporter("kubernetes").export(SPECS[kind])
    deployment = text["deployment.yaml"]
    sized = {"replicas", "cpu", "memory", "failureThreshold: 9", "terminationGracePeriodSeconds"}
    for key in sized:
        line = next(line for line in deployment.splitlines() if line.lstrip().startswith(key))
        assert re.search(r"  # .*(measured|derived|user|assumed|as requested)", line), line
    assert "# derived (weakest input: measured): 583 MiB (p99 of resident memory) + 20 %" in deployment
    said = json.loads(manifests(SPECS[kind])["Deployment"]["metadata"]["annotations"]["aimass.dev/provenance"])
    assert said["cpu_cores"] == "measured: p95 of the load test: 1.5 cores"
    assert set(said) == {
        "accelerators",
        "replicas",
        "min_replicas",
        "max_replicas",
        "cpu_cores",
        "memory_bytes",
        "max_batch_size",
        "max_wait",
        "scale_at",
        "startup_time",
        "requests_per_s",
        "latency_p99_target",
        "latency_p99",
        "utilization",
    }


@kinds_of_spec
def test_every_document_carries_the_digest(kind):
    for document in documents(read_exporter("kubernetes").export(SPECS[kind])).values():
        assert document["metadata"]["annotations"]["aimass.dev/spec-digest"] == SPECS[kind].digest


# --- do manifests still belong to the spec? ----------------------------------------------


@pytest.fixture
def exported(tmp_path):
    write_files(tmp_path, read_exporter("kubernetes").export(make()))
    return tmp_path


def found_codes(findings):
    return {finding.code for finding in findings if not finding.code.startswith("W-NOT")}


def test_untouched_manifests_belong(exported):
    assert check_manifests(exported, make()) == ()
    text = "---\n".join(read_exporter("kubernetes").export(make()).values())
    assert check_manifests(text, make()) == ()
    everything = exported / "sub"
    everything.mkdir()
    (everything / "all.yaml").write_text(text)
    assert check_spec_path(everything / "all.yaml").passed


@pytest.mark.parametrize(
    ("file", "old", "new", "pointer"),
    [
        ("deployment.yaml", "replicas: 2", "replicas: 1", "/spec/replicas"),
        ("deployment.yaml", 'memory: "701Mi"', 'memory: "512Mi"', "memory"),
        ("deployment.yaml", "registry.example/digits:1", "registry.example/digits:2", "/spec/template/spec/containers/0/image"),
        ("autoscaler.yaml", "maxReplicas: 4", "maxReplicas: 40", "/spec/maxReplicas"),
        ("deployment.yaml", "      automountServiceAccountToken: false\n", "", "automountServiceAccountToken"),
        ("spec-configmap.yaml", '"value": 700', '"value": 900', ""),
    ],
)
def test_an_edited_manifest_is_found(exported, file, old, new, pointer):
    path = exported / file
    text = path.read_text()
    if file == "spec-configmap.yaml":
        old, new = '"value": 8,', '"value": 16,'
    assert old in text
    path.write_text(text.replace(old, new))
    check = check_spec_path(exported)
    assert not check.passed
    assert found_codes(check.findings) & {"E-EDITED", "E-DIGEST"}
    assert any(pointer in finding.path for finding in check.findings)
    if file != "spec-configmap.yaml":
        assert not check_spec_path(path).passed


def test_an_addition_is_a_warning(exported):
    path = exported / "deployment.yaml"
    path.write_text(path.read_text().replace("      enableServiceLinks: false\n", "      enableServiceLinks: false\n      nodeSelector: {disk: ssd}\n"))
    check = check_spec_path(exported)
    assert check.passed
    assert "W-ADDED" in found_codes(check.findings)


def test_manifests_of_another_spec_are_found(exported):
    other = make(max_replicas=derived(8, "replica", "2 x planned", [("replicas", make().replicas)]))
    assert found_codes(check_manifests(exported, other)) == {"E-DIGEST"}
    write_spec(other, exported / "aimass-spec.json")
    assert not check_spec_path(exported).passed


def test_a_missing_manifest_is_found(exported):
    (exported / "service.yaml").unlink()
    assert found_codes(check_spec_path(exported).findings) == {"E-MISSING"}
    assert check_spec_path(exported / "deployment.yaml").passed


def test_manifests_without_their_spec_vouch_for_nothing(exported):
    (exported / "spec-configmap.yaml").unlink()
    for path in (exported, exported / "deployment.yaml"):
        check = check_spec_path(path)
        assert not check.passed
        assert found_codes(check.findings) - {"W-NO-SCHEMA"} == {"E-NO-SPEC"}


def test_what_is_neither_spec_nor_manifest(tmp_path):
    (tmp_path / "other.yaml").write_text("kind: ConfigMap\nmetadata: {name: x}\n")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    for path in (tmp_path, tmp_path / "other.yaml", tmp_path / "list.yaml"):
        with pytest.raises(SpecError, match="neither|holds no"):
            check_spec_path(path)


# --- files and YAML ----------------------------------------------------------------------


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "service.yaml").write_text("kind: Service\n")
    with pytest.raises(InputError, match="not from an export"):
        write_files(tmp_path, read_exporter("kubernetes").export(make()))
    assert [path.name for path in tmp_path.iterdir()] == ["service.yaml"]


def test_an_export_replaces_an_earlier_one(tmp_path):
    write_files(tmp_path, read_exporter("kubernetes").export(gpu(name="digits")))
    write_files(tmp_path, read_exporter("kubernetes").export(make()))
    assert check_manifests(tmp_path, make()) == ()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_files(tmp_path / "out", {"a.yaml": "x"})


leaves = st.one_of(
    st.text(),
    st.integers(),
    st.booleans(),
    st.sampled_from(["yes", "null", "0.0.0.0", "1e3", "08", "- a", "a: b", "a # b", "a\nb", "\n", 'it\'s "so"', "~", "<<", "="]),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.text(min_size=1, max_size=8), values, min_size=1, max_size=4))
def test_any_data_comes_back_from_our_yaml(data):
    assert yaml.safe_load(dump(data)) == data


@given(st.text(), st.text())
def test_comments_never_leak_into_the_data(value, comment):
    document = {"a": Said(value, comment), "b": {"c": [Said(1, comment)]}}
    assert yaml.safe_load(dump(document, [comment])) == plain(document) == {"a": value, "b": {"c": [1]}}


def test_msgspec_reads_what_the_config_map_holds():
    data = manifests(make())["ConfigMap"]["data"]["aimass-spec.json"]
    assert msgspec.json.decode(data, type=ServingSpec).digest == make().digest


# --- Triton and TensorFlow Serving -------------------------------------------------------


def triton_config(text):
    """What Triton's own protobuf makes of it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


@kinds_of_spec
def test_triton_reads_what_was_planned(kind):
    spec = SPECS[kind]
    config = triton_config(EXPORTERS["triton"]().export(spec)[f"{spec.name}/config.pbtxt"])
    assert (config.name, config.backend, config.default_model_filename) == (spec.name, "onnxruntime", "model.onnx")
    assert config.max_batch_size == spec.max_batch_size.value
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == spec.max_wait.value * 1e6
    (group,) = config.instance_group
    assert group.count == 1
    assert group.kind == (group.KIND_GPU if kind == "gpu" else group.KIND_CPU)


def test_triton_batches_nothing_where_one_item_is_the_limit():
    spec = make(max_batch_size=derived(1, "item", "best that was simulated", [("replicas", make().replicas)]))
    assert not triton_config(EXPORTERS["triton"]().export(spec)["digits/config.pbtxt"]).HasField("dynamic_batching")


def test_a_bundle_s_triton_config_has_its_signature():
    from aimass_lab.export.triton import model_config

    serving = {
        "format": "onnx", "name": "net", "version": "3", "batched": True, "max_batch_size": 8, "max_wait_s": 0.002, "workers": 2, "threads_per_worker": 4,
        "inputs": [{"name": "ids", "datatype": "INT64", "shape": [-1, 16]}, {"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2, -1]}],
    }  # fmt: skip
    config = triton_config(model_config(serving)["net/config.pbtxt"])
    names = config.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type.values_by_number
    assert [(t.name, names[t.data_type].name, list(t.dims)) for t in config.input] == [("ids", "TYPE_INT64", [16]), ("text", "TYPE_STRING", [1])]
    assert config.input[1].HasField("reshape")
    assert [(t.name, names[t.data_type].name, list(t.dims)) for t in config.output] == [("logits", "TYPE_FP32", [2, -1])]
    assert list(config.version_policy.specific.versions) == [3]
    assert config.parameters["intra_op_thread_count"].string_value == "4"
    fixed = triton_config(model_config(serving | {"batched": False, "max_batch_size": 1})["net/config.pbtxt"])
    assert fixed.max_batch_size == 0  # Triton's word for: no batch axis
    assert list(fixed.input[0].dims) == [-1, 16]
    assert model_config(serving | {"format": "safetensors"}) == {}


def test_tensorflow_serving_gets_its_own_words_and_the_reason_why_there_is_no_model():
    files = EXPORTERS["tensorflow_serving"]().export(make())
    assert "no SavedModel is written: PyTorch has no exporter to it" in files["models.config"]
    assert 'base_path: "/models/digits"' in files["models.config"]
    assert files["batching.config"].splitlines()[1].startswith("max_batch_size { value: 8 }")


# --- devices that are neither processor nor GPU ------------------------------------------


def fpga(**changes):
    return gpu(**({"name": "digits-fpga", "device": "alveo-u250", "resource": "xilinx.com/fpga-u250", "node_selector": {"fpga": "u250"}} | changes))


@pytest.fixture
def with_fpga(tmp_path, monkeypatch):
    """A user's catalogue with a card that no catalogue has."""
    path = tmp_path / "devices.toml"
    path.write_text('[alveo-u250]\ntitle = "AMD Alveo U250"\nkind = "fpga"\n')
    monkeypatch.setenv("AIMASS_DEVICES", str(path))
    return path


@pytest.mark.parametrize("name", ["kubernetes", "kueue", "kserve", "ray", "helm"])
def test_a_card_is_asked_for_by_its_own_name_on_its_own_nodes(name, with_fpga, tmp_path):
    spec = fpga()
    folder = tmp_path / name
    write_files(folder, read_exporter(name).export(spec))
    found = check_spec_path(folder)
    assert found.passed, found.findings
    text = "".join(path.read_text() for path in folder.rglob("*.yaml"))
    assert "nvidia.com/gpu" not in text
    assert "xilinx.com/fpga-u250: 1" in text
    assert "fpga: u250" in text
    if name != "helm":
        for document in yaml.safe_load_all(text.replace("\n# digits-fpga", "\n---\n# digits-fpga")):
            if document and document.get("kind") in ("Deployment", "Service", "ConfigMap"):
                kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_rays_workers_say_what_they_hold(with_fpga):
    (service,) = list(yaml.safe_load_all(read_exporter("ray").export(fpga())["ray-service.yaml"]))
    cluster = service["spec"]["rayClusterConfig"]
    assert json.loads(cluster["workerGroupSpecs"][0]["rayStartParams"]["resources"].strip("'")) == {"alveo-u250": 1}
    assert "nodeSelector" not in cluster["headGroupSpec"]["template"]["spec"]
    actor = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"][0]["ray_actor_options"]
    assert actor["resources"] == {"alveo-u250": 1}
    assert "num_gpus" not in actor


@pytest.mark.parametrize("name", ["compose", "triton"])
def test_what_knows_gpus_only_says_so(name, with_fpga):
    with pytest.raises(SpecError, match="alveo-u250 is n"):
        read_exporter(name).export(fpga())


@pytest.mark.parametrize("name", ["kubernetes", "kueue", "kserve", "ray", "helm"])
def test_a_card_without_a_name_on_clusters_says_what_to_add(name, with_fpga):
    with pytest.raises(SpecError, match="under which name a cluster offers alveo-u250") as caught:
        read_exporter(name).export(fpga(resource=None))
    assert 'resource = "vendor.com/name"' in str(caught.value)
