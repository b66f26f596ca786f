"""Finds out what goes into a model and what comes out of it, by name, and whether its requests may share a batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..dynamic_shapes import describe_sizes
from ..errors import BundleError, DoesNotFitError, InputError, ModelError, UnsupportedError
from ..fast_path import filled_by_fast_path, without_fast_path
from ..outputs import other_kinds, output_tensors
from ..records import Dimension, TensorSpec
from ..workload import Call, call_model

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

PROBE_SIZES = (2, 3)
"""Batch sizes a batched model must take besides that of its example, so that no fixed size passes by chance; with an item alone, three sizes in all."""
IN_FLOAT32 = "write the model in float32, and call it with float32: copy.deepcopy(model).float()"
"""What to do where bfloat16 is not taken."""
MIXING_LIMIT = 0.05
"""Relative difference between an item alone and the same item in a batch, from which items influence each other.
Rounding in 16 bits or per-batch scales of int8 stay below it."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A call at other sizes than the example's, and the model's answers."""

    sizes: Mapping[str, int]
    """By dimension."""
    call: Call
    answers: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Names, dtypes and shapes of a model's inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    """Whether axis 0 of every input and output counts the items, -1 in the shapes."""
    unbatched_because: str | None = None
    left_out: tuple[str, ...] = ()
    """Types of what is no tensor in the outputs, and what no written model returns."""
    filled: tuple[str, ...] = ()
    """Outputs that torch gives otherwise where it runs its fused kernels; see `filled_by_fast_path`."""
    dimensions: tuple[Dimension, ...] = ()
    """Other sizes that a request may choose, -1 in the shapes."""
    probes: tuple[Probe, ...] = field(default=(), repr=False, compare=False)
    """What the model answers at other sizes: to one item at the smallest, to one at the largest, then between; none where no size is open."""
    answers: Mapping[str, np.ndarray[Any, Any]] | None = field(default=None, repr=False, compare=False)
    """Outputs by name for the very inputs that this was read off: asking a large model again takes a while."""

    def example(self, call: Call) -> Call:
        """What to export with: sizes that stay open are 2 at least, for exporters take a size of 1 to be fixed."""
        call = call.for_export()
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
        BundleError: an output is not finite, or not the same at the next call.
        InputError: the model does not take all the sizes that are said to be open.
        UnsupportedError: an input or output is sparse.
    """
    import torch

    named = list(zip(names, call.tensors(), strict=True)) if names is not None else list(call.named_tensors(model))
    _check_dense(named, "input", "let forward take its indices and values, or the dense tensor, and make the sparse one inside")
    random_state = torch.get_rng_state()
    whole = _answer(model, call)
    drew = not torch.equal(random_state, torch.get_rng_state())
    outputs = _tensors_in(whole, model)
    _check_dense(outputs, "output", "return output.to_dense(), or its indices and values")
    answers = {name: as_numpy(tensor).copy() for name, tensor in outputs}  # a model may write its next answer where this one lies
    for name, tensor in outputs:
        check_finite(name, answers[name], call.batch_axis == 0 and call.is_batched(tensor))
    if drew:
        _check_repeats(model, call, answers)
    reason = _no_batch_axis(model, call, named, outputs)
    probes = tuple(_probe(model, call, sizes, items, outputs) for sizes, items in _sizes_to_probe(call, batched=reason is None))
    open_inputs = [{axis for dim in call.dims for tensor, axis in dim.axes if tensor == index} for index in range(len(named))]
    return Signature(
        inputs=tuple(_spec(name, tensor, reason is None, axes) for (name, tensor), axes in zip(named, open_inputs, strict=True)),
        outputs=tuple(_spec(name, tensor, reason is None, _axes_that_vary(tensor.shape, [p.answers[name].shape for p in probes])) for name, tensor in outputs),
        batched=reason is None,
        unbatched_because=reason,
        left_out=other_kinds(whole),
        filled=filled_by_fast_path(model, call, outputs),
        dimensions=tuple(
            Dimension(name=dim.name, min=dim.min, max=dim.max, axes=tuple((named[tensor][0], axis) for tensor, axis in dim.axes)) for dim in call.dims
        ),
        probes=probes,
        answers=answers,
    )


def _check_dense(tensors: list[tuple[str, torch.Tensor]], kind: str, help: str) -> None:
    """Refuse what no request or answer can carry.

    Raises:
        UnsupportedError: a tensor is sparse.
    """
    import torch

    for name, tensor in tensors:
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise UnsupportedError(f"the {kind} {name!r} is laid out as {layout}, and files, requests and answers hold dense arrays", help=help)


def _sizes_to_probe(call: Call, *, batched: bool) -> Iterator[tuple[dict[str, int], int | None]]:
    """Sizes by dimension, and how many items to try them with: the smallest, the largest, one between, and small ones beside large ones."""
    if not call.dims:
        return
    low, high = call.size_ends()
    one, two = (1, 2) if batched else (None, None)
    yield low, one
    yield high, one
    count = len(call.dims)
    yield {dim.name: dim.min + (dim.max - dim.min) * (k + 1) // (count + 1) for k, dim in enumerate(call.dims)}, two
    if count > 1:
        yield {dim.name: (low if k % 2 else high)[dim.name] for k, dim in enumerate(call.dims)}, two


def _probe(model: nn.Module, call: Call, sizes: dict[str, int], items: int | None, usual: list[tuple[str, torch.Tensor]]) -> Probe:
    call = call.with_sizes(sizes)
    call = call if items is None else call.with_batch(items)
    try:
        outputs = run(model, call)
    except (ModelError, DoesNotFitError, InputError) as error:
        help = "say which sizes it takes; a copy made by a technique takes those that were open when it was made: Study(model, inputs, dynamic_shapes=...)"
        raise InputError(f"the model does not take {describe_sizes(sizes)}: {error.message}", help=help) from error
    if [(name, tensor.dim()) for name, tensor in outputs] != [(name, tensor.dim()) for name, tensor in usual]:
        raise InputError(f"the model returns other outputs for {describe_sizes(sizes)} than for its example inputs", help="leave these sizes out of the range")
    answers = {name: as_numpy(tensor).copy() for name, tensor in outputs}
    for name, array in answers.items():
        check_finite(name, array, items is not None)
    return Probe(sizes=sizes, call=call, answers=answers)


def _axes_that_vary(shape: Sequence[int], others: Sequence[Sequence[int]]) -> set[int]:
    return {axis for axis, size in enumerate(shape) if any(other[axis] != size for other in others)}


def run(model: nn.Module, call: Call) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of each output, as the model's own layers give it.

    Raises:
        ModelError: the model raised, or its outputs hold no tensor.
    """
    return _tensors_in(_answer(model, call), model)


