"""Run a model, or any code, and write down what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import InputError
from ..interrupts import sparing_imports
from ..records import CellProfile, ModelSummary, Profile

if TYPE_CHECKING:
    from ..workload import Workload

__all__ = ["profile_callable", "profile_model"]


@sparing_imports
def profile_model(
    workload: Workload,
    *,
    batch_size: int | None = None,
    ladder: Sequence[int] | None = None,
    budget_s: float = 4.0,
    force: bool = False,
    progress: Callable[[float, str], None] | None = None,
    seen: Callable[[ModelSummary], None] | None = None,
) -> Profile:
    """Measure latency, memory and time by module of one model; the model is left as it was.

    Latencies are taken with every hook and profiler off, in eval mode, under `torch.inference_mode`.

    Args:
        workload: Model and example inputs.
        batch_size: Items per call; those of the inputs if not given.
        ladder: Batch sizes to measure as well. None: powers of two for as long as `budget_s` allows;
            sizes that are named are measured however long they take.
        budget_s: Seconds to spend. A model whose calls are slow takes longer: a few are always made.
        force: Run even if the estimate says that the batch does not fit into memory.
        progress: Called now and then with the share that is done and what comes next.
        seen: Given what is known of the model before it runs: at once, and again when its operators were counted.

    Raises:
        InputError: an argument that cannot be used.
        ModelError: the model raised on these inputs.
        DoesNotFitError: the batch needs more memory than is free; known before anything runs unless forced.
        UnsupportedError: the model is on the meta device and cannot run.
    """
    from ..environment import LoadMeter
    from .summary import look_first

    workload.require_weights("load them, or ask what needs none: demand, sequence, predict, and plan and spec for a device of the catalogue, --device h100-sxm")
    if not (isinstance(budget_s, (int, float)) and math.isfinite(budget_s) and budget_s > 0):
        raise InputError(f"a time budget of {budget_s!r} s cannot be kept", help="give seconds above 0")
    size = workload.call.batch_size if batch_size is None else batch_size
    for wanted in (size, *(ladder or ())):
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise InputError(f"batch size {wanted!r} is not a positive integer")
    if progress is not None:
        progress(0.0, "reading the model")
    trace = look_first(workload, size, seen)
    from .measure import Measurement  # what runs and times a model takes long to load: not before the first look
    from .report import Report

    with LoadMeter() as load:
        measured = Measurement(workload, batch_size=size, ladder=ladder, budget_s=budget_s, force=force, progress=progress, trace=trace).run()
    return Report(workload, measured, load).make()


@sparing_imports
def profile_callable(function: Callable[[], object], *, label: str) -> CellProfile:
    """Run `function` exactly once and write down what it took.

    An exception, an interrupt included, stands in `CellProfile.raised`; it is for the caller to raise it again.

    Args:
        function: What to run.
        label: What to call it in the notes: ``"cell [7]"``.
    """
    from .cell import profile_callable as measure_callable

    return measure_callable(function, label=label)
