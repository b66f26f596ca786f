"""How much each weight matters: by its own size, by the loss on samples, or by what flows into it.

One score per element of every weight, so that whoever prunes elements, blocks, channels, heads or layers only has to add up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UnsupportedError
from ..fast_path import without_fast_path
from ..outputs import output_tensors
from ..preserve import preserved
from ..records import Note
from ..workload import call_model
from .base import Context

if TYPE_CHECKING:
    import torch
    from torch import nn

Criterion = Literal["magnitude", "gradient", "activation"]
"""``magnitude``: abs(w). ``gradient``: abs(w · dL/dw), the first-order change of the loss when the weight becomes zero (Molchanov et al. 2017,
arXiv:1611.06440). ``activation``: abs(w) · ‖x‖ of the input that it is multiplied with (Sun et al. 2024, arXiv:2306.11695)."""

NUM_SAMPLES = 128
"""Looked at, at most: Wanda's own number of calibration samples."""
BATCH_SIZE = 16
"""Samples a gradient is summed over. Over all samples the gradient of a trained model is about zero; over few it shows what each weight does."""


def importance(model: nn.Module, context: Context, criterion: Criterion) -> dict[str, torch.Tensor]:
    """Score every weight of `model`, which is left as it is.

    Args:
        model: The copy, as earlier steps left it.
        context: Its samples, labels and loss are used; what the loss was goes into its notes.
        criterion: What makes a weight important.

    Returns:
        Name of a parameter -> scores of its shape, for parameters of two or more dimensions; a parameter under several names once. With
        ``activation`` only weights of linear layers and convolutions that were called are there, since nothing flows into others.

    Raises:
        UnsupportedError: the outputs depend on no weight in a way that has a gradient, or no score is a finite number.
    """
    if criterion == "magnitude":
        scores = {name: p.detach().abs() for name, p in _weights(model)}
    else:
        with preserved(model):
            scores = _by_gradient(model, context) if criterion == "gradient" else _by_activation(model, context)
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise UnsupportedError(f"the {criterion} scores of {name} are not finite", help="look for NaN or infinity in the weights and in the samples")
    return scores


def _weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.dim() >= 2 and p.is_floating_point()]


def _by_gradient(model: nn.Module, context: Context) -> dict[str, torch.Tensor]:
    """Mean over batches of abs(w · dL/dw)."""
    import torch

    weights = _weights(model)
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in weights}
    num_batches = 0
    with trainable(model):
        for loss in _losses(model, context):
            gradients = torch.autograd.grad(loss, [p for _, p in weights], allow_unused=True)
            for (name, p), gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    scores[name] += (p.detach() * gradient).abs().float()
            num_batches += 1
    return {name: score / num_batches for name, score in scores.items()}


@contextlib.contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Ask for gradients of all parameters in a block, and put back which ones asked for them."""
    import torch

    wanted = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    try:
        for p, _ in wanted:
            p.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for p, before in wanted:
            p.requires_grad_(before)


def _losses(model: nn.Module, context: Context) -> Iterator[torch.Tensor]:
    """The loss of each batch.

    The user's with labels; else cross-entropy with the class that the model itself finds most likely; else, where outputs are not scores
    of classes, their mean square. The divergence from the model's own outputs would not do: its gradient there is zero.
    """
    import torch

    rows = torch.randperm(context.samples.batch_size, generator=torch.Generator().manual_seed(context.seed))[:NUM_SAMPLES].sort().values
    labels = context.train[1] if context.train else None
    loss_of, described = _loss(labels is not None, context)
    for part in rows.split(BATCH_SIZE):
        outputs = call_model(model, context.samples.take(part))
        loss = loss_of(outputs, None if labels is None else labels[part.to(labels.device)])
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise UnsupportedError("the gradient criterion needs a loss with a gradient, and this model's outputs have none", help="use criterion=magnitude")
        yield loss.sum()
    context.notes.append(Note(code="importance:loss", text=f"gradients are of {described}, over {len(rows)} samples"))


def _loss(labelled: bool, context: Context) -> tuple[Callable[[Any, Any], Any], str]:
    if labelled and context.loss is not None:
        return context.loss, "the given loss on the given labels"
    return _own_loss, "the outputs' own: cross-entropy with the most likely class, or the mean square where outputs are no scores of classes"


def _own_loss(outputs: Any, _: Any) -> torch.Tensor:
    import torch
    import torch.nn.functional as F

    tensors = [tensor for _, tensor in output_tensors(outputs) if tensor.is_floating_point()]
    first = next(iter(tensors), None)
    if first is not None and first.dim() == 2 and first.shape[1] > 1:
        return F.cross_entropy(first.float(), first.argmax(1))
    return torch.stack([tensor.float().square().mean() for tensor in tensors]).sum() if tensors else torch.zeros(())


def _by_activation(model: nn.Module, context: Context) -> dict[str, torch.Tensor]:
    """abs(w) times the root mean square of the input that each weight is multiplied with."""
    import torch
    from torch import nn

    squares: dict[nn.Module, torch.Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def watch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], torch.Tensor):
            return
        x = args[0].detach().float()
        axis = -1 if isinstance(layer, nn.Linear) else x.dim() - 1 - _num_spatial(layer)
        channels_last = x.movedim(axis, -1).flatten(0, -2)
        squares[layer] = squares.get(layer, torch.zeros((), device=x.device)) + channels_last.square().sum(0)
        counts[layer] = counts.get(layer, 0) + len(channels_last)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        with torch.no_grad(), without_fast_path():
            for call in context.batches(NUM_SAMPLES, BATCH_SIZE):
                call_model(model, call)
    finally:
        for hook in hooks:
            hook.remove()
    names = {id(p): name for name, p in _weights(model)}
    return {
        names[id(layer.weight)]: layer.weight.detach().abs() * _along_inputs(layer, (squares[layer] / counts[layer]).sqrt())
        for layer in layers
        if layer in squares and id(layer.weight) in names
    }


def _num_spatial(layer: nn.Module) -> int:
    kernel = layer.kernel_size
    assert isinstance(kernel, tuple)
    return len(kernel)


def _along_inputs(layer: Any, norms: torch.Tensor) -> torch.Tensor:
    """`norms`, one per input channel, in the shape that multiplies the layer's weight."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        return norms
    spatial = (1,) * _num_spatial(layer)
    if layer.transposed:  # weight: [in, out / groups, ...]
        return norms.view(-1, 1, *spatial)
    per_group = norms.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)  # weight: [out, in / groups, ...]
    return per_group.reshape(layer.out_channels, -1, *spatial)
