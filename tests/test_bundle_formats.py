"""Bundles of every format: which one is shipped, what stands in it, and that each serves and proves itself in real processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from aimass_lab.bundle import check_hashes, read_bundle, runtimes, verify_bundle, write_bundle, writer
from aimass_lab.bundle.requirements import pinned_requirements, requirements_text
from aimass_lab.bundle.runtimes import fastest, holding
from aimass_lab.bundle.threads import ThreadChoice, ThreadTrial
from aimass_lab.errors import AimassError, BundleError, UnknownNameError, UnsupportedError
from aimass_lab.formats import FORMATS, FormatFile
from aimass_lab.formats.measure import Speed
from aimass_lab.records import Bundle, Number
from aimass_lab.serving.launch import start
from aimass_lab.workload import Workload


def workload() -> Workload:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return Workload(nn.Sequential(layer, nn.Flatten(), nn.Linear(80, 3)), torch.randn(6, 5, 16), name="blocks")


def linear() -> Workload:
    torch.manual_seed(0)
    return Workload(nn.Linear(6, 3), torch.randn(4, 6), name="linear")


def speed(format: str, size: int, ratio: float, low: float | None = None, high: float | None = None) -> Speed:
    interval = (ratio if low is None else low, ratio if high is None else high)
    return Speed(format=format, batch_size=size, ratio=Number(value=ratio, unit="ratio", source="measured", method="test", interval=interval))


def speeds(**ratios: Sequence[float]) -> dict[str, list[Speed]]:
    return {name: [speed(name, 2**i, ratio) for i, ratio in enumerate(values)] for name, values in ratios.items()}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MEASURE_BUDGET_S", 0.1)
    monkeypatch.setattr(runtimes, "COMPARE_BUDGET_S", 0.1)
    monkeypatch.setattr(runtimes, "EXPORT_BUDGET_S", 1000.0)


def pretend(monkeypatch: pytest.MonkeyPatch, **ratios: Sequence[float]) -> list[list[str]]:
    """Let the clock say these speeds; returns what is going to be compared."""
    asked: list[list[str]] = []

    def compare(files: Sequence[FormatFile], *args: Any, **kwargs: Any) -> tuple[tuple[Speed, ...], tuple[()]]:
        asked.append([file.format for file in files])
        found = speeds(**ratios)
        return tuple(one for file in files for one in found[file.format]), ()

    monkeypatch.setattr(runtimes, "compare_speeds", compare)
    return asked


def left_out(bundle: Bundle) -> Mapping[str, str]:
    return {trial.format: trial.left_out for trial in bundle.runtimes if trial.left_out is not None}


# --- which one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "chosen"),
    [
        ({"onnx": [1.5, 1.5], "openvino": [1.5, 1.5], "safetensors": [1.0, 1.0]}, "onnx"),  # a tie goes to the first
        ({"onnx": [1.5, 1.5], "openvino": [1.7, 1.5], "safetensors": [1.0, 1.0]}, "onnx"),  # and so does less than 10 %
        ({"onnx": [1.5, 1.5], "openvino": [1.8, 1.6], "safetensors": [1.0, 1.0]}, "openvino"),
        ({"onnx": [3.0, 0.9], "openvino": [1.1, 1.1], "safetensors": [1.0, 1.0]}, "openvino"),  # faster on average, slower at one size
        ({"onnx": [3.0, 0.9], "openvino": [5.0, 0.5], "safetensors": [1.0, 1.0]}, "safetensors"),
        ({"onnx": [0.5, 0.9], "openvino": [2.0, 0.8], "safetensors": [0.9, 0.7]}, "openvino"),  # all are slower somewhere: the least bad
    ],
)
def test_the_fastest_is_shipped_that_is_nowhere_slower_than_torch(ratios: dict[str, list[float]], chosen: str) -> None:
    found = speeds(**ratios)
    assert fastest(found, list(ratios)) == chosen
    if good := holding(found, ratios):
        assert chosen in good
        assert min(ratios[chosen]) >= runtimes.SLOWER_LIMIT


def test_a_lead_that_the_clock_is_not_sure_of_changes_no_choice() -> None:
    onnx = [speed("onnx", 1, 1.5, 1.4, 1.6)]
    assert fastest({"onnx": onnx, "safetensors": [speed("safetensors", 1, 1.8, 1.7, 1.9)]}, ["onnx", "safetensors"]) == "onnx"
    assert fastest({"onnx": onnx, "safetensors": [speed("safetensors", 1, 2.0, 1.9, 2.1)]}, ["onnx", "safetensors"]) == "safetensors"


def test_slower_is_what_the_whole_interval_says() -> None:
    assert holding({"onnx": [speed("onnx", 1, 0.95, 0.9, 1.0)]}, ["onnx"]) == ["onnx"]
    assert holding({"onnx": [speed("onnx", 1, 0.95, 0.93, 0.97)]}, ["onnx"]) == []
    assert holding({}, ["onnx"]) == []  # what was not measured holds nothing


def test_a_runtime_that_the_clock_shows_slower_than_torch_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "openvino"):
        load = FORMATS[name].open

        def slow(self: Any, path: Path, *, threads: int = 1, load: Callable[..., Any] = load) -> Any:
            runner = load(self, path, threads=threads)
            return lambda inputs: (time.sleep(0.02), runner(inputs))[1]

        monkeypatch.setattr(FORMATS[name], "open", slow)
    monkeypatch.setattr(runtimes, "COMPARE_BUDGET_S", 3.0)
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=2, calibrate=False)
    assert bundle.format == "safetensors"
    measured = {trial.format: trial.speedups for trial in bundle.runtimes if trial.speedups}
    assert list(measured) == ["onnx", "openvino", "safetensors"]
    assert [s.batch_size for s in measured["onnx"]] == [1, 2]
    assert all(s.ratio.value < 0.5 for name in ("onnx", "openvino") for s in measured[name])
    assert [trial.format for trial in bundle.runtimes if trial.chosen] == ["safetensors"]
    assert sorted(p.name for p in (tmp_path / "b/model/linear/1").iterdir()) == ["model.py", "model.safetensors"]
    assert not (tmp_path / "b/model/linear/config.pbtxt").exists()


def test_the_choice_stands_in_the_record_and_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, onnx=[1.2, 1.2], openvino=[2.0, 1.5], safetensors=[1.0, 1.0])
    took = [ThreadTrial(threads=n, latency_p50=Number(value=s, unit="s", source="measured", method="test", n=3)) for n, s in ((1, 0.139), (2, 0.074))]
    monkeypatch.setattr(writer, "settle_threads", lambda *_: ThreadChoice(count=2, because="2 threads are 1.88 times as fast as one", trials=tuple(took)))
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=2, calibrate=False)
    assert bundle.format == "openvino"
    assert read_bundle(tmp_path / "b").runtimes == bundle.runtimes
    assert set(left_out(bundle)) == {"aot_inductor", "exported_program", "torchscript"}
    text = (tmp_path / "b/README.md").read_text()
    assert "| **openvino** | OpenVINO | 2.00 at 1, 1.50 at 2 |  |" in text
    assert "| aot_inductor | AOTInductor |  | compiling takes a minute and more |" in text
    assert "OpenVINO's telemetry is kept out" in text
    assert "## Why 2 threads\n\nA worker computes with 2 threads: 2 threads are 1.88 times as fast as one. A call with one item takes" in text
    assert "| 1 | 139 ms | 3 |\n| 2 | 74.0 ms | 3 |" in text
    card = (tmp_path / "b/MODEL_CARD.md").read_text()
    assert "| why so many | 2 threads are 1.88 times as fast as one | `runtimes.json#/threads/because` |" in card
    assert "| threads with 2 threads latency_p50 | 74.0 ms |" in card
    config = (tmp_path / "b/model/linear/config.pbtxt").read_text()
    assert 'backend: "openvino"' in config


def test_where_all_are_slower_the_bundle_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, onnx=[0.5, 0.9], openvino=[0.4, 0.4], safetensors=[0.3, 0.9])
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=2, calibrate=False)
    (note,) = [note for note in bundle.notes if note.code == "W-FORMAT-SLOWER"]
    assert bundle.format == "onnx"
    assert "2 times the time at batch size 1, 1.1 times the time at batch size 2; no other format that is installed here" in note.text
    assert note.text in (tmp_path / "b/README.md").read_text()


def test_further_formats_have_a_budget_and_torch_s_speed_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "EXPORT_BUDGET_S", 0.0)
    asked = pretend(monkeypatch, onnx=[1.2], openvino=[2.0], safetensors=[1.0])
    bundle = write_bundle(tmp_path / "a", linear(), max_batch_size=1, calibrate=False)
    assert (bundle.format, asked) == ("onnx", [["onnx"]])
    assert "there was no time: exporting takes about" in left_out(bundle)["openvino"]
    asked = pretend(monkeypatch, onnx=[0.8], openvino=[0.7], safetensors=[1.0])
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=1, calibrate=False)
    assert (bundle.format, asked) == ("safetensors", [["onnx"], ["openvino"], ["safetensors"]])
    assert set(left_out(bundle)) == {"aot_inductor", "exported_program", "torchscript"}
    assert not list((tmp_path / "b").rglob(".*net*"))


def test_one_that_is_not_installed_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS["openvino"], "requires", ("no_such_package",))
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=1, calibrate=False)
    assert "needs the package 'no_such_package', which is not installed" in left_out(bundle)["openvino"]
    with pytest.raises(AimassError, match="no_such_package"):
        write_bundle(tmp_path / "c", linear(), format="openvino", calibrate=False)
    with pytest.raises(UnknownNameError, match="no model format called 'onyx'"):
        write_bundle(tmp_path / "c", linear(), format="onyx", calibrate=False)
    assert not (tmp_path / "c").exists()


def test_what_onnx_cannot_express_goes_into_another_format(tmp_path: Path) -> None:
    class Decomposed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svd(x)[1]

    bundle = write_bundle(tmp_path / "b", Workload(Decomposed(), torch.randn(3, 4, 4)), max_batch_size=2, calibrate=False)
    assert bundle.format == "safetensors"
    assert "linalg_svd" in left_out(bundle)["onnx"]
    with pytest.raises(UnsupportedError, match="linalg_svd"):
        write_bundle(tmp_path / "c", Workload(Decomposed(), torch.randn(3, 4, 4)), format="onnx", calibrate=False)


def test_a_wrong_file_is_not_shipped_where_another_one_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = FORMATS["onnx"].open

    def doubled(self: Any, path: Path, *, threads: int = 1) -> Any:
        runner = load(self, path, threads=threads)
        return lambda inputs: {name: 2 * array for name, array in runner(inputs).items()}

    monkeypatch.setattr(FORMATS["onnx"], "open", doubled)
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=1, calibrate=False)
    assert bundle.format in ("openvino", "safetensors")
    assert "computes something else than the model" in left_out(bundle)["onnx"]


def test_what_is_wrong_in_the_largest_batch_only_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = FORMATS["onnx"].open

    def overflowing(self: Any, path: Path, *, threads: int = 1) -> Any:
        runner = load(self, path, threads=threads)
        return lambda inputs: {name: array if len(array) < 16 else array.repeat(2, 0)[:16] for name, array in runner(inputs).items()}

    monkeypatch.setattr(FORMATS["onnx"], "open", overflowing)
    pretend(monkeypatch, onnx=[2.0], openvino=[1.5], safetensors=[1.0])
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=16, calibrate=False)
    assert bundle.format == "openvino"
    assert "of 16 items has a relative error of" in left_out(bundle)["onnx"]
    with pytest.raises(BundleError, match="of 16 items"):
        write_bundle(tmp_path / "c", linear(), max_batch_size=16, format="onnx", calibrate=False)


def test_what_a_proof_finds_wrong_in_the_largest_batch_is_looked_at_and_another_format_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server compares that batch as it warms up; of a file that is right, its error may be large where an output is next to nothing."""
    load, find, asked = FORMATS["onnx"].open, writer.calibration.find_rate, []

    def overflowing(self: Any, path: Path, *, threads: int = 1) -> Any:
        runner = load(self, path, threads=threads)
        return lambda inputs: {name: array if len(array) < 16 else array.repeat(2, 0)[:16] for name, array in runner(inputs).items()}

    def find_rate(*args: Any, **kwargs: Any) -> Any:
        rate, run = find(*args, **kwargs)
        asked.append(run)
        return rate, replace(run, measured=run.measured | {"fidelity": msgspec.structs.replace(run.measured["fidelity"], value=0.5)})

    monkeypatch.setattr(writer.calibration, "find_rate", find_rate)
    monkeypatch.setattr(writer.calibration, "calibrate", partial(writer.calibration.calibrate, duration_s=0.3))
    pretend(monkeypatch, onnx=[2.0], openvino=[1.5], safetensors=[1.0])
    right = write_bundle(tmp_path / "a", linear(), max_batch_size=16)
    assert (right.format, len(asked)) == ("onnx", 1)
    monkeypatch.setattr(FORMATS["onnx"], "open", overflowing)
    bundle = write_bundle(tmp_path / "b", linear(), max_batch_size=16)
    assert (bundle.format, len(asked)) == ("openvino", 3)
    assert "of 16 items has a relative error of" in left_out(bundle)["onnx"]
    with pytest.raises(BundleError, match="of 16 items"):
        write_bundle(tmp_path / "c", linear(), max_batch_size=16, format="onnx")
    assert not (tmp_path / "c").exists()


