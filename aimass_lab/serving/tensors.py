"""Tensors on their way through the server, and the checks that every one passes before it may be queued."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import Dimension, ServingConfig, TensorSpec
from .errors import RequestError, ServerError, bad

if TYPE_CHECKING:
    from .tracing import Recorder

Array = np.ndarray[Any, Any]
Buffer = bytes | bytearray | memoryview

NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""Every datatype but BYTES, whose elements have no fixed size."""

PACKED = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""What `struct` calls a datatype that JSON has numbers for."""
JSON_TYPES: dict[str, set[type]] = {"BOOL": {bool}, "BYTES": {str}, "FP32": {int, float}, "FP64": {int, float}}


@dataclass(slots=True)
class Tensor:
    """One tensor: little-endian, row-major; BYTES elements each after their length as a 32-bit integer."""

    spec: TensorSpec
    shape: tuple[int, ...]
    data: Buffer
    is_finite: bool = False
    """Whether all elements are known to be finite; where not, whoever needs it has to look."""

    def array(self) -> Array:
        """The elements, shaped; a view where the datatype allows it, else an array of `bytes` objects."""
        return decode(self.spec.datatype, self.shape, self.data)


def cut(specs: Sequence[TensorSpec], entry: dict[str, Any], payload: memoryview, *, is_finite: bool = False) -> list[Tensor]:
    """The tensors that lie at the begin of a payload, one right after the other.

    Args:
        specs: Theirs.
        entry: Their ``"shapes"``, and ``"sizes"`` in bytes.
        payload: Where they lie.
        is_finite: Whether all elements are known to be finite.
    """
    tensors, position = [], 0
    for spec, shape, size in zip(specs, entry["shapes"], entry["sizes"], strict=True):
        tensors.append(Tensor(spec, tuple(shape), payload[position : position + size], is_finite))
        position += size
    return tensors


@dataclass(slots=True)
class InferRequest:
    """A request that passed every check."""

    id: str
    inputs: list[Tensor]
    """All inputs of the model, in its order."""
    items: int
    """How much of a batch it takes: the first size of its inputs; 1 without batch axis."""
    outputs: list[tuple[int, bool]]
    """Which outputs are wanted, in the order wanted: index, and whether in binary."""
    timeout_s: float | None = None
    priority: int = 1
    """1 goes first."""
    trace: Recorder | None = None
    """What is recorded of it; None: nothing."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all inputs."""
        return sum(len(tensor.data) for tensor in self.inputs)


def make_request(config: ServingConfig, *, id: str, inputs: list[Tensor], outputs: list[tuple[int, bool]], parameters: dict[str, Any]) -> InferRequest:
    """Put checked tensors in the model's order and check what concerns them together.

    Raises:
        RequestError: 400, an input is missing, repeated, or has a batch size or another size that others have not or that is too large.
    """
    by_name = {tensor.spec.name: tensor for tensor in inputs}
    if len(by_name) != len(inputs):
        names = [tensor.spec.name for tensor in inputs]
        raise bad(f"input {next(name for name in names if names.count(name) > 1)!r} is given twice")
    if missing := [spec.name for spec in config.inputs if spec.name not in by_name]:
        raise bad(f"input {missing[0]!r} is missing")
    ordered = [by_name[spec.name] for spec in config.inputs]
    items = ordered[0].shape[0] if config.batched else 1
    if config.batched and any(tensor.shape[0] != items for tensor in ordered):
        raise bad(f"inputs have different batch sizes: {', '.join(f'{tensor.spec.name!r} {tensor.shape[0]}' for tensor in ordered)}")
    for dimension in config.dimensions:
        size = ordered[dimension.axes[0][0]].shape[dimension.axes[0][1]]
        if not dimension.min <= size <= dimension.max or any(ordered[index].shape[axis] != size for index, axis in dimension.axes):
            raise _bad_size(dimension, ordered)
    if items > config.max_batch_size:
        most = "1 item" if config.max_batch_size == 1 else f"{config.max_batch_size} items"
        raise bad(f"a request may hold at most {most}, got {items}: split it")
    return InferRequest(
        id=id, inputs=ordered, items=items, outputs=outputs, timeout_s=_timeout(parameters), priority=_priority(config, parameters)
    )  # fmt: skip


def _bad_size(dimension: Dimension, inputs: Sequence[Tensor]) -> RequestError:
    found = ", ".join(f"{inputs[index].shape[axis]} on axis {axis} of {inputs[index].spec.name!r}" for index, axis in dimension.axes)
    alike = ", the same on all of them" if len(dimension.axes) > 1 else ""
    return bad(f"the size {dimension.name!r} is {found}; the model takes {dimension.min} to {dimension.max}{alike}")


