"""Bytes that one item puts on the network, in the binary and the JSON form of the Open Inference Protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..records import Number
from ..tracing.trace import OutputShape
from ..workload import Call

DATATYPES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64", torch.int8: "INT8",
    torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32",
    torch.float64: "FP64",
}  # fmt: skip
"""The protocol's names of torch's types; a type it lacks travels as BYTES."""

ENCODED_ELEMENTS = 65_536
"""Tensors with more elements are encoded up to here, and the length is scaled."""

SHORTEST, LONGEST = len("0.0,"), len("-1.2345678901234567e-123,")
"""Characters of one floating value in JSON."""


@dataclass(frozen=True)
class _Part:
    """One tensor of a message, one item of it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: torch.Tensor | None
    """None: nothing is known but the shape."""

    @property
    def raw_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def head(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "datatype": DATATYPES.get(self.dtype, "BYTES")}


def request_sizes(model: nn.Module, call: Call) -> tuple[Number, Number]:
    """Bytes of the request for one item: binary form, JSON form."""
    item = call.rows(0, 1) if any(call.is_batched(t) for t in call.tensors()) else call
    parts = [_Part(name, t.dtype, tuple(t.shape), None if t.device.type == "meta" else t) for name, t in item.named_tensors(model)]
    return _binary("inputs", parts, {"parameters": {"binary_data_output": True}}), _json("inputs", parts, {})


def response_sizes(model_name: str, outputs: Sequence[OutputShape], call: Call, batch_size: int) -> tuple[Number, Number]:
    """Bytes of the response for one item: binary form, JSON form.

    Args:
        model_name: As the response repeats it.
        outputs: Output tensors of one pass.
        call: Says which axis counts the items.
        batch_size: Items in that pass.
    """
    axis = call.batch_axis
    parts = []
    for output in outputs:
        batched = len(output.shape) > axis and output.shape[axis] == batch_size
        shape = tuple(1 if batched and i == axis else size for i, size in enumerate(output.shape))
        parts.append(_Part(output.name, output.dtype, shape, None))
    head = {"model_name": model_name, "model_version": "1"}
    return _binary("outputs", parts, head), _json("outputs", parts, head)


def _compact(message: Any) -> int:
    return len(json.dumps(message, separators=(",", ":")).encode())


def _binary(side: str, parts: Sequence[_Part], head: dict[str, Any]) -> Number:
    tensors = [{**part.head, "parameters": {"binary_data_size": part.raw_bytes}} for part in parts]
    size = _compact({**head, side: tensors}) + sum(part.raw_bytes for part in parts)
    return Number(value=size, unit="B", source="estimated", method="one item: encoded header and raw tensors of the binary protocol, HTTP headers left out")


def _json(side: str, parts: Sequence[_Part], head: dict[str, Any]) -> Number:
    frame = _compact({**head, side: [{**part.head, "data": []} for part in parts]})
    sizes = [_json_data(part) for part in parts]
    value, low, high = (frame + sum(size[i] for size in sizes) for i in range(3))
    real = all(part.values is not None for part in parts)
    how = "a real sample" if real else "random values of these shapes"
    if all(math.prod(part.shape) <= ENCODED_ELEMENTS for part in parts) and real:
        return Number(value=value, unit="B", source="measured", method=f"one item: {how} encoded as JSON, HTTP headers left out")
    return Number(
        value=value, unit="B", source="estimated", method=f"one item: {how} encoded as JSON, long tensors scaled from {ENCODED_ELEMENTS} values",
        interval=(low, high), interval_kind="shortest and longest way to write every value",
    )  # fmt: skip


def _json_data(part: _Part) -> tuple[int, int, int]:
    """Characters between the brackets of ``data``: expected, fewest, most."""
    count = math.prod(part.shape)
    if count == 0:
        return 0, 0, 0
    used = min(count, ENCODED_ELEMENTS)
    values = _sample(part.dtype, used) if part.values is None else part.values.detach().flatten()[:used].cpu()
    values = torch.view_as_real(values).flatten() if values.is_complex() else values
    written = _compact(values.tolist()) - 2
    expected = round((written + 1) * count / used) - 1
    low, high = (SHORTEST, LONGEST) if part.dtype.is_floating_point else (2, 21)
    return expected, min(expected, low * count - 1), max(expected, high * count - 1)


def _sample(dtype: torch.dtype, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).bool()
    if not dtype.is_floating_point:
        return torch.randint(0, 100, (count,), generator=generator)
    return torch.randn(count, generator=generator).to(dtype)
