"""The teacher's outputs for training samples: computed once and kept where they fit, else each time."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..workload import Call
from .signals import Observed

CACHE_BYTES = 2**29
"""Outputs for all samples up to this size are kept. A fixed size, so that what is computed when does not depend on how much memory happens to be free."""


class Teacher:
    """Gives the teacher's outputs, and hidden states where they are read, for samples by their rows.

    Args:
        observed: The teacher, in eval mode.
        sample: Its outputs for a few items, which tell the shapes.
        num_items: Training samples there are, held-out ones included.
        may_keep: Whether the same samples come again as they were; mixed ones do not.
    """

    def __init__(self, observed: Observed, sample: Mapping[str, torch.Tensor], num_items: int, *, may_keep: bool) -> None:
        self._observed = observed
        self._names = tuple(sample)
        item_bytes = sum(t[0].numel() * t.element_size() for t in sample.values())
        self._kept: dict[str, torch.Tensor] = {}
        self._known = torch.zeros(num_items, dtype=torch.bool)
        if may_keep and item_bytes * num_items <= CACHE_BYTES:
            self._kept = {name: torch.empty((num_items, *t.shape[1:]), dtype=t.dtype, device=t.device) for name, t in sample.items()}

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept; 0 where nothing is."""
        return sum(t.numel() * t.element_size() for t in self._kept.values())

    def outputs(self, rows: torch.Tensor, call: Call) -> dict[str, torch.Tensor]:
        """What it gives for the items `rows` of the samples, which are those of `call`."""
        if self._kept and bool(self._known[rows].all()):
            return {name: tensor[rows.to(tensor.device)] for name, tensor in self._kept.items()}
        with torch.no_grad():
            _, found = self._observed(call)
        found = {name: found[name] for name in self._names}
        for name, kept in self._kept.items():
            kept[rows.to(kept.device)] = found[name]
        self._known[rows] = bool(self._kept)
        return found
