"""Bundles: a real one is written once, and read, moved, run, altered and refused."""

from __future__ import annotations

import ast
import asyncio
import copy
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from prometheus_client.parser import text_string_to_metric_families
from proofs import broken_in, broken_lines, proved
from torch import nn

from aimass_lab.bundle import calibrate as calibration
from aimass_lab.bundle import check_free, check_hashes, is_bundle, read_bundle, require_bundle, verify_bundle, write_bundle, writer
from aimass_lab.bundle import threads as bundle_threads
from aimass_lab.bundle.calibrate import Calibration, find_rate
from aimass_lab.bundle.choices import choose, dns_name
from aimass_lab.bundle.promises import Asked, make_promises, risk_notes
from aimass_lab.bundle.proof import run_proof
from aimass_lab.bundle.requirements import EXTRAS, extra_requirements, pinned_requirements
from aimass_lab.bundle.served import ServedBundles
from aimass_lab.bundle.threads import settle_threads
from aimass_lab.errors import BundleError, InputError, UnsupportedError
from aimass_lab.formats import FORMATS
from aimass_lab.frontends.documents import read_document
from aimass_lab.frontends.render import render_text
from aimass_lab.records import Bundle, Check, Finding, ModelInfo, Number, Recipe, ServingSpec, Step, Unit, from_json
from aimass_lab.serving.config import check_manifest, load_config, load_vectors
from aimass_lab.serving.launch import start
from aimass_lab.serving.metrics import Metrics
from aimass_lab.workload import Workload


