"""One cell of the evaluation in a process of its own: one recipe on one model. Prints JSON on its last line.

``measure.py cell MODEL RECIPE`` applies, tries with the product's defaults and judges; ``long`` measures the speed independently;
``aa`` tries untouched copies several times; ``first`` takes the time to a first verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import results

results.keep_to_core()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # what a runtime starts besides torch must not take a second core either
IMPORT_FROM = time.perf_counter()
import judge  # noqa: E402
import torch  # noqa: E402
import zoo  # noqa: E402

from aimass_lab.errors import AimassError  # noqa: E402
from aimass_lab.formats import FORMATS  # noqa: E402
from aimass_lab.recipe import read_recipe  # noqa: E402
from aimass_lab.records import Number, Recipe, TrialResult  # noqa: E402
from aimass_lab.storage import save_weights  # noqa: E402
from aimass_lab.trial import Variant, apply_recipe, run_trial  # noqa: E402
from aimass_lab.workload import Workload  # noqa: E402

IMPORT_S = time.perf_counter() - IMPORT_FROM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("cell", "long", "aa", "first"))
    parser.add_argument("model")
    parser.add_argument("recipe", nargs="?", default="none")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one long measurement at one batch size")
    parser.add_argument("--count", type=int, default=10, help="trials of untouched copies")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    entry = zoo.by_name(options.model)
    if options.part == "cell":
        found = cell(entry, options.recipe)
    elif options.part == "long":
        found = long(entry, options.recipe, options.seconds, options.seed)
    elif options.part == "aa":
        found = aa(entry, options.count)
    else:
        found = first(entry, options.recipe)
    print("\n" + json.dumps(found))


# --- one cell ------------------------------------------------------------------------------------


def cell(entry: zoo.Entry, text: str) -> dict[str, Any]:
    """The product's trial with its defaults at both batch sizes, and what is true of the outputs."""
    parts = entry.make(entry.device)
    before = digest(parts.model)
    start = time.process_time()
    try:
        found = _cell(entry, parts, text)
    except AimassError as error:
        found = {"refused": str(error.message), "help": error.help, "kind": type(error).__name__}
    found["untouched"] = digest(parts.model) == before
    return found | {"cpu_s": time.process_time() - start}


def _cell(entry: zoo.Entry, parts: zoo.Parts, text: str) -> dict[str, Any]:
    workload, recipe = parts.workload(), read_recipe(text)
    variant = apply_recipe(workload, recipe)
    result, trial_s = timed_trial(workload, recipe, entry.batches, variant)
    found = told(result) | {"trial_s": trial_s}
    found["truth"] = judge.judge_outputs(parts.model, variant.model, parts)
    found["carried"] = carried(variant, parts)
    return found | on_disk(variant)


def timed_trial(workload: Workload, recipe: Recipe, batches: tuple[int, ...], variant: Variant | None) -> tuple[TrialResult, float]:
    start = time.perf_counter()
    result = run_trial(workload, recipe, batch_sizes=batches, variant=variant)
    return result, time.perf_counter() - start


def told(result: TrialResult) -> dict[str, Any]:
    """What of a trial goes into the tables."""
    return {
        "verdict": result.verdict, "recommended": result.recommended, "reasons": list(result.reasons), "notes": [note.code for note in result.notes],
        "points": [
            {
                "batch": point.batch_size, "verdict": point.verdict, "clock": point.clock, "ratio": numbers(point.speedup), "n": point.speedup.n,
                "wall": numbers(point.wall_speedup), "processor": numbers(point.processor_speedup), "quality": point.speedup.quality,
                "original_s": point.latency_original.value, "variant_s": point.latency_variant.value,
                "compile_s": point.compile_time.value if point.compile_time else None,
            }
            for point in result.points
        ],
        "size": result.size_bytes.value, "size_original": result.size_original_bytes.value,
        "stored": result.stored_bytes.value, "stored_original": result.stored_original_bytes.value,
        "cosine": result.fidelity.value, "relative_error": result.relative_error.value, "agreement": numbers(result.agreement),
        "metric_original": numbers(result.metric_original), "metric_variant": numbers(result.metric_variant), "metric_drop": numbers(result.metric_drop),
        "apply_s": result.apply_time.value, "peak": result.peak_memory.value if result.peak_memory else None,
        "steps": [
            {
                "name": step.step.name, "changed": step.num_changed_layers.value, "layers": step.num_layers.value, "share": step.weight_share.value,
                "left": dict(Counter(layer.detail for layer in step.layers if not layer.changed).most_common(3)),
                "notes": [note.text for note in step.notes],
            }
            for step in result.steps
        ],
    }  # fmt: skip


