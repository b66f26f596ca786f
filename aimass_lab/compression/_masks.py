"""Zeros in weights, which training has to keep, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

from ..errors import UnsupportedError
from ..units import format_share
from .base import Constraint, Context, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

Scope = Literal["global", "local"]
"""``global``: the least important of the whole model; ``local``: the same share of each layer."""


@dataclass(frozen=True, kw_only=True)
class ZeroingTechnique(Technique):
    """Sets weights to zero where they are."""

    stage: ClassVar[Stage] = Stage.VALUES
    dense_cause: ClassVar[str] = (
        "the weights stay dense and the kernels here multiply zeros like any other number: "
        "the gain is on disk, where zeros are packed, or with kernels made for sparse weights"
    )

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Zeros stand where other numbers stood."""
        return model

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Zeros cost what other numbers cost."""
        return (self.dense_cause,)


def refuse(technique: str, cause: str, *, help: str | None = None) -> NoReturn:
    """Say why a technique turned out not to be possible while it was applied.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(f"{technique} is not possible here: {cause}", help=help)


def refuse_unscored(technique: str, names: Sequence[str], context: Context) -> NoReturn:
    """Say of layers that have no score why they are left.

    Raises:
        UnsupportedError: always.
    """
    refuse(technique, f"no layer would be changed: {'; '.join(f'{name}: {context.left[name]}' for name in names[:3])}")


def set_zeros(model: nn.Module, zeros: Mapping[str, torch.Tensor], context: Context) -> None:
    """Set weights to zero, now and after every step of a later training.

    Args:
        model: Its parameters are written.
        zeros: Name of a parameter -> where its zeros are, boolean, of its shape.
        context: Takes the constraint and, per layer, the share of zeros that was reached.
    """
    keep = keep_zeros(zeros)
    keep(model)
    context.constraints.append(keep)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_identity = {id(parameters[name]): name for name in zeros}
    for name, layer in weight_layers(model).items():
        mine = [p for p in layer.parameters(recurse=False) if id(p) in by_identity]
        if not mine:
            continue
        if not any(bool(zeros[by_identity[id(p)]].any()) for p in mine):
            context.left.setdefault(name, "none of its weights is among the least important ones")
            continue
        num_zeros, size = sum(int((p == 0).sum()) for p in mine), sum(p.numel() for p in mine)
        all_zero = ", nothing of its inputs passes through it any more" if num_zeros == size else ""
        context.changed[name] = f"{num_zeros} of {size} weights are zero ({format_share(num_zeros / size)}){all_zero}"


def keep_zeros(zeros: Mapping[str, torch.Tensor]) -> Constraint:
    """What puts pruned weights back to zero."""
    import torch

    def constraint(model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, where in zeros.items():
                # a later step may have replaced the layer; what it made of the zeros is that step's own
                if name in parameters and parameters[name].shape == where.shape:
                    parameters[name].masked_fill_(where, 0)

    return constraint


def least(scores: Mapping[str, torch.Tensor], share: float, scope: Scope) -> dict[str, torch.Tensor]:
    """Where the least important `share` of elements lies.

    Args:
        scores: Name -> scores, of any shapes.
        share: Of all elements, or of each tensor's; the number is rounded to the nearest, as `torch.nn.utils.prune` does.
        scope: Over all tensors together, or over each.

    Returns:
        Name -> boolean tensor of the same shape. Among equal scores the first ones, so that the number is exact.
    """
    import torch

    if scope == "local":
        return {name: least({name: score}, share, "global")[name] for name, score in scores.items()}
    flat = torch.cat([score.flatten().float() for score in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.argsort(stable=True)[: round(share * len(flat))]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
