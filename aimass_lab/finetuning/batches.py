"""Which items are trained with, which are held out, and in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..workload import Call

MAX_HELD_OUT = 2048
"""More held-out samples would cost time and tell little more."""
MIN_HELD_OUT = 8
"""Fewer could not tell one epoch from another."""


def item_axis(tensor: torch.Tensor, call: Call) -> int | None:
    """The axis of `tensor`, given back for `call` or on the way, that counts the items; None where there is none."""
    return next((axis for axis in (call.batch_axis, 0) if tensor.dim() > axis and tensor.shape[axis] == call.batch_size), None)


def hold_out(num_items: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train with, and rows held out: none where `share` of the items would be fewer than `MIN_HELD_OUT`."""
    rows = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))
    num_held_out = min(round(share * num_items), MAX_HELD_OUT)
    if num_held_out < MIN_HELD_OUT:
        num_held_out = 0
    return rows[num_held_out:], rows[:num_held_out].sort().values


def epoch_batches(rows: torch.Tensor, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """All `rows` once, in a new order.

    A last batch of a single item joins the one before it: batch norm cannot train on one.
    """
    batches = list(rows[torch.randperm(len(rows), generator=generator)].split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches


def groups(batches: Sequence[torch.Tensor], size: int) -> Iterator[Sequence[torch.Tensor]]:
    """`size` batches at a time: those whose gradients make one step; the last group may be smaller."""
    for start in range(0, len(batches), size):
        yield batches[start : start + size]
