"""Bytes of the message that carries one item, in the three forms of the Open Inference Protocol v2: JSON, binary REST and gRPC."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..records import Number

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..tracing.trace import OutputShape
    from ..workload import Call

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""The protocol's names of torch's types; a type it lacks travels as BYTES."""

ENCODED_ELEMENTS = 65_536
"""Tensors with more elements are encoded up to here, and the length is scaled."""

SHORTEST, LONGEST = len("0.0,"), len("-1.2345678901234567e-123,")
"""Characters of one floating value in JSON."""

WHAT = "one item, the message's body"


@dataclass(frozen=True)
class Part:
    """One tensor of a message, one item of it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: torch.Tensor | None
    """None: nothing is known but the shape."""

    @property
    def raw_bytes(self) -> int:
        """Bytes of its elements, row-major."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def datatype(self) -> str:
        """As the protocol names it."""
        return DATATYPES.get(str(self.dtype).removeprefix("torch."), "BYTES")

    @property
    def head(self) -> dict[str, Any]:
        """What precedes its data in JSON."""
        return {"name": self.name, "shape": list(self.shape), "datatype": self.datatype}


@dataclass(frozen=True)
class Sizes:
    """Body bytes of one message by form."""

    json: Number
    binary: Number
    grpc: Number
    base64: Number


def request_parts(model: nn.Module, call: Call) -> list[Part]:
    """The input tensors of one item, with their values where they hold any."""
    item = call.rows(0, 1) if any(call.is_batched(t) for t in call.tensors()) else call
    dense = ((name, t.to_dense() if t.is_sparse else t) for name, t in item.named_tensors(model))  # the only way for a message to hold it
    return [Part(name, t.dtype, tuple(t.shape), None if t.device.type == "meta" else t) for name, t in dense]


def response_parts(outputs: Sequence[OutputShape], call: Call, batch_size: int) -> list[Part]:
    """The output tensors of one item.

    Args:
        outputs: Output tensors of one pass.
        call: Says which axis counts the items.
        batch_size: Items in that pass.
    """
    axis = call.batch_axis
    parts = []
    for output in outputs:
        batched = len(output.shape) > axis and output.shape[axis] == batch_size
        shape = tuple(1 if batched and i == axis else size for i, size in enumerate(output.shape))
        parts.append(Part(output.name, output.dtype, shape, None))
    return parts


def request_sizes(model: nn.Module, call: Call, name: str = "") -> Sizes:
    """Bytes of the request for one item.

    JSON is written as Python's ``json`` writes ``tensor.tolist()``, without spaces: a float32 becomes the
    digits of a double, which is what Python clients send.

    Args:
        model: Names the inputs.
        call: The inputs.
        name: The served model's name, which the gRPC message repeats; in REST it stands in the address.
    """
    parts = request_parts(model, call)
    binary = _binary("inputs", parts, {"parameters": {"binary_data_output": True}})
    return Sizes(_json("inputs", parts, {}), binary, _grpc(parts, name, ""), _base64("inputs", parts, {}))


def response_sizes(model_name: str, outputs: Sequence[OutputShape], call: Call, batch_size: int) -> Sizes:
    """Bytes of the response for one item.

    JSON is written as our own server writes it: the fewest digits that give the same value of the tensor's type.

    Args:
        model_name: As the response repeats it.
        outputs: Output tensors of one pass.
        call: Says which axis counts the items.
        batch_size: Items in that pass.
    """
    parts = response_parts(outputs, call, batch_size)
    head = {"model_name": model_name, "model_version": "1"}
    return Sizes(_json("outputs", parts, head), _binary("outputs", parts, head), _grpc(parts, model_name, "1"), _base64("outputs", parts, head))


def _compact(message: Any) -> int:
    return len(json.dumps(message, separators=(",", ":")).encode())


def _exact(size: int, method: str) -> Number:
    return Number(value=size, unit="B", source="estimated", method=f"{WHAT}: {method}")


def _binary(side: str, parts: Sequence[Part], head: dict[str, Any]) -> Number:
    tensors = [{**part.head, "parameters": {"binary_data_size": part.raw_bytes}} for part in parts]
    size = _compact({**head, side: tensors}) + sum(part.raw_bytes for part in parts)
    return _exact(size, "encoded JSON header and raw tensors of the protocol's binary extension")


