"""A copy of a model with one technique applied."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compression.base import Coverage, Technique, changed_options, make_technique
from ..errors import AimassError, DoesNotFitError, ModelError, UnsupportedError
from ..preserve import COPY_LIMIT_BYTES
from ..records import Setting
from ..timing import stopwatch
from ..units import format_bytes
from ..workload import Workload, weight_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Variant:
    """A copy of a model with one technique applied."""

    model: nn.Module
    """To be called like the original."""
    setting: Setting
    """The technique, its options that differ from the defaults, and the batch size."""
    technique: Technique
    apply_time_s: float
    """Copying the model and changing the copy."""
    coverage: Coverage
    size_bytes: int
    """Weights of the copy."""

    def release(self) -> None:
        """Give the memory of the weights back, whoever still refers to the model; it cannot be called any more."""
        for module in self.model.modules():
            module._parameters.clear()
            module._buffers.clear()


def apply_setting(workload: Workload, setting: Setting) -> Variant:
    """Apply a technique to a copy of the model; the model itself is not touched.

    Args:
        workload: The model and what it is called with.
        setting: The technique, its options (text is read by the option's type) and the batch size.

    Raises:
        UnknownNameError: there is no such technique.
        InputError: an option or the batch size cannot be used.
        MissingPackageError: the technique needs a package that is not installed.
        UnsupportedError: the technique is not possible on this model or device.
        DoesNotFitError: there is no memory for a copy.
        ModelError: the model cannot be copied.
    """
    technique = make_technique(setting.technique, setting.options)
    call = workload.call if setting.batch_size is None else workload.call.with_batch(setting.batch_size)
    device = workload.torch_device
    if device.type == "meta":
        raise UnsupportedError("the model is on the meta device: it has no weights that could be changed", help="load the weights first")
    cause = technique.check(workload.model, call, device)
    if cause is not None:
        raise UnsupportedError(f"{setting.technique} is not possible here: {cause}")
    _check_memory(workload.model, device)
    coverage = technique.coverage(workload.model)
    with stopwatch() as seconds:
        model = _apply(technique, setting.technique, _private_copy(workload.model))
        apply_time_s = seconds()
    return Variant(
        model=model,
        setting=Setting(technique=setting.technique, options=changed_options(technique), batch_size=call.batch_size),
        technique=technique,
        apply_time_s=apply_time_s,
        coverage=coverage,
        size_bytes=weight_bytes(model),
    )


def _check_memory(model: nn.Module, device: torch.device) -> None:
    """A trial holds one copy to change, and while it compares a second one of a small model, to put its values back."""
    from ..profiling.memory import free_bytes

    size = weight_bytes(model)
    needed = size + (size if size <= COPY_LIMIT_BYTES else 0)
    free = free_bytes(device)
    if needed > free:
        raise DoesNotFitError(
            f"a trial works on copies of the model, which need {format_bytes(needed)}; {format_bytes(max(free, 0))} are free on {device}",
            help="release earlier variants with undo, or other models, and try again",
        )


def _private_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode.

    Raises:
        ModelError: something in the model cannot be copied.
        DoesNotFitError: the memory did not suffice.
    """
    import torch

    try:
        with torch.no_grad():
            duplicate = copy.deepcopy(model)
    except Exception as error:
        if _is_out_of_memory(error):
            raise DoesNotFitError("there was not enough memory for a copy of the model") from error
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}",
            help="a trial works on copy.deepcopy(model): remove what cannot be copied from the module's attributes "
            "(locks, open files, generators, results of earlier calls), or give the class a __deepcopy__",
        ) from error
    for module in duplicate.modules():
        module.__dict__["training"] = False  # by attribute, because a model may override train() to do more than set the flag
    return duplicate


def _apply(technique: Technique, name: str, model: nn.Module) -> nn.Module:
    import torch

    try:
        with torch.no_grad():
            return technique.apply(model)
    except AimassError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise DoesNotFitError(f"there was not enough memory to apply {name}") from error
        raise UnsupportedError(f"{name} cannot be applied to this model: {first_line(error)}") from error


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in text or "can't allocate memory" in text


def first_line(error: BaseException) -> str:
    """First line of the message; the error's class where there is none."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
