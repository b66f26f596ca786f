"""Casts a model to another floating-point type behind an unchanged interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from ..outputs import opened


@dataclass(frozen=True)
class CastInputs:
    """Forward pre-hook: floating-point arguments arrive as `dtype`."""

    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cast every floating-point tensor among the arguments."""
        return _cast((args, kwargs), self.dtype)


@dataclass(frozen=True)
class CastOutputs:
    """Forward hook: outputs of type `inner` leave as `outer`."""

    inner: torch.dtype
    outer: torch.dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Cast the outputs back; those of other types are left alone."""
        return _cast(opened(outputs), self.outer, only=self.inner)


def _cast(values: Any, dtype: torch.dtype, only: torch.dtype | None = None) -> Any:
    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or (only is not None and leaf.dtype != only):
            return leaf
        return leaf.to(dtype)

    return _pytree.tree_map(cast, values)


def floating_dtype(model: nn.Module) -> torch.dtype | None:
    """Type of most of the floating-point elements; None where there are none."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=sizes.__getitem__) if sizes else None


def cast_model_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast weights and buffers of `model`, and add hooks that keep its interface.

    `nn.Module.to` would also cast complex tensors, and so drop their imaginary parts.
    """
    outer = floating_dtype(model)
    with torch.no_grad():
        for tensor in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    model.register_forward_pre_hook(CastInputs(dtype), with_kwargs=True)
    if outer is not None:
        model.register_forward_hook(CastOutputs(dtype, outer))
    return model