def base64_bytes(num_bytes: int) -> int:
    """Characters of `num_bytes` in base64 with padding: four for every three begun (RFC 4648 §4)."""
    return 4 * math.ceil(num_bytes / 3)


def _base64(side: str, parts: Sequence[Part], head: dict[str, Any]) -> Number:
    frame = _compact({**head, side: [{**part.head, "datatype": "BYTES", "data": [""]} for part in parts]})
    size = frame + sum(base64_bytes(part.raw_bytes) for part in parts)
    return _exact(size, "JSON with each tensor's raw bytes as one base64 text (RFC 4648), as services for images and audio take it; not a form of our server")


# --- gRPC ------------------------------------------------------------------------------------


def varint_bytes(value: int) -> int:
    """Bytes of a non-negative integer in protobuf's base-128 encoding (protobuf.dev, Encoding)."""
    return max(1, math.ceil(value.bit_length() / 7))


def _field(num_bytes: int) -> int:
    """Bytes of a length-delimited field of a number below 16: tag, length, content."""
    return 1 + varint_bytes(num_bytes) + num_bytes


def _text(text: str) -> int:
    """Bytes of a text field; an empty one is left out in proto3."""
    size = len(text.encode())
    return _field(size) if size else 0


def _grpc(parts: Sequence[Part], name: str, version: str) -> Number:
    size = _text(name) + _text(version)
    for part in parts:
        shape = sum(varint_bytes(n) for n in part.shape)
        size += _field(_text(part.name) + _text(part.datatype) + (_field(shape) if part.shape else 0))
        size += _field(part.raw_bytes)
    return _exact(size, "protobuf message with raw contents, by protobuf's encoding rules")


# --- JSON ------------------------------------------------------------------------------------


def _json(side: str, parts: Sequence[Part], head: dict[str, Any]) -> Number:
    frame = _compact({**head, side: [{**part.head, "data": []} for part in parts]})
    sizes = [_json_data(part, by_server=side == "outputs") for part in parts]
    value, low, high = (frame + sum(size[i] for size in sizes) for i in range(3))
    real = all(part.values is not None for part in parts)
    how = "a real sample" if real else "random values of these shapes"
    if all(math.prod(part.shape) <= ENCODED_ELEMENTS for part in parts) and real:
        return Number(value=value, unit="B", source="measured", method=f"{WHAT}: {how} encoded as JSON")
    return Number(
        value=value, unit="B", source="estimated", method=f"{WHAT}: {how} encoded as JSON, long tensors scaled from {ENCODED_ELEMENTS} values",
        interval=(low, high), interval_kind="shortest and longest way to write every value",
    )  # fmt: skip


def _json_data(part: Part, *, by_server: bool) -> tuple[int, int, int]:
    """Characters between the brackets of ``data``: expected, fewest, most."""
    import torch

    count = math.prod(part.shape)
    if count == 0:
        return 0, 0, 0
    used = min(count, ENCODED_ELEMENTS)
    values = _sample(part.dtype, used) if part.values is None else part.values.detach().flatten()[:used].cpu()
    values = torch.view_as_real(values).flatten() if values.is_complex() else values
    written = _written(values, by_server=by_server)
    expected = round((written + 1) * count / used) - 1
    low, high = (SHORTEST, LONGEST) if part.dtype.is_floating_point else (2, 21)
    return expected, min(expected, low * count - 1), max(expected, high * count - 1)


def _written(values: torch.Tensor, *, by_server: bool) -> int:
    import torch

    if not by_server:
        return _compact(values.tolist()) - 2
    import orjson

    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return len(orjson.dumps(values.numpy(), option=orjson.OPT_SERIALIZE_NUMPY)) - 2


def _sample(dtype: torch.dtype, count: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).bool()
    if not dtype.is_floating_point:
        return torch.randint(0, 100, (count,), generator=generator)
    return torch.randn(count, generator=generator).to(dtype)


def sample_values(part: Part) -> torch.Tensor:
    """Its values where they are known, else random ones of its type and shape, the same each time."""
    if part.values is not None:
        return part.values.detach().cpu().contiguous()
    return _sample(part.dtype, math.prod(part.shape)).to(part.dtype).reshape(part.shape)


def forms(sizes: Sizes) -> Iterator[tuple[str, Number]]:
    """Name and bytes of each form, the names that records use."""
    yield from (("json", sizes.json), ("binary", sizes.binary), ("grpc", sizes.grpc), ("json, base64", sizes.base64))