def _timeout(parameters: dict[str, Any]) -> float | None:
    """The `timeout` parameter is in microseconds, as Triton and its clients have it."""
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or timeout <= 0:
        raise bad(f"parameter timeout must be a positive number of microseconds, got {timeout!r}")
    return timeout * 1e-6


def _priority(config: ServingConfig, parameters: dict[str, Any]) -> int:
    """The `priority` parameter: 1 goes first, and 0 is as good as none, as Triton and its clients have it."""
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= config.priority_levels:
        raise bad(f"parameter priority must be a whole number from 1, which goes first, to {config.priority_levels}, got {repr(priority)[:80]}")
    return priority or (config.priority_levels + 1) // 2


def find_spec(specs: Sequence[TensorSpec], name: Any, kind: str) -> int:
    """Index of the input or output called `name`.

    Raises:
        RequestError: 400, there is none.
    """
    for index, spec in enumerate(specs):
        if spec.name == name:
            return index
    shown = repr(name)[:80]
    raise bad(f"the model has no {kind} called {shown}; it has {', '.join(spec.name for spec in specs)}")


def check_datatype(spec: TensorSpec, datatype: Any) -> None:
    """Refuse any datatype but the model's own; nothing is converted silently."""
    if datatype != spec.datatype:
        raise bad(f"input {spec.name!r} has datatype {repr(datatype)[:80]}, the model wants {spec.datatype}")


def check_shape(spec: TensorSpec, shape: Any) -> tuple[int, ...]:
    """The shape as a tuple, after comparing it with the model's.

    Raises:
        RequestError: 400, not a list of positive integers, or not a shape the model takes.
    """
    if not isinstance(shape, list) or any(type(size) is not int or not 0 < size < 2**63 for size in shape):
        raise bad(f"input {spec.name!r}: shape must be a list of positive integers, got {repr(shape)[:80]}")
    if len(shape) != len(spec.shape) or any(want not in (-1, got) for want, got in zip(spec.shape, shape, strict=True)):
        raise bad(f"input {spec.name!r} has shape {repr(shape)[:80]}, the model wants {list(spec.shape)}")
    return tuple(shape)


def from_raw(spec: TensorSpec, shape: tuple[int, ...], data: Buffer) -> Tensor:
    """A tensor from its bytes.

    Raises:
        RequestError: 400, the number of bytes is not what the shape says, or a BOOL or BYTES element is malformed.
    """
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        _refuse_what_is_no_text(spec, split_bytes(data, count, spec.name))
        return Tensor(spec, shape, data)
    expected = count * NUMPY[spec.datatype].itemsize
    if len(data) != expected:
        raise bad(f"input {spec.name!r} of shape {list(shape)} takes {expected} bytes, got {len(data)}")
    if spec.datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise bad(f"input {spec.name!r}: a BOOL element is neither 0 nor 1")
    return Tensor(spec, shape, data)


def _refuse_what_is_no_text(spec: TensorSpec, elements: Sequence[bytes]) -> None:
    """Every format that has BYTES takes them as texts: what is none would fail in the worker, as if the model were to blame."""
    for index, element in enumerate(elements):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise bad(f"input {spec.name!r}: element {index} is no text in UTF-8: {error.reason} at its byte {error.start}") from None


def from_values(spec: TensorSpec, shape: tuple[int, ...], values: list[Any], *, may_hold_bools: bool = True) -> Tensor:
    """A tensor from a flat or nested list of Python values, as JSON gives them.

    Args:
        spec: Of the tensor.
        shape: Of the tensor.
        values: The elements.
        may_hold_bools: False where there is none among them for sure: to `struct` they are numbers, and to look for them takes longer than all the rest.

    Raises:
        RequestError: 400, wrong nesting or count, or an element of the wrong type or out of range.
    """
    flat = flatten(spec, shape, values)
    if not may_hold_bools and (code := PACKED.get(spec.datatype)) is not None:
        with contextlib.suppress(struct.error, OverflowError):  # what it does not take is looked at below, where it is said what was wrong
            return Tensor(spec, shape, struct.pack(f"<{len(flat)}{code}", *flat))
    types = set(map(type, flat))
    allowed: set[type] = JSON_TYPES.get(spec.datatype, {int})
    if spec.datatype == "FP16":
        raise bad(f"input {spec.name!r}: FP16 has no JSON form; send it as binary data")
    if not types <= allowed:
        found = sorted("null" if kind is type(None) else kind.__name__ for kind in types - allowed)
        raise bad(f"input {spec.name!r} of {spec.datatype} holds an element of type {found[0]}")
    if spec.datatype == "BYTES":
        return Tensor(spec, shape, join_bytes([text.encode() for text in flat]))
    return Tensor(spec, shape, _numbers(spec, flat))


