"""How far a student's outputs are from its teacher's and from labels, as losses to train with and as a share to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import InputError, first_line
from ..outputs import output_tensors
from ..workload import Call
from .batches import item_axis
from .signals import Kind, Signal, counted, read_items, token_mask

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
"""``loss(outputs, labels)``, a scalar: the mean over the items."""


def soft_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float, kind: Kind = "scores", mask: torch.Tensor | None = None) -> torch.Tensor:
    """Kullback-Leibler divergence of softened class probabilities, times the square of the temperature (Hinton et al., 2015, arXiv:1503.02531).

    Args:
        student: Scores, or probabilities, [items, ..., classes].
        teacher: The same of the teacher. Classes that are not finite there, masked ones, are left out.
        temperature: What scores are divided by.
        kind: What the two hold.
        mask: Which [items, tokens] count.

    Returns:
        Mean over the items, each the mean over its tokens; nats.
    """
    keep = torch.isfinite(teacher)
    target, log_target = _log_softmax(teacher, keep, temperature, kind)
    _, log_student = _log_softmax(student, keep, temperature, kind)
    divergence = (target * (log_target - log_student)).sum(-1)
    return _mean_over_items(divergence, mask) * temperature**2


def _log_softmax(values: torch.Tensor, keep: torch.Tensor, temperature: float, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities at `temperature` and their logarithms; a class that is not kept has the probability 0."""
    scores = values.float()
    if kind == "probabilities":
        scores = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    logarithms = torch.where(keep, scores / temperature, -1e30).log_softmax(-1)
    return logarithms.exp(), logarithms


def _mean_over_items(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over items of the mean over each item's tokens that count."""
    if values.dim() == 1:
        return values.mean()
    if mask is None:
        return values.flatten(1).mean(1).mean()
    weights = mask.reshape(*mask.shape, *[1] * (values.dim() - 2)).expand_as(values).to(values.dtype)
    return ((values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)).mean()


def squared_error(student: torch.Tensor, teacher: torch.Tensor, scale: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over items of the squared norm of the difference, over `scale`, the same of the teacher's values: the relative error, squared."""
    keep = counted(teacher, mask)
    difference = torch.where(keep, student.float() - teacher.float(), 0.0)
    return difference.square().sum() / (len(teacher) * scale)


def distillation_loss(
    signals: Sequence[Signal], student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], call: Call, temperature: float
) -> torch.Tensor:
    """Mean over `signals`: divergence of class probabilities, relative squared error of values."""
    terms = []
    for signal in signals:
        ours, theirs = student[signal.name], teacher[signal.name]
        mask = token_mask(call, theirs)
        if signal.kind == "values":
            terms.append(squared_error(ours, theirs, signal.scale, mask))
        else:
            terms.append(soft_divergence(ours, theirs, temperature, signal.kind, mask))
    return torch.stack(terms).mean()


def agreement(signal: Signal, student: torch.Tensor, teacher: torch.Tensor, call: Call) -> tuple[float, int]:
    """Items, or tokens, on which both agree, and how many there are.

    Scores agree where the largest is that of the same class; values by their cosine similarity.
    """
    mask = token_mask(call, teacher)
    if signal.kind == "values":
        keep = counted(teacher, mask)
        a, b = (torch.where(keep, t.float(), 0.0).flatten(1) for t in (student, teacher))
        return float(F.cosine_similarity(a, b, dim=1).sum()), len(a)
    finite = torch.isfinite(teacher)
    same = torch.where(finite, student, -torch.inf).argmax(-1) == torch.where(finite, teacher, -torch.inf).argmax(-1)
    same = same if mask is None else same[mask]
    return float(same.sum()), same.numel()


def find_label_loss(loss: Loss | None, outputs: Any, labels: torch.Tensor, call: Call) -> Loss:
    """The user's loss, tried once on real outputs; without one, what labels and outputs suggest.

    Integer labels, one for each item, stand for classes: cross-entropy. Floating-point labels of the outputs' shape: mean squared error.

    Raises:
        InputError: the user's loss raised or gave no number, or labels and outputs suggest nothing.
    """
    if loss is not None:
        return _checked(loss, outputs, labels)
    tensors = read_items(outputs, call)
    if len(tensors) == 1:
        ((name, tensor),) = tensors.items()
        axis = item_axis(dict(output_tensors(outputs))[name], call) or 0

        def scores(out: Any) -> torch.Tensor:
            return dict(output_tensors(out))[name].movedim(axis, 0).float()

        if tensor.dim() == 2 and labels.shape == tensor.shape[:1] and not labels.is_floating_point() and not labels.is_complex():
            return lambda out, y: F.cross_entropy(scores(out), y.long())
        if labels.shape == tensor.shape and labels.is_floating_point():
            return lambda out, y: F.mse_loss(scores(out), y.float())
    shapes = ", ".join(f"{name!r} {list(t.shape)}" for name, t in tensors.items())
    raise InputError(
        f"labels of type {str(labels.dtype).removeprefix('torch.')} and shape {list(labels.shape)} and outputs {shapes} do not say what the loss is",
        help="give loss=f(outputs, labels) with the workload, or distillation_weight=1 to learn from the original's outputs alone",
    )


def _checked(loss: Loss, outputs: Any, labels: torch.Tensor) -> Loss:
    try:
        value = loss(outputs, labels)
    except Exception as error:
        raise InputError(
            f"the loss raised {type(error).__name__} on {len(labels)} labelled items: {first_line(error)}",
            help="it is called as loss(outputs, labels) with the model's own outputs, and must return a scalar tensor",
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        what = f"{got} without a gradient" if isinstance(value, torch.Tensor) and value.numel() == 1 else got
        raise InputError(f"the loss gave {what}", help="return a scalar tensor that was computed from the outputs")
    return loss
