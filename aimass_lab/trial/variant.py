"""A copy of a model with a recipe applied."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compiled import is_compiled
from ..compression.base import Context, Progress, Technique, weight_layers, weight_shares
from ..errors import AimassError, DoesNotFitError, UnsupportedError, first_line
from ..preserve import COPY_LIMIT_BYTES, preserved, private_copy
from ..quiet import import_quietly
from ..recipe import check_recipe, check_step
from ..records import LayerChange, Number, Recipe, Step, StepReport, Unit
from ..timing import stopwatch
from ..units import format_bytes
from ..workload import Workload, digest_model, is_out_of_memory, weight_bytes
from .beginnings import Beginnings

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Variant:
    """A copy of a model with a recipe applied."""

    model: nn.Module
    """To be called like the original."""
    recipe: Recipe
    techniques: tuple[Technique, ...]
    """Of the recipe's steps."""
    steps: tuple[StepReport, ...]
    """What each step did."""
    found: tuple[nn.Module, ...]
    """What each step was applied to: the original, then models with the shapes that the step before left, and without values."""
    original_digest: str
    """Of the model that was copied, to tell whether it changed since."""
    apply_time_s: float
    """Copying the model and changing the copy; steps that were taken from an earlier recipe count with what they took then."""
    peak_bytes: int | None
    """Most memory above what the process held before; None where that cannot be read."""
    size_bytes: int
    """Weights of the copy, in memory."""

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.name

    @property
    def compiles(self) -> bool:
        """Whether a first call includes a compilation."""
        return is_compiled(self.model) or any(technique.compiles for technique in self.techniques)

    def release(self) -> None:
        """Give the memory of the weights back, whoever still refers to the model; it cannot be called any more."""
        for module in self.model.modules():
            module._parameters.clear()
            module._buffers.clear()
            if callable(close := getattr(module, "close", None)) and type(module).__module__.startswith(__name__.partition(".")[0]):
                close()  # a runtime holds its own copy of the weights


def apply_recipe(
    workload: Workload, recipe: Recipe, *, batch_size: int | None = None, progress: Progress | None = None, beginnings: Beginnings | None = None
) -> Variant:
    """Apply a recipe to a copy of the model; the model itself is not touched.

    Args:
        workload: The model and what it is called with.
        recipe: The steps and their seed.
        batch_size: Items per call that the copy will be tried with; as many as the example inputs hold if not given.
        progress: Called with the share done and what is being done.
        beginnings: Where the steps up to the last training are taken from, if an earlier recipe of the same model had them too, and kept.

    Raises:
        UnknownNameError: there is no such technique.
        InputError: an option or the batch size cannot be used.
        MissingPackageError: a technique needs a package that is not installed.
        UnsupportedError: a step cannot stand where it does, or is not possible on this model or device.
        DoesNotFitError: there is no memory for a copy.
        ModelError: the model cannot be copied.
    """
    call = workload.call if batch_size is None else workload.call.with_batch(batch_size)
    device = workload.torch_device
    if device.type == "meta":
        raise UnsupportedError("the model is on the meta device: it has no weights that could be changed", help="load the weights first")
    context = Context.of(workload, call=call, seed=recipe.seed, progress=progress)
    techniques = check_recipe(recipe, context)
    if techniques:
        check_step(recipe.steps[0], techniques[0], context.original, context)
    _check_memory(workload.model, device)
    _import_libraries(techniques)
    with stopwatch() as seconds, preserved(workload.model):
        begun = beginnings.find(recipe) if beginnings is not None else None
        model = private_copy(begun.model if begun else workload.model, alike=not techniques)  # the control has to be like the original
        reports: list[StepReport] = list(begun.reports) if begun else []
        found: list[nn.Module] = list(begun.found) if begun else []
        context.constraints.extend(begun.constraints if begun else ())
        for step, technique in list(zip(recipe.steps, techniques, strict=True))[len(reports) :]:
            context.progress(0.0, step.name)
            found.append(_without_values(model) if found else context.original)
            model, report = _apply(step, technique, model, context)
            reports.append(report)
            if technique.learns and beginnings is not None:
                beginnings.keep(recipe, model, reports, found, context.constraints, private_copy)
        apply_time_s = seconds() + (begun.apply_time_s if begun else 0.0)
    peaks = [int(report.peak_memory.value) for report in reports if report.peak_memory is not None]
    return Variant(
        model=model, recipe=recipe, techniques=techniques, steps=tuple(reports), found=tuple(found),
        original_digest=digest_model(workload.model), apply_time_s=apply_time_s,
        peak_bytes=max(peaks) + weight_bytes(workload.model) if peaks else None, size_bytes=weight_bytes(model),
    )  # fmt: skip


