"""What every change of shapes needs: a way back, and a run that shows whether the model still works."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import AimassError
from ..outputs import output_tensors
from ..workload import Call, call_model
from .base import weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
PROBE_BATCHES = (2, 1)
"""Batch sizes that a changed model has to run at: one finds a batch size that was written into a view, the other a lost axis."""


class Undo:
    """Remembers every module's attributes, parameters and children, by reference, and puts them back.

    Enough where weights are replaced and not written: that is how pruning changes shapes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(module, {k: (v, _copy(v)) for k, v in vars(module).items()}) for module in model.modules()]

    def restore(self) -> None:
        """Put everything back."""
        for module, attributes in self._kept:
            now = vars(module)
            for name in [n for n in now if n not in attributes]:
                del now[name]
            for name, (value, content) in attributes.items():
                if isinstance(value, list):
                    value[:] = content
                elif value is not content:
                    value.clear()
                    value.update(content)
                now[name] = value


def _copy(value: Any) -> Any:
    return value.copy() if type(value) in (dict, OrderedDict, list, set) else value


class Probe:
    """Runs a model at two batch sizes and says what is wrong with its outputs.

    Args:
        model: As it is before the change: the shapes of its outputs have to stay.
        call: Example inputs.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        batched = any(call.is_batched(tensor) for tensor in call.tensors())
        self._calls = [call.with_batch(size) for size in PROBE_BATCHES] if batched else [call]
        self._shapes = [_shapes(self.outputs(model, number)) for number in range(len(self._calls))]

    @property
    def call(self) -> Call:
        """The larger of the calls."""
        return self._calls[0]

    def outputs(self, model: nn.Module, number: int = 0) -> list[torch.Tensor]:
        """All tensors that the model gives for one of the calls."""
        import torch

        with torch.no_grad():
            return [tensor for _, tensor in output_tensors(call_model(model, self._calls[number]))]

    def failure(self, model: nn.Module) -> str | None:
        """Why `model` does not work any more, or None."""
        for number, expected in enumerate(self._shapes):
            try:
                found = _shapes(self.outputs(model, number))
            except AimassError as error:
                return f"the model would not run: {error.message}"
            for before, after in zip(expected, found, strict=False):
                if before != after:
                    return f"an output of the model would be {list(after)} instead of {list(before)}"
            if len(expected) != len(found):
                return f"the model would give {len(found)} outputs instead of {len(expected)}"
        return None


def _shapes(tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def settle(bundles: Sequence[Sequence[T]], works: Callable[[Sequence[T]], str | None]) -> tuple[list[T], list[tuple[T, str]]]:
    """Find the changes that work together, by halves: mostly all do, and one run shows it.

    Args:
        bundles: Changes that only work together share a bundle.
        works: Makes these changes, and no others, and says why they do not work, or None.

    Returns:
        The changes that were made, and those that were not with their reasons. The last call of `works` was with the former.
    """
    made: list[T] = []
    refused: list[tuple[T, str]] = []
    latest: list[T] | None = None

    def attempt(changes: list[T]) -> str | None:
        nonlocal latest
        latest = changes
        return works(changes)

    def add(part: Sequence[Sequence[T]]) -> None:
        items = [item for bundle in part for item in bundle]
        cause = attempt(made + items)
        if cause is None:
            made.extend(items)
        elif len(part) > 1:
            add(part[: len(part) // 2])
            add(part[len(part) // 2 :])
        elif len(items) > 1:
            add([[item] for item in items])
        else:
            refused.extend((item, cause) for item in items)

    if bundles:
        add(bundles)
    if latest != made:
        works(made)
    return made, refused


def tie_again(model: nn.Module, tied: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Make parameters one again that were one before and were cut to the same values one by one.

    Args:
        model: The changed model.
        tied: Groups of (module, attribute), from `tied_parameters` before the change.
    """
    for first, *others in tied:
        kept = _parameter(model, *first)
        for module, attribute in others:
            again = _parameter(model, module, attribute)
            if kept is not None and again is not None and kept.shape == again.shape and bool((kept == again).all()):
                setattr(model.get_submodule(module), attribute, kept)


def tied_parameters(model: nn.Module) -> list[list[tuple[str, str]]]:
    """Groups of (module, attribute) that hold the same parameter."""
    places: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((name, attribute))
    return [group for group in places.values() if len(group) > 1]


def _parameter(model: nn.Module, module: str, attribute: str) -> torch.Tensor | None:
    try:
        found = getattr(model.get_submodule(module), attribute, None)
    except AttributeError:
        return None
    return found


def layer_sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Name of every layer with weights -> its sizes by what they count."""
    return {name: _sizes(layer) for name, layer in weight_layers(model).items()}


_KEYS = {
    "in_channels": "inputs", "in_features": "inputs", "out_channels": "outputs", "out_features": "outputs",
    "embedding_dim": "columns", "embed_dim": "columns", "groups": "groups",
}  # fmt: skip


def _sizes(layer: nn.Module) -> dict[str, int]:
    found = {word: int(value) for key, word in _KEYS.items() if isinstance(value := getattr(layer, key, None), int)}
    return found or {f"columns of {name}": p.shape[-1] for name, p in layer.named_parameters(recurse=False) if p.dim()}


def describe_change(before: dict[str, int], after: dict[str, int]) -> str | None:
    """``16 instead of 32 outputs``; None where nothing changed."""
    parts = [f"{after[word]} instead of {size} {word}" for word, size in before.items() if word in after and after[word] != size]
    return ", ".join(parts) or None