def _numbers(spec: TensorSpec, flat: list[Any]) -> memoryview:
    dtype = NUMPY[spec.datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for value in (min(flat), max(flat)):
            if not int(limits.min) <= value <= int(limits.max):
                raise bad(f"input {spec.name!r}: {value} is out of range for {spec.datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        raise bad(f"input {spec.name!r}: a number is out of range for {spec.datatype}") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise bad(f"input {spec.name!r}: a number is out of range for {spec.datatype}")
    return array.data.cast("B")


def flatten(spec: TensorSpec, shape: tuple[int, ...], values: Any) -> list[Any]:
    """Row-major elements of a list that is flat or nested exactly like `shape`."""
    if not isinstance(values, list):
        raise bad(f"input {spec.name!r}: data must be a list, got {type(values).__name__}")
    sizes = [len(values)]
    while values and type(values[0]) is list:
        if set(map(type, values)) != {list} or len(set(map(len, values))) != 1 or len(sizes) == len(shape):
            raise bad(f"input {spec.name!r}: data is not nested like its shape {list(shape)}")
        sizes.append(len(values[0]))
        values = list(chain.from_iterable(values))
    if len(sizes) > 1 and tuple(sizes) != shape:
        raise bad(f"input {spec.name!r}: data is nested as {sizes}, its shape is {list(shape)}")
    if len(values) != math.prod(shape):
        raise bad(f"input {spec.name!r} of shape {list(shape)} takes {math.prod(shape)} elements, got {len(values)}")
    return values


def split_bytes(data: Buffer, count: int, name: str) -> list[bytes]:
    """Elements of a BYTES tensor.

    Raises:
        RequestError: 400, a length reaches beyond the data, or the number of elements is not `count`.
    """
    elements, position, view = [], 0, memoryview(data)
    while position < len(view):
        if position + 4 > len(view):
            raise bad(f"tensor {name!r}: {len(view) - position} bytes left where a length of 4 should be")
        (length,) = struct.unpack_from("<I", view, position)
        position += 4
        if position + length > len(view):
            raise bad(f"tensor {name!r}: an element of {length} bytes reaches beyond the data")
        elements.append(bytes(view[position : position + length]))
        position += length
        if len(elements) > count:
            break
    if len(elements) != count:
        raise bad(f"tensor {name!r} takes {count} elements, got {len(elements)}{' or more' if len(elements) > count else ''}")
    return elements


def join_bytes(elements: list[bytes]) -> bytes:
    """The inverse of `split_bytes`."""
    return b"".join(chain.from_iterable((struct.pack("<I", len(element)), element) for element in elements))


def decode(datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """Bytes to an array; BYTES to an array of `bytes` objects."""
    if datatype != "BYTES":
        return np.frombuffer(data, NUMPY[datatype]).reshape(shape) if len(data) else np.empty(shape, NUMPY[datatype])
    array = np.empty(math.prod(shape), object)
    array[:] = split_bytes(data, len(array), "BYTES")
    return array.reshape(shape)


def encode(datatype: str, array: Array) -> Buffer:
    """An array to bytes, the inverse of `decode`; text elements become UTF-8."""
    if datatype == "BYTES":
        return join_bytes([element if isinstance(element, bytes) else str(element).encode() for element in array.ravel().tolist()])
    flat = np.ascontiguousarray(array, NUMPY[datatype]).reshape(-1)
    return flat.data.cast("B") if flat.size else b""


def relative_error(config: ServingConfig, got: list[Array], expected: list[Array]) -> float:
    """Largest ``||got - expected|| / ||expected||`` over samples and outputs; texts count as 1 where they differ."""
    worst = 0.0
    for spec, a, b in zip(config.outputs, got, expected, strict=True):
        if a.shape != b.shape:
            raise ServerError(f"output {spec.name!r} has shape {list(a.shape)} instead of {list(b.shape)}")
        if spec.datatype == "BYTES":
            worst = max(worst, float(encode("BYTES", a) != encode("BYTES", b)))
            continue
        rows = len(b) if config.batched else 1
        x, y = (array.reshape(rows, -1).astype(np.float64) for array in (a, b))
        errors = np.linalg.norm(x - y, axis=1) / np.maximum(np.linalg.norm(y, axis=1), np.finfo(np.float64).tiny ** 0.5)
        if not np.isfinite(errors).all():
            raise ServerError(f"output {spec.name!r} is not finite where it is compared")
        worst = max(worst, float(errors.max()))
    return worst
