"""Model files that want to do more than compute: made here, one trick each, and refused before a loader sees them."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aimass_lab.formats import FORMATS
from aimass_lab.serving.config import ServingConfig, TensorSpec
from aimass_lab.serving.errors import BundleError
from aimass_lab.serving.runners import aot_inductor
from aimass_lab.serving.runners._archive import check_pickle
from aimass_lab.serving.runners.base import find_format, known_formats
from aimass_lab.workload import as_call

TORCH_FORMATS = ("exported_program", "safetensors", "torchscript")
FOLDER = "data/aotinductor/model"


def config(format: str, model_file: str) -> ServingConfig:
    tensors = (TensorSpec("input", "FP32", (-1, 4)),), (TensorSpec("output", "FP32", (-1, 3)),)
    return ServingConfig(schema=1, name="net", version="1", format=format, model_file=model_file, inputs=tensors[0], outputs=tensors[1])


def load(format: str, path: Path) -> Any:
    return find_format(format).load(path, config(format, path.name))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each format that needs no compiler."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    files = {}
    for format in (*TORCH_FORMATS, "openvino"):
        path = tmp_path_factory.mktemp(format) / FORMATS[format].file_name
        files[format] = FORMATS[format]().export(model, as_call(torch.randn(2, 4)), path).path
    return files


def altered(path: Path, folder: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with other members."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    copied = folder / path.name
    with zipfile.ZipFile(copied, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return copied


def json_change(member: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        value = json.loads(members[member])
        change(value)
        members[member] = json.dumps(value).encode()

    return apply


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def trapped(folder: Path) -> bytes:
    return pickle.dumps(Trap(folder / "ran"))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("format", [*TORCH_FORMATS, "openvino"])
def test_what_the_exporter_writes_is_let_through_and_computes(good: dict[str, Path], format: str) -> None:
    runner = load(format, good[format])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = FORMATS[format]().load_and_run(good[format], {"input": x})["output"]
    np.testing.assert_allclose(runner.run([x])[0], expected, rtol=1e-5, atol=1e-6)
    x.flags.writeable = False
    np.testing.assert_allclose(runner.run([x])[0], expected, rtol=1e-5, atol=1e-6)


def test_every_format_has_a_runner_of_its_name() -> None:
    assert known_formats() == sorted(FORMATS)


# --- exported programs -----------------------------------------------------------------------

MODEL, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def first_weight(weights: Any) -> dict[str, Any]:
    return next(iter(weights["config"].values()))


def set_size(value: Any, text: str) -> None:
    """Put another text in the place of every size that is one."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        if key == "expr_str":
            value[key] = text
        else:
            set_size(item, text)


def set_spec(program: Any, text: str) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text


def set_target(program: Any, target: str) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = target


ENUM = '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:x\\", \\"name\\": \\"y\\"}]", "children_spec": []}]'
EXPORTED: dict[str, tuple[Callable[[Path], Callable[[dict[str, bytes]], None]], str]] = {
    "example inputs": (lambda t: lambda m: m.update({"data/sample_inputs/model.pt": trapped(t)}), "example inputs, which torch unpickles"),
    "pickled weight": (lambda t: json_change(WEIGHTS, lambda w: first_weight(w).update(use_pickle=True)), "is a pickle"),
    "opaque constant": (
        lambda t: json_change(CONSTANTS, lambda c: c["config"].update(x={"path_name": "opaque_obj_0", "use_pickle": False})),
        "is no tensor, but 'opaque_obj_0'",
    ),
    "script object": (lambda t: lambda m: m.update({"data/constants/custom_obj_0": trapped(t)}), "'data/constants/custom_obj_0', which a file of this format"),
    "old weights": (lambda t: lambda m: m.update({"data/weights/model.pt": trapped(t)}), "'data/weights/model.pt', which a file of this format"),
    "library": (lambda t: lambda m: m.update({f"{FOLDER}/x.so": b"\x7fELF"}), "which a file of this format has no use for"),
    "guards": (lambda t: json_change(MODEL, lambda p: p.update(guards_code=[f"open({str(t / 'ran')!r}, 'w')"])), "conditions as Python code"),
    "size": (lambda t: json_change(MODEL, lambda p: set_size(p, f"open({str(t / 'ran')!r}, 'w')")), "is no arithmetic"),
    "attribute": (lambda t: json_change(MODEL, lambda p: set_size(p, "Integer(1).__class__")), "is no arithmetic"),
    "shell": (lambda t: json_change(MODEL, lambda p: set_target(p, "torch.os.system")), "'torch.os.system', which is no operator"),
    "file": (lambda t: json_change(MODEL, lambda p: set_target(p, "torch.ops.aten.from_file.default")), "from_file"),
    "library call": (lambda t: json_change(MODEL, lambda p: set_target(p, "torch.ops.load_library")), "load_library"),
    "extension": (lambda t: json_change(MODEL, lambda p: set_target(p, "#some_extension:op")), "some_extension"),
    "module": (lambda t: json_change(MODEL, lambda p: set_spec(p, ENUM)), "which is more than names"),
    "class": (lambda t: json_change(MODEL, lambda p: set_spec(p, '[1, {"type": "evil.Class", "context": "null", "children_spec": []}]')), "'evil.Class'"),
    "no JSON": (lambda t: lambda m: m.update({MODEL: b"{"}), "is not JSON"),
    "nested": (lambda t: lambda m: m.update({MODEL: b'{"a":' * 900 + b"1" + b"}" * 900}), "deep"),
    "up": (lambda t: lambda m: m.update({"data/../../x": b""}), "no use for"),
}


