"""Mixes pairs of samples: inputs as weighted sums, and the loss as the same sum of both labels' losses."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..workload import Call
from .losses import Loss


@dataclass(frozen=True)
class Mixed:
    """A batch in which each item is mixed with a partner of the same batch (Zhang et al., mixup, 2018, arXiv:1710.09412)."""

    call: Call
    partners: torch.Tensor
    """Index of each item's partner."""
    share: float
    """Of the item itself; the rest is the partner's."""

    def loss(self, loss: Loss, outputs: object, labels: torch.Tensor) -> torch.Tensor:
        """The loss of both labels, each by its share."""
        return self.share * loss(outputs, labels) + (1 - self.share) * loss(outputs, labels[self.partners.to(labels.device)])


def why_not_mixed(call: Call) -> str | None:
    """Why the items of `call` cannot be mixed, or None."""
    for tensor in call.tensors():
        if call.is_batched(tensor) and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"mixup adds inputs up, and one of them holds {kind}, as token ids do: the sum of two would be a third token; use mixup=0"
    return None


def mix(call: Call, alpha: float, generator: torch.Generator, lot: random.Random) -> Mixed:
    """Mix each item of `call` with another one of it; all by the same share, drawn from Beta(alpha, alpha).

    Raises:
        InputError: an input is not floating point.
    """
    cause = why_not_mixed(call)
    if cause is not None:
        raise InputError(cause)
    share = lot.betavariate(alpha, alpha)
    partners = torch.randperm(call.batch_size, generator=generator)
    other = iter(call.take(partners).tensors())

    def blend(tensor: torch.Tensor) -> torch.Tensor:
        partner = next(other)
        return share * tensor + (1 - share) * partner if call.is_batched(tensor) else tensor

    return Mixed(call=call.map(blend), partners=partners, share=share)
