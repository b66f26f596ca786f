"""Reads from a model's outputs what a student is to reproduce, items first, whatever the outputs look like."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..errors import ModelError
from ..outputs import output_tensors
from ..workload import Call, call_model
from .batches import item_axis
from .hidden import Places

Kind = Literal["scores", "probabilities", "values"]
PREFERRED = ("logits", "last_hidden_state")
"""Names among outputs that say what the rest is made from."""
NOT_SCORES = ("embed", "hidden", "pool", "feature")
"""Parts of names of [items, width] outputs that are not scores of classes."""
UNIT = 1e-3
"""How far a row may be from norm or sum 1 and still count as normalised."""


@dataclass(frozen=True)
class Signal:
    """One tensor of the outputs."""

    name: str
    kind: Kind
    """``probabilities``: scores that went through a softmax already."""
    scale: float
    """Mean over items of the squared norm of the teacher's values, by which errors of values are divided."""


class Observed:
    """A model whose outputs, and hidden states if asked for, are read item by item."""

    def __init__(self, model: nn.Module, places: Places | None = None) -> None:
        self.model = model
        self.places = places

    def __call__(self, call: Call) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model's own outputs, and the floating-point tensors in them with one entry per item, items first."""
        outputs = call_model(self.model, call)
        return outputs, {**read_items(outputs, call), **(self.places.take(call) if self.places else {})}


def read_items(outputs: Any, call: Call) -> dict[str, torch.Tensor]:
    """Name -> floating-point tensor with one entry per item, items first: logits alone where there are some, else the last hidden state, else all."""
    found = {}
    for name, tensor in output_tensors(outputs):
        axis = item_axis(tensor, call) if tensor.is_floating_point() else None
        if axis is not None:
            found[name] = tensor.movedim(axis, 0)
    if isinstance(outputs, Mapping):
        for name in PREFERRED:
            if name in found:
                return {name: found[name]}
    return found


@torch.no_grad()
def find_signals(teacher: Observed, calls: Sequence[Call], wanted: Literal["auto", "scores", "values"]) -> tuple[Signal, ...]:
    """What the teacher's outputs offer to learn from.

    Args:
        teacher: Run once on each call.
        calls: One of them, or two with different numbers of items: a tensor counts only where it follows the number.
        wanted: What outputs are taken for; ``auto`` decides.

    Raises:
        ModelError: there is nothing with one entry per item, or nothing of it is finite.
    """
    readings = [(call, read_items(call_model(teacher.model, call), call)) for call in calls]
    call, first = readings[0]
    names = [name for name in first if all(name in other for _, other in readings)]
    if not names:
        raise ModelError("the model's outputs hold no floating-point tensor with one entry per item", help="there is nothing to learn from in them")
    signals = tuple(Signal(name=n, kind=_kind(n, first[n], len(names), wanted), scale=mean_square(first[n], token_mask(call, first[n]))) for n in names)
    for signal in signals:
        if not bool(torch.isfinite(first[signal.name]).any()):
            raise ModelError(f"no value of the model's output {signal.name!r} is finite", help="call the model on the training samples and look at its outputs")
    return signals


def _kind(name: str, tensor: torch.Tensor, num_signals: int, wanted: str) -> Kind:
    if wanted == "values" or tensor.dim() < 2 or tensor.shape[-1] < 2:
        return "values"
    if wanted == "auto" and name != "logits" and (num_signals > 1 or tensor.dim() != 2 or any(part in name for part in NOT_SCORES)):
        return "values"
    values = tensor.float()
    if bool((values >= 0).all()) and bool(((values.sum(-1) - 1).abs() < UNIT).all()):
        return "probabilities"
    if wanted == "auto" and bool(((values.norm(dim=-1) - 1).abs() < UNIT).all()):
        return "values"  # rows of norm 1 are embeddings
    return "scores"


def token_mask(call: Call, tensor: torch.Tensor) -> torch.Tensor | None:
    """Which [items, tokens] count, from the call's attention mask; None where it does not fit `tensor`."""
    mask = call.kwargs.get("attention_mask")
    fits = isinstance(mask, torch.Tensor) and tensor.dim() >= 3 and mask.shape == tensor.shape[:2]
    return mask.to(tensor.device).bool() if fits and mask is not None else None


def counted(teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Which values count: those that are finite in the teacher, at tokens that are not padding."""
    finite = torch.isfinite(teacher)
    return finite if mask is None else finite & mask.reshape(*mask.shape, *[1] * (teacher.dim() - 2))


def mean_square(teacher: torch.Tensor, mask: torch.Tensor | None) -> float:
    """Mean over items of the squared norm of the values that count; 1 where all are 0."""
    total = torch.where(counted(teacher, mask), teacher.float(), 0.0).square().sum() / len(teacher)
    return float(total) or 1.0


@contextlib.contextmanager
def mode(model: nn.Module, training: bool, still: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Put every module into training or evaluation mode for a block, except those that are to stay `still`, and into evaluation mode after it.

    By attribute, because a model may override train() to do more than set the flag.
    """
    modules = list(model.modules())
    for module in modules:
        module.__dict__["training"] = training
    for module in still:
        module.__dict__["training"] = False
    try:
        yield
    finally:
        for module in modules:
            module.__dict__["training"] = False
