"""Finds attention: which layers make queries, keys and values, which one mixes the heads, and what a module calls its number of heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..workload import Call, call_model

if TYPE_CHECKING:
    import torch
    from torch import nn

SEPARATE = (
    ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("to_q", "to_k", "to_v"), ("q", "k", "v"),
    ("wq", "wk", "wv"), ("query_proj", "key_proj", "value_proj"),
)  # fmt: skip
FUSED = ("qkv", "qkv_proj", "in_proj", "query_key_value", "to_qkv", "Wqkv", "c_attn")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_attn_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "dim_head", "dim_per_head", "key_value_proj_dim", "size_per_head", "d_kv")
TOTALS = ("all_head_size", "inner_dim", "attn_dim", "attn_inner_dim")
WIDTHS = ("embed_dim", "dim", "hidden_size", "d_model", "width")
"""Names of attributes in transformers, timm and what people write themselves. The last are the width of the model in most, and that of all heads in some."""


@dataclass(frozen=True)
class Attention:
    """One attention module."""

    name: str
    queries: str
    """Name of the layer that makes queries, or queries, keys and values."""
    keys: str | None
    """None where one layer makes all three."""
    values: str | None
    num_heads: int
    """Of queries."""
    num_key_heads: int
    """Of keys and values: fewer where several heads share them."""
    head_dim: int

    @property
    def total(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def fused(self) -> bool:
        """Whether one layer makes queries, keys and values."""
        return self.keys is None

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of the layers that make queries, keys and values."""
        return tuple(name for name in (self.queries, self.keys, self.values) if name is not None)


def find_attention(model: nn.Module) -> tuple[Attention, ...]:
    """Modules whose linear layers and number of heads fit together."""
    return tuple(found for name, module in model.named_modules() if (found := _read(name, module)) is not None)


def _read(name: str, module: nn.Module) -> Attention | None:
    from torch import nn

    linear = {child: layer for child, layer in module.named_children() if isinstance(layer, nn.Linear)}
    prefix = f"{name}." if name else ""
    for triple in SEPARATE:
        if all(child in linear for child in triple):
            q, k, v = (linear[child] for child in triple)
            heads, size = _heads(module, q.out_features)
            if heads and size and k.out_features == v.out_features and k.out_features % size == 0 and q.out_features % k.out_features == 0:
                queries, keys, values = (prefix + child for child in triple)
                return Attention(name, queries, keys, values, heads, k.out_features // size, size)
    for child in FUSED:
        if child in linear and linear[child].out_features % 3 == 0:
            heads, size = _heads(module, linear[child].out_features // 3)
            if heads and size:
                return Attention(name, prefix + child, None, None, heads, heads, size)
    return None


def _heads(module: nn.Module, total: int) -> tuple[int, int]:
    """Number of heads and size of one, from what the module says of either; zeros where it says nothing that fits `total`."""
    heads, size = _attribute(module, HEADS), _attribute(module, HEAD_SIZES)
    if heads and total % heads == 0 and size in (0, total // heads):
        return heads, total // heads
    return (total // size, size) if not heads and size and total % size == 0 else (0, 0)


def _attribute(module: nn.Module, names: Sequence[str]) -> int:
    found = [value for name in names if isinstance(value := getattr(module, name, None), int) and not isinstance(value, bool)]
    return found[0] if found else 0


def find_outputs(model: nn.Module, attentions: Sequence[Attention], call: Call) -> dict[str, str]:
    """Run the model once and see which layer each attention's result goes into.

    Returns:
        Name of an attention -> the linear layer that takes all its heads and is the first one called after its projections.
    """
    import torch
    from torch import nn

    names = {id(layer): name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    order: list[str] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: order.append(names[id(layer)])) for layer in layers]
    try:
        with torch.no_grad():
            call_model(model, call)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(_after(model, attentions, order))


def _after(model: nn.Module, attentions: Sequence[Attention], order: Sequence[str]) -> Iterator[tuple[str, str]]:
    for attention in attentions:
        if any(order.count(name) != 1 for name in attention.projections):
            continue
        last = max(order.index(name) for name in attention.projections)
        following = order[last + 1] if last + 1 < len(order) else None
        if following is not None and model.get_submodule(following).in_features == attention.total:
            yield attention.name, following


def heads_in_order(model: nn.Module, attention: Attention, output: str, call: Call) -> bool:
    """Whether the channels of each head lie together, in the projections as in the layer that mixes the heads.

    Tried out: with the first channel of every head zero, these and no others arrive as zero. The model is run and its weights are written
    for that; to be called under `preserved`.
    """
    import torch

    arrived: list[torch.Tensor] = []
    hook = model.get_submodule(output).register_forward_pre_hook(lambda _, args: arrived.append(args[0]))
    try:
        with torch.no_grad():
            for name in attention.projections:
                for parameter in model.get_submodule(name).parameters():
                    parameter[:: attention.head_dim] = 0
            call_model(model, call)
    finally:
        hook.remove()
    zero = (arrived[-1].flatten(0, -2) == 0).all(0)
    expected = torch.arange(len(zero), device=zero.device) % attention.head_dim == 0
    return bool((zero == expected).all())


def write_back(module: nn.Module, old: Attention, new: Attention, *, width: bool = False) -> None:
    """Tell a module its new number of heads, and how wide they are together.

    Args:
        module: The attention module.
        old: What it was.
        new: What its layers are now.
        width: Also tell it by the names that mean the width of the model in most modules.
    """
    changes = (
        (HEADS, old.num_heads, new.num_heads),
        (KEY_HEADS, old.num_key_heads, new.num_key_heads),
        (HEAD_SIZES, old.head_dim, new.head_dim),
        (TOTALS + (WIDTHS if width else ()), old.total, new.total),
    )
    for names, before, after in changes:
        for name in names:
            if vars(module).get(name) == before and before != after:
                setattr(module, name, after)


def keep_rows(layer: nn.Linear, rows: torch.Tensor) -> None:
    """Leave only these outputs of a layer."""
    from torch import nn

    layer.weight = nn.Parameter(layer.weight.detach()[rows], requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows], requires_grad=layer.bias.requires_grad)
    layer.out_features = len(rows)


def keep_columns(layer: nn.Linear, columns: torch.Tensor) -> None:
    """Leave only these inputs of a layer."""
    from torch import nn

    layer.weight = nn.Parameter(layer.weight.detach()[:, columns], requires_grad=layer.weight.requires_grad)
    layer.in_features = len(columns)
