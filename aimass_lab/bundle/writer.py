"""Writes a bundle: exports the model, proves the file, starts it once, and writes down what it can promise."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..dynamic_shapes import describe_sizes
from ..errors import BundleError, InputError, UnsupportedError
from ..export import triton
from ..formats import FORMATS, FormatFile
from ..formats.base import input_arrays, prove_largest, tolerance_of
from ..formats.measure import measure_format, measure_sizes
from ..interrupts import sparing_imports
from ..preserve import preserved
from ..records import BatchPoint, Bundle, Note, Number, Plan, Promise, RuntimeTrial, ServingSpec, SizePoint, TensorSpec, derived, to_json
from ..units import format_count, format_share
from ..workload import Workload, weight_bytes
from . import calibrate as calibration
from . import readme
from .card import model_card
from .choices import Choices, choose
from .dashboard import dashboard
from .folder import RUNTIMES, SCHEMA, new_folder, read_bundle, read_manifest, write_json, write_manifest
from .hashes import fetch_hashes
from .materials import bill_of_materials, licence_list
from .promises import Asked, make_promises, risk_notes
from .requirements import EXTRAS, extra_requirements, is_pinned, pinned_requirements, requirements_text
from .runtimes import Shipped, export_fastest, formats_for
from .samples import measure_fidelity, reference_outputs, stored_call
from .threads import ThreadChoice, settle_threads
from .unplanned import unplanned_spec

if TYPE_CHECKING:
    from torch import nn

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""torch's dtypes in the words of the Open Inference Protocol."""
DEFAULT_RATE_SHARE = 0.5
DEFAULT_RATE_LIMIT = 200.0
"""Requests/s, where nobody asked for a rate: beyond, a proof on a small machine would measure the load generator."""
MEASURE_BUDGET_S = 2.0
OVERHEAD_BYTES = 96 * 2**20
"""Vectors, server and texts."""
LIMITS = {"max_queue_items": 1024, "request_timeout_s": 30.0, "max_body_bytes": 64 * 2**20}
SERVER = Path(__file__).parents[1] / "serving"
REQUIREMENTS = "requirements.txt"
CLIENT = SERVER / "client.py"
"""Goes beside the server, since it may be copied elsewhere."""


