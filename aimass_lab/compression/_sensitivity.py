"""How much a model's outputs change when single layers are changed: measured on samples, one layer at a time."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..outputs import output_tensors
from ..preserve import preserved
from ..workload import Call, call_model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .base import Context

Change = Callable[["nn.Module"], "nn.Module | None"]
"""Changes the copy of a layer that it is given, or returns what is to stand in its place."""
NUM_SAMPLES = 64
"""Samples that outputs are compared on, where there are so many: enough to order layers, few enough to run once a layer."""
BATCH_SIZE = 32


@dataclass(frozen=True)
class OutputError:
    """What a model gives for samples, to hold changed copies of it against."""

    calls: tuple[Call, ...]
    expected: tuple[tuple[torch.Tensor, ...], ...]
    """The floating-point outputs of each call, values that are not finite (masked scores) as 0."""
    finite: tuple[tuple[torch.Tensor, ...], ...]

    @classmethod
    def of(cls, model: nn.Module, context: Context, *, num_samples: int = NUM_SAMPLES, batch_size: int = BATCH_SIZE) -> OutputError:
        """Run `model` on samples of `context`, in batches; the model is left as it was.

        Raises:
            ModelError: the model raised.
        """
        import torch

        calls, expected, finite = [], [], []
        with preserved(model), torch.no_grad():
            for call in context.batches(num_samples, batch_size):
                outputs = _floating(call_model(model, call))
                calls.append(call)
                finite.append(tuple(torch.isfinite(tensor) for tensor in outputs))
                expected.append(tuple(torch.where(mask, tensor, 0.0) for mask, tensor in zip(finite[-1], outputs, strict=True)))
        return cls(tuple(calls), tuple(expected), tuple(finite))

    @property
    def num_samples(self) -> int:
        """Samples that are compared."""
        return sum(call.batch_size for call in self.calls)

    def measure(self, model: nn.Module) -> float:
        """L2 norm of the difference of all outputs over that of the expected ones; infinite where a value is lost or shapes differ.

        Buffers that the model's forward writes stay written: whoever minds calls this under `preserved`.

        Raises:
            ModelError: the model raised.
        """
        import torch

        squared_error = squared_norm = 0.0
        with preserved(model, values=False), torch.no_grad():
            for call, expected, finite in zip(self.calls, self.expected, self.finite, strict=True):
                got = _floating(call_model(model, call))
                if [t.shape for t in got] != [t.shape for t in expected]:
                    return math.inf
                for before, mask, after in zip(expected, finite, got, strict=True):
                    difference = torch.where(mask, after.double() - before.double(), 0.0)
                    squared_error += float(difference.square().sum())
                    squared_norm += float(before.double().square().sum())
        if not math.isfinite(squared_error):
            return math.inf
        if squared_norm == 0:
            return 0.0 if squared_error == 0 else math.inf
        return math.sqrt(squared_error / squared_norm)


def layer_sensitivity(
    model: nn.Module,
    context: Context,
    changes: Mapping[str, Change],
    *,
    num_samples: int = NUM_SAMPLES,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Measure what changing each layer alone does to the outputs, on samples of `context`.

    Every change gets a copy of its layer, so `model` stays as it was, bit by bit; between two measurements it is whole again.

    Args:
        model: Whose layers are changed; the error is against its own outputs.
        context: Gives the samples, is told the progress.
        changes: Name of a layer, ``""`` for the model itself -> what is to be tried on it.
        num_samples: Most samples to compare on.
        batch_size: Samples per call.

    Returns:
        Layer -> L2 norm of the outputs' difference over that of the outputs; infinite where outputs are lost.

    Raises:
        ModelError: the model raised, unchanged or changed.
    """
    with preserved(model):
        error = OutputError.of(model, context, num_samples=num_samples, batch_size=batch_size)
        found = {}
        for i, (name, change) in enumerate(changes.items()):
            context.progress(i / len(changes), f"measuring what {name or 'the model'} does to the outputs")
            with changed_layer(model, name, change) as tried:
                found[name] = error.measure(tried)
    return found


@contextlib.contextmanager
def changed_layer(model: nn.Module, name: str, change: Change) -> Iterator[nn.Module]:
    """Put a changed copy of one layer in its place for a block, wherever it stands; yields the model to call."""
    layer = model.get_submodule(name)
    duplicate = copy.deepcopy(layer)
    replacement = change(duplicate)
    replacement = duplicate if replacement is None else replacement
    if name == "":
        yield replacement
        return
    places = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is layer]
    try:
        for parent, key in places:
            parent._modules[key] = replacement
        yield model
    finally:
        for parent, key in places:
            parent._modules[key] = layer


def _floating(outputs: object) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach() for _, tensor in output_tensors(outputs) if tensor.is_floating_point())
