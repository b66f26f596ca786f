"""Something that torch computes, called with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .base import Arrays, Runner

if TYPE_CHECKING:
    import numpy as np


def torch_runner(function: Callable[..., Mapping[str, Any]]) -> Runner:
    """Wrap `function`, which takes tensors by position and returns them by name; it uses as many threads as torch does."""
    import torch

    def runner(inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        with torch.inference_mode():
            outputs = function(*(torch.from_numpy(array) for array in inputs.values()))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return runner