def _answer(model: nn.Module, call: Call) -> Any:
    with without_fast_path():  # a written model has the layers themselves, and no fused kernel that leaves padded places zero
        return call_model(model, call)


def _tensors_in(outputs: Any, model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    tensors = output_tensors(outputs)
    if not tensors:
        raise ModelError(f"the outputs of {type(model).__name__} hold no tensor", help="return a tensor, or a tuple or dict of tensors")
    return tensors


def _check_repeats(model: nn.Module, call: Call, answers: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Refuse a model whose answers rest on the random numbers that it draws; to be asked of one that draws some.

    Raises:
        BundleError: an output is otherwise at the next call.
    """
    for name, tensor in run(model, call):
        difference = relative_error(answers[name], as_numpy(tensor))
        if difference > MIXING_LIMIT:
            raise BundleError(
                f"the output {name!r} of the model is drawn at random: the next call with the same inputs gives another one (relative difference "
                f"{difference:.2g}); no export can be proved to answer the same",
                help="take the random numbers as one more input, or return what they are drawn by, such as mean and variance",
            )


def _no_batch_axis(model: nn.Module, call: Call, named: list[tuple[str, torch.Tensor]], outputs: list[tuple[str, torch.Tensor]]) -> str | None:
    """Why requests cannot share a batch; None if they can."""
    import torch

    if call.batch_axis != 0:
        return f"the items are counted along axis {call.batch_axis}, and servers batch along axis 0"
    for name, tensor in named:
        if not call.is_batched(tensor):
            return f"the input {name!r} {list(tensor.shape)} has no batch axis of {call.batch_size}"
    if (uncounted := _uncounted(outputs, call.batch_size)) is not None:  # one with as many layers as a probe has items would look batched there
        return uncounted
    for size in PROBE_SIZES if call.batch_size == 1 else [size for size in PROBE_SIZES if size != call.batch_size][:1]:
        # the last ones first: what goes from item to item, forwards or backwards, would leave the first or the last one as it is
        rows = [(call.batch_size - 1 - k) % call.batch_size for k in range(size)]
        try:
            probed = run(model, call.take(torch.tensor(rows)))
        except (ModelError, DoesNotFitError) as error:
            return f"the model does not take {size} items: {error.message}"
        if (uncounted := _uncounted(probed, size)) is not None:
            return uncounted
        if [name for name, _ in probed] != [name for name, _ in outputs]:
            return f"the model returns other outputs for {size} items"
        if (mixed := mixing(probed, outputs, rows)) is not None:
            return mixed
    # a repeated item would hide that items are mixed, so this needs the user's own ones
    if call.batch_size > 1:
        return mixing(run(model, call.rows(0, 1)), outputs, [0])
    return None


def _uncounted(outputs: list[tuple[str, torch.Tensor]], size: int) -> str | None:
    """Which output does not hold one entry for each of `size` items along its first axis; None if all do."""
    uncounted = (f"the output {name!r} has shape {list(t.shape)} for {size} items" for name, t in outputs if t.dim() == 0 or t.shape[0] != size)
    return next(uncounted, None)


def mixing(found: list[tuple[str, torch.Tensor]], outputs: list[tuple[str, torch.Tensor]], rows: list[int]) -> str | None:
    """Why items do not stand alone, where `found` is of those in `rows` and `outputs` of all; None if they may."""
    for (name, some), (_, every) in zip(found, outputs, strict=True):
        if some.shape[1:] != every.shape[1:]:
            return f"the output {name!r} has shape {list(some.shape)} for {len(some)} items, and {list(every.shape)} for {len(every)}"
        difference = relative_error(as_numpy(every[rows]), as_numpy(some))
        if difference > MIXING_LIMIT:
            return f"the output {name!r} of an item depends on the other items of its batch (relative difference {difference:.2g})"
    return None


def _spec(name: str, tensor: torch.Tensor, batched: bool, open_axes: Collection[int]) -> TensorSpec:
    shape = tuple(-1 if (batched and axis == 0) or axis in open_axes else int(size) for axis, size in enumerate(tensor.shape))
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
    wide = np.complex128 if np.iscomplexobj(reference) or np.iscomplexobj(got) else np.float64
    expected, found = reference.astype(wide).ravel(), got.astype(wide).ravel()
    if not np.isfinite(found).all():
        return float("inf")
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / (norm or 1.0)
