"""Where each step of a backward pass comes from."""

from __future__ import annotations

import bisect
from typing import Any

import torch


class Origins:
    """Which module and line each step of the backward pass is the gradient of.

    autograd numbers its nodes in the order of the forward pass; the number that was next when an
    operator ran tells its nodes from those of the operators before.
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._places: list[tuple[tuple[str, ...], str]] = []
        self._owners: dict[int, tuple[str, ...]] = {}

    def note(self, scope: tuple[str, ...], source: str) -> None:
        """An operator ran here."""
        self._numbers.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
        self._places.append((scope, source))

    def own(self, name: str, parameter: torch.Tensor) -> None:
        """The module that has `parameter` under this name."""
        parts = name.split(".")[:-1]
        self._owners[id(parameter)] = ("", *(".".join(parts[: i + 1]) for i in range(len(parts))))

    def of(self, node: Any) -> tuple[tuple[str, ...], str]:
        """Modules and line that a node of the backward pass is the gradient of."""
        variable = getattr(node, "variable", None)
        if variable is not None:  # a parameter's gradient is being summed
            return self._owners.get(id(variable), ()), ""
        at = bisect.bisect_right(self._numbers, node._sequence_nr())
        return self._places[at] if at < len(self._places) else ((), "")