class Digits(nn.Module):
    """A small CNN with batch norm, in training mode as a careless user leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image)


def digits(num_items: int = 6) -> Workload:
    torch.manual_seed(0)
    return Workload(Digits(), torch.randn(num_items, 1, 8, 8))


def number(value: float, unit: Unit, **more: Any) -> Number:
    return Number(value=value, unit=unit, **{"source": "measured", "method": "test", **more})


def make_spec(workload: Workload, *, rate: float = 40, replicas: int = 2, technique: str = "none", device: str = "cpu") -> ServingSpec:
    return ServingSpec(
        name="digits",
        model=workload.info(),
        recipe=Recipe() if technique == "none" else Recipe(steps=(Step(technique=technique),)),
        device=device,
        accelerators=number(0, "device"),
        replicas=number(replicas, "replica", source="estimated"),
        min_replicas=number(1, "replica"),
        max_replicas=number(4, "replica"),
        cpu_cores=number(1, "core"),
        memory_bytes=number(2**30, "B"),
        max_batch_size=number(4, "item"),
        max_wait=number(0.001, "s"),
        scale_at=number(20, "request/s"),
        startup_time=number(10, "s"),
        requests_per_s=number(rate, "request/s", source="user"),
        latency_p99_target=number(0.5, "s", source="user"),
        latency_p99=None,
        utilization=number(0.1, "ratio"),
        image="digits:1",
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MEASURE_BUDGET_S", 0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Workload, dict[str, torch.Tensor], list[tuple[float, str]]]:
    """The one bundle that is written with all that belongs to it."""
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images[5] = images[0]  # a sample given twice is stored once
    torch.manual_seed(0)
    workload = Workload(Digits(), images, name="Digits CNN")
    before = copy.deepcopy(workload.model.state_dict())
    said: list[tuple[float, str]] = []
    # a second is more than a busy machine takes for this model, and what is tested is the proof, not the speed
    folder = tmp_path_factory.mktemp("made") / "some" / "digits"
    bundle = write_bundle(folder, workload, rate=30, latency_p99_s=1.0, max_batch_size=8, threads=1, progress=lambda share, text: said.append((share, text)))
    return bundle, workload, before, said


@pytest.fixture
def moved(made: tuple[Bundle, ...], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0].folder, tmp_path / "elsewhere"))


# --- what is written -----------------------------------------------------------------------


def test_the_model_is_left_bit_by_bit_as_it_was(made: tuple[Any, ...]) -> None:
    _, workload, before, _ = made
    assert workload.model.training
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in workload.model.modules())


def test_progress_goes_forward_to_the_end(made: tuple[Any, ...]) -> None:
    shares = [share for share, _ in made[3]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_manifest_has_the_hash_of_every_file(made: tuple[Any, ...]) -> None:
    folder = Path(made[0].folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert manifest["files"] == {name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    assert (manifest["schema"], manifest["name"], manifest["version"]) == (1, "digits-cnn", "1")
    expected = {"serving.json", "vectors.npz", "promises.json", "spec.json", "run.py", "requirements.txt", "Dockerfile", "MODEL_CARD.md"}
    expected |= {f"requirements-{extra}.txt" for extra in EXTRAS}
    expected |= {".dockerignore", "README.md", "runtimes.json", "model/digits-cnn/config.pbtxt", "client.py", "compose.yaml", "sbom.json", "LICENCES.md"}
    expected |= {"grafana.json"}
    assert expected | {"model/digits-cnn/1/model.onnx"} <= set(found)
    assert not list(folder.rglob("__pycache__"))
    assert check_hashes(folder) == ()
    assert made[0].digest == "sha256:" + hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def test_the_server_accepts_what_was_written(made: tuple[Any, ...]) -> None:
    folder = Path(made[0].folder)
    config = load_config(folder)
    check_manifest(folder)
    assert (config.name, config.version, config.format, config.batched, config.max_batch_size) == ("digits-cnn", "1", "onnx", True, 8)
    assert [(s.name, s.datatype, s.shape) for s in config.inputs] == [("image", "FP32", (-1, 1, 8, 8))]
    assert [(s.name, s.datatype, s.shape) for s in config.outputs] == [("output", "FP32", (-1, 10))]


def test_the_vectors_are_distinct_samples_and_the_original_models_answers(made: tuple[Any, ...]) -> None:
    bundle, workload, _, _ = made
    inputs, outputs = load_vectors(Path(bundle.folder), load_config(Path(bundle.folder)))
    assert len(inputs[0]) == 32
    assert len({row.tobytes() for row in inputs[0]}) == 32
    with torch.no_grad():
        expected = copy.deepcopy(workload.model).eval()(torch.from_numpy(inputs[0]))
    np.testing.assert_allclose(outputs[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_promises_are_what_was_asked_and_what_was_measured(made: tuple[Any, ...]) -> None:
    limits = {promise.name: promise for promise in made[0].promises}
    assert [(p.name, p.relation) for p in made[0].promises] == [
        ("errors", "=="), ("fidelity", "<="), ("latency_p99", "<="), ("throughput", ">="), ("memory", "<="), ("startup", "<="),
    ]  # fmt: skip
    assert (limits["latency_p99"].limit.value, limits["latency_p99"].limit.source) == (1.0, "user")
    assert limits["throughput"].limit.value == pytest.approx(0.97 * 30)
    assert 1e-4 <= limits["fidelity"].limit.value < 2e-4
    for name in ("fidelity", "memory", "startup"):
        assert limits[name].limit.weakest_source == "measured"
        assert "measured here" in limits[name].limit.method
    written = json.loads((Path(made[0].folder) / "promises.json").read_text())
    assert written["scenario"] == {"requests_per_s": 30.0, "duration_s": 10.0, "items_per_request": 1, "seed": 0}


def test_reading_gives_what_writing_gave(made: tuple[Any, ...]) -> None:
    assert read_bundle(made[0].folder) == made[0]
    assert is_bundle(made[0].folder)
    assert require_bundle(made[0].folder) == Path(made[0].folder)


def test_the_readme_says_how_to_call_it_and_names_every_promise(made: tuple[Any, ...]) -> None:
    text = (Path(made[0].folder) / "README.md").read_text()
    assert "$" not in text
    assert "A worker computes with 1 thread: so many were asked for.\n" in text
    for promise in made[0].promises:
        assert f"| {promise.name} | {promise.relation} " in text
    command = re.search(r"curl -s (\S+) .* -d '(.*)'", text)
    assert command is not None
    assert command[1] == "http://127.0.0.1:8000/v2/models/digits-cnn/infer"
    (tensor,) = json.loads(command[2])["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"], len(tensor["data"])) == ("image", [1, 1, 8, 8], "FP32", 64)


def test_the_curl_lines_of_the_readme_work_as_they_stand(made: tuple[Any, ...], moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a shell, against servers that are started with the options of the README; only the port is another, for 8000 may be taken."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (moved / "README.md").read_text()
    blocks = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.S)]
    lines = {line: "--token-file" in " ".join(block) for block in blocks for line in block if line.startswith("curl ")}
    assert (len(lines), sum(lines.values())) == (text.count("\ncurl "), 2)
    (serve,) = (line for block in blocks for line in block if "--repository" in line)
    guarded = tuple(shlex.split(serve.partition(" serve ")[2]))
    (moved.parent / "bundles").mkdir()
    (moved.parent / "tokens").write_text("TOKEN admin\n")
    answers: dict[str, str] = {}
    for options, with_token in (((), False), (guarded, True)):
        with start(moved, grpc_port=None, arguments=options) as server:
            (tmp_path / ".curlrc").write_text(f'connect-to = "127.0.0.1:8000:{server.url.removeprefix("http://")}"\nfail\n')
            monkeypatch.setenv("CURL_HOME", str(tmp_path))
            for line in (line for line, needs_token in lines.items() if needs_token == with_token):
                done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, (line, done.stderr, done.stdout)
                answers[line.split("127.0.0.1:8000")[1].split()[0]] = done.stdout
    with torch.no_grad():
        expected = copy.deepcopy(made[1].model).eval()(torch.zeros(1, 1, 8, 8)).flatten().tolist()
    assert json.loads(answers["/v2/models/digits-cnn/infer"])["outputs"][0]["data"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert json.loads(answers["/v2/models/digits-cnn"])["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert json.loads(answers["/v2/health/ready"])["ready"] is True
    assert "aimass_requests_total" in answers["/metrics"]
    assert json.loads(answers["/v2/repository/models/digits-cnn/load"]) == {}
    assert json.loads(answers["/v2/repository/index"]) == [{"name": "digits-cnn", "version": "1", "state": "READY"}]


def test_whoever_did_what_the_readme_says_has_a_bundle_as_it_was_written(made: tuple[Any, ...], moved: Path) -> None:
    """Its environment lies in the folder, and all files that its lines name lie beside it."""
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", (moved / "README.md").read_text(), re.S))
    named = re.findall(r"--(?:token-file|tls-cert|tls-key|log-requests|repository) (\S+)", commands)
    assert len(named) == 6
    assert [name for name in named if (moved / name).resolve().parent != moved.parent] == []
    (environment,) = re.findall(r"^python -m venv (\S+)", commands, re.M)
    for name in ("pyvenv.cfg", "bin/python", "lib/python3/site-packages/numpy/__pycache__/version.pyc", "lib/python3/site-packages/model.pkl"):
        (moved / environment / name).parent.mkdir(parents=True, exist_ok=True)
        (moved / environment / name).write_bytes(b"x")
    assert check_hashes(moved) == ()
    assert (read_bundle(moved).num_files, read_bundle(moved).size_bytes) == (made[0].num_files, made[0].size_bytes)
    (moved / "model" / environment).mkdir()
    (moved / "model" / environment / "added.onnx").write_bytes(b"x")  # where no README has it
    assert [(f.code, f.path) for f in check_hashes(moved)] == [("E-FOREIGN-FILE", f"model/{environment}/added.onnx")]


def test_the_dockerfile_runs_as_nobody_special_and_its_health_check_tells(made: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(made[0].folder) / "Dockerfile").read_text()
    python, *check = json.loads(re.findall(r"^ +CMD (\[.*\])$", text, re.M)[0])
    assert python == "python"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # as a container may have it from the daemon
    with start(made[0].folder, grpc_port=None) as server:
        asked = [part.replace("8000", server.url.rsplit(":", 1)[1]) for part in check]
        assert subprocess.run([sys.executable, *asked], timeout=60).returncode == 0
        os.kill(server.pid, signal.SIGTERM)  # it is not ready any more, and still answers: the grace time
        draining = subprocess.run([sys.executable, *asked], capture_output=True, timeout=60)
    assert draining.returncode == 1
    assert subprocess.run([sys.executable, *asked], capture_output=True, timeout=60).returncode == 1  # nobody is there
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in text
    assert re.search(r"^USER (?!root|0)", text, re.M)
    assert "/v2/health/ready" in text
    assert '"--host", "0.0.0.0"' in text
    assert "AIMASS_TOKEN=" not in text.split("FROM", 1)[1]  # a token never lies in an image


def test_an_image_gets_what_the_manifest_names_and_no_secret_that_lies_beside_it(made: tuple[Any, ...]) -> None:
    """Last rule that matches decides, as Docker has it."""
    folder = Path(made[0].folder)
    rules = [line for line in (folder / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    def kept(name: str) -> bool:
        parts, result = name.split("/"), True
        for rule in rules:
            matches = "__pycache__" in parts if rule == "**/__pycache__" else fnmatch(parts[0], rule.removeprefix("!"))
            result = rule.startswith("!") if matches else result
        return result

    named = json.loads((folder / "manifest.json").read_text())["files"]
    assert [name for name in [*named, "manifest.json"] if not kept(name)] == []
    beside = ("tokens", "cert.pem", "key.pem", "requests.log", ".venv/bin/python", "bundles/v2/run.py", ".env", "aimass_serve/__pycache__/x.pyc")
    assert [name for name in beside if kept(name)] == []
    assert "COPY . ." in (folder / "Dockerfile").read_text()


def test_the_composed_service_can_write_nowhere_and_keeps_its_token_outside(made: tuple[Any, ...]) -> None:
    import yaml

    compose = yaml.safe_load((Path(made[0].folder) / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    assert (service["read_only"], service["cap_drop"], service["image"]) == (True, ["ALL"], "digits-cnn:1")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert compose["secrets"]["token"]["file"].startswith("../")


def test_the_bill_of_materials_names_every_package_and_the_model(made: tuple[Any, ...]) -> None:
    folder = Path(made[0].folder)
    bill = json.loads((folder / "sbom.json").read_text())
    requirements = (folder / "requirements.txt").read_text().splitlines()[1:]
    packages = {f"{c['name']}=={c['version']}": c for c in bill["components"] if c["type"] == "library"}
    assert [line for line, c in packages.items() if c["scope"] == "required"] == requirements
    extras = {line for extra in EXTRAS for line in (folder / f"requirements-{extra}.txt").read_text().splitlines() if "==" in line}
    assert {line for line, c in packages.items() if c["scope"] == "optional"} == extras
    assert {"grpcio-reflection", "aio-pika"} <= {line.partition("==")[0] for line in extras}
    assert all(c["purl"] == f"pkg:pypi/{c['name']}@{c['version']}" for c in packages.values())
    assert all(c.get("licenses") for c in packages.values())  # all that a server needs state one
    (model,) = [c for c in bill["components"] if c["type"] == "machine-learning-model"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256((folder / "model/digits-cnn/1/model.onnx").read_bytes()).hexdigest()}]
    assert set(bill["dependencies"][0]["dependsOn"]) == {c["bom-ref"] for c in bill["components"]}
    table = (folder / "LICENCES.md").read_text()
    assert all(f"| {name} | {version} |" in table for name, _, version in (line.partition("==") for line in packages))


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(moved: Path) -> None:
    """As a server tells them after requests, and the shadow's as it would."""
    told = Metrics()
    told.shadow_items.labels("digits-cnn", "2", "true").inc()
    with start(moved, grpc_port=None) as server, urllib.request.urlopen(f"{server.url}/v2/models/digits-cnn/sample", timeout=20) as sample:
        entry = json.load(sample)["inputs"]
        for _ in range(3):
            urllib.request.urlopen(f"{server.url}/v2/models/digits-cnn/infer", json.dumps({"inputs": entry}).encode(), timeout=20).close()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.url}/v2/models/nobody", timeout=20)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    samples = [s for part in (told.text().decode(), text) for family in text_string_to_metric_families(part) for s in family.samples]
    labels: dict[str, set[str]] = {}
    for sample in samples:
        labels.setdefault(sample.name, {"instance"}).update(sample.labels)  # the instance is Prometheus' own to add
    board = json.loads((moved / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"aimass_\w+", target["expr"])
            wanted = {name for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in group.split(", ")}
            wanted |= set(re.findall(r"[{,](\w+)!?=", target["expr"])) | set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert names
            assert all(wanted <= labels.get(name, set()) for name in names), (target["expr"], [labels.get(name) for name in names])
    panels = {panel["title"]: panel for panel in board["panels"]}
    promises = {p["name"]: p["limit"]["value"] for p in json.loads((moved / "promises.json").read_text())["promises"]}
    for title, promise in (("Answering a request", "latency_p99"), ("Requests", "throughput"), ("Memory", "memory")):
        assert panels[title]["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == promises[promise]


def test_nothing_in_it_can_be_unpickled(made: tuple[Any, ...]) -> None:
    for path in (p for p in Path(made[0].folder).rglob("*") if p.is_file()):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".pt2", ".bin", ".joblib"}
        content = path.read_bytes()
        assert not re.match(rb"\x80[\x02-\x05]", content), f"{path} begins like a pickle"
        assert zipfile.is_zipfile(path) == (path.name == "vectors.npz")
        if path.suffix not in (".onnx", ".npz"):
            content.decode("utf-8")
    with zipfile.ZipFile(Path(made[0].folder) / "vectors.npz") as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                assert not np.lib.format.read_magic(file) < (1, 0)
                assert not np.lib.format.read_array_header_1_0(file)[2].hasobject


def test_the_copied_server_imports_nothing_of_the_package(made: tuple[Any, ...]) -> None:
    runtimes = tuple({package for member in FORMATS.values() for package in member.runs_on})  # each runner's own is imported when it loads a model
    pinned = {line.split("==")[0].replace("-", "_") for line in (*pinned_requirements(runtimes), *extra_requirements("rabbitmq"))}
    import_names = pinned | {"grpc", "google", "grpc_reflection", "opentelemetry", "aimass_serve"} | set(sys.stdlib_module_names)
    for path in (Path(made[0].folder) / "aimass_serve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert all(name.split(".")[0] in import_names for name in names), f"{path.name} imports {names}"


def test_requirements_are_exactly_what_is_installed() -> None:
    lines = pinned_requirements()
    assert lines == tuple(sorted(lines))
    pins = dict(line.split("==") for line in lines)
    assert {"numpy", "onnxruntime", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf", "orjson", "prometheus-client", "psutil"} <= set(pins)
    assert not {"torch", "onnx", "onnxscript"} & set(pins)
    for name, version in pins.items():
        assert importlib.metadata.version(name) == version
    assert {"click", "h11"} <= set(pins)  # what uvicorn needs in turn


# --- its proof -------------------------------------------------------------------------------


def test_moved_elsewhere_it_proves_itself(moved: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-I", str(moved / "run.py"), "verify", "--duration", "2"]
    done = proved(lambda: subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=120), broken_lines)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("PASS")
    assert not [finding for finding in check_hashes(moved) if finding.code.startswith("E-")]


def test_verifying_gives_the_measured_numbers(moved: Path) -> None:
    seen: list[Check] = []
    said: list[tuple[float, str]] = []

    def prove() -> Check:
        seen.clear()
        said.clear()
        return verify_bundle(moved, duration_s=1, progress=lambda share, text: said.append((share, text)), seen=seen.append)

    check = proved(prove, broken_in)
    assert check.passed, check
    assert "starting the server" in [text for _, text in said]
    assert [share for share, _ in said] == sorted(share for share, _ in said)
    known = [{p.name for p in part.promises if p.measured is not None} for part in seen]
    assert {"startup"} == known[0] < known[-1] == {p.name for p in check.promises}
    assert all(earlier <= later for earlier, later in pairwise(known))
    assert [p.name for p in check.promises] == ["errors", "fidelity", "latency_p99", "throughput", "memory", "startup"]
    assert all(p.passed and p.measured is not None and p.measured.source == "measured" for p in check.promises)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("print(json.dumps(so_far), flush=True); raise RuntimeError('the disk is full')", "the disk is full"),
        ("print(json.dumps(so_far), flush=True); sys.exit(0)", "ended with code 0"),
        ("print('no JSON', flush=True)", "does not run"),
        ("sys.stderr.write('unrecognized arguments'); sys.exit(2)", "another version"),
    ],
)
def test_a_proof_that_breaks_down_halfway_is_no_verdict(tmp_path: Path, program: str, why: str) -> None:
    so_far = {"record": "check", "subject": "b", "passed": None, "promises": [], "findings": []}
    (tmp_path / "run.py").write_text(f"import json, sys\nso_far = json.loads({json.dumps(json.dumps(so_far))})\n{program}")
    with pytest.raises(BundleError, match=why):
        run_proof(tmp_path)


def test_an_altered_bundle_is_not_run(moved: Path) -> None:
    trap = moved.parent / "ran"
    (moved / "run.py").write_text(f"open({str(trap)!r}, 'w')")
    check = verify_bundle(moved)
    assert not check.passed
    assert [(f.code, f.path) for f in check.findings] == [("E-ALTERED", "run.py")]
    assert not trap.exists()
    with pytest.raises(BundleError, match=r"run\.py: the file was altered"):
        require_bundle(moved)


def test_every_kind_of_tampering_is_found(moved: Path) -> None:
    (moved / "vectors.npz").unlink()
    (moved / "model" / "added.onnx").write_bytes(b"x")
    (moved / "aimass_serve" / "__pycache__").mkdir()
    (moved / ".ipynb_checkpoints").mkdir()
    (moved / ".ipynb_checkpoints" / "spec-checkpoint.json").write_text("{}")  # of who looked at it in Jupyter: no finding
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["files"] |= {"../outside": "sha256:0", "weights.pkl": "sha256:0"}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    findings = {(f.code, f.path) for f in check_hashes(moved)}
    assert findings == {
        ("E-MISSING", "vectors.npz"), ("E-FOREIGN-FILE", "model/added.onnx"), ("E-OUTSIDE", "../outside"), ("E-PICKLE", "weights.pkl"),
        ("W-CACHE", "aimass_serve/__pycache__"),
    }  # fmt: skip


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, moved: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(tmp_path)
    (moved / "spec.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read as a bundle"):
        read_bundle(moved)


# --- the folder ------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path, moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "thesis.txt").write_text("x")
    with pytest.raises(BundleError, match="will not overwrite"):
        write_bundle(kept, digits(), calibrate=False)
    with pytest.raises(BundleError, match="it is not a bundle"):
        write_bundle(kept, digits(), calibrate=False, force=True)
    with pytest.raises(BundleError, match="it is a file"):
        write_bundle(kept / "thesis.txt", digits(), calibrate=False, force=True)
    with pytest.raises(BundleError, match="cannot write .*: File name too long"):
        write_bundle(tmp_path / ("x" * 300), digits(), calibrate=False)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BundleError, match="it is a link to nothing"):
        check_free(tmp_path / "link", force=False)
    (tmp_path / "link").unlink()
    with pytest.raises(BundleError, match="force=True"):
        write_bundle(moved, digits(), calibrate=False)
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for own in (".", tmp_path / "here" / "below"):  # empty, but a process whose folder is replaced is nowhere
        with pytest.raises(BundleError, match="this process works in it"):
            write_bundle(own, digits(), calibrate=False)
    shutil.rmtree(tmp_path / "here")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "mine"]
    assert check_hashes(moved) == ()


