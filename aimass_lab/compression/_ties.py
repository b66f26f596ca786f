"""Finds weights that more than one layer uses: what changes one of them changes, or cuts apart, all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def tied_layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Layer -> the other layers with a parameter in the same memory, for every layer that has such others."""
    holders: dict[tuple[int, int], list[str]] = {}
    for name, layer in model.named_modules():
        for parameter in layer.parameters(recurse=False):
            place = _address(parameter)
            if place is not None:
                holders.setdefault(place, []).append(name)
    ties: dict[str, set[str]] = {}
    for names in holders.values():
        for name in names:
            ties.setdefault(name, set()).update(other for other in names if other != name)
    return {name: tuple(sorted(others)) for name, others in ties.items() if others}


def _address(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Where the values begin; the object itself for a tensor that has no memory of its own but that of others."""
    if parameter.numel() == 0:
        return None
    try:
        start = parameter.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        start = 0
    return (start, int(parameter.storage_offset())) if start else (id(parameter), 0)
