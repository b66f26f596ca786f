"""Finds the blocks that a model applies one after the other and that give what they take: those it can run without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..fast_path import without_fast_path
from ..workload import Call, call_model
from ._structured import Undo
from .base import weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "encoder_layers", "decoder_layers", "num_blocks")
PER_LAYER = ("layer_types", "mlp_layer_types", "depths")
INDICES = ("layer_idx", "layer_id", "layer_number", "layer_index")
"""Names of attributes in transformers, timm and what people write themselves."""


@dataclass
class Block:
    """One entry of an `nn.ModuleList` or `nn.Sequential`, and what was seen of it."""

    container: str
    key: str
    """In the container."""
    similarity: float = 0.0
    """Mean cosine between what it took and what it gave, sample by sample."""

    @property
    def name(self) -> str:
        """In the model."""
        return f"{self.container}.{self.key}" if self.container else self.key


@dataclass
class _Seen:
    """Calls of one block."""

    taken: Any = None
    given: Any = None
    num_calls: int = 0
    cosines: list[float] = field(default_factory=list)


def containers(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """Name of every list of two or more modules -> those that hold layers, by key."""
    from torch import nn

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            found[name] = [(key, child) for key, child in module.named_children() if any(child.children()) and weight_layers(child)]
    return {name: blocks for name, blocks in found.items() if blocks}


def find_blocks(model: nn.Module, calls: Iterable[Call]) -> tuple[list[Block], dict[str, str]]:
    """Run a model and find its droppable blocks.

    A block is called once, gives a tensor (or a tuple or a field that starts with one) of the shape of the first it takes, and has a way
    round its weights. Its neighbour in the list takes what it gives or gave what it takes: the branches of a mixture do not stand one
    after the other.

    Args:
        model: Run as it is; and some blocks with weights of zero, which are put back.
        calls: Samples, in batches.

    Returns:
        The blocks in the order in which they are called, and for others of the same lists why they are none.
    """
    listed = {name: model.get_submodule(name) for name in containers(model)}
    calls = list(calls)
    seen = _watch(model, [child for module in listed.values() for child in module.children()], calls)
    blocks, others = [], {}
    order = {id(module): number for number, module in enumerate(seen)}
    for name, module in listed.items():
        children = dict(module.named_children())
        for key, child in containers(model)[name]:
            block = Block(name, key)
            cause = _why_not(child, list(children.values()), seen)
            if cause is None and not _has_way_round(model, child, calls[0]):
                cause = "it has no way round its weights: without it, what it takes would not be what comes next"
            if cause is None:
                cosines = seen[child].cosines
                block.similarity = sum(cosines) / len(cosines)
                blocks.append(block)
            else:
                others[block.name] = cause
    blocks = list(_innermost(blocks))
    return sorted(blocks, key=lambda block: order[id(model.get_submodule(block.name))]), others


def _watch(model: nn.Module, modules: Sequence[nn.Module], calls: Iterable[Call]) -> dict[nn.Module, _Seen]:
    import torch
    import torch.nn.functional as F

    seen: dict[nn.Module, _Seen] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        record = seen.setdefault(module, _Seen())
        record.taken, record.given = _first((*args, *kwargs.values())), _first(output)
        record.num_calls += 1
        if record.taken is not None and record.given is not None and record.taken.shape == record.given.shape and record.taken.dim() > 1:
            record.cosines += F.cosine_similarity(record.taken.flatten(1).float(), record.given.flatten(1).float(), dim=1).tolist()

    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in dict.fromkeys(modules)]
    num_calls = 0
    try:
        with torch.no_grad(), without_fast_path():
            for call in calls:
                call_model(model, call)
                num_calls += 1
    finally:
        for hook in hooks:
            hook.remove()
    for record in seen.values():
        record.num_calls //= max(num_calls, 1)
    return seen


def _first(value: Any) -> torch.Tensor | None:
    """The first floating-point tensor in what a block takes or gives."""
    import torch
    from torch.utils import _pytree

    values = list(value.values()) if isinstance(value, dict) else value
    return next((leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()), None)


def _why_not(block: nn.Module, siblings: Sequence[nn.Module], seen: dict[nn.Module, _Seen]) -> str | None:
    record = seen.get(block)
    if record is None:
        return "it was not called"
    if record.num_calls != 1:
        return f"it is called {record.num_calls} times in one call of the model"
    if record.taken is None or record.given is None or not record.cosines:
        shapes = [None if t is None else list(t.shape) for t in (record.taken, record.given)]
        return f"it takes {shapes[0]} and gives {shapes[1]}, so that nothing could stand in its place"
    number = next(i for i, sibling in enumerate(siblings) if sibling is block)
    before, after = (seen.get(siblings[i]) if 0 <= i < len(siblings) else None for i in (number - 1, number + 1))
    if not (before and _same(before.given, record.taken)) and not (after and _same(record.given, after.taken)):
        return "its neighbours neither give what it takes nor take what it gives: it is no step of a chain"
    return None


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and a.data_ptr() == b.data_ptr()


class _Enough(Exception):
    """The block has run."""


def _has_way_round(model: nn.Module, block: nn.Module, call: Call) -> bool:
    """Whether what the block gives still depends on what it takes when its layers' weights and biases are zero: a residual connection."""
    import torch
    from torch.utils import _pytree

    given: list[Any] = []

    def take_nothing(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        taken = _first((*args, *kwargs.values()))
        changed = _pytree.tree_map(lambda leaf: torch.zeros_like(leaf) if id(leaf) == id(taken) else leaf, (args, kwargs))
        return changed[0], changed[1]

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        given.append(_first(output))
        raise _Enough

    undo = Undo(block)
    for layer in weight_layers(block).values():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            layer.register_parameter(name, torch.nn.Parameter(torch.zeros_like(parameter), requires_grad=False))
    few = call.rows(0, 1) if any(call.is_batched(t) for t in call.tensors()) else call
    try:
        for replace in (False, True):
            hooks = [block.register_forward_hook(stop)]
            hooks += [block.register_forward_pre_hook(take_nothing, with_kwargs=True)] if replace else []
            with torch.no_grad(), without_fast_path(), contextlib.suppress(_Enough):
                model(*few.args, **few.kwargs)
            for hook in hooks:
                hook.remove()
    finally:
        undo.restore()
    return not torch.equal(given[0], given[1])


def _innermost(blocks: Sequence[Block]) -> Iterator[Block]:
    """Blocks that do not hold a chain of blocks themselves: those are dropped one by one."""
    for block in blocks:
        if not any(other.container == block.name or other.container.startswith(f"{block.name}.") for other in blocks):
            yield block


def drop(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Take blocks out of their lists, and tell the model's own counts of them."""
    by_container: dict[str, set[str]] = {}
    for block in blocks:
        by_container.setdefault(block.container, set()).add(block.key)
    lengths = {name: len(model.get_submodule(name)._modules) for name in containers(model)}
    for name, keys in by_container.items():
        container: Any = model.get_submodule(name)
        kept = [key not in keys for key in container._modules]
        for position in [i for i, stays in enumerate(kept) if not stays][::-1]:
            del container[position]
        for number, module in enumerate(container):
            _renumber(module, [i for i, stays in enumerate(kept) if stays][number], number)
        _tell_counts(model, name, kept, _position(lengths, name))
        lengths[name] = sum(kept)


def _position(lengths: dict[str, int], name: str) -> tuple[int, list[int]]:
    """Where a list of blocks stands among the lists beside it, and how long those are: stages of a network."""
    path = name.split(".")
    beside = [n for n in lengths if len(n.split(".")) == len(path) and n.split(".")[-1] == path[-1] and n.split(".")[:-2] == path[:-2]]
    return beside.index(name), [lengths[n] for n in beside]


def _renumber(block: nn.Module, old: int, new: int) -> None:
    for module in block.modules():
        for attribute in INDICES:
            if vars(module).get(attribute) == old:
                setattr(module, attribute, new)


def _tell_counts(model: nn.Module, name: str, kept: Sequence[bool], position: tuple[int, list[int]]) -> None:
    """Correct the attributes and configurations that count these blocks, in the modules that hold the list."""
    number, beside = position
    holders = [model.get_submodule(".".join(name.split(".")[:i])) for i in range(len(name.split(".")))]
    configs = {id(c): c for holder in holders if (c := getattr(holder, "config", None)) is not None}
    for owner in [*configs.values(), *holders]:
        for attribute in COUNTS:
            if vars(owner).get(attribute) == len(kept):
                setattr(owner, attribute, sum(kept))
        for attribute in PER_LAYER:
            values = vars(owner).get(attribute)
            if isinstance(values, (list, tuple)) and attribute == "depths" and list(values) == beside:
                setattr(owner, attribute, [sum(kept) if i == number else value for i, value in enumerate(values)])
            elif isinstance(values, (list, tuple)) and attribute != "depths" and len(values) == len(kept):
                setattr(owner, attribute, [value for value, stays in zip(values, kept, strict=True) if stays])