def test_force_replaces_a_bundle_and_an_empty_folder_is_free(moved: Path, tmp_path: Path) -> None:
    replaced = write_bundle(moved, digits(), name="other", version="2", calibrate=False, force=True)
    assert (replaced.name, replaced.version) == ("other", "2")
    assert check_hashes(moved) == ()
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", digits(), calibrate=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "empty"]
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755


def full_disk(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "failure", "raised", "match"),
    [
        ("np.savez", full_disk, BundleError, "is full; nothing was left behind"),
        ("write_manifest", interrupt, KeyboardInterrupt, None),
        ("os.replace", full_disk, BundleError, "is full"),
    ],
)
def test_a_failure_leaves_nothing_behind(
    step: str, failure: Callable[..., None], raised: type[BaseException], match: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"np.savez": (np, "savez"), "write_manifest": (writer, "write_manifest"), "os.replace": (os, "replace")}[step]
    monkeypatch.setattr(*target, failure)
    with pytest.raises(raised, match=match):
        write_bundle(tmp_path / "new" / "deep" / "bundle", digits(), calibrate=False)
    assert not list(tmp_path.iterdir())


def test_a_replacement_that_fails_leaves_the_old_bundle(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            full_disk()
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(BundleError, match="is full"):
        write_bundle(moved, digits(), calibrate=False, force=True)
    assert check_hashes(moved) == ()
    assert [p.name for p in moved.parent.iterdir()] == [moved.name]


def test_a_small_disk_is_noticed_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(BundleError, match="are free on the disk"):
        write_bundle(tmp_path / "bundle", digits(), calibrate=False)
    assert not list(tmp_path.iterdir())


# --- what cannot be bundled --------------------------------------------------------------------


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt()

    with pytest.raises(BundleError, match="NaN or infinity for 1 of 3 samples"):
        write_bundle(tmp_path / "b", Workload(Logarithm(), torch.tensor([[1.0], [4.0], [-1.0]])), calibrate=False)
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_the_protocol_cannot_carry_is_refused(tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.bfloat16()

    with pytest.raises(UnsupportedError, match="bfloat16"):
        write_bundle(tmp_path / "b", Workload(Half(), torch.randn(2, 3)), calibrate=False)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "Not A Label"}, "cannot be the name"),
        ({"version": "../1"}, "cannot be the version"),
        ({"version": "0"}, "cannot be the version"),
        ({"rate": 0}, "must be greater than 0"),
        ({"latency_p99_s": -1}, "must be greater than 0"),
        ({"max_batch_size": 0}, "batch limit"),
        ({"max_wait_s": -1.0}, "waiting time"),
        ({"threads": 0}, "number of threads"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        write_bundle(tmp_path / "b", digits(), calibrate=False, **arguments)
    assert not list(tmp_path.iterdir())


# --- specs, variants, models without batch axis ---------------------------------------------------


def test_a_spec_goes_in_as_it_is_and_its_rate_is_shared_by_the_replicas(tmp_path: Path) -> None:
    workload = digits()
    spec = make_spec(workload, rate=40, replicas=2)
    bundle = write_bundle(tmp_path / "b", workload, spec=spec, calibrate=False)
    assert from_json((tmp_path / "b" / "spec.json").read_bytes(), ServingSpec).digest == spec.digest
    assert json.loads((tmp_path / "b" / "promises.json").read_text())["scenario"]["requests_per_s"] == 20
    config = load_config(tmp_path / "b")
    assert (config.max_batch_size, config.max_wait_s, config.threads_per_worker) == (4, 0.001, 1)
    limits = {p.name: p.limit for p in bundle.promises}
    assert limits["throughput"].trust == "estimated"  # as trusted as the number of replicas
    assert limits["latency_p99"] == spec.latency_p99_target
    assert limits["memory"].source == limits["startup"].source == "estimated"
    of_the_machine = ("W-NOISY", "W-FORMAT", "missing:batch-sizes")
    assert [note.code for note in bundle.notes if not note.code.startswith(of_the_machine)] == ["missing:calibration"]


def test_a_start_that_a_plan_assumed_is_the_measured_one_once_the_bundle_was_started(tmp_path: Path) -> None:
    from specs import ENVIRONMENT

    from aimass_lab.spec import startup_time

    workload = digits()
    spec = msgspec.structs.replace(make_spec(workload), startup_time=startup_time(None), environment=ENVIRONMENT)
    bundle = write_bundle(tmp_path / "b", workload, spec=spec)
    written = from_json((tmp_path / "b" / "spec.json").read_bytes(), ServingSpec)
    assert written.startup_time == startup_time(bundle)
    assert written.startup_time.source == "measured"
    assert msgspec.structs.replace(written, startup_time=spec.startup_time).digest == spec.digest


def test_cores_of_a_plan_that_no_thread_computes_on_say_why(tmp_path: Path) -> None:
    workload = digits()
    spec = msgspec.structs.replace(make_spec(workload), cpu_cores=number(2, "core"))
    write_bundle(tmp_path / "b", workload, spec=spec, calibrate=False)
    cores = from_json((tmp_path / "b" / "spec.json").read_bytes(), ServingSpec).cpu_cores
    why = "test; the worker of the bundle computes with 1 thread: a call takes less than 10.0 ms, so that one core is left to what takes the requests"
    assert (cores.value, cores.method, load_config(tmp_path / "b").threads_per_worker) == (2, why, 1)
    assert why in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_a_technique_needs_its_variant_and_is_judged_against_the_original(tmp_path: Path) -> None:
    workload = digits()
    spec = make_spec(workload, technique="scaled")
    with pytest.raises(InputError, match="'scaled'"):
        write_bundle(tmp_path / "b", workload, spec=spec, calibrate=False)
    variant = copy.deepcopy(workload.model)
    with torch.no_grad():
        variant.body[-1].weight.mul_(1.1)
        variant.body[-1].bias.mul_(1.1)
    bundle = write_bundle(tmp_path / "b", workload, spec=spec, variant=variant, calibrate=False)
    limit = next(p.limit for p in bundle.promises if p.name == "fidelity")
    assert limit.value == pytest.approx(2 * 0.1 + 1e-4, rel=1e-3)


def test_a_plan_for_an_accelerator_is_not_calibrated_here(tmp_path: Path) -> None:
    workload = digits()
    bundle = write_bundle(tmp_path / "b", workload, spec=make_spec(workload, device="h100-sxm"))
    assert {"W-PROMISE-AT-RISK", "missing:calibration"} <= {note.code for note in bundle.notes}


def test_a_model_without_batch_axis_is_bundled_and_proves_itself(tmp_path: Path) -> None:
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    bundle = write_bundle(tmp_path / "b", Workload(Centred(), torch.randn(4, 3)), rate=20, latency_p99_s=1.0)
    config = load_config(tmp_path / "b")
    assert (config.batched, config.max_batch_size, config.inputs[0].shape) == (False, 1, (4, 3))
    assert "W-NOT-BATCHED" in [note.code for note in bundle.notes]
    assert not [note for note in bundle.notes if note.code == "W-PROMISE-AT-RISK"]


def test_labelled_data_fill_up_the_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = (torch.randn(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64))
    workload = Workload(Digits(), torch.randn(2, 1, 8, 8), data=data, metric=lambda outputs, labels: 0.0)
    write_bundle(tmp_path / "b", workload, calibrate=False)
    inputs, _ = load_vectors(tmp_path / "b", load_config(tmp_path / "b"))
    assert len(inputs[0]) == 22


# --- promises, without a server --------------------------------------------------------------------


def run_of(**values: float) -> Calibration:
    units: dict[str, Unit] = calibration.WIDE
    usual = {"errors": 0.0, "fidelity": 1e-6, "latency_p50": 0.002, "latency_p99": 0.01, "throughput": 100.0, "memory": 8e7, "startup": 1.0}
    return Calibration(requests_per_s=100, measured={name: number(value, units[name]) for name, value in (usual | values).items()})


ASKED = Asked(
    requests_per_s=number(100, "request/s", source="user"),
    latency_p99=number(0.05, "s", source="user"),
    memory_bytes=number(2e8, "B"),
    startup_time=number(10, "s"),
)
FIDELITY = number(1e-6, "ratio")


def test_limits_follow_from_the_measurements() -> None:
    asked = Asked(requests_per_s=ASKED.requests_per_s, latency_p99=None)
    promises = make_promises(asked, FIDELITY, model_bytes=10, workers=1, calibration=run_of(latency_p99=0.02, startup=4.0))
    limits = {p.name: p.limit.value for p in promises}
    assert limits == pytest.approx({"errors": 0, "fidelity": 1.02e-4, "latency_p99": 0.06, "throughput": 97, "memory": 1.2 * 8e7 + 32 * 2**20, "startup": 8.0})


def test_without_a_measurement_no_latency_is_promised() -> None:
    asked = Asked(requests_per_s=ASKED.requests_per_s, latency_p99=None)
    promises = make_promises(asked, FIDELITY, model_bytes=100, workers=2, calibration=None)
    assert "latency_p99" not in [p.name for p in promises]
    memory = next(p.limit for p in promises if p.name == "memory")
    assert (memory.source, memory.value) == ("estimated", 300 * 2**20 + 600)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, None),
        ({"latency_p99": 0.08}, "latency_p99: 80.0 ms were measured where 50.0 ms are asked"),
        ({"throughput": 60.0}, "throughput: 60 of the promised 97 requests/s"),
        ({"errors": 3.0}, "errors: 3 requests got no good answer"),
        ({"memory": 3e8}, "memory: 286 MiB were measured where 191 MiB are asked"),
        ({"startup": 12.0}, "startup: 12.0 s were measured where 10.0 s are asked"),
    ],
)
def test_a_promise_that_was_not_kept_here_is_kept_and_marked(values: dict[str, float], named: str | None) -> None:
    run = run_of(**values)
    promises = make_promises(ASKED, FIDELITY, model_bytes=10, workers=1, calibration=run)
    notes = risk_notes(ASKED, promises, run)
    assert next(p.limit for p in promises if p.name == "latency_p99") == ASKED.latency_p99
    assert [note.code for note in notes] == (["W-PROMISE-AT-RISK"] if named else [])
    assert named is None or notes[0].text.startswith(named)


