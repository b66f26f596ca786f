"""A format for each layer: as few bytes as the outputs allow, by what each layer is measured to do to them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import InputError, ModelError, UnsupportedError
from ..options import Positive, Share
from ..records import Note
from ..units import format_share
from ..workload import storage_sizes, weight_bytes
from ._linear_weights import LinearWeights
from ._mixture import Choice, Increment, largest_passing, order_increments
from ._sensitivity import OutputError, changed_layer
from ._ties import tied_layers
from .base import TECHNIQUES, Context, Form, Stage, Technique, make_technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

CASTS = ("bf16", "fp16")
INTEGERS = ("int8_weight_only", "int8_dynamic", "int4_weight_only", "fp8")
DEFAULT_ERROR = 0.01
BATCH_SIZE = 32


@TECHNIQUES.register("mixed_precision")
@dataclass(frozen=True, kw_only=True)
class MixedPrecision(Technique):
    """Give each layer its own number of bits, most where the outputs depend on it most, within a budget of error or of size."""

    requires: ClassVar[tuple[str, ...]] = ("torchao",)
    effort: ClassVar[float] = 5.0
    changes: ClassVar[str] = "linear layers, convolutions and embeddings (nn.Linear, nn.Conv1d to nn.Conv3d, nn.Embedding)"
    stage: ClassVar[Stage] = Stage.PRECISION
    gives: ClassVar[Form | None] = "quantized"

    max_relative_error: Share | None = None
    """What the outputs may differ at most: L2 norm of the difference over that of the outputs; 0.01 where size_ratio is not given either."""
    size_ratio: Share | None = None
    """What the weights may take at most of the bytes that they took, with the smallest error that is found for that; instead of max_relative_error."""
    formats: str = "bf16/int8_dynamic"
    """Formats to choose from, with / between them: bf16, fp16, int8_weight_only, int8_dynamic, int4_weight_only, fp8; layers may also stay as they are.
    Of two that take the same bytes, the one with the smaller error is chosen."""
    num_samples: Positive = 16
    """Samples that errors are measured on: training samples where there are some, else the example inputs. The model is run on them once
    for each layer and format, and about ten times more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_relative_error is not None and self.size_ratio is not None:
            raise InputError("max_relative_error and size_ratio are both given", help="give one of them: it is the budget, the other is what comes of it")
        unknown = [name for name in self._names if name not in CASTS + INTEGERS]
        if unknown or not self._names:
            raise InputError(f"formats {self.formats!r} names {unknown[0] if unknown else 'nothing'}", help=f"there are: {'/'.join(CASTS + INTEGERS)}")

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.formats.split("/") if name.strip())

    @property
    def _techniques(self) -> dict[str, Technique]:
        return {name: make_technique(name) for name in self._names}

    def unavailable(self, context: Context) -> str | None:
        """Every format must be possible here."""
        for name, technique in self._techniques.items():
            lacking = technique.unavailable(context)
            if lacking is not None:
                return f"the format {name} is not: {lacking}"
        return super().unavailable(context)

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Layers that some format fits."""
        layers = weight_layers(model)
        ties = tied_layers(model)
        return tuple(name for name, layer in layers.items() if name not in ties and self._fitting(layer))

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Its kind, shared weights, or formats that are not for it."""
        if self._fitting(layer):
            return "it shares its weight with another layer: changed alone, the two would be cut apart"
        return f"none of the formats {', '.join(self._names)} fits this {type(layer).__name__}"

    def _fitting(self, layer: nn.Module) -> dict[str, Callable[[nn.Module], None]]:
        """Format -> what makes it of a layer, for those that fit."""
        return {name: change for name, technique in self._techniques.items() if (change := _change(technique, layer)) is not None}

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Measure each layer in each format, choose, and verify the choice as a whole.

        Raises:
            UnsupportedError: the budget cannot be met.
        """
        from ..preserve import preserved

        before = weight_bytes(model)
        with preserved(model):
            error = OutputError.of(model, context, num_samples=self.num_samples, batch_size=BATCH_SIZE)
            choices = self._measure(model, error, context)
            increments = order_increments(choices)
            num_taken, total = self._within_budget(model, error, increments, before, context)
        taken = {step.choice.layer: step.choice for step in increments[:num_taken]}
        if not taken:
            smallest = min((c.error for c in choices if math.isfinite(c.error)), default=math.inf)
            raise UnsupportedError(
                f"mixed_precision leaves every layer as it is: the smallest error of a single layer in {' or '.join(self._names)} is {smallest:.2g}",
                help="allow a larger max_relative_error, or name other formats",
            )
        self._tell(choices, taken, context)
        for name, choice in taken.items():
            _change(self._techniques[choice.format], model.get_submodule(name))(model.get_submodule(name))  # type: ignore[misc]
        saved = 1 - weight_bytes(model) / before
        differ = f"the outputs of {error.num_samples} samples differ by {total:.2g} (relative)"
        text = f"{len(taken)} layers changed: {differ}, and the weights take {format_share(saved)} less"
        context.notes.append(Note(code="mixed_precision", text=text))
        return model

    def _measure(self, model: nn.Module, error: OutputError, context: Context) -> list[Choice]:
        """Each eligible layer in each fitting format: bytes saved and error of the outputs."""
        found = []
        names = self.eligible(model)
        for i, name in enumerate(names):
            context.progress(0.8 * i / len(names), f"measuring {name or 'the model'} in {' and '.join(self._names)}")
            layer = model.get_submodule(name)
            for form, change in self._fitting(layer).items():
                with changed_layer(model, name, change) as tried:
                    changed = tried.get_submodule(name)
                    saved = _own_bytes(layer) - _own_bytes(changed)
                    try:
                        measured = error.measure(tried)
                    except ModelError:  # a fused kernel may read the weight without calling the layer
                        measured = math.inf
                found.append(Choice(layer=name, format=form, error=measured, saved_bytes=saved))
        return found

    def _within_budget(
        self, model: nn.Module, error: OutputError, increments: Sequence[Increment], before: int, context: Context
    ) -> tuple[int, float]:  # fmt: skip
        """How many of the increments to take, and the measured error of all of them together."""
        if self.size_ratio is not None:
            num_taken = _until(increments, before * (1 - self.size_ratio))
            if num_taken is None:
                reached = 1 - sum(step.saved_bytes for step in increments) / before
                raise UnsupportedError(
                    f"size_ratio {self.size_ratio} cannot be reached: with every layer in its smallest format the weights take {reached:.2f} of what they took",
                    help="name smaller formats, for example formats=int8_weight_only/int4_weight_only, or allow more",
                )
            return num_taken, self._error_of(model, error, increments[:num_taken])
        limit = DEFAULT_ERROR if self.max_relative_error is None else self.max_relative_error
        measured: dict[int, float] = {0: 0.0}

        def holds(count: int) -> bool:
            context.progress(0.9, f"verifying {count} changes together")
            measured[count] = self._error_of(model, error, increments[:count])
            return measured[count] <= limit

        count = largest_passing(len(increments), holds)
        return count, measured[count]

    def _error_of(self, model: nn.Module, error: OutputError, increments: Sequence[Increment]) -> float:
        """Error of the outputs with all of `increments` taken."""
        techniques = self._techniques
        with contextlib.ExitStack() as stack:
            tried = model
            for name, choice in {step.choice.layer: step.choice for step in increments}.items():
                change = _change(techniques[choice.format], model.get_submodule(name))
                tried = stack.enter_context(changed_layer(model, name, change))  # type: ignore[arg-type]
            return error.measure(tried)

    def _tell(self, choices: Sequence[Choice], taken: Mapping[str, Choice], context: Context) -> None:
        """For each layer its format, and what the formats alone do to the outputs."""
        for name in dict.fromkeys(choice.layer for choice in choices):
            errors = ", ".join(
                f"{c.error:.2g} as {c.format}" if math.isfinite(c.error) else f"it does not run as {c.format}" for c in choices if c.layer == name
            )
            if name in taken:
                context.changed[name] = f"{taken[name].format}; alone it changes the outputs by {errors}"
            else:
                context.left[name] = f"it stays as it was: alone it changes the outputs by {errors}"

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Those of its formats, and the borders between them."""
        own = "values are converted wherever a layer in 16 bits meets one that is not, at every call"
        parts = [cause for technique in self._techniques.values() for cause in technique.causes(model, batch_size, device)]
        return tuple(dict.fromkeys([*parts, *([own] if set(self._names) & set(CASTS) else [])]))


def _change(technique: Technique, layer: nn.Module) -> Callable[[nn.Module], None] | None:
    """What makes the technique's format of a layer like this one; None where it does not fit."""
    from torch import nn

    from .base import linear_layers

    if isinstance(technique, LinearWeights):
        fits = "" in linear_layers(layer) and technique.misfit(layer) is None  # type: ignore[arg-type]
        return technique.change_layer_ if fits else None  # type: ignore[return-value]
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    if not isinstance(layer, kinds) or isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear) or not technique.eligible(layer):
        return None
    return functools.partial(_cast_, dtype=technique.dtype)  # type: ignore[attr-defined]


def _cast_(layer: nn.Module, dtype: torch.dtype) -> None:
    from ._cast import cast_model_

    cast_model_(layer, dtype)


def _own_bytes(layer: nn.Module) -> int:
    return sum(storage_sizes(layer.parameters(recurse=False)).values())


def _until(increments: Sequence[Increment], bytes_to_save: float) -> int | None:
    """How many increments save that many bytes; None where all of them do not."""
    saved = 0
    for i, step in enumerate(increments):
        saved += step.saved_bytes
        if saved >= bytes_to_save:
            return i + 1
    return None