def numbers(number: Number | None) -> list[float] | None:
    """Value and interval."""
    return None if number is None else [number.value, *(number.interval or ())]


def on_disk(variant: Variant) -> dict[str, Any]:
    """Size of the file that really comes about; what is said where none does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        try:
            save_weights(variant.model, path)
        except AimassError as error:
            return {"file": None, "file_refused": error.message}
        return {"file": sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())}


def carried(variant: Variant, parts: zoo.Parts) -> dict[str, Any]:
    """The variant written as a bundle carries it, loaded in its own runtime, and compared on all samples; why it is not carried, else."""
    import onnxruntime

    onnx = FORMATS["onnx"]()
    inputs = parts.data[0] if parts.data else parts.inputs
    at_once = min(judge.AT_ONCE, judge.num_items(inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / onnx.file_name
        try:
            file = onnx.export(variant.model, parts.workload().call, path, max_batch_size=at_once)
        except AimassError as error:
            return {"refused": error.message, "kind": type(error).__name__}
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        size = path.stat().st_size
    wanted = {node.name for node in session.get_inputs()}

    def served(*tensors: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        given = zip((spec.name for spec in file.inputs), (*tensors, *named.values()), strict=True)
        return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in given if name in wanted})[0])

    ours, theirs = (judge.outputs_of(model, inputs, at_once).float().flatten(1) for model in (variant.model, served))
    return {"relative_error": ((ours - theirs).norm() / ours.norm()).item(), "file": size, "batched": file.batched}


def digest(model: torch.nn.Module) -> str:
    """Of every bit of the weights, and the mode of every module."""
    import hashlib

    found = hashlib.sha256(repr([module.training for module in model.modules()]).encode())
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


# --- the other parts -----------------------------------------------------------------------------


def long(entry: zoo.Entry, text: str, seconds: float, seed: int) -> dict[str, Any]:
    """The speed at both batch sizes, measured by `judge` and not by the product, which here only makes the variant."""
    parts = entry.make(entry.device)
    found: dict[str, Any] = {}
    for batch in entry.batches:
        inputs = judge.batch_of(parts.inputs, batch)
        variant = apply_recipe(parts.workload(), read_recipe(text), batch_size=batch)
        found[str(batch)] = judge.long_measurement(parts.model, variant.model, inputs, seconds=seconds, seed=seed)
    return found


def aa(entry: zoo.Entry, count: int) -> dict[str, Any]:
    """Trials of untouched copies, each a new one: what is said of each at each batch size."""
    workload, recipe, found = entry.make(entry.device).workload(), read_recipe("none"), []
    for _ in range(count):
        result, seconds = timed_trial(workload, recipe, entry.batches, None)
        found.append({"points": [[point.batch_size, point.verdict, *numbers(point.speedup)] for point in result.points], "trial_s": seconds})  # type: ignore[misc]
    return {"trials": found}


def first(entry: zoo.Entry, text: str) -> dict[str, Any]:
    """Seconds from asking to the verdict, as a user waits for it; compiling apart, and what came before it."""
    start = time.perf_counter()
    workload = entry.make(entry.device).workload()
    make_s = time.perf_counter() - start
    figures: list[float] = []
    start = time.perf_counter()

    def progress(share: float, said: str) -> None:
        if "speed-up" in said:
            figures.append(time.perf_counter() - start)

    result = run_trial(workload, read_recipe(text), batch_sizes=entry.batches[:1], progress=progress)
    trial_s = time.perf_counter() - start
    compile_s = sum(point.compile_time.value for point in result.points if point.compile_time)
    found = {"import_s": IMPORT_S, "make_s": make_s, "trial_s": trial_s, "compile_s": compile_s, "apply_s": result.apply_time.value}
    return found | {"figure_s": figures[0] if figures else trial_s, "verdict": result.verdict, "ratio": numbers(result.points[0].speedup)}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
