"""A model with what it is called with: example inputs, and optionally labelled data, a metric and a loss.

torch is imported inside the functions: naming a workload must not cost the seconds that torch takes to load.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .dynamic_shapes import Dim, place_dims, read_dynamic_shapes
from .errors import AimassError, DoesNotFitError, InputError, ModelError, UnsupportedError, first_line
from .inputs import with_spared_inputs
from .records import ModelInfo, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

LARGEST_BATCH = 2**63 - 1
ACCEPTED_INPUTS = "a tensor, a tuple (positional arguments), or a dict or HF-style batch (keyword arguments)"


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of `model.forward` by name; none where Python cannot read them, as of a traced method."""
    try:
        return inspect.signature(model.forward).parameters
    except ValueError:
        return {}


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        batch_axis: The axis along which every batched tensor counts its items.
        dims: Other sizes that a call may choose.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_axis: int = 0
    dims: tuple[Dim, ...] = ()

    def tensors(self) -> list[torch.Tensor]:
        """All tensors among the arguments, nested ones included, in order."""
        import torch
        from torch.utils import _pytree

        leaves = _pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def named_tensors(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of each argument, named as `model.forward` names them; nested ones by their position."""
        import torch
        from torch.utils import _pytree

        names = [p.name for p in forward_parameters(model).values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        positional = {names[i] if i < len(names) else f"input_{i}": value for i, value in enumerate(self.args)}
        for name, value in {**positional, **self.kwargs}.items():
            leaves = [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
            for i, leaf in enumerate(leaves):
                yield (name if len(leaves) == 1 else f"{name}_{i}"), leaf

    @property
    def batch_size(self) -> int:
        """Items in the call: the size along the batch axis of the first tensor that has the axis; 1 if none has."""
        for tensor in self.tensors():
            if tensor.dim() > self.batch_axis:
                return int(tensor.shape[self.batch_axis])
        return 1

    def is_batched(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` holds one entry per item of this call."""
        return tensor.dim() > self.batch_axis and tensor.shape[self.batch_axis] == self.batch_size

    def with_batch(self, batch_size: int) -> Call:
        """The same call with `batch_size` items: the first ones, repeated in order when there are too few.

        Raises:
            InputError: `batch_size` is not a positive integer, or nothing here has the batch axis.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch size {batch_size!r} is not a positive integer")
        if batch_size == self.batch_size:
            return self
        if batch_size > LARGEST_BATCH:
            raise InputError(f"batch size {batch_size} is more than a tensor can count", help=f"the most there is a number for: {LARGEST_BATCH}")
        devices = [t.device for t in self.tensors() if self.is_batched(t)]
        if not devices:
            raise InputError(
                f"no input has the batch axis {self.batch_axis}, so the batch size cannot be set to {batch_size}",
                help="say which axis counts the items: Workload(model, inputs, batch_axis=...)",
            )
        import torch

        # On a device of the inputs: on the meta device, indices cost nothing either; but nothing is moved away from there.
        device = next((device for device in devices if device.type != "meta"), devices[0])
        return self.take(torch.arange(batch_size, device=device) % self.batch_size)

    def sized(self, batch_size: int) -> Call:
        """The same call with `batch_size` items for who asks for sizes only: inputs of another batch size are not built in memory.

        Sparse ones are, because their sizes do not tell how many values their rows hold.
        """
        if batch_size == self.batch_size:
            return self
        return self.map(lambda t: t if t.is_sparse else t.to("meta")).with_batch(batch_size)

    def take(self, rows: torch.Tensor) -> Call:
        """The items with the indices `rows`, in this order."""
        return self.map(lambda t: t.index_select(self.batch_axis, rows.to(t.device)) if self.is_batched(t) else t)

    def rows(self, start: int, stop: int) -> Call:
        """The items from `start` up to `stop`."""

        def part(tensor: torch.Tensor) -> torch.Tensor:
            narrow = tensor.narrow_copy if tensor.is_sparse else tensor.narrow  # of a sparse tensor nothing can be looked at without a copy
            return narrow(self.batch_axis, start, stop - start)

        return self.map(lambda t: part(t) if self.is_batched(t) else t)

    def size_of(self, dim: Dim) -> int:
        """The size of one of `dims` in this call."""
        index, axis = dim.axes[0]
        return int(self.tensors()[index].shape[axis])

    def with_sizes(self, sizes: Mapping[str, int]) -> Call:
        """The same call with other sizes of some of `dims`, by name: what there is along them, cut or repeated in order."""
        import torch

        tensors = self.tensors()
        for dim in self.dims:
            for index, axis in dim.axes if dim.name in sizes else ():
                tensor = tensors[index]
                tensors[index] = tensor.index_select(axis, torch.arange(sizes[dim.name], device=tensor.device) % tensor.shape[axis])
        changed = iter(tensors)
        return self.map(lambda _: next(changed))

    def for_export(self) -> Call:
        """The same call with open sizes of 2 at least: exporters take a size of 1 to be fixed."""
        return self.with_sizes({dim.name: 2 for dim in self.dims if self.size_of(dim) == 1})

    def size_ends(self) -> tuple[dict[str, int], dict[str, int]]:
        """The smallest and the largest of its open sizes, by name."""
        return {dim.name: dim.min for dim in self.dims}, {dim.name: dim.max for dim in self.dims}

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The same call with `function` applied to every tensor."""
        import torch
        from torch.utils import _pytree

        def apply(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, torch.Tensor) else leaf

        args, kwargs = _pytree.tree_map(apply, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def describe(self) -> str:
        """``float32[1, 3, 224, 224], mask=int64[1, 128]``."""
        parts = [_describe(value) for value in self.args]
        parts += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        return ", ".join(parts) or "no arguments"


def _describe(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value) if isinstance(value, (int, float, bool, str, type(None))) else type(value).__name__


def as_call(inputs: Any, batch_axis: int = 0) -> Call:
    """Read example inputs in any of the forms people hold them in.

    Args:
        inputs: A tensor, a tuple of positional arguments, a mapping of keyword arguments
            (HF's ``BatchEncoding`` is one), or a `Call`.
        batch_axis: The axis that counts the items.

    Raises:
        InputError: none of these, or nothing in it is a tensor.
    """
    import torch

    if isinstance(inputs, Call):
        return inputs
    if inputs is None:
        raise InputError("no example inputs were given", help=f"pass {ACCEPTED_INPUTS}")
    if isinstance(inputs, torch.Tensor):
        return Call((inputs,), batch_axis=batch_axis)
    if isinstance(inputs, Mapping):
        return _with_tensors(Call(kwargs=dict(inputs), batch_axis=batch_axis), inputs)
    if isinstance(inputs, tuple):
        return _with_tensors(Call(tuple(inputs), batch_axis=batch_axis), inputs)
    raise InputError(f"example inputs of type {type(inputs).__name__} cannot be used", help=_advice(inputs))


def _advice(inputs: Any) -> str:
    kind = type(inputs)
    if kind.__name__ == "DataLoader":
        return "a DataLoader gives many batches: pass one of them, next(iter(loader))"
    if inspect.isgenerator(inputs) or isinstance(inputs, Iterator):
        return "a generator can be read only once, and a measurement calls the model many times: pass one element of it, next(generator)"
    if kind.__module__.split(".")[0] == "numpy":
        return "pass a tensor: torch.from_numpy(array)"
    if isinstance(inputs, list):
        return "pass a tensor, torch.tensor(...), or a tuple if these are positional arguments"
    if isinstance(inputs, str):
        return "pass the tokenizer's output, not the text"
    return f"pass {ACCEPTED_INPUTS}"


def _with_tensors(call: Call, inputs: Any) -> Call:
    if not call.tensors():
        raise InputError(f"there is no tensor in the example inputs ({call.describe()})", help=f"pass {ACCEPTED_INPUTS}")
    return call


class Workload:
    """A model, example inputs and what is needed to judge its outputs.

    Args:
        model: Any `torch.nn.Module`; it is never changed.
        inputs: What the model is called with: a tensor, a tuple of positional arguments, a dict or
            HF-style batch of keyword arguments. More than one item along the batch axis is welcome:
            fidelity is judged on these samples.
        data: Labelled data as ``(inputs, labels)``, both with one entry per item: what variants are judged on.
        metric: ``metric(outputs, labels) -> float``, higher is better.
        loss: ``loss(outputs, labels) -> scalar tensor``.
        train: Samples to learn from and to calibrate with, never judged on: ``(inputs, labels)`` with a tensor of labels, or inputs alone.
        students: Smaller networks by name, untrained or trained, that the model may be distilled into; never changed.
        batch_axis: The axis that counts the items.
        dynamic_shapes: Other sizes that requests may choose, and their ranges: ``"1=1..512"``, or by input and axis as `torch.export` has it; see
            `read_dynamic_shapes`. What is exported takes all of them; what is measured is measured at the sizes of `inputs`.
        name: What to call the model; its class's name if not given.

    Raises:
        InputError: the model is no module, the inputs cannot be used, or data and metric do not come together.
        ModelError: the model is lazy, and has not seen an input.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        data: tuple[Any, torch.Tensor] | None = None,
        metric: Callable[[Any, torch.Tensor], float] | None = None,
        loss: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
        train: Any = None,
        students: Mapping[str, nn.Module] | None = None,
        batch_axis: int = 0,
        dynamic_shapes: Any = None,
        name: str | None = None,
    ) -> None:
        from torch import nn

        if not isinstance(model, nn.Module):
            raise InputError(f"the model is a {type(model).__name__}, not a torch.nn.Module", help="pass the module itself, loaded and ready to call")
        if (data is None) != (metric is None):
            missing, given = ("data", "metric") if data is None else ("metric", "data")
            raise InputError(f"{given} was given without {missing}", help="give both, data=(inputs, labels) and metric=f(outputs, labels), or neither")
        for what, function in (("metric", metric), ("loss", loss)):
            if function is not None and not callable(function):
                raise InputError(f"{what} is a {type(function).__name__}, which cannot be called", help=f"give a function: {what}=f(outputs, labels)")
        if isinstance(batch_axis, bool) or not isinstance(batch_axis, int) or batch_axis < 0:
            raise InputError(f"batch_axis {batch_axis!r} is not the number of an axis", help="count from the front: 0 is the first")
        check_initialised(model)
        self.model = model
        self.call = as_call(inputs, batch_axis)
        if self.call.batch_size == 0:
            raise InputError(f"there is no item in the example inputs ({self.call.describe()})", help="give at least one")
        self.data = None if data is None else _as_data(data, batch_axis)
        self.metric = metric
        self.loss = loss
        self.train = None if train is None else _as_train(train, batch_axis)
        self.students = dict(students or {})
        self.name = name or type(getattr(model, "_orig_mod", model)).__name__  # what is behind torch.compile
        self._check_layouts()
        self._check_devices()
        if dynamic_shapes is not None:
            self.call = self._with_dims(dynamic_shapes)

    def with_dynamic_shapes(self, dynamic_shapes: Any) -> Workload:
        """The same workload, whose requests may choose these sizes and no others; see the class.

        Raises:
            InputError: what is given does not fit the inputs.
        """
        other = copy.copy(self)
        other.call = self._with_dims(dynamic_shapes)
        return other

    def _with_dims(self, dynamic_shapes: Any) -> Call:
        inputs = list(self.call.named_tensors(self.model))
        batched = [self.call.is_batched(tensor) for _, tensor in inputs]
        return replace(self.call, dims=place_dims(read_dynamic_shapes(dynamic_shapes), inputs, self.call.batch_axis, batched=batched))

    def _check_layouts(self) -> None:
        import torch

        for name, tensor in self.call.named_tensors(self.model):
            if tensor.layout not in (torch.strided, torch.sparse_coo, torch.jagged):
                layout = str(tensor.layout).removeprefix("torch.")
                raise InputError(
                    f"the input {name!r} is laid out as {layout}, and other batch sizes are made by choosing rows, which torch cannot do there",
                    help=f"give {name}.to_sparse_coo() or {name}.to_dense(), and let the model's forward lay it out as {layout}",
                )

    def _check_devices(self) -> None:
        import torch

        model_devices = Counter(p.device for p in self.model.parameters())
        device = model_devices.most_common(1)[0][0] if model_devices else torch.device("cpu")
        if device.type == "meta":
            return
        for name, tensor in self.call.named_tensors(self.model):
            if len(model_devices) == 1 and tensor.dim() > 0 and tensor.device != device:
                raise InputError(f"the model is on {device} and the input {name!r} is on {tensor.device}", help=f"move the inputs: {name}.to({str(device)!r})")

    @property
    def torch_device(self) -> torch.device:
        """Where the model's first parameter lies; the CPU for a model without parameters."""
        import torch

        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def require_weights(self, help: str) -> None:
        """Refuse a model that cannot be run.

        Raises:
            UnsupportedError: it is on the meta device.
        """
        if self.torch_device.type == "meta":
            raise UnsupportedError("the model is on the meta device: it has no weights to run with", help=help)

    def info(self) -> ModelInfo:
        """Who this model is, as every record tells it."""
        return describe_model(self.model, self.call, self.name)


def _as_data(data: Any, batch_axis: int) -> tuple[Call, torch.Tensor]:
    """Read labelled data.

    Raises:
        InputError: it is no pair, the inputs cannot be used, or there is not one label for each item.
    """
    import torch

    if not isinstance(data, (tuple, list)) or len(data) != 2 or not isinstance(data[1], torch.Tensor):
        raise InputError(f"data is a {type(data).__name__} and not a pair of inputs and a tensor of labels", help="data=(inputs, labels)")
    return _with_labels("data", as_call(data[0], batch_axis), data[1])


def _as_train(train: Any, batch_axis: int) -> tuple[Call, torch.Tensor | None]:
    """Read training samples: a pair whose second is a tensor of labels, one for each item of the first, or inputs alone.

    Raises:
        InputError: the inputs cannot be used, or there are not as many labels as items.
    """
    import torch

    pair = isinstance(train, tuple) and len(train) == 2 and isinstance(train[1], torch.Tensor)
    if not pair or isinstance(train[0], (int, float, bool)):
        return as_call(train, batch_axis), None
    return _with_labels("train", as_call(train[0], batch_axis), train[1])


def _with_labels(what: str, call: Call, labels: torch.Tensor) -> tuple[Call, torch.Tensor]:
    if labels.dim() == 0 or len(labels) != call.batch_size or not len(labels):
        also = "; inputs alone, of several positional arguments, are given as a Call" if what == "train" else ""
        raise InputError(
            f"{what} has {call.batch_size} items and labels of shape {list(labels.shape)}", help=f"one label per item: {what}=(inputs, labels){also}"
        )
    return call, labels


def check_initialised(model: nn.Module) -> None:
    """Refuse a lazy module that has not seen an input.

    Raises:
        ModelError: a parameter or buffer has no shape yet.
    """
    from torch.nn.parameter import is_lazy

    tensors = [*model.named_parameters(), *model.named_buffers()]
    missing = [name for name, tensor in tensors if is_lazy(tensor)]
    if missing:
        raise ModelError(
            f"{type(model).__name__} has parameters without a shape yet: {', '.join(missing[:5])}", help="call the model once on real inputs first"
        )


def describe_model(model: nn.Module, call: Call, name: str) -> ModelInfo:
    """Describe `model` without running it."""
    dtypes = Counter(str(p.dtype).removeprefix("torch.") for p in model.parameters())
    kind = type(getattr(model, "_orig_mod", model))
    return ModelInfo(
        name=name,
        type=f"{kind.__module__}.{kind.__qualname__}",
        num_parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=weight_bytes(model),
        dtype=dtypes.most_common(1)[0][0] if dtypes else "none",
        digest=digest_model(model),
        inputs=tuple(TensorSpec(name=n, dtype=str(t.dtype).removeprefix("torch."), shape=batched_shape(t, call)) for n, t in call.named_tensors(model)),
    )


def batched_shape(tensor: torch.Tensor, call: Call) -> tuple[int, ...]:
    """Sizes of `tensor`, -1 along the batch axis of `call`."""
    return tuple(-1 if axis == call.batch_axis and call.is_batched(tensor) else int(size) for axis, size in enumerate(tensor.shape))


def generates(model: nn.Module) -> bool:
    """Whether the model makes sequences by being called again for every token: what transformers' ``can_generate`` says of its own."""
    plain = getattr(model, "module", getattr(model, "_orig_mod", model))  # behind DataParallel, or torch.compile
    return bool(getattr(plain, "can_generate", lambda: False)())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; tensors that share memory count once, compressed ones by what they hold."""
    return sum(storage_sizes([*model.parameters(), *model.buffers()]).values())


def storage_sizes(tensors: Iterable[torch.Tensor]) -> dict[Any, int]:
    """Bytes of each piece of memory behind `tensors`, by what identifies it."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    def storages(tensor: Any) -> Iterator[tuple[Any, int]]:
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            for name in names:
                yield from storages(getattr(tensor, name))
        elif tensor.device.type == "meta":
            yield id(tensor), tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            yield (tensor.device, storage.data_ptr()), storage.nbytes()

    return {key: size for t in tensors for key, size in storages(t)}


def digest_model(model: nn.Module) -> str:
    """Digest of names, shapes, dtypes and up to 64 values of each tensor: enough to know the same weights again.

    Hashing every value of a large model would take longer than profiling it.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel() and type(tensor) in (torch.Tensor, torch.nn.Parameter):
            flat = tensor.detach().flatten()
            some = flat[:: max(1, flat.numel() // 64)][:64]
            digest.update(repr(some.tolist() if some.is_complex() else some.double().tolist()).encode())
    return digest.hexdigest()[:16]


def call_model(model: nn.Module, call: Call) -> Any:
    """Call the model once; the tensors of `call` stay as they are, also where the model writes into them.

    Raises:
        ModelError: the model raised; the message has its message and the inputs.
        DoesNotFitError: the device's memory did not suffice.
    """
    try:
        return with_spared_inputs(model, call, lambda own: model(*own.args, **own.kwargs))
    except AimassError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise _model_error(model, call, error) from error
        # The frames of the traceback hold the tensors that filled the memory: let go of them, or it stays full.
        traceback.clear_frames(error.__traceback__)
        place = f"{type(model).__name__} on {call.describe()}"
    raise DoesNotFitError(f"out of memory while running {place}", help="use a smaller batch size")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python raised because an allocation was refused; on the CPU torch raises a plain `RuntimeError`."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("not enough memory", "can't allocate memory", "Cannot allocate memory"))


def _model_error(model: nn.Module, call: Call, error: Exception) -> ModelError:
    return ModelError(
        f"{type(model).__name__} raised {type(error).__name__} on {call.describe()}: {first_line(error)}",
        help="call the model with these inputs yourself to see the whole traceback; it is also attached to this error",
    )