def test_doubts_of_the_run_are_passed_on() -> None:
    run = msgspec_replace(run_of(), findings=(Finding(code="W-NOISY", path="", text="busy"),))
    assert [note.code for note in risk_notes(ASKED, (*make_promises(ASKED, FIDELITY, model_bytes=1, workers=1, calibration=run),), run)] == ["W-NOISY"]


def msgspec_replace(value: Any, **fields: Any) -> Any:
    import dataclasses

    return dataclasses.replace(value, **fields)


def test_a_rate_is_halved_until_it_is_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[float] = []

    def server_of_60_per_s(folder: Path, rate: float) -> Calibration:
        tried.append(rate)
        run = run_of(throughput=min(rate, 60))
        return msgspec_replace(run, requests_per_s=rate)

    monkeypatch.setattr(calibration, "calibrate", server_of_60_per_s)
    rate, run = find_rate(tmp_path, number(200, "request/s"), latency_limit_s=0.1)
    assert tried == [200, 100, 50]
    assert (rate.value, run.requests_per_s, rate.weakest_source) == (50, 50, "measured")
    assert "halved 2 times" in rate.method
    with pytest.raises(BundleError, match="did not hold 12.5 requests/s"):
        find_rate(tmp_path, number(200, "request/s"), latency_limit_s=0.001)


