"""The texts of a bundle: README, Dockerfile and the script that runs it, from templates beside this file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from ..dynamic_shapes import describe_sizes
from ..export import triton
from ..formats import FORMATS
from ..manifests.server import probe_command
from ..records import BatchPoint, Note, Number, Promise, RuntimeTrial, ServingSpec, SizePoint
from ..units import format_count, format_quantity
from .threads import ThreadChoice

TEMPLATES = Path(__file__).with_name("templates")
MAX_CURL_ELEMENTS = 4096
UNPACKED = {"aot_inductor"}
"""Formats whose library is unpacked into /tmp and run from there, which containers forbid unless told otherwise."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def fill(template: str, **values: Any) -> str:
    """The template with every placeholder filled in."""
    return Template((TEMPLATES / f"{template}.in").read_text(encoding="utf-8")).substitute(values)


def dockerfile(*, name: str, version: str, startup: Number) -> str:
    """The Dockerfile; its health check begins to count when the promised start-up time is over."""
    return fill("Dockerfile", name=name, version=version, python=PYTHON, start_period=max(5, round(startup.value)), probe=json.dumps(probe_command()))


def compose(*, name: str, version: str, format: str) -> str:
    """A composed service; what is unpacked into /tmp may run only where the format needs it."""
    return fill("compose.yaml", name=name, version=version, tmpfs="/tmp:exec" if format in UNPACKED else "/tmp")


def dockerignore(folder: Path) -> str:
    """What an image gets: what the bundle in `folder` consists of, and nothing that comes to lie beside it."""
    names = sorted({path.name for path in folder.iterdir()} | {".dockerignore"})
    return fill("dockerignore", kept="\n".join(f"!{name}" for name in names))


def readme(
    *,
    serving: dict[str, Any],
    spec: ServingSpec,
    promises: Sequence[Promise],
    scenario: dict[str, Any],
    points: Sequence[BatchPoint],
    notes: Sequence[Note],
    num_samples: int,
    sizes: Sequence[SizePoint],
    trials: Sequence[RuntimeTrial],
    threads: ThreadChoice,
    hashes: bool,
) -> str:
    """README.md of the bundle."""
    member = FORMATS[serving["format"]]
    return fill(
        "README.md",
        name=serving["name"],
        version=serving["version"],
        image=spec.image,
        model_type=spec.model.type,
        num_parameters=f"{spec.model.num_parameters:,}",
        python=PYTHON,
        curl=_curl(serving),
        batching=_batching(serving),
        signature="\n".join(_signature_row("input", t) for t in serving["inputs"]) + "\n" + "\n".join(_signature_row("output", t) for t in serving["outputs"]),
        scenario=f"{scenario['requests_per_s']:.4g} requests/s for {scenario['duration_s']:g} s, {scenario['items_per_request']} item each, at random times",
        promises="\n".join(_promise_row(promise) for promise in promises),
        measured=_measured(points, serving) + _measured_sizes(sizes) + _threads(threads) + _runtimes(trials),
        notes=_notes(notes),
        model_file=serving["model_file"],
        format_text=f"{serving['format']}, run by {member.runtime}; {member.safety}",
        triton=_triton(serving),
        num_samples=num_samples,
        hashes="with hashes, so that pip installs nothing else" if hashes else "without hashes, as nobody asked the package index for them (`--hashes`)",
    )


def _curl(serving: dict[str, Any]) -> str:
    """A request that works as it stands, unless the inputs are too large to print."""
    tensors = []
    for spec in serving["inputs"]:
        shape = [1 if size == -1 else size for size in spec["shape"]]
        for dimension in serving.get("dimensions", ()):
            for axis in (axis for name, axis in dimension["axes"] if name == spec["name"]):
                shape[axis] = dimension["min"]
        count = 1
        for size in shape:
            count *= size
        zero = False if spec["datatype"] == "BOOL" else 0
        data = [zero] * count if count <= MAX_CURL_ELEMENTS else ["..."]
        tensors.append({"name": spec["name"], "shape": shape, "datatype": spec["datatype"], "data": data})
    body = json.dumps({"inputs": tensors}, separators=(",", ":"))
    return f"curl -s http://127.0.0.1:8000/v2/models/{serving['name']}/infer -H 'Content-Type: application/json' -d '{body}'"


