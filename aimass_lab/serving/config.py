"""Reads a bundle folder: `serving.json` checked key by key, every file checked against its hash in `manifest.json`."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .errors import BundleError

SCHEMA = 1
DATATYPES = frozenset({"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"})
PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".pt2", ".joblib", ".dill", ".ckpt"})


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the model."""

    name: str
    datatype: str
    """As the Open Inference Protocol names it: ``"FP32"``."""
    shape: tuple[int, ...]
    """Sizes; -1 for any. The first is the batch axis where the model is batched."""


@dataclass(frozen=True)
class Dimension:
    """A size of the inputs that a request may choose."""

    name: str
    min: int
    max: int
    axes: tuple[tuple[int, int], ...]
    """Where it is, of the same size in all of them: index of the input, and axis."""


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The content of `serving.json`."""

    schema: int
    name: str
    version: str
    format: str
    """Which runner loads the model: a file of `runners/`."""
    model_file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dimensions: tuple[Dimension, ...] = ()
    """Sizes besides the number of items that are -1 in the shapes of inputs, and what they may be."""
    batched: bool = True
    """False: the model has no batch axis, and requests run one at a time."""
    max_batch_size: int = 1
    """Items, not requests."""
    max_wait_s: float = 0.0
    """How long a batch may be held back for more items; see `wait_policy`."""
    wait_policy: str = "adaptive"
    """``"adaptive"``: hold only when the last batch had more than one request; ``"always"``: hold until full."""
    workers: int = 1
    frontends: int = 1
    """Processes that take connections, read and check requests and write answers; 1: the one that has the queues does that, too."""
    threads_per_worker: int = 1
    priority_levels: int = 3
    """Requests may ask for a level from 1, which goes first, to this; those that do not ask get the middle one."""
    max_queue_items: int = 1024
    max_queue_bytes: int = 256 * 2**20
    request_timeout_s: float = 30.0
    """A request not answered by then gets 504; a worker busy with one batch for longer is killed."""
    max_body_bytes: int = 64 * 2**20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    start_timeout_s: float = 300.0
    """How long a worker may take to load and warm up."""
    device: str = "cpu"
    """Where the model computes: ``"cpu"`` or ``"cuda"``; a worker has one, see `devices`."""
    drain_grace_s: float = 0.5
    """After SIGTERM: how long new requests are still accepted, so that balancers and clients can move on."""


POSITIVE = {"priority_levels", "max_batch_size", "workers", "frontends", "threads_per_worker", "max_queue_items", "max_queue_bytes", "request_timeout_s"} | {
    "max_body_bytes", "header_timeout_s", "body_timeout_s", "start_timeout_s",
}  # fmt: skip


def load_config(folder: Path) -> ServingConfig:
    """Read and check `serving.json`.

    Raises:
        BundleError: missing, not JSON, or a key that is unknown, missing or of the wrong type.
    """
    return parse_config(read_json(folder / "serving.json"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleError: no such file, not JSON, or not an object.
    """
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # as some editors begin a file
        value = orjson.loads(text)  # no NaN, no half of a character, no depth without end: all that comes of it can be told in JSON again
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{path} must hold a JSON object, not {type(value).__name__}")
    if value.get("schema") != SCHEMA:
        raise BundleError(f"{path} has schema {value.get('schema')!r}; this server reads schema {SCHEMA}")
    return value


