"""Memory and FLOPs of one training step, without making it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import AimassError
from ..prediction.target import TargetDevice
from ..records import Number, TrainingDemand, Unit
from ..tracing.law import support
from ..tracing.training import TrainingTrace, trace_training
from ..workload import Workload, storage_sizes
from .memory import CallMemory, Part
from .report import ledger, place_of, total_of


@dataclass(frozen=True)
class AtPeak:
    """What is alive at the highest moment of a step."""

    gradients: int
    activations: int
    """Made by the forward pass and still needed."""
    temporaries: int


def estimate_training(workload: Workload, batch_size: int, target: TargetDevice, optimizer: str) -> TrainingDemand:
    """Follow one training step and say what it holds.

    Args:
        workload: The model; its loss is the sum of the means of its outputs, or the outputs' own.
        batch_size: Items per step.
        target: What `fits` is about.
        optimizer: "adamw", "sgd" or "none".

    Raises:
        InputError: no such optimizer, nothing to train, or no output with a gradient.
        ModelError: the step cannot be followed.
    """

    def follow(size: int, may_run: bool) -> TrainingTrace:
        return trace_training(workload.model, workload.call, batch_size=size, optimizer=optimizer, foreach=target.kind == "gpu", may_run=may_run)

    trace = follow(batch_size, True)
    memory = CallMemory(trace, _pair(trace, follow), target, _resident(workload, trace))
    moment = memory.moment(batch_size)
    alive = at_peak(trace, moment.row if moment.row is not None else trace.peak_row)
    parts = _parts(workload, trace, memory, alive)
    numbers = ledger(parts, measured=trace.ran)
    driver = total_of(numbers)
    value, least, most = memory.torch_bytes(batch_size)
    limit = target.memory
    largest = None if limit is None else memory.largest_batch(limit.value)
    how = "counted over one real step" if trace.ran else "one training step followed by shapes, no data"

    def number(value: float, unit: Unit, method: str) -> Number:
        return Number(value=value, unit=unit, source="measured" if trace.ran else "estimated", method=method)

    return TrainingDemand(
        optimizer=optimizer,
        forward_flops=number(trace.flops_of("forward"), "FLOP", how),
        backward_flops=number(trace.flops_of("backward"), "FLOP", how),
        gradient_bytes=number(trace.gradient_bytes, "B", f"{how}: one for every trained parameter"),
        optimizer_state_bytes=number(trace.optimizer_state_bytes, "B", f"{how}: what {optimizer} keeps from step to step"),
        saved_activation_bytes=number(trace.saved_activation_bytes, "B", f"{how}: alive when the forward pass ends"),
        peak_memory_bytes=Number(
            value=round(value), unit="B", source="measured" if trace.ran else "estimated", method=f"{how}: weights, optimizer state, inputs and the step",
            interval=(min(least, round(value)), max(most, round(value))), interval_kind="band: operators' own workspaces",
        ),
        memory=numbers,
        driver_bytes=driver,
        peak_at=place_of(memory.row(moment)),
        fits=None if limit is None else driver.value <= limit.value,
        max_batch_size=None if largest is None else Number(
            value=largest, unit="item", source="estimated", method="largest batch whose upper end of the memory band stays below the limit",
        ),
    )  # fmt: skip


def at_peak(trace: TrainingTrace, row: int | None) -> AtPeak:
    """Split what is alive after the operator `row` by who made it: the forward pass, gradients that stay, and the rest."""
    if row is None:
        return AtPeak(0, 0, 0)
    made: dict[int, tuple[int, int]] = {}
    freed: dict[int, int] = {}
    for (key, size), at in zip(trace.events, trace.event_rows, strict=True):
        if size > 0:
            made[key] = (size, at)
        else:
            freed[key] = at
    gradients = activations = temporaries = 0
    for key, (size, at) in made.items():
        if at > row or freed.get(key, row + 1) <= row:
            continue
        phase = trace.rows[at].phase
        if phase == "backward" and key not in freed:
            gradients += size
        elif phase == "forward":
            activations += size
        else:
            temporaries += size
    return AtPeak(gradients, activations, temporaries)


def _pair(trace: TrainingTrace, follow: Callable[[int, bool], TrainingTrace]) -> tuple[TrainingTrace, TrainingTrace] | None:
    def at(size: int) -> TrainingTrace:
        return trace if size == trace.batch_size else follow(size, False)

    try:
        first, second = map(at, support(trace))
    except AimassError:  # inputs, or a model, that know one batch size only
        return None
    return first, second


def _resident(workload: Workload, trace: TrainingTrace) -> list[int]:
    """Weights, buffers and the optimizer's state, tensor by tensor; each state is as large as its parameter."""
    weights = list(storage_sizes([*workload.model.parameters(), *workload.model.buffers()]).values())
    trained = [p.numel() * p.element_size() for p in workload.model.parameters() if p.requires_grad]
    copies, rest = divmod(trace.optimizer_state_bytes, max(1, sum(trained)))
    return [*weights, *(size for _ in range(copies) for size in trained), rest]


def _parts(workload: Workload, trace: TrainingTrace, memory: CallMemory, alive: AtPeak) -> list[Part]:
    def exact(name: str, size: float, method: str) -> Part:
        return Part(name, size, size, size, method)

    buffers = buffer_bytes(workload.model)
    moment, rest = memory.moment(trace.batch_size), memory.parts(trace.batch_size)
    # The split by who made it is exact; the band of the whole moment stays with the temporaries and the workspace.
    under = moment.live - alive.gradients - alive.activations
    temporary = Part("temporaries", under, min(under, max(0.0, under - (rest[0].bytes - rest[0].least))), under, "the rest that is alive at the highest moment")
    return [
        exact("weights", trace.weight_bytes - buffers, "sizes of parameters, tied ones once"),
        exact("buffers", buffers, "sizes of buffers"),
        exact("optimizer state", trace.optimizer_state_bytes, "kept from step to step"),
        exact("inputs", trace.input_bytes, "sizes of the inputs"),
        exact("gradients", alive.gradients, "made by the backward pass until the highest moment"),
        exact("saved activations", alive.activations, "made by the forward pass and still needed at the highest moment"),
        temporary,
        *rest[1:],
    ]


def buffer_bytes(model: torch.nn.Module) -> int:
    """Of buffers that share no memory with a parameter."""
    parameters = storage_sizes(model.parameters())
    return sum(size for key, size in storage_sizes(model.buffers()).items() if key not in parameters)