def _import_libraries(techniques: Sequence[Technique]) -> None:
    """Load what the steps need, so that no step is charged with it."""
    for package in dict.fromkeys(package for technique in techniques for package in technique.requires):
        import_quietly(package.replace("-", "_"))


def _check_memory(model: nn.Module, device: torch.device) -> None:
    """A trial holds one copy to change, and of a small model a second one: to put values back after applying, and then to compare with."""
    from ..profiling.memory import free_bytes

    size = weight_bytes(model)
    needed = size + (size if size <= COPY_LIMIT_BYTES else 0)
    free = free_bytes(device)
    if needed > free:
        raise DoesNotFitError(
            f"a trial works on copies of the model, which need {format_bytes(needed)}; {format_bytes(max(free, 0))} are free on {device}",
            help="release earlier variants with undo, or other models, and try again",
        )


def _without_values(model: nn.Module) -> nn.Module:
    """The same modules with tensors of the same shapes that hold nothing; `model` itself where it cannot be had that way."""
    import torch

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        hollow = tensor.detach().to("meta")
        return torch.nn.Parameter(hollow, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else hollow

    try:
        return copy.deepcopy(model, {id(tensor): empty(tensor) for tensor in (*model.parameters(), *model.buffers())})
    except Exception:  # any kind of tensor may refuse; what a step found is asked for causes only
        return model


def _apply(step: Step, technique: Technique, model: nn.Module, context: Context) -> tuple[nn.Module, StepReport]:
    """Apply one step to the copy and write down what it did."""
    import torch

    from ..profiling.memory import begin_peak, peak_since

    context.begin_step()
    check_step(step, technique, model, context)
    layers, eligible = weight_layers(model), set(technique.eligible(model))
    kinds = {name: type(layer).__name__ for name, layer in layers.items()}
    left = {name: technique.why_left(name, layer) for name, layer in layers.items() if name not in eligible}
    shares = weight_shares(layers)
    held = begin_peak(context.device)
    with stopwatch() as seconds:
        try:
            torch.manual_seed(context.seed)
            with torch.no_grad():
                changed = technique.apply(model, context)
        except AimassError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise DoesNotFitError(f"there was not enough memory to apply {step.name}") from error
            raise UnsupportedError(f"{step.name} cannot be applied to this model: {first_line(error)}") from error
        apply_time_s = seconds()
    peak = None if held is None else max(0, peak_since(context.device) - held)
    left |= context.left
    done = {name: context.changed.get(name, "changed") for name in layers if name in context.changed or (name in eligible and name not in left)}
    changes = tuple(
        LayerChange(name=name, type=kinds[name], changed=name in done, detail=done.get(name) or left.get(name, "left as it was")) for name in layers
    )
    return changed, _report(step, changes, min(1.0, math.fsum(shares[name] for name in done)), apply_time_s, peak, context)


def _report(step: Step, layers: tuple[LayerChange, ...], weight_share: float, apply_time_s: float, peak_bytes: int | None, context: Context) -> StepReport:
    return StepReport(
        step=step,
        num_changed_layers=counted(sum(layer.changed for layer in layers), "layer", "layers that the step changed"),
        num_layers=counted(len(layers), "layer", "layers that held weights before the step"),
        weight_share=Number(value=weight_share, unit="ratio", source="measured", method="elements of weights in changed layers"),
        apply_time=Number(value=apply_time_s, unit="s", source="measured", method="applying the step, once", n=1),
        peak_memory=None if peak_bytes is None else counted(peak_bytes, "B", "high-water mark of the process above what it held before the step"),
        layers=layers,
        notes=tuple(context.notes),
    )


def counted(value: int, unit: Unit, method: str) -> Number:
    """What was counted, and so has no spread."""
    return Number(value=value, unit=unit, source="measured", method=method)
