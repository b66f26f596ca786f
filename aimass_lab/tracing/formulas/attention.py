"""FLOPs of attention kernels, forward and backward.

A causal mask, any other mask and a block mask leave the count as it is: the usual convention, and what
torch's own counter does. Softmax, scaling and dropout are no matrix products and are not counted.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from .kinds import Formula


def _scores(batch: int, queries: int, keys: int) -> int:
    # Score pairs of one head; 2·d FLOPs each for every matrix product over them.
    return 2 * batch * queries * keys


def forward(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """``softmax(Q Kᵀ) V`` with Q (.., heads, S_q, d); with grouped queries each head of the keys is used by several."""
    *outer, length, width = query.shape
    return _scores(math.prod(outer), length, key.shape[-2]) * int(width + value.shape[-1])


def backward(_grad: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """Five matrix products: the scores once more, and the gradients of scores, V, Q and K."""
    *outer, length, width = query.shape
    return _scores(math.prod(outer), length, key.shape[-2]) * int(3 * width + 2 * value.shape[-1])


def _pairs(query: Any, key: Any, q_offsets: Any, k_offsets: Any, longest_q: Any, longest_k: Any) -> int:
    # Sum over the sequences of S_q · S_k; offsets without data allow only the bound that each is as long as the longest.
    if q_offsets is None:
        return int(query.shape[0] * query.shape[1] * key.shape[1])
    if q_offsets.device.type == "meta" or type(q_offsets).__name__ != "Tensor":  # a fake tensor says it is on the CPU
        return (len(q_offsets) - 1) * int(longest_q) * int(longest_k)
    ends = zip(itertools.pairwise(q_offsets.tolist()), itertools.pairwise(k_offsets.tolist()), strict=True)
    return sum((b - a) * (d - c) for (a, b), (c, d) in ends)


def flash_forward(query: Any, key: Any, value: Any, q_offsets: Any, k_offsets: Any, longest_q: Any, longest_k: Any, *rest: Any, **options: Any) -> int:
    """(batch, length, heads, d), or (sum of lengths, heads, d) with the offsets of each sequence."""
    return 2 * _pairs(query, key, q_offsets, k_offsets, longest_q, longest_k) * int(query.shape[-2]) * int(query.shape[-1] + value.shape[-1])


def flash_backward(
    _grad: Any,
    query: Any,
    key: Any,
    value: Any,
    _out: Any,
    _lse: Any,
    q_offsets: Any,
    k_offsets: Any,
    longest_q: Any,
    longest_k: Any,
    *rest: Any,
    **options: Any,
) -> int:
    """The same layouts, five matrix products."""
    pairs = _pairs(query, key, q_offsets, k_offsets, longest_q, longest_k)
    return 2 * pairs * int(query.shape[-2]) * int(3 * query.shape[-1] + 2 * value.shape[-1])


def efficient_forward(
    query: Any, key: Any, value: Any, _bias: Any, q_offsets: Any, k_offsets: Any, longest_q: Any, longest_k: Any, *rest: Any, **options: Any
) -> int:
    """(batch, length, heads, d); with offsets the batch is 1 and the sequences follow each other."""
    return flash_forward(query, key, value, q_offsets, k_offsets, longest_q, longest_k)


def efficient_backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    _bias: Any,
    out: Any,
    q_offsets: Any,
    k_offsets: Any,
    longest_q: Any,
    longest_k: Any,
    *rest: Any,
    **options: Any,
) -> int:
    """The same layouts, five matrix products."""
    return flash_backward(grad, query, key, value, out, None, q_offsets, k_offsets, longest_q, longest_k)


def flex_backward(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """flex_attention's backward takes the forward's operands first."""
    return backward(None, query, key, value)


def multi_head(query: Any, key: Any, _value: Any, embed_dim: int, *rest: Any, **options: Any) -> int:
    """`nn.MultiheadAttention` in one kernel: four projections and the attention, (batch, length, d)."""
    batch, queries, keys = int(query.shape[0]), int(query.shape[1]), int(key.shape[1])
    projections = 2 * batch * (2 * queries + 2 * keys) * embed_dim * embed_dim
    return projections + 2 * _scores(batch, queries, keys) * embed_dim


def encoder_layer(src: Any, embed_dim: int, *rest: Any, **options: Any) -> int:
    """`nn.TransformerEncoderLayer` in one kernel: the attention and the two matrices of the feed-forward block."""
    tokens = int(src.shape[0] * src.shape[1])
    matrices = [w for w in rest if hasattr(w, "dim") and w.dim() == 2]
    # qkv (3d x d) and output projection (d x d) are within the attention; the other two follow.
    return multi_head(src, src, src, embed_dim) + sum(2 * tokens * int(w.numel()) for w in matrices[2:4])


_FUSED = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention", "fused_attention_overrideable")

TABLE: dict[str, Formula] = {
    **{f"aten::_scaled_dot_product_{name}": forward for name in _FUSED},
    **{f"aten::_scaled_dot_product_{name}_backward": backward for name in _FUSED},
    "aten::_scaled_dot_product_attention_math_for_mps": forward,
    "aten::_flash_attention_forward": flash_forward,
    "aten::_flash_attention_forward_no_dropout_inplace": lambda out, *args, **options: flash_forward(*args, **options),
    "aten::_flash_attention_backward": flash_backward,
    "aten::_efficient_attention_forward": efficient_forward,
    "aten::_efficient_attention_backward": efficient_backward,
    "flex_attention": forward,
    "flex_attention_backward": flex_backward,
    "aten::_native_multi_head_attention": multi_head,
    "aten::_triton_multi_head_attention": multi_head,
    "aten::_transformer_encoder_layer_fwd": encoder_layer,
}
"""Formula of each operator."""
