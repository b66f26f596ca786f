"""The same call with sequences of another length."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import InputError
from ..workload import Call


def sequence_length(call: Call) -> int | None:
    """Length of the sequences in a call: of the first tensor of token numbers; None where there is none."""
    axis = call.batch_axis + 1
    for tensor in call.tensors():
        if tensor.dim() == axis + 1 and call.is_batched(tensor) and not tensor.is_floating_point() and not tensor.is_complex():
            return int(tensor.shape[axis])
    return None


def with_length(call: Call, length: int) -> Call:
    """The call with its sequences cut, or repeated, to `length`; masks follow. Only sizes are right: nothing holds data.

    Raises:
        InputError: `length` is not a positive integer, or no input is a sequence of token numbers.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InputError(f"sequence length {length!r} is not a positive integer")
    own = sequence_length(call)
    if own is None:
        raise InputError("no input is a sequence of token numbers, so the length cannot be set", help="leave the lengths out, or pass token ids")
    first = call.batch_axis + 1

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not call.is_batched(tensor):
            return tensor.to("meta")
        # Of tokens, masks and features it is the axis after the batch; of a mask of pairs, the last two.
        last = tensor.dim() - first
        axes = range(first, tensor.dim()) if last >= 3 else range(first, min(first + 1, tensor.dim()))
        shape = [length if axis in axes and size == own else int(size) for axis, size in enumerate(tensor.shape)]
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    return replace(call.map(resized))