def test_a_bundle_that_does_not_start_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "server"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "__main__.py").write_text("def main(folder): raise SystemExit('error: no such thing')\n")
    monkeypatch.setattr(writer, "SERVER", broken)
    with pytest.raises(BundleError, match="error: no such thing"):
        write_bundle(tmp_path / "b", digits(), rate=10, latency_p99_s=1.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["server"]


def test_names_are_made_of_whatever_a_model_is_called() -> None:
    assert dns_name("BertModel") == "bertmodel"
    assert dns_name("My Model (v2)") == "my-model-v2"
    assert dns_name("模型") == "model"
    assert len(dns_name("x" * 100)) == 63


def test_what_is_asked_goes_before_the_spec(tmp_path: Path) -> None:
    spec = make_spec(digits(), rate=40, replicas=4)
    choices = choose("M", spec, None, rate=80, latency_p99_s=0.2, max_batch_size=2, threads=3, name="mine", version="7")
    assert choices.rate is not None
    assert choices.latency_p99 is not None
    assert (choices.rate.value, choices.latency_p99.value, choices.latency_p99.source) == (20, 0.2, "user")
    assert (choices.max_batch_size, choices.threads, choices.name, choices.version) == (2, 3, "mine", "7")


def test_the_written_records_are_records(made: tuple[Any, ...]) -> None:
    written = json.loads((Path(made[0].folder) / "promises.json").read_text())
    for promise in written["promises"]:
        msgspec.convert(promise["limit"], Number)
    spec = from_json((Path(made[0].folder) / "spec.json").read_bytes(), ServingSpec)
    assert isinstance(spec.model, ModelInfo)
    assert spec.replicas.source == "assumed"
    assert "W-NOT-PLANNED" in [note.code for note in spec.notes]


# --- what the panel does with one -------------------------------------------------------------


def test_a_served_bundle_is_found_whoever_started_it_and_can_be_stopped(moved: Path) -> None:
    served = ServedBundles()
    with start(moved) as server:
        (found,) = (service for service in served.find() if service.pid == server.pid)
        assert (found.folder, found.url, found.grpc_address) == (str(moved), server.url, server.grpc_address)
        served.stop(server.pid)
        assert server.wait() == 0
        assert all(service.pid != found.pid for service in served.find())
    with pytest.raises(BundleError, match="serves no bundle"):
        served.stop(os.getpid())


def test_a_bundle_opened_from_the_file_browser_says_whether_it_is_as_it_was_written(moved: Path) -> None:
    contents = LargeFileManager(root_dir=str(moved.parent))
    for path in ("elsewhere", "elsewhere/manifest.json"):
        record = asyncio.run(read_document(contents, path))
        assert isinstance(record, Bundle)
        assert [note.code for note in record.notes][-1] == "hashes"
    assert "Promises" in render_text(record)
    (moved / "promises.json").write_text((moved / "promises.json").read_text() + " ")
    notes = asyncio.run(read_document(contents, "elsewhere")).notes  # type: ignore[attr-defined]
    assert notes[-1].code == "E-ALTERED"
    assert "promises.json" in notes[-1].text
    assert asyncio.run(read_document(contents, "elsewhere/spec.json")).name == "digits-cnn"  # type: ignore[attr-defined]


def test_nothing_outside_the_servers_root_is_opened(moved: Path) -> None:
    (moved.parent / "root").mkdir()
    contents = LargeFileManager(root_dir=str(moved.parent / "root"))
    with pytest.raises(InputError, match="cannot be opened"):
        asyncio.run(read_document(contents, "../elsewhere/spec.json"))
    with pytest.raises(InputError, match="cannot be opened"):
        asyncio.run(read_document(contents, "../elsewhere"))


# --- threads -----------------------------------------------------------------------------------


def test_a_worker_gets_all_cores_only_where_a_call_is_long_and_several_only_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(most: int, seconds: Mapping[int, float]) -> int:
        monkeypatch.setattr(bundle_threads, "_time", lambda served, call, threads: number(seconds[threads], "s"))
        workload = digits()
        choice = settle_threads(workload, workload.model, most)
        assert {trial.threads: trial.latency_p50.value for trial in choice.trials} == seconds  # what was needed, once
        return choice.count

    assert settled(1, {}) == 1
    assert settled(2, {2: 0.002}) == 1  # short: a core is left to the front end
    assert settled(2, {2: 0.1, 1: 0.19}) == 2
    assert settled(2, {2: 0.1, 1: 0.11}) == 1  # long, but the second thread does not pay
    assert settled(8, {8: 0.004, 7: 0.005, 1: 0.02}) == 7
    assert settled(8, {8: 0.004, 7: 0.005, 1: 0.005}) == 1


def test_threads_are_measured_on_the_model_itself_which_stays_as_it_was() -> None:
    workload = digits()
    before, threads = copy.deepcopy(workload.model.state_dict()), torch.get_num_threads()
    choice = settle_threads(workload, workload.model, 2)
    assert choice.count in (1, 2)
    assert all(trial.latency_p50.value > 0 for trial in choice.trials)
    assert torch.get_num_threads() == threads
    assert workload.model.training
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())
