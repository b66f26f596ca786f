"""Bytes that tensors occupy, and upper bounds of what operators take for themselves."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import ModelError
from .registry import Operator

CHANNEL_BLOCK = 16
"""Kernels lay channels out in blocks of up to this many, the last one padded."""


def tensor_bytes(tensor: Any) -> int:
    """Bytes of memory the elements occupy; a dimension expanded from size 1 counts once, a sparse tensor by what it holds."""
    if tensor.layout is not torch.strided:
        return _sparse_bytes(tensor)
    strides = tensor.stride()
    if 0 not in strides:
        return int(tensor.numel() * tensor.element_size())
    count = 1
    for size, stride in zip(tensor.shape, strides, strict=True):
        if stride != 0:
            count *= int(size)
    return count * int(tensor.element_size())


def _sparse_bytes(tensor: Any) -> int:
    if type(tensor).__name__ == "FakeTensor" or tensor.device.type == "meta":
        raise ModelError("how many values a sparse tensor holds cannot be told from its shape")
    if tensor.is_sparse:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:  # a layout of one library's own; the elements are what is known of it
        return int(tensor.numel() * tensor.element_size())
    return sum(int(part.numel() * part.element_size()) for part in parts)


def workspace_bound(operator: Operator, args: tuple[Any, ...], bytes_read: int, bytes_written: int) -> int:
    """Upper bound of what the operator takes for itself while it runs, beyond its result.

    Convolutions copy input, weights and result into the kernel's own layout, and the plain ones unfold
    their input (im2col); recurrent layers repack their weights and keep every gate; matrix products and
    attention need little.
    """
    if operator.family == "conv":
        return _convolution_workspace(operator, args, bytes_read, bytes_written)
    if operator.family == "recurrent":
        return 3 * (bytes_read + bytes_written)
    if operator.kind in ("formula", "unknown"):
        return (bytes_read + bytes_written) // 8
    return 0


def _convolution_workspace(operator: Operator, args: tuple[Any, ...], bytes_read: int, bytes_written: int) -> int:
    tensors = [a for a in args[:2] if hasattr(a, "dim") and a.dim() > 2]
    if len(tensors) < 2 or operator.name.endswith("backward"):
        return 2 * (bytes_read + bytes_written)
    x, weight = tensors
    outputs = max(1, int(weight.shape[0]))
    copies = (
        tensor_bytes(x) * _padding(int(x.shape[1]))
        + tensor_bytes(weight) * _padding(int(weight.shape[0])) * _padding(int(weight.shape[1]))
        + bytes_written * _padding(outputs)
    )
    # The plain 3-D kernel unfolds its input: one patch for every value of one output channel.
    unfolded = bytes_written * (int(weight.numel()) // outputs) // outputs if weight.dim() == 5 else 0
    return int(copies) + unfolded


def _padding(channels: int) -> float:
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK / max(1, channels)