@pytest.mark.parametrize("trick", EXPORTED)
def test_an_exported_program_that_does_more_than_compute_is_refused(good: dict[str, Path], trick: str, tmp_path: Path) -> None:
    change, match = EXPORTED[trick]
    path = altered(good["exported_program"], tmp_path, change(tmp_path))
    with pytest.raises(BundleError, match=match):
        load("exported_program", path)
    assert not (tmp_path / "ran").exists()


def test_the_traps_are_real(good: dict[str, Path], tmp_path: Path) -> None:
    """Torch's own loader does run what is refused above; where it stops doing so, the look may become shorter."""
    for trick in ("example inputs", "size"):
        path = altered(good["exported_program"], tmp_path, EXPORTED[trick][0](tmp_path))
        code = f"import torch\ntry:\n torch.export.load({str(path)!r})\nexcept Exception: pass"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, timeout=300, check=False)
        assert (tmp_path / "ran").exists(), trick
        (tmp_path / "ran").unlink()


def test_nothing_that_was_written_tells_about_this_machine_or_the_inputs(good: dict[str, Path]) -> None:
    for format in ("exported_program", "torchscript"):
        with zipfile.ZipFile(good[format]) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
            assert str(Path(__file__).parents[2]).encode() not in content
            assert b"site-packages" not in content
            assert not [name for name in archive.namelist() if "debug_pkl" in name or "traced_inputs" in name]
    with zipfile.ZipFile(good["exported_program"]) as archive:
        (inputs,) = [name for name in archive.namelist() if "sample_inputs" in name]
        assert archive.read(inputs) == b""


# --- TorchScript -----------------------------------------------------------------------------


def code_change(before: str, after: str) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith(".py") and before.encode() in members[name])
        members[name] = members[name].replace(before.encode(), after.encode(), 1)

    return apply


SCRIPTS: dict[str, tuple[Callable[[Path], Callable[[dict[str, bytes]], None]], str]] = {
    "reads a file": (lambda t: code_change("torch.relu(", 'torch.from_file("/etc/passwd")\n    (torch.relu)('), "from_file"),
    "writes a file": (lambda t: code_change("torch.relu(", f'torch.save(input, "{t}/ran")\n    (torch.relu)('), "torch.save"),
    "writes by a method": (lambda t: code_change("torch.relu(", f'(input).save("{t}/ran")\n    (torch.relu)('), "save"),
    "other operators": (lambda t: code_change("torch.relu(", "ops.evil.op(input)\n    (torch.relu)("), "ops.evil.op"),
    "calls another machine": (lambda t: code_change("torch.relu(", "ops.prim.rpc_async(input)\n    (torch.relu)("), "rpc_async"),
    "imports": (lambda t: code_change("class ", "import os\nclass "), "Import"),
    "prints": (lambda t: code_change("torch.relu(", "print(input)\n    (torch.relu)("), "'print'"),
    "pickle": (lambda t: lambda m: m.update({"data.pkl": trapped(t)}), "would call 'builtins.exec'"),
    "constants": (lambda t: lambda m: m.update({"constants.pkl": trapped(t)}), "would call 'builtins.exec'"),
    "more pickles": (lambda t: lambda m: m.update({"extra/notes.pkl": trapped(t)}), "no use for"),
    "no pickle": (lambda t: lambda m: m.update({"data.pkl": b"\xff\xff"}), "not a pickle"),
    "no code": (lambda t: code_change("class ", "class (("), "not TorchScript"),
}


