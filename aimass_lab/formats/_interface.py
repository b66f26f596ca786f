"""How the arguments and outputs of a model map to the flat lists of tensors that a runtime takes and gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import torch
from torch import nn
from torch.utils import _pytree

from ..errors import InputError, UnsupportedError
from ..outputs import opened
from ..records import Dimension, TensorSpec
from ..workload import Call, call_model
from .signature import Signature, with_tensors

PLAIN = (bool, int, float, str, bytes, type(None))
"""Types of outputs, besides tensors, that are the same at every call of an exported model."""


class _Place(msgspec.Struct, frozen=True):
    """Stands where a tensor is in a structure of containers."""

    index: int


class Flat(nn.Module):
    """A model with tensors as its only arguments, and a dict of the tensors in its outputs as what it returns."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call the model as it was called before, with other tensors."""
        return dict(named_leaves(call_model(self.model, with_tensors(self.call, tensors))))


def flat_call(call: Call) -> Call:
    """The call of a `Flat` model: the tensors of `call` as its positional arguments."""
    return Call(tuple(call.tensors()), batch_axis=call.batch_axis, dims=call.dims)


def named_leaves(outputs: Any) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of everything in a model's outputs, nested tensors included.

    A key of a mapping or a field of a dataclass is a name, with a number where its value holds several tensors; elsewhere
    they are ``output``, ``output_1`` ...
    """
    outputs = opened(outputs)
    if isinstance(outputs, Mapping):
        parts = [(str(key), _tensors(value)) for key, value in outputs.items()]
        return [(key if len(tensors) == 1 else f"{key}_{i}", tensor) for key, tensors in parts for i, tensor in enumerate(tensors)]
    return [("output" if i == 0 else f"output_{i}", tensor) for i, tensor in enumerate(_tensors(outputs))]


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Takes the arguments of a model apart, and puts its outputs together again."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    """Whether axis 0 of every input and output counts the items."""
    dimensions: tuple[Dimension, ...]
    """Other sizes that may be chosen."""
    num_positional: int | None
    """Positional tensors, where the arguments are nothing but tensors; None where they are not."""
    keywords: tuple[str, ...]
    """Names of the others, in the order of the inputs."""
    parameters: inspect.Signature | None
    """Of the model's ``forward``; None where Python cannot read it."""
    arguments: tuple[tuple[Any, ...], _pytree.TreeSpec]
    """All arguments: a place for each tensor, the values of the rest, and the containers around them."""
    results: tuple[tuple[Any, ...], _pytree.TreeSpec]
    """The same of the outputs."""
    dropped: tuple[str, ...] = ()
    """Types of objects in the outputs that no runtime can return; None takes their place."""
    _structured: ClassVar[tuple[str, ...]] = ("arguments", "results")

    @classmethod
    def of(cls, model: nn.Module, call: Call, signature: Signature) -> Interface:
        """Read off how `model` is called and what it returns; it is called once.

        Raises:
            UnsupportedError: an argument is an object that cannot be compared, so that nobody could say later whether it is the same.
        """
        plain = all(isinstance(value, torch.Tensor) for value in (*call.args, *call.kwargs.values()))
        parameters = _parameters(model)
        return cls(
            inputs=signature.inputs, outputs=signature.outputs, batched=signature.batched, dimensions=signature.dimensions,
            num_positional=len(call.args) if plain else None, keywords=tuple(call.kwargs) if plain else (), parameters=parameters,
            arguments=_arguments(call, parameters), **_results(call_model(model, call)),
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        # torch's structures warn of themselves as they are copied; the containers that they describe do not
        nested = {name: _pytree.tree_unflatten(*self.__dict__[name]) for name in self._structured}
        return {**self.__dict__, **nested}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat = {name: _pytree.tree_flatten(opened(state[name])) for name in self._structured}
        self.__dict__.update(state, **{name: (tuple(leaves), structure) for name, (leaves, structure) in flat.items()})

    def take_apart(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Return the tensors among the arguments in the order of `inputs`.

        Raises:
            InputError: the arguments are not those of the export, other tensors aside.
        """
        if len(args) == self.num_positional and len(kwargs) == len(self.keywords):
            try:
                return [*args, *[kwargs[name] for name in self.keywords]]
            except KeyError:
                pass
        return self._search(args, kwargs)

    def _search(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        expected, structure = self.arguments
        try:
            leaves, found = _pytree.tree_flatten(_canonical(args, kwargs, self.parameters))
        except TypeError as error:
            raise InputError(f"the exported model cannot be called like this: {error}", help=self._help()) from error
        if found != structure:
            raise InputError(f"the exported model does not take {Call(args, kwargs).describe()}", help=self._help())
        tensors: dict[int, torch.Tensor] = {}
        for leaf, wanted in zip(leaves, expected, strict=True):
            if isinstance(wanted, _Place):
                tensors[wanted.index] = leaf
            elif type(leaf) is not type(wanted) or leaf != wanted:
                raise InputError(f"an argument is {leaf!r}, and was fixed to {wanted!r} when the model was exported", help="export it with the other value")
        return [tensors[index] for index in sorted(tensors)]

    def _help(self) -> str:
        tensors = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in self.inputs)
        return f"call it with the arguments that it was exported with; the tensors among them are {tensors}"

    def put_together(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the outputs as the model itself does, with these tensors."""
        leaves, structure = self.results
        if structure.is_leaf():
            return tensors[0]
        return _pytree.tree_unflatten([tensors[leaf.index] if isinstance(leaf, _Place) else leaf for leaf in leaves], structure)

    def refusal(self, tensors: Sequence[Any], device: torch.device) -> InputError | None:
        """Say what is wrong with these inputs for a runtime on `device`; None if nothing is."""
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            if not isinstance(tensor, torch.Tensor):
                return InputError(f"the input {spec.name!r} is a {type(tensor).__name__}, not a tensor")
            if tensor.device.type != device.type:
                return InputError(
                    f"the input {spec.name!r} is on {tensor.device}, and the exported model runs on {device}", help=f"{spec.name}.to({device.type!r})"
                )
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype != spec.dtype:
                return InputError(f"the input {spec.name!r} is {dtype}, and the exported model takes {spec.dtype}", help=f"{spec.name}.to(torch.{spec.dtype})")
            if len(tensor.shape) != len(spec.shape) or any(size not in (-1, got) for size, got in zip(spec.shape, tensor.shape, strict=True)):
                wanted = ", ".join("any" if size == -1 else str(size) for size in spec.shape)
                return InputError(
                    f"the input {spec.name!r} has shape {list(tensor.shape)}, and the exported model takes [{wanted}]",
                    help="sizes that are not open were fixed at the export to those of the example inputs: Study(model, inputs, dynamic_shapes=...)",
                )
        shapes = {spec.name: tensor.shape for spec, tensor in zip(self.inputs, tensors, strict=True)}
        for dimension in self.dimensions:
            found = {shapes[name][axis] for name, axis in dimension.axes}
            if len(found) > 1 or not dimension.min <= min(found) <= dimension.max:
                places = ", ".join(f"{shapes[name][axis]} on axis {axis} of {name!r}" for name, axis in dimension.axes)
                return InputError(f"the size {dimension.name} is {places}, and must be one of {dimension.min} to {dimension.max} on all of them")
        sizes = {tensor.shape[0] for tensor in tensors} if self.batched else set()
        if len(sizes) > 1:
            return InputError(f"the inputs do not hold equally many items: {', '.join(map(str, sorted(sizes)))}")
        return None


def _parameters(model: nn.Module) -> inspect.Signature | None:
    try:
        found = inspect.signature(model.forward)
    except ValueError:
        return None
    return found.replace(parameters=[p.replace(annotation=p.empty) for p in found.parameters.values()], return_annotation=found.empty)


def _canonical(args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: inspect.Signature | None) -> tuple[Any, ...]:
    """Arguments in one form, however they are written: by position or by name, with or without those that have their default."""
    if parameters is None:
        return args, dict(kwargs)
    bound = parameters.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def _arguments(call: Call, parameters: inspect.Signature | None) -> tuple[tuple[Any, ...], _pytree.TreeSpec]:
    indices = iter(range(len(call.tensors())))
    placed = call.map(lambda _: _Place(next(indices)))  # type: ignore[arg-type, return-value]
    leaves, structure = _pytree.tree_flatten(_canonical(placed.args, placed.kwargs, parameters))
    for leaf in leaves:
        if not isinstance(leaf, (*PLAIN, _Place, torch.dtype, torch.device)):
            raise UnsupportedError(
                f"one of the arguments is a {type(leaf).__name__}, and an exported model takes tensors and plain values",
                help="wrap the model into a module that takes tensors",
            )
    return tuple(leaves), structure


def _results(outputs: Any) -> dict[str, Any]:
    leaves, structure = _pytree.tree_flatten(opened(outputs))
    kept: list[Any] = []
    dropped: list[str] = []
    num_tensors = 0
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            kept.append(_Place(num_tensors))
            num_tensors += 1
        elif isinstance(leaf, PLAIN):
            kept.append(leaf)
        else:
            kept.append(None)
            dropped.append(type(leaf).__name__)
    return {"results": (tuple(kept), structure), "dropped": tuple(dropped)}
