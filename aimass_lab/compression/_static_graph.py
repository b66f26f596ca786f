"""A model as an exported graph that is called like the model itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree

from ..dynamic_shapes import Dim
from ..errors import InputError, UnsupportedError
from ..quiet import quiet_export
from ..workload import Call, forward_parameters

TRACED_BATCH = 2
"""Items a graph is traced with: one item could be taken for an axis of size 1."""


class StaticGraph(nn.Module):
    """Calls an exported graph with arguments given by position or by name, and refuses those that it was not made for."""

    def __init__(self, graph: torch.fx.GraphModule, names: tuple[str, ...], call: Call, *, any_batch: bool) -> None:
        super().__init__()
        self.graph = graph
        self.names = names
        self.num_positional = len(call.args)
        self.keywords = tuple(call.kwargs)
        self.any_batch = any_batch
        indices = iter(range(len(call.tensors())))
        self.leaves = tuple(_expected(leaf, call, any_batch, indices) for leaf in _pytree.tree_leaves((call.args, dict(call.kwargs))))
        self.dims = call.dims
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        if len(args) != self.num_positional or set(kwargs) != set(self.keywords):
            args, kwargs = self._arrange(args, kwargs)
        leaves = _pytree.tree_leaves((args, kwargs))
        if len(leaves) != len(self.leaves):
            raise InputError(f"the graph was made for {len(self.leaves)} inputs and is called with {len(leaves)}")
        for leaf, expected in zip(leaves, self.leaves, strict=True):
            _check(leaf, expected)
        if self.dims:
            _check_sizes(self.dims, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        return self.graph(*args, **kwargs)

    def _arrange(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments, by position and by name as the graph has them; a None that it was not made with says nothing."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        positional = self.names[: self.num_positional]
        wanted = (*positional, *self.keywords)
        missing = [name for name in wanted if name not in given]
        surplus = [name for name, value in given.items() if name not in wanted and value is not None]
        if missing or surplus or len(args) > len(self.names):
            raise InputError(
                f"the graph was made for calls with {', '.join(wanted) or 'no arguments'}, and is called with {', '.join(given) or 'none'}",
                help="call it as in the example inputs, or make the variant from example inputs as it is to be called",
            )
        return tuple(given[name] for name in positional), {name: given[name] for name in self.keywords}

    def train(self, mode: bool = True) -> StaticGraph:
        """Stay as exported: the graph holds the operators of evaluation mode only."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StaticGraph:
        duplicate = StaticGraph.__new__(StaticGraph)
        memo[id(self)] = duplicate
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch copies descriptions of containers in a way that it deprecates
            duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate


def _expected(leaf: Any, call: Call, any_batch: bool, indices: Iterator[int]) -> Any:
    """Shape of a tensor, None along an axis that may have other sizes; anything else as it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    index = next(indices)
    free = {axis for dim in call.dims for tensor, axis in dim.axes if tensor == index}
    if any_batch and call.is_batched(leaf):
        free.add(call.batch_axis)
    return _Shape(None if axis in free else int(size) for axis, size in enumerate(leaf.shape))


class _Shape(tuple[int | None, ...]):
    """Sizes; a kind of its own, because a tuple may be an argument."""

    __slots__ = ()


def _check(leaf: Any, expected: Any) -> None:
    if not isinstance(expected, _Shape):
        if isinstance(leaf, torch.Tensor) or leaf != expected:
            raise InputError(f"the graph was made for {expected!r} where it is called with {leaf!r}")
    elif not isinstance(leaf, torch.Tensor):
        raise InputError(f"the graph was made for a tensor where it is called with {leaf!r}")
    elif leaf.dim() != len(expected) or any(size is not None and size != leaf.shape[axis] for axis, size in enumerate(expected)):
        shape = ", ".join("any" if size is None else str(size) for size in expected)
        raise InputError(f"the graph was made for inputs of shape [{shape}], and is called with {list(leaf.shape)}", help="export it for this shape too")


def _check_sizes(dims: Sequence[Dim], tensors: Sequence[torch.Tensor]) -> None:
    for dim in dims:
        sizes = [tensors[index].shape[axis] for index, axis in dim.axes]  # compared only: whoever exports the graph again has symbols here
        if not dim.min <= sizes[0] <= dim.max or any(size != sizes[0] for size in sizes[1:]):
            found = " and ".join(str(size) for size in sizes)
            wanted = f"{dim.min} to {dim.max}"
            raise InputError(f"the graph was made for a size {dim.name} of {wanted}, and is called with {found}", help="export it for this size too")


def export_graph(model: nn.Module, call: Call, *, any_batch: bool) -> torch.fx.GraphModule:
    """Export `model` in evaluation mode.

    Args:
        model: In evaluation mode; what its forward writes into it stays.
        call: Example inputs; of `TRACED_BATCH` items or more where `any_batch`, and no open size of it 1.
        any_batch: Leave the number of items open.

    Raises:
        UnsupportedError: the graph holds for some numbers of items only.
        Exception: whatever `torch.export.export` raises, where the model's control flow depends on values or on the number of items.
    """
    shapes = torch.export.ShapesCollection()
    dims = {dim.name: torch.export.Dim(dim.name, min=dim.min, max=dim.max) for dim in call.dims}
    for index, tensor in enumerate(call.tensors()):
        axes = {axis: dims[dim.name] for dim in call.dims for of, axis in dim.axes if of == index}
        if any_batch and call.is_batched(tensor):
            axes[call.batch_axis] = torch.export.Dim.DYNAMIC
        if axes:
            shapes[tensor] = axes
    with quiet_export(), torch.no_grad():
        program = torch.export.export(model, call.args, dict(call.kwargs), dynamic_shapes=cast(Any, shapes) if any_batch or dims else None)
        if any_batch:
            _refuse_bounds(program, call.dims)
        # the graph's own checks of shapes do not survive quantisation, so StaticGraph makes them
        graph = program.module(check_guards=False)
    # What nobody reads, such as the pooler beside a last hidden state, is left in by export and trips torchao's quantiser.
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _refuse_bounds(program: torch.export.ExportedProgram, dims: Sequence[Dim]) -> None:
    """Refuse a graph whose control flow was decided by the number of items: beyond some number it would be wrong without a word.

    Args:
        program: What was exported.
        dims: Other sizes, which have bounds of their own.
    """
    from torch.utils._sympy.numbers import int_oo

    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    bounded = {str(tensors[index].shape[axis]) for dim in dims for index, axis in dim.axes}
    for symbol, bounds in program.range_constraints.items():
        if str(symbol) in bounded:
            continue
        if bounds.upper is not int_oo or bounds.lower > TRACED_BATCH:
            raise UnsupportedError(f"the model does something else outside of {bounds.lower} to {bounds.upper} items")


def positional_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of `model` that may be given by position."""
    parameters: Mapping[str, Any] = forward_parameters(model)
    return tuple(p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def drop_unused_(graph: torch.fx.GraphModule) -> None:
    """Let go of parameters and buffers that no node of the graph reads: the full-precision weights of what was rounded."""
    used = {str(node.target) for node in graph.graph.nodes if node.op in ("get_attr", "call_module")}
    kept = [name for name, _ in [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)] if _read(name, used)]
    for prefix, module in list(graph.named_modules()):
        for store in (module._parameters, module._buffers):
            for key in [key for key in store if f"{prefix}.{key}".lstrip(".") not in kept]:
                del store[key]


def _read(name: str, used: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in used for i in range(1, len(parts) + 1))