@pytest.mark.parametrize("trick", SCRIPTS)
def test_a_script_that_does_more_than_compute_is_refused(good: dict[str, Path], trick: str, tmp_path: Path) -> None:
    change, match = SCRIPTS[trick]
    path = altered(good["torchscript"], tmp_path, change(tmp_path))
    with pytest.raises(BundleError, match=match):
        load("torchscript", path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_hides_what_a_pickle_calls(protocol: int, tmp_path: Path) -> None:
    for value in (Trap(tmp_path / "ran"), [torch.float32, Trap(tmp_path / "ran")]):
        with pytest.raises(BundleError, match="exec"):
            check_pickle(pickle.dumps(value, protocol), (r"torch\.\w+",), "data.pkl")
    check_pickle(pickle.dumps({"a": [1.0, "text", b"bytes", None]}, protocol), (r"_codecs\.encode", r"builtins\.bytes", r"__builtin__\.bytes"), "data.pkl")
    # a name that is remembered early and asked for late
    hidden = b"\x80\x04\x8c\x08builtins\x94\x8c\x04exec\x94\x8c\x05torch\x8c\x05float00h\x00h\x01\x93."
    with pytest.raises(BundleError, match=r"builtins\.exec"):
        check_pickle(hidden, (r"torch\.\w+",), "data.pkl")


# --- weights and code ------------------------------------------------------------------------

CODES = {
    "a call": "    x = open('ran', 'w')",
    "an attribute": "    x = torch.os.system",
    "a method": "    x = input.tofile('ran')",
    "a file": "    x = torch.ops.aten.from_file.default('/etc/passwd')",
    "a library": "    x = torch.ops.load_library('evil.so')",
    "a lookup": "    x = torch.ops.aten.relu.default.__globals__",
    "an import": "    import os",
    "a comprehension": "    x = [i for i in input]",
    "a lambda": "    x = (lambda: 0)()",
    "a walrus": "    x = (y := 1)",
    "a text with code": "    x = f'{input.tofile}'",
    "a condition": "    if input: x = 1",
    "a subscript of builtins": "    x = __builtins__['open']",
    "an assignment elsewhere": "    torch.ops.aten.relu = 1",
}


@pytest.mark.parametrize("trick", CODES)
def test_code_that_is_more_than_calls_of_operators_is_not_run(good: dict[str, Path], trick: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(good["safetensors"].read_bytes())
    lines = good["safetensors"].with_suffix(".py").read_text().splitlines()
    path.with_suffix(".py").write_text("\n".join([*lines[:-1], CODES[trick], lines[-1]]) + "\n")
    with pytest.raises(BundleError, match=f"line {len(lines)}: .* is more than calls of torch's operators"):
        load("safetensors", path)


@pytest.mark.parametrize(
    "added", ["import os", "print(1)", "x = 1", "class A: pass", "def forward(weights, input): return input", "def other(weights): return 1"]
)
def test_nothing_stands_beside_the_one_function(good: dict[str, Path], added: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(good["safetensors"].read_bytes())
    path.with_suffix(".py").write_text(good["safetensors"].with_suffix(".py").read_text() + added + "\n")
    with pytest.raises(BundleError, match="more than calls|one function"):
        load("safetensors", path)
    path.with_suffix(".py").write_text(good["safetensors"].with_suffix(".py").read_text().replace("):\n", "=open('ran')):\n", 1))
    with pytest.raises(BundleError, match="more than calls"):
        load("safetensors", path)


def test_the_code_can_be_read(good: dict[str, Path]) -> None:
    code = good["safetensors"].with_suffix(".py").read_text()
    assert 'p_model_0_weight = weights["0.weight"]' in code.replace("'", '"') or "weights['model.0.weight']" in code
    assert "torch.ops.aten.relu.default(" in code
    assert code.rstrip().splitlines()[-1].strip().startswith("return {'output': ")


def test_what_is_no_safetensors_file_is_refused(good: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(trapped(tmp_path))
    path.with_suffix(".py").write_text(good["safetensors"].with_suffix(".py").read_text())
    with pytest.raises(BundleError, match="is not a safetensors file"):
        load("safetensors", path)
    assert not (tmp_path / "ran").exists()


# --- packages of AOTInductor -----------------------------------------------------------------


def package(folder: Path, **metadata: str) -> Path:
    members = {
        f"{FOLDER}/net.wrapper.so": b"\x7fELF...",
        f"{FOLDER}/net.wrapper_metadata.json": json.dumps({"AOTI_MACHINE": "x86_64", aot_inductor.INSTRUCTIONS: "avx2 avx512f"} | metadata).encode(),
    }
    path = folder / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"model/{name}", data)
    return path


@pytest.fixture(autouse=True)
def _x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def test_a_package_moved_to_another_processor_says_exactly_what_it_needs(tmp_path: Path) -> None:
    path = package(tmp_path)
    aot_inductor.check(path, frozenset({"avx2", "avx512f", "fma"}), "2.13.0")
    aot_inductor.check(path, None, "2.13.0")
    with pytest.raises(BundleError, match=r"compiled for processors with avx512f, which this one lacks: write the bundle again .*--format aot_inductor"):
        aot_inductor.check(path, frozenset({"avx2", "fma"}), "2.13.0")
    with pytest.raises(BundleError, match="compiled for aarch64, and this one is x86_64"):
        aot_inductor.check(package(tmp_path, AOTI_MACHINE="aarch64"), None, "2.13.0")
    with pytest.raises(BundleError, match=r"compiled for torch 2\.13\.0, and torch 2\.14\.0 is installed"):
        aot_inductor.check(package(tmp_path, AIMASS_TORCH="2.13.0"), None, "2.14.0")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update({f"{FOLDER}/net.cpp": b"int main() {}"}), r"net\.cpp', which a file of this format has no use for"),
        (lambda m: m.update({f"{FOLDER}/more.so": b"\x7fELF"}), "holds 2 shared libraries"),
        (lambda m: m.update({f"{FOLDER}/net.wrapper.so": b"MZ"}), "is no shared library of Linux"),
        (lambda m: m.pop(f"{FOLDER}/net.wrapper_metadata.json"), "does not say what it was compiled for"),
        (lambda m: m.update({"models/model.json": b"{}"}), "no use for"),
        (lambda m: m.update({"data/sample_inputs/model.pt": b""}), "no use for"),
    ],
)
def test_a_package_holds_one_library_and_what_describes_it(change: Any, match: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(BundleError, match=match):
        aot_inductor.check(altered(package(tmp_path), tmp_path / "sub", change), None, "2.13.0")


# --- any of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["exported_program", "torchscript", "aot_inductor"])
def test_what_is_no_archive_is_refused(format: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(trapped(tmp_path))
    with pytest.raises(BundleError, match="not an archive"):
        load(format, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/version", "1")
        archive.writestr("b/version", "1")
    with pytest.raises(BundleError, match="2 folders"):
        load(format, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", b"0" * 2**22)
    with pytest.raises(BundleError, match="would grow to 4 MiB"):
        load(format, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/version", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/version", "2")
    with pytest.raises(BundleError, match="two members of one name"):
        load(format, path)


def test_openvino_looks_through_the_file_as_onnx_runtime_does(good: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(good["openvino"]))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="data in another file"):
        load("openvino", path)


@pytest.mark.parametrize("opened", ["load(path, c)", "OpenVino().open(path)"], ids=["runner", "format"])
def test_an_interrupt_after_two_models_of_openvino_s_is_one(good: dict[str, Path], opened: str) -> None:
    """In a process of its own: each core leaves a signal stack to the thread, and takes back what was there before it."""
    spec = "TensorSpec('input', 'FP32', (-1, 4)),), outputs=(TensorSpec('output', 'FP32', (-1, 3)),"
    code = (
        "import faulthandler, gc, signal\nfrom pathlib import Path\nfrom aimass_lab.formats.openvino import OpenVino\n"
        "from aimass_lab.serving.config import ServingConfig, TensorSpec\nfrom aimass_lab.serving.runners.openvino import load\n"
        "faulthandler.enable()\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"c = ServingConfig(schema=1, name='n', version='1', format='openvino', model_file='m', inputs=({spec}))\npath = Path({str(good['openvino'])!r})\n"
        f"one = {opened}\ntwo = {opened}\ndel one\ngc.collect()\ndel two\ngc.collect()\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_openvino_s_telemetry_is_never_imported_and_nothing_is_sent(good: dict[str, Path]) -> None:
    """In processes of their own, as the runner and as the exporter load it, with every way to another machine shut."""
    shut = "import socket\ndef no(*a, **k): raise AssertionError('something was sent')\nsocket.socket.connect = socket.getaddrinfo = no\n"
    check = "\nimport sys, threading\nassert not [n for n, m in sys.modules.items() if m is not None and n.startswith('openvino_telemetry')]\n"
    check += "assert 'openvino' in sys.modules\nassert threading.active_count() == 1\n"
    spec = "TensorSpec('input', 'FP32', (-1, 4)),), outputs=(TensorSpec('output', 'FP32', (-1, 3)),"
    runner = (
        "from pathlib import Path\nimport numpy as np\nfrom aimass_lab.serving.config import ServingConfig, TensorSpec\n"
        "from aimass_lab.serving.runners import openvino\n"
        f"c = ServingConfig(schema=1, name='n', version='1', format='openvino', model_file='m', inputs=({spec}))\n"
        f"openvino.load(Path({str(good['openvino'])!r}), c).run([np.zeros((2, 4), np.float32)])"
    )
    exporter = "from aimass_lab.formats._openvino import import_openvino\nimport_openvino()"
    for code in (runner, exporter):
        done = subprocess.run([sys.executable, "-c", shut + code + check], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named(good: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for format, needed in (("exported_program", "torch"), ("safetensors", "torch"), ("torchscript", "torch"), ("openvino", "openvino")):
        with pytest.raises(BundleError, match=f"the format {format} needs the package {needed}, which is not installed here"):
            load(format, good[format])
