"""What operators take for themselves on a CPU beyond their results, where the plan of torch's kernel is known.

Every rule was read off the allocations of real calls (float32, oneDNN with AVX2 and AVX-512, several shapes each);
`tests/test_demand.py` repeats the comparison on the machine it runs on. An operator that no rule covers has None,
and only the bound of `formulas.workspace_bound`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from .formulas import classify, name_of

Backend = Literal["mkldnn", "mkldnn_transpose", "slow2d", "slow_dilated", "slow3d", "other"]

FLOAT_BYTES = 4
MKL_GEMM = frozenset({"aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv", "aten::dot", "aten::vdot"})
"""Take their scratch from the library's own heap, which the allocator does not see; so do float32 and float64 only."""


def expected_workspace(op: Any, args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    """Bytes that torch's CPU kernel holds at its highest moment, beyond what it reads and returns.

    Args:
        op: The operator.
        args: Its positional arguments, fake or real.
        results: Tensors that it returned.

    Returns:
        The bytes; None where no rule covers the operator on these arguments.
    """
    name = name_of(op)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(args, results)
    if name in MKL_GEMM:
        return 0 if results and results[0].dtype in (torch.float32, torch.float64) else None
    return None if classify(op) in ("formula", "unknown") else 0


def channel_block() -> int | None:
    """Channels are laid out in blocks of as many floats as a vector register holds; None where that was not checked."""
    return {"AVX512": 16, "AVX2": 8}.get(_capability())


@functools.cache
def _capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block


# --- convolutions --------------------------------------------------------------------------


def _convolution(args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    backend = _backend(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    y = results[0]
    if backend in ("slow2d", "slow_dilated", "slow3d"):
        return _unfolded(backend, x, weight, y, groups)
    block = channel_block()
    if backend == "other" or block is None or (x.dtype != torch.float32 and not _on_tiles(x)):
        return None
    if transposed or (_on_tiles(x) and groups == 1):
        # The result is made in the kernel's layout, turned into the plain one, and copied once more.
        sizes = [_bytes(t) for t in (x, weight, y)]
        return max(sum(sizes), 3 * sizes[2]) - sizes[2]
    if _channels_last(x):
        # Nothing but the weights is laid out anew, twice where they are not channels-last themselves.
        return _bytes(weight) * (2 if _longest_side(weight) > 1 and groups == 1 and not _channels_last(weight) else 1)
    sizes = list(_blocked(x, weight, y, groups, block))
    if all(size == 1 for size in weight.shape[2:]) and any(s > 1 for s in stride):
        # A strided 1x1 kernel first gathers the pixels it will use, every thread for itself.
        sizes.append(torch.get_num_threads() * FLOAT_BYTES * int(x.shape[1]) * math.prod(y.shape[2:]))
    # Input and weights go once the blocked result is there; then the plain result joins it.
    return int(max(sum(sizes), sizes[2] + _bytes(y)) - _bytes(y))


def _on_tiles(x: torch.Tensor) -> bool:
    """Whether the processor has matrix tiles (AMX) for this dtype; their kernels take scratch that is left out here."""
    return x.dtype == torch.bfloat16 and _has_tiles()


@functools.cache
def _has_tiles() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def _blocked(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, groups: int, block: int, *, fewest: int | None = None) -> tuple[int, int, int]:
    """Bytes of input, weights and result in the kernel's own layout."""
    channels, filters = int(x.shape[1]), int(weight.shape[0])
    if groups > 1:
        if groups != channels or weight.shape[1] != 1:
            return _bytes(x), _bytes(weight), _bytes(y)
        return tuple(_bytes(t) // int(t.shape[axis]) * _padded(int(t.shape[axis]), block) for t, axis in ((x, 1), (weight, 0), (y, 1)))  # type: ignore[return-value]
    result = _bytes(y) // max(1, filters) * _padded(filters, block)
    if channels < (fewest or block):
        # So few channels are read as they lie.
        return 0, _bytes(weight) // max(1, filters) * _padded(filters, block), result
    wide = _padded(channels, block)
    return _bytes(x) // channels * wide, _bytes(weight) // (channels * filters) * wide * _padded(filters, block), result


def _unfolded(backend: Backend, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, groups: int) -> int:
    kernel = math.prod(weight.shape[2:])
    if backend == "slow2d" and kernel == 1:
        return 0
    columns = int(x.shape[1]) // groups * kernel * math.prod(y.shape[2:]) * x.element_size()
    return columns if backend == "slow_dilated" else int(x.shape[0]) * columns


def _convolution_backward(args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    gradient, x, weight, _, stride, padding, dilation, transposed, output_padding, groups, wanted = args[:11]
    backend = _backend(x, weight, None, stride, padding, dilation, transposed, output_padding, groups)
    block = channel_block()
    if backend != "mkldnn" or block is None or x.dtype != torch.float32:
        return None
    if _channels_last(x):
        return _channels_last_backward(weight, groups, block)
    copy = 0 if gradient.is_contiguous() else _bytes(gradient)
    x_blocked, w_blocked, y_blocked = _blocked(x, weight, gradient, groups, block, fewest=FEWEST_BLOCKED)
    kernel, channels = _longest_side(weight), int(x.shape[1])
    if kernel > LARGEST_DIRECT_KERNEL and groups == 1:
        return None
    x_wide = x_blocked or _bytes(x) // channels * _padded(channels, block)
    x_bytes = _bytes(x) if wanted[0] else 0
    moments = [0]
    if wanted[0]:  # the gradient of the input first: made in the kernel's layout, then in the plain one
        skips = groups == 1 and max(stride) > 1 and kernel <= max(stride)
        moments += [y_blocked + w_blocked + x_wide, (2 if skips else 1) * x_wide + x_bytes]
    if wanted[1]:
        per_group = int(weight.shape[1])
        plain = groups > 1 and (kernel > 3 if groups == channels else per_group % block > 0)
        operands = 0 if plain else y_blocked + x_blocked
        moments += [x_bytes + operands + w_blocked, x_bytes + w_blocked + _bytes(weight)]
    return int(max(0, copy + max(moments) - sum(_bytes(t) for t in results)))


def _channels_last_backward(weight: torch.Tensor, groups: int, block: int) -> int:
    """The gradient of a depthwise kernel above 3 is summed in full blocks of channels by channels."""
    if groups > 1:
        return _bytes(weight) * (2 + block**2 * (_longest_side(weight) > 3))
    return _bytes(weight) * (3 if _longest_side(weight) > 1 and not _channels_last(weight) else 1)


def _longest_side(weight: torch.Tensor) -> int:
    """The longest side of a kernel."""
    return int(max(weight.shape[2:]))


LARGEST_DIRECT_KERNEL = 7
"""Above, the gradient of dense weights is summed in a scratch whose size no rule here knows."""

FEWEST_BLOCKED = 4
"""Channels from which on the kernel for the weights' gradient wants its input blocked."""


def _backend(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int) -> Backend:
    """Which kernel torch itself chooses for these sizes."""
    chosen = torch._C._select_conv_backend(x, weight, bias, list(stride), list(padding), list(dilation), transposed, list(output_padding), groups, None)
    return _BACKENDS.get(str(chosen).rpartition(".")[2], "other")


# The transposed oneDNN kernel has no name in torch's enumeration.
_BACKENDS: dict[str, Backend] = {
    "Mkldnn": "mkldnn", "???": "mkldnn_transpose", "Slow2d": "slow2d", "SlowDilated2d": "slow_dilated", "SlowDilated3d": "slow_dilated", "Slow3d": "slow3d",
}  # fmt: skip


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel()) * int(tensor.element_size())


def _channels_last(x: torch.Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.shape[1] > 1 and x.is_contiguous(memory_format=formats[x.dim()]) and not x.is_contiguous()


# --- recurrent layers and attention -----------------------------------------------------------


def _mkldnn_rnn_layer(args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    x, w_input, w_hidden = args[:3]
    if channel_block() is None or x.dtype != torch.float32:
        return None
    # Both weights are packed, every gate padded; the gates of all steps and the states of one are kept apart.
    return _packed(w_input, w_hidden, int(args[10])) + int(w_input.shape[0]) * FLOAT_BYTES + _rnn_scratch(x, w_input, int(args[10]))


def _mkldnn_rnn_layer_backward(args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    x, w_input, w_hidden = args[:3]
    gates, width = int(w_input.shape[0]), int(w_hidden.shape[1])
    if channel_block() is None or x.dtype != torch.float32:
        return None
    # Long rows are moved apart, so that they do not fall on the same cache lines: then the gradients have copies too.
    wide = [w for w in (w_input, w_hidden) if gates >= 1024 and int(w.shape[1]) >= 256]
    return _packed(w_input, w_hidden, width) + sum(map(_bytes, wide)) + 2 * gates * FLOAT_BYTES + _rnn_scratch(x, w_input, width)


def _packed(w_input: torch.Tensor, w_hidden: torch.Tensor, hidden_width: int) -> int:
    gates = int(w_input.shape[0])
    return (int(w_input.shape[1]) + int(w_hidden.shape[1])) * gates // hidden_width * _padded(hidden_width, 32) * FLOAT_BYTES


def _rnn_scratch(x: torch.Tensor, w_input: torch.Tensor, hidden_width: int) -> int:
    steps, batch = int(x.shape[0]), max(2, int(x.shape[1]))
    return ((steps + 1) * int(w_input.shape[0]) + 5 * hidden_width) * batch * FLOAT_BYTES + RNN_CONSTANT


def with_kept_states(op: str, args: Sequence[Any], result: Any) -> Any:
    """What a recurrent layer returns, with the room that it keeps for its backward pass, which shapes alone leave out.

    Gates and states of every step: 15.25 floats an item, step and unit, and 13 more an item and unit (measured; within 2 %).
    """
    if op != "aten::mkldnn_rnn_layer" or not args[15] or not torch.is_grad_enabled() or result[3].numel():
        return result
    steps, batch, width = int(args[0].shape[0]), int(args[0].shape[1]), int(args[10])
    kept = int((15.25 * steps + 13) * batch * width) * FLOAT_BYTES
    return (*result[:3], torch.empty(kept, dtype=torch.uint8, device=result[0].device))


RNN_CONSTANT = 12_288
"""Bytes of bookkeeping that every recurrent layer takes."""


def _flash_attention(args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    query, key = args[0], args[1]
    if query.dtype not in (torch.float32, torch.float64):
        return None
    rows, columns = _flash_block(query, key)
    # Every thread keeps a block of scores, its two running statistics, and a block of the result.
    return torch.get_num_threads() * (rows * columns + 2 * rows + rows * int(query.shape[3])) * int(query.element_size())


def _flash_attention_backward(args: Sequence[Any], results: Sequence[torch.Tensor]) -> int | None:
    gradient, query, key = args[:3]
    if query.dtype not in (torch.float32, torch.float64):
        return None
    rows, columns = _flash_block(query, key)
    # The gradient is read position by position, all heads of one together, and copied where it does not lie so.
    copy = 0 if gradient.transpose(1, 2).is_contiguous() else _bytes(gradient)
    # Scores and their gradients, for every thread.
    return torch.get_num_threads() * 2 * rows * columns * int(query.element_size()) + copy


def _flash_block(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """Queries and keys that one thread handles at a time."""
    length = int(query.shape[2])
    return min(length, 256 if length >= 768 else 64 if length >= 192 else 32), min(512, int(key.shape[2]))


_RULES: dict[str, Callable[[Sequence[Any], Sequence[torch.Tensor]], int | None]] = {
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::mkldnn_rnn_layer": _mkldnn_rnn_layer,
    "aten::mkldnn_rnn_layer_backward": _mkldnn_rnn_layer_backward,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _flash_attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _flash_attention_backward,
}
