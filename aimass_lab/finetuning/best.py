"""Keeps the values of the best epoch so far, and puts them back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Best:
    """A copy of what training changes in a model, from the epoch whose loss was smallest.

    Args:
        model: What is trained.
        parameters: Those of its parameters that are trained; all buffers are kept beside them.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self._tensors = [*parameters, *model.buffers()]
        self._kept = [torch.empty_like(tensor) for tensor in self._tensors]
        self.epoch = 0
        self.loss = float("inf")
        self._copying = False

    @property
    def num_bytes(self) -> int:
        """Memory of the copy."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._kept)

    def offer(self, epoch: int, loss: float) -> bool:
        """Keep the values of now if `loss` is smaller than that of any epoch before."""
        if not loss < self.loss:
            return False
        self._copying, self.epoch, self.loss = True, epoch, loss
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self._tensors, strict=True):
                kept.copy_(tensor)
        self._copying = False
        return True

    def restore(self) -> None:
        """Put the kept values back."""
        if self._copying:  # the user interrupted the copying: the model holds them still
            return
        with torch.no_grad():
            for kept, tensor in zip(self._kept, self._tensors, strict=True):
                tensor.copy_(kept)
