"""The resource spec: made from a plan, read back, and checked."""

import json

import msgspec
import pytest
import yaml
from specs import ENVIRONMENT

from aimass_lab.errors import InputError, SpecError
from aimass_lab.export import check_spec_path
from aimass_lab.planning.plan import make_plan
from aimass_lab.records import BatchPoint, ModelInfo, Number, Recipe, ServingSpec, Target, json_schema, to_json
from aimass_lab.spec import MAX_NAME, dns_label, errors_of, lint_spec, make_spec, read_spec, spec_numbers, write_spec

MODEL = ModelInfo(name="net", type="test.Net", num_parameters=10, weight_bytes=40, dtype="float32", digest="0" * 12)


def number(value, unit="s", source="measured", interval=None, method="median of 31 calls"):
    return Number(value=value, unit=unit, source=source, method=method, interval=interval)


def plan_for(rate=900, p99=0.022, device="cpu", source="measured", **limits):
    points = [
        BatchPoint(
            batch_size=size,
            latency_p50=number(0.004 + 0.0012 * size, source=source),
            latency_p95=number(0.0042 + 0.0012 * size, source=source),
            latency_p99=number(0.0044 + 0.0012 * size, source=source),
            throughput=number(size / (0.004 + 0.0012 * size), "item/s", source=source),
        )
        for size in (1, 2, 4, 8)
    ]
    target = Target(requests_per_s=number(rate, "request/s", "user"), latency_p99=number(p99, source="user"), **limits)
    return make_plan(MODEL, {device: points}, target)


def spec_for(plan=None, **changes):
    options = {
        "name": "net",
        "recipe": Recipe(),
        "memory": number(900 * 2**20, "B", method="highest resident memory of 3 starts"),
        "startup_time": number(12.3),
        "environment": ENVIRONMENT,
        "image": "registry.example/net:1",
    }
    return make_spec(plan or plan_for(), **(options | changes))


@pytest.fixture(scope="module")
def spec():
    return with_value(spec_for(), "utilization", 0.8)


def with_value(spec, field, value):
    return msgspec.structs.replace(spec, **{field: msgspec.structs.replace(getattr(spec, field), value=value)})


def codes(spec):
    return {finding.code for finding in lint_spec(spec)}


# --- made from a plan --------------------------------------------------------------------


def test_numbers_follow_from_the_plan():
    plan = plan_for()
    spec = spec_for(plan)
    replicas = plan.replicas.value
    assert (spec.min_replicas.value, spec.replicas.value, spec.max_replicas.value) == (replicas, replicas, 2 * replicas)
    assert spec.memory_bytes.value == 1080 * 2**20
    assert spec.cpu_cores.value == ENVIRONMENT.threads
    assert spec.scale_at.value * replicas == pytest.approx(900)
    assert spec.scale_at.value < plan.throughput_limit.value / replicas
    assert spec.accelerators.value == 0
    assert spec.latency_p99 == plan.latency_p99
    assert errors_of(lint_spec(spec)) == ()


def test_memory_says_what_was_added(spec):
    assert spec.memory_bytes.method == "900 MiB (highest resident memory of 3 starts) + 20 %"
    assert spec.memory_bytes.trust == "measured"


def test_headroom_lowers_where_scaling_starts_in_terms_of_the_limit():
    plan = plan_for(headroom=0.5)
    spec = spec_for(plan)
    assert spec.scale_at.value * plan.replicas.value == pytest.approx(1.5 * 900)


def test_the_most_replicas_are_respected():
    replicas = plan_for().replicas.value
    spec = spec_for(plan_for(max_replicas=replicas + 1))
    assert spec.max_replicas.value == replicas + 1


@pytest.mark.parametrize(("device", "accelerators"), [("cpu", 0), ("cuda:0", 1), ("l4", 1)])
def test_accelerators_follow_the_device(device, accelerators):
    assert spec_for(plan_for(device=device)).accelerators.value == accelerators


def test_an_unknown_device_needs_to_be_told():
    with pytest.raises(InputError, match="not in the catalogue"):
        spec_for(plan_for(device="box"))
    assert spec_for(plan_for(device="box"), accelerators=2).accelerators.value == 2


def test_no_spec_without_a_feasible_plan():
    with pytest.raises(SpecError, match="latency binds"):
        spec_for(plan_for(p99=0.001))


def test_every_number_has_a_source(spec):
    numbers = dict(spec_numbers(spec))
    assert {field for field, kind in ServingSpec.__annotations__.items() if "Number" in str(kind)} - set(numbers) == {"cost"}
    for found in numbers.values():
        assert found.source
        assert found.method


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("My Net v2", "my-net-v2"),
        ("BertModel", "bertmodel"),
        ("2-layers", "model-2-layers"),
        ("__x__", "x"),
        ("", "model"),
        ("é", "model"),
        ("a" * 80, "a" * MAX_NAME),
    ],
)
def test_names_become_labels(text, label):
    assert dns_label(text) == label


# --- lint --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("replicas", 0, "E-RANGE"),
        ("replicas", 2.5, "E-WHOLE"),
        ("replicas", 99, "E-REPLICAS"),
        ("min_replicas", 99, "E-REPLICAS"),
        ("memory_bytes", 0, "E-RANGE"),
        ("cpu_cores", -1, "E-RANGE"),
        ("accelerators", 1, "E-DEVICE"),
        ("max_batch_size", 0, "E-RANGE"),
        ("max_wait", 0.030, "E-SLO-IMPOSSIBLE"),
        ("startup_time", 0, "E-RANGE"),
        ("latency_p99", 0.031, "E-SLO"),
        ("latency_p99_target", 0.001, "E-SLO"),
        ("utilization", 1.2, "E-UNSTABLE"),
        ("scale_at", 0, "E-RANGE"),
        ("min_replicas", 1, "W-SINGLE-REPLICA"),
        ("utilization", 0.97, "W-CPU-SIGNAL"),
    ],
)
def test_a_wrong_number_is_found(spec, field, value, code):
    changed = with_value(spec, field, value)
    assert code not in codes(spec)
    assert code in codes(changed)
    finding = next(f for f in lint_spec(changed) if f.code == code)
    assert finding.path.startswith("/")
    assert finding.text