def _batching(serving: dict[str, Any]) -> str:
    if not serving["batched"]:
        return f"The model has no batch axis: one request, one call. {_sizes(serving)}"
    most = format_count(serving["max_batch_size"], "item")
    return f"The first -1 counts the items of a request. Requests that wait together run together, at most {most} at once. {_sizes(serving)}"


def _sizes(serving: dict[str, Any]) -> str:
    """Which sizes a request may choose."""
    fixed = "are those of the example that it was written with: a sequence is padded or cut to its length by who sends it."
    if "dimensions" not in serving:
        return f"All other sizes {fixed}"
    rows = [f"- {d['name']}: {d['min']} to {d['max']}; {', '.join(f'axis {axis} of `{name}`' for name, axis in d['axes'])}" for d in serving["dimensions"]]
    return f"A request chooses these sizes; only requests of equal sizes share a batch:\n\n{chr(10).join(rows)}\n\nThe rest {fixed}"


def _signature_row(kind: str, tensor: dict[str, Any]) -> str:
    return f"| {kind} | `{tensor['name']}` | {tensor['datatype']} | {tensor['shape']} |"


def _promise_row(promise: Promise) -> str:
    limit = promise.limit
    source = limit.source if limit.trust is None else f"{limit.source} from {limit.trust}"
    return f"| {promise.name} | {promise.relation} {format_quantity(limit.value, limit.unit)} | {source} | {limit.method} |"


def _measured(points: Sequence[BatchPoint], serving: dict[str, Any]) -> str:
    if not points:
        return ""
    rows = [
        f"| {p.batch_size} | {format_quantity(p.latency_p50.value, 's')} | {format_quantity(p.latency_p99.value, 's')} "
        f"| {format_quantity(p.throughput.value, 'item/s')} |"
        for p in points
    ]
    how = points[0].latency_p50
    count = format_count(serving["threads_per_worker"], "thread")
    head = f"## Measured without the server\n\nThe model alone in one process, {count}, environment {how.environment}, quality {how.quality}:\n\n"
    return head + "| batch | p50 | p99 | throughput |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"


def _measured_sizes(points: Sequence[SizePoint]) -> str:
    if not points:
        return ""
    rows = [f"| {describe_sizes(point.sizes)} | {format_quantity(point.latency_p50.value, 's')} |" for point in points]
    return "One item at the ends of the sizes that a request may choose:\n\n| sizes | p50 |\n| --- | --- |\n" + "\n".join(rows) + "\n\n"


def _threads(choice: ThreadChoice) -> str:
    """How the number of threads was chosen."""
    count = format_count(choice.count, "thread")
    text = f"## Why {count}\n\nA worker computes with {count}: {choice.because}."
    if choice.trials:
        how = choice.trials[0].latency_p50
        rows = [f"| {trial.threads} | {format_quantity(trial.latency_p50.value, 's')} | {trial.latency_p50.n} |" for trial in choice.trials]
        text += f" A call with one item takes eager torch on the machine that wrote this, environment {how.environment}:\n\n"
        text += "| threads | p50 | calls |\n| --- | --- | --- |\n" + "\n".join(rows)
    return text + "\n\n"


def _runtimes(trials: Sequence[RuntimeTrial]) -> str:
    """How the format was chosen."""
    rows = []
    for trial in trials:
        ratios = ", ".join(f"{speedup.ratio.value:.2f} at {speedup.batch_size}" for speedup in trial.speedups)
        rows.append(f"| {'**' if trial.chosen else ''}{trial.format}{'**' if trial.chosen else ''} | {trial.runtime} | {ratios} | {trial.left_out or ''} |")
    head = "## Why this format\n\nSpeed over eager torch with as many threads, side by side on the machine that wrote this, at each batch size:\n\n"
    return head + "| format | runtime | times as fast as torch | left out, because |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"


def _triton(serving: dict[str, Any]) -> str:
    if triton.backend_of(serving["format"]) is None:
        return f"Triton has no backend that reads a model in the format {serving['format']} as it is: write the bundle with `--format onnx` for it."
    return "`model/` is a model repository of Triton, with the batching of this bundle: `tritonserver --model-repository=model`."


def _notes(notes: Sequence[Note]) -> str:
    if not notes:
        return ""
    return "## Doubts\n\n" + "\n".join(f"- {note.code}: {note.text}" for note in notes) + "\n\n"
