"""Which storages a call makes, and when each is freed."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Memory:
    """The storages that a call makes, while they live."""

    def __init__(self, external: list[torch.Tensor]) -> None:
        self.live_bytes = 0
        self.events: list[tuple[int, int]] = []
        self.event_rows: list[int] = []
        self._num_storages = 0
        self._row = 0
        self._live: dict[int, Any] = {}
        # Held here, because a storage's address is given to another once it dies.
        self._external_storages = [s for t in external for s in _storages(t)]
        self._external = {s._cdata for s in self._external_storages}

    def take(self, tensors: list[torch.Tensor], row: int) -> int:
        """Count the storages of `tensors` that are new; return their bytes."""
        self._row = row
        new = 0
        for tensor in tensors:
            for storage in _storages(tensor):
                address = storage._cdata
                if address in self._external or address in self._live:
                    continue
                size = int(storage.nbytes())
                number = self._num_storages
                self._num_storages += 1
                self._live[address] = weakref.ref(storage, functools.partial(_forget, weakref.ref(self), address, number, size))
                self._write(number, size)
                new += size
        self._row = row + 1
        return new

    def _write(self, number: int, size: int) -> None:
        self.live_bytes += size
        self.events.append((number, size))
        self.event_rows.append(self._row)

    def forget(self, address: int, number: int, size: int) -> None:
        """The storage is gone."""
        if self._live.pop(address, None) is not None:
            self._write(number, -size)


def _forget(memory: Callable[[], Memory | None], address: int, number: int, size: int, _reference: Any) -> None:
    this = memory()
    if this is not None:
        this.forget(address, number, size)


@functools.cache
def is_wrapper(kind: type) -> bool:
    """Whether a tensor class is made of other tensors: quantised and distributed ones are."""
    return hasattr(kind, "__tensor_flatten__") and hasattr(kind, "__tensor_unflatten__")


def leaves(tree: Any) -> list[torch.Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    found: list[torch.Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[torch.Tensor]) -> None:
    # Operators' arguments are tensors in flat lists; a pytree walk would cost more than the operator's own bookkeeping.
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            _collect(item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, found)


def _storages(tensor: torch.Tensor) -> list[Any]:
    if is_wrapper(type(tensor)) and is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [s for name in names for s in _storages(getattr(tensor, name))]
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):  # sparse, mkldnn and other tensors without a storage
        return []