@pytest.mark.parametrize("name", ["", "Net", "-net", "net-", "2net", "net_1", "net.1", "n" * (MAX_NAME + 1), "net\n", "a b"])
def test_a_wrong_name_is_found(spec, name):
    changed = msgspec.structs.replace(spec, name=name)
    assert "E-NAME" in codes(changed)


@pytest.mark.parametrize(
    ("image", "code"),
    [("", "E-IMAGE"), ("Net:1", "E-IMAGE"), ("net:1 --x", "E-IMAGE"), ("net", "W-IMAGE-TAG"), ("r.io:5000/net", "W-IMAGE-TAG"), ("net:latest", "W-IMAGE-TAG")],
)
def test_a_wrong_image_is_found(spec, image, code):
    assert code in codes(msgspec.structs.replace(spec, image=image))


@pytest.mark.parametrize("image", ["net:1", "r.io:5000/team/net:1.2-rc", "net@sha256:" + "a" * 64])
def test_a_right_image_passes(spec, image):
    assert not {"E-IMAGE", "W-IMAGE-TAG"} & codes(msgspec.structs.replace(spec, image=image))


def test_an_unstable_plan_and_a_wrong_unit_and_version(spec):
    assert "E-UNSTABLE" in codes(msgspec.structs.replace(spec, latency_p99=None))
    assert "E-UNIT" in codes(msgspec.structs.replace(spec, startup_time=number(3, "B")))
    assert "E-VERSION" in codes(msgspec.structs.replace(spec, api_version="aimass.dev/v9"))


def test_doubtful_numbers_are_found(spec):
    assert "W-NOT-MEASURED" in codes(msgspec.structs.replace(spec, startup_time=number(3, source="assumed")))
    for quality, code in (("noisy", "W-NOISY"), ("extrapolated", "W-EXTRAPOLATED")):
        changed = msgspec.structs.replace(spec, startup_time=msgspec.structs.replace(spec.startup_time, quality=quality))
        assert {f.path for f in lint_spec(changed) if f.code == code} == {"/startup_time"}
    wide = msgspec.structs.replace(spec, latency_p99=msgspec.structs.replace(spec.latency_p99, interval=(0.0, 1.0)))
    assert "W-SLO-BAND" in codes(wide)


# --- files -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_a_spec_survives_its_file(spec, tmp_path, ending):
    path = tmp_path / "deep" / f"spec.{ending}"
    write_spec(spec, path)
    assert read_spec(path) == spec
    assert read_spec(path).digest == spec.digest
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    check = check_spec_path(path)
    assert check.passed
    assert check.findings == lint_spec(spec)


def test_the_published_schema_accepts_it_and_refuses_a_change(spec):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(ServingSpec)
    jsonschema.validate(json.loads(to_json(spec)), schema)
    wrong = json.loads(to_json(spec)) | {"replicas": 3}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_digest_is_of_the_content(spec):
    assert with_value(spec, "replicas", 3).digest != spec.digest or spec.replicas.value == 3
    assert with_value(spec, "max_replicas", 50).digest != spec.digest
    assert msgspec.structs.replace(spec, export_format="json").digest == spec.digest


def test_a_check_fails_on_errors(spec, tmp_path):
    write_spec(with_value(spec, "latency_p99", 1.0), tmp_path / "spec.json")
    check = check_spec_path(tmp_path / "spec.json")
    assert not check.passed
    assert "E-SLO" in {finding.code for finding in check.findings}


def edit(data, path, value):
    *parents, last = path
    for key in parents:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("replicas", "value"), "three", r"\$\.replicas\.value"),
        (("replicas", "source"), "rumour", r"\$\.replicas\.source"),
        (("replicas", "value"), float("inf"), "finite"),
        (("startup_time", "unit"), "ms", r"\$\.startup_time\.unit"),
        (("colour",), "red", "colour"),
        (("model",), None, r"\$\.model"),
        (("latency_p99", "interval"), [2, 1], "interval"),
    ],
)
def test_a_broken_file_names_the_field(spec, tmp_path, path, value, message):
    data = json.loads(to_json(spec))
    edit(data, path, value)
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError, match=message):
        read_spec(file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("spec.json", "{", "cannot parse"),
        ("spec.json", '{"name": 1, "name": 2}', "twice"),
        ("spec.json", '{"value": NaN}', "NaN"),
        ("spec.json", "[" * 100_000, "cannot parse"),
        ("spec.yaml", "a: 1\na: 2\n", "twice"),
        ("spec.yaml", "a: [", "cannot parse"),
        ("spec.yaml", "!!python/object/apply:os.system [echo]", "cannot parse"),
        ("spec.yaml", "a: 1\n---\nb: 2\n", "2 documents"),
        ("spec.yaml", "", "0 documents"),
        ("spec.yaml", "\x00", "cannot parse"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=message):
        read_spec(tmp_path / name)


def test_files_that_cannot_be_read_or_written(spec, tmp_path):
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(SpecError, match="cannot read"):
            read_spec(path)
    with pytest.raises(SpecError, match="cannot write"):
        write_spec(spec, tmp_path / "file" / "spec.json")
    with pytest.raises(SpecError, match="neither"):
        write_spec(spec, tmp_path / "spec.txt")