def test_a_copy_that_a_runtime_runs_goes_into_the_formats_that_carry_it() -> None:
    from aimass_lab.formats._aot_module import PackageModule
    from aimass_lab.formats._onnx_module import OnnxModule

    file, nothing = torch.zeros(1, dtype=torch.uint8), None
    assert runtimes.formats_for(OnnxModule(file, nothing, torch.device("cpu"))) == ["onnx", "openvino"]  # type: ignore[arg-type]
    assert runtimes.formats_for(PackageModule(file, nothing, torch.device("cpu"))) == ["aot_inductor"]  # type: ignore[arg-type]
    assert runtimes.formats_for(nn.Linear(2, 2)) == ["onnx", "openvino", "safetensors"]


# --- what a bundle of each needs -------------------------------------------------------------------

NEEDS = {
    "onnx": {"onnxruntime"}, "openvino": {"openvino"}, "safetensors": {"torch", "safetensors"}, "exported_program": {"torch"}, "torchscript": {"torch"},
    "aot_inductor": {"torch"},
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_requirements_are_those_of_the_runner_and_no_other_s(format: str) -> None:
    pinned = {line.partition("==")[0] for line in pinned_requirements(FORMATS[format].runs_on)}
    assert pinned & set().union(*NEEDS.values()) == NEEDS[format]
    assert {"uvicorn", "grpcio", "numpy"} <= pinned
    assert FORMATS[format].safety


def test_a_build_of_torch_for_the_processor_is_found_where_it_lies() -> None:
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", "a==1", "torch==2.13.0+cpu"]
    assert requirements_text(lines[1:], None).splitlines()[1:] == lines
    assert requirements_text(["a==1"], None).splitlines()[1:] == ["a==1"]


# --- each of them, in real processes ---------------------------------------------------------------

COMPILED = pytest.param("aot_inductor", marks=pytest.mark.slow)


@pytest.mark.parametrize("format", [*(name for name in FORMATS if name != "aot_inductor"), COMPILED])
def test_a_bundle_of_each_format_serves_proves_itself_and_leaves_nothing(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    bundle = write_bundle(
        tmp_path / "b", workload(), rate=10, latency_p99_s=5.0, max_batch_size=4, threads=1, format=format, calibrate=False,
        progress=lambda share, text: said.append(text),
    )  # fmt: skip
    assert bundle.format == format
    assert f"exporting to {format}" in said
    assert {why for name, why in left_out(bundle).items() if name != format} == {f"only {format} was asked for"}
    assert check_hashes(tmp_path / "b") == ()
    materials = json.loads((tmp_path / "b/sbom.json").read_text())["components"]
    models = {part["name"] if part["type"] != "machine-learning-model" else part["bom-ref"] for part in materials if part["type"] == "machine-learning-model"}
    assert models == {path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b/model/blocks/1").iterdir()}
    assert FORMATS[format].safety in (tmp_path / "b/README.md").read_text()

    slack = {"startup": 200.0, "latency_p99": 30.0}  # what is tested is that it answers right, on however busy a machine
    promised = json.loads((tmp_path / "b/promises.json").read_text())
    for promise in promised["promises"]:
        promise["limit"]["value"] = slack.get(promise["name"], promise["limit"]["value"]) if promise["name"] != "memory" else 2**33
    promised["promises"] = [promise for promise in promised["promises"] if promise["name"] != "throughput"]
    (tmp_path / "b/promises.json").write_text(json.dumps(promised))
    from aimass_lab.bundle.folder import write_manifest

    write_manifest(tmp_path / "b")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))  # of the processes that are started now
    check = verify_bundle(tmp_path / "b", duration_s=1)
    assert check.passed, check
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
    fidelity = next(promise.measured for promise in check.promises if promise.name == "fidelity")
    assert fidelity is not None
    assert fidelity.value < 1e-5


def test_a_file_of_another_kind_in_its_place_is_refused_by_name_and_by_look(tmp_path: Path) -> None:
    from aimass_lab.bundle.folder import write_manifest
    from aimass_lab.serving.errors import ServerError

    write_bundle(tmp_path / "b", linear(), max_batch_size=2, format="torchscript", calibrate=False)
    (tmp_path / "b/model/linear/1/extra.pkl").write_bytes(b"\x80\x04N.")
    write_manifest(tmp_path / "b")
    assert [finding.code for finding in check_hashes(tmp_path / "b")] == ["E-PICKLE"]
    with pytest.raises(ServerError, match=r"extra\.pkl': files that can run code when loaded are not served"):
        start(tmp_path / "b")
    (tmp_path / "b/model/linear/1/extra.pkl").unlink()
    (tmp_path / "b/model/linear/1/model.pt").write_bytes(b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.")
    write_manifest(tmp_path / "b")
    with pytest.raises(ServerError, match="not an archive of torch"):
        start(tmp_path / "b")
