"""One recipe on a copy of the model, measured side by side with the original."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..interrupts import sparing_imports
from ..records import Recipe, TrialResult
from ..workload import Workload
from .session import Progress, TrialSession
from .variant import Variant
from .verdict import DEFAULT_MAX_DROP, DEFAULT_TOLERANCE


@sparing_imports
def run_trial(
    workload: Workload,
    recipe: Recipe,
    *,
    batch_sizes: Sequence[int] | None = None,
    threads: int | None = None,
    instances: int = 1,
    budget_s: float = 6.0,
    tolerance: float = DEFAULT_TOLERANCE,
    max_drop: float = DEFAULT_MAX_DROP,
    progress: Progress | None = None,
    variant: Variant | None = None,
) -> TrialResult:
    """Try one recipe: apply it to a copy, and compare speed and outputs with the original.

    Original and variant run side by side in this process, in turns whose order is drawn by lot,
    until the verdict is clear or the time is up. Outputs are compared on the labelled data
    where there is some, else on the example inputs. A keyboard interrupt ends the comparison
    and keeps what was measured, if that is at least 3 rounds.

    Args:
        workload: The model and what it is called with.
        recipe: What to try; the recipe without steps is the control.
        batch_sizes: Items per call, one verdict each; as many as the example inputs hold if not given.
        threads: Of one call, on the CPU; as many as torch is set to if not given.
        instances: Callers at the same time, threads of this process; the models take turns.
        budget_s: Seconds for comparing; copying, changing and compiling come on top.
        tolerance: Without a metric, outputs are equivalent if their mean cosine similarity is at
            least ``1 - tolerance`` and their relative error at most ``sqrt(2 * tolerance)``.
        max_drop: With a metric, the variant is equivalent if it loses at most this much of it.
        progress: Called with the share done and what is being done.
        variant: What `apply_recipe` made of the same recipe; made here, and released
            afterwards, if not given.

    Raises:
        InputError: an argument cannot be used, or the metric fails on the original's outputs.
        UnsupportedError: the recipe is not possible here, or its result does not run.
        ModelError: the original raised, or the model cannot be copied.
        DoesNotFitError: the memory does not suffice.
    """
    if variant is not None and variant.name != recipe.name:
        raise InputError(f"the variant was made by {variant.name!r}, and {recipe.name!r} is to be tried")
    with TrialSession(workload, tolerance=tolerance, max_drop=max_drop) as session:
        return session.try_recipe(
            recipe, batch_sizes=batch_sizes, threads=threads, instances=instances, budget_s=budget_s, progress=progress, variant=variant
        )  # fmt: skip