def parse_config(raw: Mapping[str, Any]) -> ServingConfig:
    """Check the keys and types of a decoded `serving.json`."""
    known = {field.name: field for field in fields(ServingConfig)}
    if unknown := sorted(set(raw) - set(known)):
        raise BundleError(f"serving.json: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name not in raw:
            if field.default is MISSING:
                raise BundleError(f"serving.json: {name!r} is missing")
            continue
        if name in ("inputs", "outputs"):
            values[name] = _tensors(name, raw[name])
        elif name == "dimensions":
            values[name] = _dimensions(raw[name], values["inputs"])
        else:
            values[name] = _scalar(name, str(field.type), raw[name])
    config = ServingConfig(**values)
    if config.wait_policy not in ("adaptive", "always"):
        raise BundleError(f"serving.json: wait_policy is {config.wait_policy!r}; it can be 'adaptive' or 'always'")
    if config.batched and any(not spec.shape or spec.shape[0] != -1 for spec in config.inputs + config.outputs):
        raise BundleError("serving.json: the model is batched, so the first size of every input and output must be -1")
    if not config.batched and config.max_batch_size != 1:
        raise BundleError("serving.json: a model without batch axis must have max_batch_size 1")
    return config


def _scalar(name: str, kind: str, value: Any) -> Any:
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    if not isinstance(value, accepted[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise BundleError(f"serving.json: {name} must be of type {kind}, got {value!r}")
    if kind == "str" and not value:
        raise BundleError(f"serving.json: {name} is empty")
    if isinstance(value, (int, float)) and (value < 0 or (value == 0 and name in POSITIVE)):
        raise BundleError(f"serving.json: {name} is {value!r}; it must be greater than 0")
    return value


def _tensors(key: str, raw: Any) -> tuple[TensorSpec, ...]:
    if not isinstance(raw, list) or not raw:
        raise BundleError(f"serving.json: {key} must be a list of at least one tensor")
    specs = []
    for entry in raw:
        if not isinstance(entry, dict) or set(entry) != {"name", "datatype", "shape"}:
            raise BundleError(f"serving.json: each of {key} has exactly name, datatype and shape, got {entry!r}")
        name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
        if not isinstance(name, str) or not isinstance(datatype, str) or datatype not in DATATYPES:
            raise BundleError(f"serving.json: {key} {name!r} has datatype {datatype!r}; known are {', '.join(sorted(DATATYPES))}")
        if not isinstance(shape, list) or any(type(size) is not int or size == 0 or size < -1 for size in shape):
            raise BundleError(f"serving.json: {key} {name!r} has shape {shape!r}; sizes are positive, or -1 for any")
        specs.append(TensorSpec(name, datatype, tuple(shape)))
    if len({spec.name for spec in specs}) != len(specs):
        raise BundleError(f"serving.json: two of {key} have the same name")
    return tuple(specs)


def _dimensions(raw: Any, inputs: Sequence[TensorSpec]) -> tuple[Dimension, ...]:
    index = {spec.name: k for k, spec in enumerate(inputs)}
    dimensions = []
    for entry in raw if isinstance(raw, list) else [raw]:
        if not isinstance(entry, dict) or set(entry) != {"name", "min", "max", "axes"}:
            raise BundleError(f"serving.json: each of dimensions has exactly name, min, max and axes, got {entry!r}")
        name, low, high, axes = entry["name"], entry["min"], entry["max"], entry["axes"]
        if not isinstance(name, str) or type(low) is not int or type(high) is not int or not 1 <= low <= high:
            raise BundleError(f"serving.json: the dimension {name!r} is {low!r} to {high!r}; it needs a name and positive sizes")
        if not isinstance(axes, list) or not axes or any(not _is_open(place, inputs, index) for place in axes):
            raise BundleError(f"serving.json: the dimension {name!r} has axes {axes!r}; each is an input's name and an axis that is -1 in its shape")
        dimensions.append(Dimension(name, low, high, tuple((index[input_name], axis) for input_name, axis in axes)))
    return tuple(dimensions)


def describe_dimension(config: ServingConfig, dimension: Dimension) -> str:
    """``tokens: 1 to 512, axis 1 of input_ids, axis 1 of attention_mask``."""
    places = ", ".join(f"axis {axis} of {config.inputs[index].name}" for index, axis in dimension.axes)
    return f"{dimension.name}: {dimension.min} to {dimension.max}, {places}"


def _is_open(place: Any, inputs: Sequence[TensorSpec], index: Mapping[str, int]) -> bool:
    if not isinstance(place, list) or len(place) != 2 or not isinstance(place[0], str) or place[0] not in index or type(place[1]) is not int:
        return False
    shape = inputs[index[place[0]]].shape
    return 0 <= place[1] < len(shape) and shape[place[1]] == -1


def check_manifest(folder: Path) -> None:
    """Compare every file that `manifest.json` names with its hash.

    Raises:
        BundleError: a file is missing or altered, lies outside the folder or could run code when read;
            or the model's folder holds a file that the manifest does not name.
    """
    files = read_json(folder / "manifest.json").get("files")
    if not isinstance(files, dict) or not files:
        raise BundleError(f"{folder / 'manifest.json'} names no files")
    root = folder.resolve()
    for name, expected in files.items():
        path = folder / name
        try:
            if not path.resolve().is_relative_to(root) or Path(name).is_absolute():
                raise BundleError(f"manifest.json names {name!r}, which is outside the bundle")
            if not path.is_file():
                raise BundleError(f"{name!r} is missing from the bundle")
            if file_hash(path) != expected:
                raise BundleError(f"{name!r} was altered: its hash is not the one in manifest.json")
        except (OSError, ValueError, RuntimeError) as error:  # not readable, or a name that no file can have, or a link to itself
            raise BundleError(f"{name[:80]!r} of the bundle cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for path in (folder / "model").rglob("*"):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in files:
            raise BundleError(f"{path.relative_to(folder).as_posix()!r} lies among the model's files, but manifest.json does not name it")
    model_file = load_config(folder).model_file
    for name in files:
        if Path(name).suffix.lower() in PICKLES and name != model_file:  # the model itself is for its runner to look through, before it loads it
            raise BundleError(f"the bundle holds {name!r}: files that can run code when loaded are not served")
    for required in ("serving.json", "vectors.npz", "promises.json", "run.py", model_file):
        if required not in files:
            raise BundleError(f"manifest.json does not name {required!r}")


def file_hash(path: Path) -> str:
    """``sha256:<hex>`` of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def load_vectors(folder: Path, config: ServingConfig) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Read the stored inputs and expected outputs, in the order of the config.

    Returns:
        Inputs and outputs; the first axis is samples where the model is batched.

    Raises:
        BundleError: it cannot be read, or an array is missing, needs pickle, or does not fit the signature.
    """
    try:
        with np.load(folder / "vectors.npz", allow_pickle=False) as stored:
            inputs = [stored[f"input.{spec.name}"] for spec in config.inputs]
            outputs = [stored[f"output.{spec.name}"] for spec in config.outputs]
    except Exception as error:  # NumPy raises whatever its reading of garbage leads to
        raise BundleError(f"vectors.npz cannot be used: {error}") from None
    for spec, array in zip(config.inputs + config.outputs, inputs + outputs, strict=True):
        if len(spec.shape) != array.ndim or any(want not in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)):
            raise BundleError(f"vectors.npz: {spec.name!r} has shape {array.shape}, which is not {list(spec.shape)}")
        if array.dtype.kind not in ("SU" if spec.datatype == "BYTES" else "biuf"):
            raise BundleError(f"vectors.npz: {spec.name!r} is of {array.dtype}, which is no {spec.datatype}")
    if any(array.size == 0 for array in inputs) or (config.batched and len({len(array) for array in inputs + outputs}) != 1):
        raise BundleError("vectors.npz: the arrays hold different numbers of samples, or none")
    return inputs, outputs
