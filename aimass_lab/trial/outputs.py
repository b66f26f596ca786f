"""Runs original and variant on the same samples, and compares what comes out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, UnsupportedError, first_line
from ..fast_path import ROUNDING, filled_by_fast_path
from ..records import Note
from ..workload import Call, Workload, call_model
from .fidelity import MetricComparison, OutputComparison, compare_metric, join_batches, take_items
from .variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import nn

FEW_SAMPLES = 32
"""Of which even a full agreement leaves a tenth of all cases open."""


@dataclass(frozen=True)
class Pair:
    """Original and variant, to be called alike."""

    workload: Workload
    original: nn.Module
    """The user's model, or a copy of it that lies in memory as freshly as the variant."""
    variant: Variant

    def run_original(self, call: Call) -> Any:
        """Call the original."""
        return call_model(self.original, call)

    def run_variant(self, call: Call) -> Any:
        """Call the variant.

        Raises:
            UnsupportedError: it raised.
        """
        try:
            return call_model(self.variant.model, call)
        except ModelError as error:
            cause = error.__cause__ or error
            what = f"{self.variant.name} gives a model that does not run on {call.describe()}"
            empty = _layer_without_rows(self.variant.model, cause)
            if empty is None:
                raise UnsupportedError(f"{what}: {type(cause).__name__}: {first_line(cause)}") from cause
            help = "a model that sends each row to some of its layers may send none to others: int8_weight_only and onnxruntime(quantize=dynamic) take that"
            raise UnsupportedError(f"{what}: its layer {empty!r} got no rows there, and cannot do without after {self.variant.name}", help=help) from cause

    def outputs(self, call: Call) -> tuple[Any, Any]:
        """Outputs of both, from the same random numbers: a model may draw some."""
        import torch

        torch.manual_seed(0)
        original = self.run_original(call)
        torch.manual_seed(0)
        return original, self.run_variant(call)


def _layer_without_rows(model: nn.Module, error: BaseException) -> str | None:
    """Name of the innermost module that `error` passed through, if it was called with a tensor that holds nothing; else None."""
    import torch
    from torch import nn

    names = {module: name for name, module in model.named_modules()}
    calls = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is nn.Module._call_impl.__code__]
    within = [(names[held["self"]], held["args"]) for held in calls if held.get("self") in names]
    if not within or not any(isinstance(argument, torch.Tensor) and not argument.numel() for argument in within[-1][1]):
        return None
    return within[-1][0]


@dataclass(frozen=True)
class Outputs:
    """How the outputs of a variant differ from the original's."""

    comparison: OutputComparison
    metric: MetricComparison | None
    notes: tuple[Note, ...]


def compare_outputs(pair: Pair, batch_size: int, *, budget_s: float, report: Callable[[float], None] = lambda share: None) -> Outputs:
    """Compare outputs, and the metric if there is one, on as many samples as the time allows, at least one batch.

    The samples are the labelled data where there is some, else the example inputs; the last batch is filled up to `batch_size`, because
    each new shape would be compiled anew.

    Args:
        pair: What to compare.
        batch_size: Items per call.
        budget_s: Seconds after which no further batch is begun.
        report: Called with the share of the samples that is done.
    """
    workload = pair.workload
    samples = workload.data[0] if workload.data else workload.call
    rows = _order(samples.batch_size, batch_size)
    comparison = OutputComparison()
    kept: list[tuple[Any, Any, Call]] = []
    deadline = time.perf_counter() + budget_s
    num_done = 0
    for part_rows in rows.split(batch_size):
        if num_done and time.perf_counter() > deadline:
            break
        report(num_done / len(rows))
        part = samples.take(part_rows)
        batch = part.with_batch(batch_size)
        original, variant = pair.outputs(batch)
        comparison.add(original, variant, batch, part_rows.tolist())
        num_done += len(part_rows)
        if workload.metric is not None:
            own = _order(len(part_rows), len(part_rows))
            kept.append((take_items(original, own, batch), take_items(variant, own, batch), part))
    metric = None
    if not comparison.num_lost and not comparison.mismatch:
        metric = _compare_metric(workload, rows[:num_done], kept)
    differs = not max(comparison.relative_errors()) <= ROUNDING
    return Outputs(comparison, metric, (*(_padding(pair, batch) if differs else ()), *_notes(num_done, samples.batch_size)))


def _order(num_samples: int, batch_size: int) -> torch.Tensor:
    """The order in which samples are compared: if not all come in one batch, a random one, so that the first ones stand for all."""
    import torch

    return torch.arange(num_samples) if num_samples <= batch_size else torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))


def _padding(pair: Pair, call: Call) -> tuple[Note, ...]:
    """That padded places count as a difference, where one of the two fills them and the other does not."""
    original, variant = (filled_by_fast_path(model, call) for model in (pair.original, pair.variant.model))
    if original == variant:
        return ()
    text = (
        f"{', '.join(map(repr, original or variant))}: where items are padded, torch's fused kernels leave zeros, and only one of the two runs through them; "
        "what the layers of the other compute there counts as a difference: give data and a metric that leaves the padded places out"
    )
    return (Note(code="W-PADDING", text=text),)


def _compare_metric(workload: Workload, rows: torch.Tensor, outputs: list[tuple[Any, Any, Call]]) -> MetricComparison | None:
    """The user's metric on the outputs of the samples `rows`; None without one."""
    if workload.data is None or workload.metric is None:
        return None
    inputs, labels = workload.data
    calls = [call for _, _, call in outputs]
    joined = [join_batches([parts[which] for parts in outputs], calls) for which in (0, 1)]
    return compare_metric(workload.metric, joined[0], joined[1], labels[rows.to(labels.device)], inputs.take(rows))


def _notes(num_samples: int, num_available: int) -> tuple[Note, ...]:
    found = []
    if num_samples < num_available:
        text = f"outputs were compared on {num_samples} of {num_available} samples, drawn at random, to keep to the time; give a larger budget for all"
        found.append(Note(code="W-SUBSET", text=text))
    if num_samples < FEW_SAMPLES:
        number = f"{num_samples} sample{'s' * (num_samples != 1)}"
        found.append(Note(code="W-FEW-SAMPLES", text=f"fidelity rests on {number}; give more, real ones: Study(model, inputs, data=(inputs, labels))"))
    return tuple(found)
