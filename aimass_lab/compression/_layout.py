"""Brings the images among a model's inputs into channels-last order."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree


def inputs_channels_last(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: 4-d arguments arrive in channels-last order."""

    def reorder(leaf: Any) -> Any:
        return leaf.contiguous(memory_format=torch.channels_last) if isinstance(leaf, torch.Tensor) and leaf.dim() == 4 else leaf

    return _pytree.tree_map(reorder, (args, kwargs))
