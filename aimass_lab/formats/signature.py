"""Finds out what goes into a model and what comes out of it, by name, and whether its requests may share a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import BundleError, DoesNotFitError, InputError, ModelError
from ..outputs import output_tensors
from ..records import TensorSpec
from ..workload import Call, call_model

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

PROBE_SIZES = (2, 3)
"""Batch sizes a batched model must take besides that of its example, so that no fixed size passes by chance; with an item alone, three sizes in all."""
MIXING_LIMIT = 0.05
"""Relative difference between an item alone and the same item in a batch, from which items influence each other.
Rounding in 16 bits or per-batch scales of int8 stay below it."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Names, dtypes and shapes of a model's inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    """Whether axis 0 of every input and output counts the items, -1 in the shapes."""
    unbatched_because: str | None = None
    answers: Mapping[str, np.ndarray[Any, Any]] | None = field(default=None, repr=False, compare=False)
    """Outputs by name for the very inputs that this was read off: asking a large model again takes a while."""

    def example(self, call: Call) -> Call:
        """What to export with: two items at least where the batch size stays open, for exporters take a size of 1 to be fixed."""
        return call.with_batch(max(2, call.batch_size)) if self.batched else call


def read_signature(model: nn.Module, call: Call, *, names: Sequence[str] | None = None) -> Signature:
    """Run `model` at a few batch sizes and read its signature off inputs and outputs.

    The caller has put the model into evaluation mode and switched gradients off.

    Args:
        model: Called at three batch sizes, or once where it has no batch axis.
        call: Example inputs.
        names: Of the input tensors, in order; read off the model's ``forward`` if not given.

    Raises:
        ModelError: the model raises on its own example inputs, or its outputs hold no tensor.
        BundleError: an output is not finite.
    """
    named = list(zip(names, call.tensors(), strict=True)) if names is not None else list(call.named_tensors(model))
    outputs = run(model, call)
    answers = {name: as_numpy(tensor).copy() for name, tensor in outputs}  # a model may write its next answer where this one lies
    for name, tensor in outputs:
        check_finite(name, answers[name], call.batch_axis == 0 and call.is_batched(tensor))
    reason = _no_batch_axis(model, call, named, outputs)
    return Signature(
        inputs=tuple(_spec(name, tensor, reason is None) for name, tensor in named),
        outputs=tuple(_spec(name, tensor, reason is None) for name, tensor in outputs),
        batched=reason is None,
        unbatched_because=reason,
        answers=answers,
    )


def run(model: nn.Module, call: Call) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of each output.

    Raises:
        ModelError: the model raised, or its outputs hold no tensor.
    """
    outputs = output_tensors(call_model(model, call))
    if not outputs:
        raise ModelError(f"the outputs of {type(model).__name__} hold no tensor", help="return a tensor, or a tuple or dict of tensors")
    return outputs


def _no_batch_axis(model: nn.Module, call: Call, named: list[tuple[str, torch.Tensor]], outputs: list[tuple[str, torch.Tensor]]) -> str | None:
    """Why requests cannot share a batch; None if they can."""
    if call.batch_axis != 0:
        return f"the items are counted along axis {call.batch_axis}, and servers batch along axis 0"
    for name, tensor in named:
        if not call.is_batched(tensor):
            return f"the input {name!r} {list(tensor.shape)} has no batch axis of {call.batch_size}"
    for size in PROBE_SIZES if call.batch_size == 1 else [size for size in PROBE_SIZES if size != call.batch_size][:1]:
        batch = call.with_batch(size)
        try:
            probed = run(model, batch)
        except (ModelError, DoesNotFitError) as error:
            return f"the model does not take {size} items: {error.message}"
        for name, tensor in probed:
            if tensor.dim() == 0 or tensor.shape[0] != size:
                return f"the output {name!r} has shape {list(tensor.shape)} for {size} items"
    # a repeated item would hide that items are mixed, so this needs the user's own ones
    if call.batch_size > 1:
        alone = run(model, call.rows(0, 1))
        for (name, one), (_, many) in zip(alone, outputs, strict=True):
            difference = relative_error(as_numpy(one), as_numpy(many[:1]))
            if difference > MIXING_LIMIT:
                return f"the output {name!r} of an item depends on the other items of its batch (relative difference {difference:.2g})"
    return None


def _spec(name: str, tensor: torch.Tensor, batched: bool) -> TensorSpec:
    shape = tuple(-1 if batched and axis == 0 else int(size) for axis, size in enumerate(tensor.shape))
    return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)


def with_tensors(call: Call, tensors: Sequence[torch.Tensor]) -> Call:
    """The same call with its tensors replaced, in order."""
    if len(tensors) != len(call.tensors()):
        raise InputError(f"{len(tensors)} tensors cannot take the place of {len(call.tensors())} in {call.describe()}")
    replacement = iter(tensors)
    return call.map(lambda _: next(replacement))


def check_finite(name: str, array: np.ndarray[Any, Any], batched: bool) -> None:
    """Refuse outputs that nothing can be compared with.

    Args:
        name: Of the output.
        array: Its values.
        batched: Whether the first axis counts samples.

    Raises:
        BundleError: a value is NaN or infinite.
    """
    import numpy as np

    bad = ~np.isfinite(array)
    if not bad.any():
        return
    rows = f" for {int(bad.reshape(len(array), -1).any(axis=1).sum())} of {len(array)} samples" if batched else ""
    raise BundleError(
        f"the output {name!r} of the model holds NaN or infinity{rows}; no export can be proved to answer the same",
        help="look at the inputs of these samples, and at the model's weights",
    )


def as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's values on the host; bfloat16, which NumPy lacks, as float32."""
    import torch

    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def relative_error(reference: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    """L2 norm of the difference over that of the reference; of the difference alone where the reference is 0.

    Infinite where the shapes differ or `got` is not finite.
    """
    import numpy as np

    if reference.shape != got.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    expected, found = reference.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not np.isfinite(found).all():
        return float("inf")
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / (norm or 1.0)
