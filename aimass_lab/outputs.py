"""Takes apart what a model returns: the tensors in it by name, however they are held.

torch is imported inside the functions, as in `workload`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Opened(dict[str, Any]):
    """Fields of a dataclass by name; torch's functions over trees look into it, and give back the dataclass."""

    def __init__(self, fields: Mapping[str, Any], kind: type[Any]) -> None:
        super().__init__(fields)
        self.kind = kind


def opened(outputs: Any) -> Any:
    """The same outputs with each dataclass as an `Opened`, for torch takes a dataclass that nobody registered for something without parts."""
    from torch.utils import _pytree

    if not any(map(_is_closed, _pytree.tree_leaves(outputs))):
        return outputs
    _register()  # only now: a model that is compiled with this in it would be told at length of the cache
    return _pytree.tree_map(lambda leaf: _open(leaf) if _is_closed(leaf) else leaf, outputs)


def output_tensors(outputs: Any) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of everything in a model's outputs.

    A key of a mapping or a field of a dataclass (HF's ``ModelOutput`` is both) is a name, with a number where its value holds several tensors;
    what is no container of Python's own in it, such as a cache, is left out. Other containers give ``output``, ``output_1`` ...
    """
    import torch
    from torch.utils import _pytree

    outputs = opened(outputs)
    if isinstance(outputs, Mapping):
        return [named for key, value in outputs.items() for named in _numbered(str(key), list(_held(value)))]
    leaves = [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    return [("output" if i == 0 else f"output_{i}", leaf) for i, leaf in enumerate(leaves)]


def other_kinds(outputs: Any) -> tuple[str, ...]:
    """Types of what is neither a tensor nor None in a model's outputs, such as a cache or a number."""
    import torch
    from torch.utils import _pytree

    return tuple(sorted({type(leaf).__name__ for leaf in _pytree.tree_leaves(opened(outputs)) if not isinstance(leaf, (torch.Tensor, type(None)))}))


def _numbered(name: str, tensors: list[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(name if len(tensors) == 1 else f"{name}_{i}", tensor) for i, tensor in enumerate(tensors)]


def _held(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value, and in the mappings, lists and tuples in it."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _held(part)


def _open(value: Any) -> Opened:
    return Opened({field.name: opened(getattr(value, field.name)) for field in dataclasses.fields(value)}, type(value))


def _is_closed(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)


@functools.cache
def _register() -> None:
    """Tell torch how an `Opened` is taken apart and put together; as a dataclass, whose own checks were made when the model made it."""
    from torch.utils import _pytree

    def take_apart(fields: Opened) -> tuple[list[Any], Any]:
        return list(fields.values()), (fields.kind, tuple(fields))

    def put_together(values: Any, how: Any) -> Any:
        kind, names = how
        made = object.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)
        return made

    _pytree.register_pytree_node(Opened, take_apart, put_together, serialized_type_name="aimass_lab.outputs.Opened")
