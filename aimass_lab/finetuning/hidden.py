"""Reads hidden states of two networks at places that correspond."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..workload import Call, call_model
from .batches import item_axis

PREFIX = "hidden: "
"""Before the names of places, so that they differ from those of outputs."""
LAST = "before the last layer"


class Places:
    """Where hidden states of one model are read: the outputs of its blocks, and what enters its last layer with weights."""

    def __init__(self, blocks: dict[str, nn.Module], last: nn.Module | None) -> None:
        self._blocks = blocks
        self._last = last
        self._seen: dict[str, torch.Tensor] = {}

    def take(self, call: Call) -> dict[str, torch.Tensor]:
        """What the last run showed, where it has one entry per item, items first; it is forgotten here."""
        seen, self._seen = self._seen, {}
        axes = {name: item_axis(tensor, call) for name, tensor in seen.items()}
        return {PREFIX + name: seen[name].movedim(axis, 0) for name, axis in axes.items() if axis is not None}

    def keep_only(self, names: set[str]) -> None:
        """Read at the places `names` only."""
        self._blocks = {name: block for name, block in self._blocks.items() if PREFIX + name in names}
        self._last = self._last if PREFIX + LAST in names else None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Read in every run of the block."""
        handles = [block.register_forward_hook(lambda m, a, out, name=name: self._see(name, out)) for name, block in self._blocks.items()]
        if self._last is not None:
            handles.append(self._last.register_forward_pre_hook(lambda m, args: self._see(LAST, args)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen = {}

    def _see(self, name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            self._seen[name] = value


def corresponding_places(teacher: nn.Module, student: nn.Module, call: Call) -> tuple[Places, Places]:
    """Places in both: each of the student's blocks beside the teacher's that is as far through the network, and the last layers.

    A student with 2 blocks of the teacher's 6 is matched at the teacher's third and sixth (Jiao et al., TinyBERT, 2020, uniform mapping).
    """
    theirs, ours = _blocks(teacher), _blocks(student)
    if len(ours) > len(theirs):
        ours = []
    names = [f"block {i + 1}" for i in range(len(ours))]
    opposite = [theirs[-(-(i + 1) * len(theirs) // len(ours)) - 1] for i in range(len(ours))]
    return (
        Places(dict(zip(names, opposite, strict=True)), _last_layer(teacher, call)),
        Places(dict(zip(names, ours, strict=True)), _last_layer(student, call)),
    )


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the `nn.ModuleList` that holds most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    largest = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)
    return [] if largest is None else list(largest)


def _last_layer(model: nn.Module, call: Call) -> nn.Module | None:
    """The layer with weights that is run last."""
    ran: list[nn.Module] = []
    layers = [m for m in model.modules() if any(p.dim() >= 2 for p in m.parameters(recurse=False))]
    handles = [layer.register_forward_hook(lambda m, args, out: ran.append(m)) for layer in layers]
    try:
        call_model(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return ran[-1] if ran else None
