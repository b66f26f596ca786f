"""Serialises an ONNX model without holding its weights a second and a third time, as protobuf's own serialiser does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

LARGE_BYTES = 1024
"""Tensors from this size on are written from where they lie."""
PIECE_BYTES = 2**20
"""Written at once. Linux takes larger pages for larger pieces; where a virtual machine has to get those from its host first, 440 MB took 3 s and not 0.3 s."""
LENGTH_DELIMITED = 2
"""Protobuf's wire type of messages and bytes."""
GRAPH_OF_MODEL, INITIALIZER_OF_GRAPH, RAW_DATA_OF_TENSOR = 7, 5, 9
"""Field numbers in onnx.proto."""


def serialize(model: Any) -> torch.Tensor:
    """Return an `onnx_ir.Model` as the bytes of a `ModelProto`, uint8[n].

    Protobuf fields may come in any order, so the large initializers follow the rest of the graph.
    """
    import torch

    size, chunks = _chunks(model)
    buffer = torch.empty(size, dtype=torch.uint8)
    view, start = buffer.numpy(), 0
    for chunk in chunks:
        view[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        start += len(chunk)
    return buffer


def write(model: Any, path: Path) -> None:
    """Write the same bytes to a file, the large initializers from where they lie."""
    _, chunks = _chunks(model)
    with path.open("wb") as file:
        for chunk in chunks:
            file.writelines(chunk[start : start + PIECE_BYTES] for start in range(0, len(chunk), PIECE_BYTES))


def _chunks(model: Any) -> tuple[int, Iterator[bytes | memoryview]]:
    """How many bytes there are, and the bytes; those of a tensor that does not lie in its order are put into it only as they are taken."""
    import onnx_ir

    initializers = model.graph.initializers
    large = {name: value for name, value in initializers.items() if value.const_value is not None and value.const_value.nbytes >= LARGE_BYTES}
    tensors = {name: value.const_value for name, value in large.items()}
    try:
        for name, value in large.items():
            value.const_value = onnx_ir.tensor(np.zeros(0, np.float32), name=name)
        proto = onnx_ir.to_proto(model)
    finally:
        for name, value in large.items():
            value.const_value = tensors[name]
    small = [initializer for initializer in proto.graph.initializer if initializer.name not in large]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    del proto.graph.value_info[:]  # shapes that went stale make quantisers fail; whoever reads the file infers them
    graph = proto.graph.SerializeToString(deterministic=True)
    heads = {name: _initializer(name, tensors[name]) for name in large}
    size = len(graph) + sum(len(head) + tensors[name].nbytes for name, head in heads.items())
    proto.ClearField("graph")
    front = proto.SerializeToString(deterministic=True) + _header(GRAPH_OF_MODEL, size)
    rest = (part for name, head in heads.items() for part in (head, _bytes_of(tensors[name])))
    return len(front) + size, itertools.chain([front, graph], rest)


def _initializer(name: str, tensor: Any) -> bytes:
    """What stands before the values of a tensor."""
    import onnx

    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=[int(size) for size in tensor.shape])
    head = proto.SerializeToString(deterministic=True) + _header(RAW_DATA_OF_TENSOR, tensor.nbytes)
    return _header(INITIALIZER_OF_GRAPH, len(head) + tensor.nbytes) + head


def _bytes_of(tensor: Any) -> bytes | memoryview:
    """The values as they lie in memory; those that ONNX packs more tightly are packed."""
    array = tensor.numpy()
    if array.nbytes != tensor.nbytes or array.dtype.byteorder == ">":
        return tensor.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _header(field: int, length: int) -> bytes:
    """Key and length of a length-delimited field."""
    return _varint(field << 3 | LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, the eighth bit set on all but the last."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