@dataclass(frozen=True, kw_only=True)
class _Proof:
    """What the bundle promises, and on what grounds."""

    rate: Number
    promises: tuple[Promise, ...]
    run: calibration.Calibration | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was measured without the server: the content of `runtimes.json`."""

    runtimes: tuple[RuntimeTrial, ...]
    threads: ThreadChoice
    batches: tuple[BatchPoint, ...]
    sizes: tuple[SizePoint, ...]


@sparing_imports
def write_bundle(
    folder: str | Path,
    workload: Workload,
    *,
    spec: ServingSpec | None = None,
    plan: Plan | None = None,
    rate: float | None = None,
    latency_p99_s: float | None = None,
    max_batch_size: int | None = None,
    max_wait_s: float | None = None,
    threads: int | None = None,
    frontends: int = 1,
    name: str | None = None,
    version: str = "1",
    format: str | None = None,
    variant: nn.Module | None = None,
    calibrate: bool = True,
    hashes: bool = False,
    force: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> Bundle:
    """Write a folder that serves the model without this package, and proves its own promises.

    What is not given is taken from the spec, then from the plan, then chosen from what is
    measured. The folder appears whole or not at all; the workload's model is left as it was.

    Args:
        folder: Where to write; it must not exist, or be empty.
        workload: The model, the inputs that are stored as vectors, and the sizes that requests may choose.
        spec: The resource spec; goes into the bundle as it is, but for a start-up time that was only assumed until the bundle was started here.
        plan: The plan it comes from.
        rate: Requests per second that all replicas together are to hold.
        latency_p99_s: Latency that 99 % of the requests are to stay under.
        max_batch_size: Largest batch, in items.
        max_wait_s: Longest time that an incomplete batch is held.
        threads: Threads of the worker; by the time of a call if not given: all cores only where it is long (see `settle_threads`).
        frontends: Processes that take connections and read requests; 1: the one that has the queue does that, too.
        name: DNS label; made from the model's name if not given.
        version: A positive whole number.
        format: A name of `FORMATS`; ONNX if not given, unless another one that is installed is surely faster.
        variant: What to serve in the model's place, the result of the spec's recipe; its
            fidelity is judged against the model.
        calibrate: Start the bundle once, for a few seconds, so that its promises are founded.
        hashes: Ask the package index for the hashes of all that the bundle needs, so that pip installs nothing else.
        force: Replace a bundle that is already there.
        progress: Called with the share done and what is being done.

    Raises:
        BundleError: something is in the way, the disk is full, the file computes something else
            than the model, the model's outputs are not finite, or the bundle does not run.
        UnsupportedError: the format cannot express the model.
        InputError: an argument that cannot be used.
        ModelError: the model raises.
        MissingPackageError: an optional package that this needs.
    """
    say = progress or (lambda share, text: None)
    folder = Path(folder).expanduser().resolve()
    choices = choose(
        workload.name, spec, plan, rate=rate, latency_p99_s=latency_p99_s, max_batch_size=max_batch_size, max_wait_s=max_wait_s,
        threads=threads, frontends=frontends, name=name, version=version,
    )  # fmt: skip
    served = _served(workload, variant, choices)
    calibrate = calibrate and not choices.on_accelerator
    wrong: dict[str, str] = {}
    while True:
        try:
            with new_folder(folder, needed_bytes=4 * weight_bytes(served) + OVERHEAD_BYTES, force=force) as temporary:
                _fill(
                    temporary, workload, served, choices, spec, format=format, wrong=wrong, settle=threads is None, calibrate=calibrate, hashes=hashes, say=say
                )
        except _WrongFile as found:
            wrong[found.format] = found.error.message
            if format is not None or not formats_for(served, without=wrong):
                raise found.error from None
        else:
            break
    say(1.0, f"written to {folder}")
    return read_bundle(folder)


class _WrongFile(Exception):
    """What is served computes something else than the model, as its proof has shown."""

    def __init__(self, format: str, error: BundleError) -> None:
        super().__init__(error.message)
        self.format = format
        self.error = error


def _fill(
    folder: Path, workload: Workload, served: nn.Module, choices: Choices, spec: ServingSpec | None, *, format: str | None, wrong: Mapping[str, str],
    settle: bool, calibrate: bool, hashes: bool, say: Callable[[float, str], None],
) -> None:  # fmt: skip
    """Write everything into a new folder.

    What is served is compared with the model at the largest batch as the server warms up, if that is started here, and the stored outputs are the model's own.

    Raises:
        _WrongFile: it computes something else there; another format may not.
    """
    in_proof = calibrate and served is workload.model
    with preserved(workload.model), preserved(served):  # for all that is asked of them, which would copy a large model's weights at each step
        asked = ThreadChoice(count=choices.threads, because="so many were asked for")
        threading = settle_threads(workload, served, choices.threads) if settle else asked
        choices = replace(choices, threads=threading.count)
        shipped, choices = _export(folder, workload, served, format, choices, partial(say, 0.05), wrong=wrong, prove=not in_proof)
        file = shipped.file
        serving = _write_serving(folder, file, choices)
        say(0.5, "comparing it with the original")
        fidelity, num_samples = _write_vectors(folder, workload, served, file, choices, judge=not calibrate)
    say(0.6, "measuring it")
    points, missing = measure_format(file, workload.call, max_batch_size=choices.max_batch_size, threads=choices.threads, budget_s=MEASURE_BUDGET_S)
    sizes = measure_sizes(file, threads=choices.threads)
    shipped = replace(shipped, file=replace(file, loaded=None))  # the server that is started next needs the memory
    file = shipped.file
    packages = _write_runtime(folder, file, hashes=hashes)
    write_manifest(folder)
    say(0.7, "starting it, to see what it can promise" if calibrate else "writing down what it promises")
    proof = _prove(folder, file, choices, spec, fidelity, points, calibrate=calibrate)
    if in_proof and proof.run is not None and proof.run.measured["fidelity"].value > tolerance_of(served):
        try:  # of a single sample it may be more, where its outputs are next to nothing
            prove_largest(file, served, workload.call, max_batch_size=choices.max_batch_size, threads=choices.threads)
        except BundleError as error:
            raise _WrongFile(file.format, error) from error
    proof = replace(proof, notes=tuple(dict.fromkeys((*choices.notes, *missing, *proof.notes))))
    measured = _Measured(runtimes=shipped.trials, threads=threading, batches=points, sizes=sizes)
    _write_texts(folder, workload, choices, serving, spec, proof, measured, num_samples, hashes=hashes)
    _write_operations(folder, choices, file, proof, packages)
    write_manifest(folder, kept=file.paths)


def _served(workload: Workload, variant: nn.Module | None, choices: Choices) -> nn.Module:
    if variant is None and choices.recipe.steps:
        raise InputError(
            f"the spec is for the recipe {choices.recipe.name!r}, and the model that it makes was not given",
            help="try the technique first and pass its copy: write_bundle(..., variant=...)",
        )
    return workload.model if variant is None else variant


def _export(
    folder: Path, workload: Workload, served: nn.Module, format: str | None, choices: Choices, say: Callable[[str], None],
    *, wrong: Mapping[str, str], prove: bool,
) -> tuple[Shipped, Choices]:  # fmt: skip
    place = folder / "model" / choices.name / choices.version
    place.mkdir(parents=True)
    shipped = export_fastest(
        place, workload, served, format=format, max_batch_size=choices.max_batch_size, threads=choices.threads, say=say, wrong=wrong, prove=prove
    )
    if not shipped.file.batched:
        choices = replace(choices, max_batch_size=1, max_wait_s=0.0)
    return shipped, replace(choices, notes=choices.notes + shipped.file.notes + shipped.notes + _size_notes(workload, shipped.file))


def _size_notes(workload: Workload, file: FormatFile) -> tuple[Note, ...]:
    """What figures hold for, where requests may choose sizes."""
    if not file.signature.dimensions:
        return ()
    usual = describe_sizes({dim.name: workload.call.size_of(dim) for dim in workload.call.dims})
    text = f"promises and figures hold for requests of the example's sizes, {usual}: larger ones take longer and more memory; only equal sizes share a batch"
    return (Note(code="assumes:example-sizes", text=text),)


def _write_serving(folder: Path, file: FormatFile, choices: Choices) -> dict[str, Any]:
    """Write `serving.json`, which tells the server everything but its address."""
    serving = {
        "schema": SCHEMA,
        "name": choices.name,
        "version": choices.version,
        "format": file.format,
        "model_file": file.path.relative_to(folder).as_posix(),
        "inputs": [_tensor(spec) for spec in file.inputs],
        "outputs": [_tensor(spec) for spec in file.outputs],
        **({"dimensions": [msgspec.to_builtins(one) for one in file.signature.dimensions]} if file.signature.dimensions else {}),  # as with the front ends
        "batched": file.batched,
        "max_batch_size": choices.max_batch_size,
        "max_wait_s": choices.max_wait_s,
        "workers": choices.workers,
        "threads_per_worker": choices.threads,
        **({"frontends": choices.frontends} if choices.frontends > 1 else {}),  # a server that was written before there were several does not know the key
        **LIMITS,
    }
    write_json(folder / "serving.json", serving)
    for path, text in triton.model_config(serving).items():
        (folder / "model" / path).write_text(text, encoding="utf-8")
    return serving


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    if spec.dtype not in DATATYPES:
        raise UnsupportedError(
            f"the tensor {spec.name!r} has dtype {spec.dtype}, which the server's protocol cannot carry",
            help="let the model take and return float32, and cast inside",
        )
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _write_vectors(folder: Path, workload: Workload, served: nn.Module, file: FormatFile, choices: Choices, *, judge: bool) -> tuple[Number | None, int]:
    """Write `vectors.npz`.

    Args:
        folder: Of the bundle.
        workload: The original model, and the inputs to store.
        served: What the file was made from.
        file: What is served.
        choices: How.
        judge: Whether to run the file on them here; if not, that is the proof's to do, in the server.

    Returns:
        The file's error on the vectors, if it was judged, and how many there are.
    """
    import numpy as np

    call = stored_call(workload, file)
    inputs, outputs = input_arrays(file.inputs, call), reference_outputs(workload, call, file, served=served)
    arrays = {f"input.{name}": array for name, array in inputs.items()} | {f"output.{name}": array for name, array in outputs.items()}
    np.savez(folder / "vectors.npz", allow_pickle=False, **arrays)
    runner = file.runner(choices.threads) if judge else None
    fidelity = None if runner is None else measure_fidelity(runner, file, inputs, outputs, max_batch_size=choices.max_batch_size)
    return fidelity, call.batch_size if file.batched else 1


def _write_runtime(folder: Path, file: FormatFile, *, hashes: bool) -> dict[str, tuple[str, ...]]:
    """Copy the server, and name what is needed to run it; returns the packages by the file that names them."""
    files = {REQUIREMENTS: pinned_requirements(FORMATS[file.format].runs_on)} | {f"requirements-{extra}.txt": extra_requirements(extra) for extra in EXTRAS}
    known = fetch_hashes(sorted({line for lines in files.values() for line in lines if is_pinned(line)})) if hashes else None
    shutil.copytree(SERVER, folder / "aimass_serve", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", CLIENT.name))
    shutil.copy(CLIENT, folder)
    (folder / "run.py").write_text(readme.fill("run.py"), encoding="utf-8")
    for name, lines in files.items():
        (folder / name).write_text(requirements_text(lines, known), encoding="utf-8")
    return files


def _write_operations(folder: Path, choices: Choices, file: FormatFile, proof: _Proof, packages: Mapping[str, Sequence[str]]) -> None:
    """Write what whoever runs it asks for: what it consists of, under which licences, how to watch it, and what belongs into an image."""
    known, places = read_manifest(folder)["files"], [path.relative_to(folder).as_posix() for path in file.paths]
    pinned = {name: [line for line in lines if is_pinned(line)] for name, lines in packages.items()}
    extras = sorted({line for name, lines in pinned.items() for line in lines if name != REQUIREMENTS})
    bill = bill_of_materials(choices.name, choices.version, pinned[REQUIREMENTS], extras, {place: known[place] for place in places})
    write_json(folder / "sbom.json", bill)
    (folder / "LICENCES.md").write_text(licence_list(pinned), encoding="utf-8")
    limits = {promise.name: float(promise.limit.value) for promise in proof.promises}
    write_json(folder / "grafana.json", dashboard(choices.name, limits))
    (folder / "compose.yaml").write_text(readme.compose(name=choices.name, version=choices.version, format=file.format), encoding="utf-8")
    (folder / ".dockerignore").write_text(readme.dockerignore(folder), encoding="utf-8")


def _prove(
    folder: Path, file: FormatFile, choices: Choices, spec: ServingSpec | None, fidelity: Number | None, points: Sequence[BatchPoint], *, calibrate: bool
) -> _Proof:
    """Settle the promises; with `calibrate`, on what the bundle itself measures, its fidelity included."""
    rate, run = choices.rate or _default_rate(points), None
    if calibrate and choices.rate is not None:
        run = calibration.calibrate(folder, rate.value)
    elif calibrate:
        limit = choices.latency_p99.value if choices.latency_p99 else 0.05 + 10 * points[0].latency_p50.value
        rate, run = calibration.find_rate(folder, rate, latency_limit_s=limit)
    asked = Asked(
        requests_per_s=rate,
        latency_p99=choices.latency_p99,
        memory_bytes=spec.memory_bytes if spec else None,
        startup_time=_started(spec, run).startup_time if spec else None,
    )
    fidelity = run.measured["fidelity"] if run is not None else fidelity
    assert fidelity is not None
    promises = make_promises(asked, fidelity, model_bytes=sum(path.stat().st_size for path in file.paths), workers=choices.workers, calibration=run)
    return _Proof(rate=rate, promises=promises, run=run, notes=risk_notes(asked, promises, run))


def _started(spec: ServingSpec, run: calibration.Calibration | None) -> ServingSpec:
    """The spec of a plan for this machine, with the start-up time that the bundle's own proof measured in the place of one that was assumed."""
    if run is None or spec.environment is None or spec.startup_time.source != "assumed":
        return spec
    return msgspec.structs.replace(spec, startup_time=run.measured["startup"])


