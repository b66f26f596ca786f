"""torch's attention module written out, so that it may have fewer heads than its width has room for.

`nn.MultiheadAttention` takes the size of a head to be its width over the number of heads, and so cannot lose one.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn


class WrittenOutAttention(nn.Module):
    """What an `nn.MultiheadAttention` computes, called the same way, with layers of its own for the projections.

    Args:
        source: Its weights are taken over, not copied. One width for queries, keys and values; see `why_not`.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.batch_first = source.num_heads, source.head_dim, source.batch_first
        self.embed_dim = source.embed_dim
        # read by torch's encoder layers, which take their own fused path, over weights that are not here, unless there is no such bias
        self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        assert source.in_proj_weight is not None
        self.qkv = _linear(source.in_proj_weight, source.in_proj_bias)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        self.training = source.training

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_padding_mask: torch.Tensor | None = None, need_weights: bool = True,
        attn_mask: torch.Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """As `nn.MultiheadAttention.forward`, for batches.

        Args:
            query: ``[batch, length, width]``, or ``[length, batch, width]`` where not `batch_first`; so `key` and `value`.
            key: See `query`.
            value: See `query`.
            key_padding_mask: ``[batch, length]``; true, or added, where a key is ignored.
            need_weights: Give the attention weights too.
            attn_mask: ``[length, length]``; true, or added, where a key may not be seen.
            average_attn_weights: Over heads.
            is_causal: That `attn_mask` is causal; the mask itself says it all.

        Raises:
            ValueError: inputs without a batch, or a mask for each head.
        """
        if query.dim() != 3 or (attn_mask is not None and attn_mask.dim() != 2):
            raise ValueError("attention with pruned heads takes batches, and one mask for all heads")
        q, k, v = (self._split(t if self.batch_first else t.transpose(0, 1)) for t in self._project(query, key, value))
        mask = _added(attn_mask, q.dtype)
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q.dtype)
            assert padding is not None
            mask = padding[:, None, None, :] if mask is None else mask + padding[:, None, None, :]
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if query is key and key is value:
            return tuple(self.qkv(query).chunk(3, -1))
        weights = self.qkv.weight.chunk(3)
        biases = (None, None, None) if self.qkv.bias is None else self.qkv.bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _linear(weight: nn.Parameter | torch.Tensor, bias: nn.Parameter | torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.register_parameter("weight", cast("nn.Parameter", weight))
    layer.register_parameter("bias", cast("nn.Parameter | None", bias))
    return layer


def _added(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask as what is added to scores: boolean ones are true where nothing may be seen."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, float("-inf"))


def why_not(attention: nn.MultiheadAttention) -> str | None:
    """Why an attention module cannot be written out, or None."""
    if attention.in_proj_weight is None:
        return "its keys or values have a width of their own"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds keys of its own (add_bias_kv or add_zero_attn)"
    return None