def _with_threads(spec: ServingSpec, threads: ThreadChoice) -> ServingSpec:
    """The spec of a plan, whose cores say why the worker computes with fewer threads; the rest of them is the server's, so that their number stays."""
    cores = spec.cpu_cores
    if cores.value <= threads.count:
        return spec
    method = f"{cores.method}; the worker of the bundle computes with {format_count(threads.count, 'thread')}: {threads.because}"
    return msgspec.structs.replace(spec, cpu_cores=msgspec.structs.replace(cores, method=method))


def _capacity(points: Sequence[BatchPoint]) -> Number:
    return max((point.throughput for point in points), key=lambda number: number.value)


def _default_rate(points: Sequence[BatchPoint]) -> Number:
    """A rate that leaves room, for a bundle of which nobody said what it must hold."""
    capacity = _capacity(points)
    value = min(DEFAULT_RATE_SHARE * capacity.value, DEFAULT_RATE_LIMIT)
    method = f"{format_share(DEFAULT_RATE_SHARE)} of what one worker can do, at most {DEFAULT_RATE_LIMIT:g} requests/s"
    return derived(value, "request/s", method, [("capacity", capacity)])


def _write_texts(
    folder: Path,
    workload: Workload,
    choices: Choices,
    serving: dict[str, Any],
    spec: ServingSpec | None,
    proof: _Proof,
    measured: _Measured,
    num_samples: int,
    *,
    hashes: bool,
) -> None:
    """Write promises, spec, what was measured, the model card, README and Dockerfile."""
    told = {"runtimes": measured.runtimes, "threads": measured.threads, "batches": measured.batches, "sizes": measured.sizes}
    write_json(folder / RUNTIMES, {"schema": SCHEMA, **told})
    load = calibration.scenario(proof.rate.value)
    write_json(folder / "promises.json", {"schema": SCHEMA, "scenario": load, "promises": proof.promises, "notes": proof.notes})
    spec = (
        _with_threads(_started(spec, proof.run), measured.threads)
        if spec
        else unplanned_spec(choices, workload.info(), rate=proof.rate, capacity=_capacity(measured.batches), promises=proof.promises, run=proof.run)
    )
    (folder / "spec.json").write_text(to_json(spec) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(model_card(folder), encoding="utf-8")
    text = readme.readme(
        serving=serving, spec=spec, promises=proof.promises, scenario=load, points=measured.batches, notes=proof.notes, num_samples=num_samples,
        sizes=measured.sizes, trials=measured.runtimes, threads=measured.threads, hashes=hashes,
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    startup = next(promise.limit for promise in proof.promises if promise.name == "startup")
    (folder / "Dockerfile").write_text(readme.dockerfile(name=choices.name, version=choices.version, startup=startup), encoding="utf-8")
