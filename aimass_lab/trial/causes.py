"""Why a variant is not faster, as far as it can be known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..compiled import is_compiled
from ..compression.base import Stage
from ..records import TrialPoint
from ..timing import percentile
from ..units import format_seconds, format_share
from .speed import Burst, Speeds
from .variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import nn

OVERHEAD_PER_LAYER_S = 30e-6
"""Starting one layer from Python costs eager torch 5 to 20 µs; a call that takes little more per layer is bound by that."""
PAGE_FAULT_S = 0.5e-6
"""Of one page that is touched for the first time and cleared by the kernel: 0.1 to 1 µs on current Linux."""
FAULTS_SHARE = 0.1
"""Of a call's time, from which page faults are named as a cause."""
SMALL_SHARE = 0.5
"""Of the weights, below which it is said that most of the model was left as it was."""


def runs_uncompiled(variant: Variant, original: nn.Module) -> bool:
    """Whether the user compiled the model, and nothing runs the copy in the compiler's place."""
    return is_compiled(original) and bool(variant.techniques) and all(t.stage is not Stage.RUNTIME for t in variant.techniques)


def find_causes(variant: Variant, original: nn.Module, speeds: Speeds, batch_size: int, device: torch.device) -> tuple[str, ...]:
    """What keeps `variant` from being faster at one batch size: one sentence each.

    Args:
        variant: The copy with the recipe applied.
        original: The model.
        speeds: What the comparison of speed gave.
        batch_size: Items per call.
        device: Where both run.
    """
    if not variant.techniques:
        return ("nothing was changed: this is the control, whose interval shows what the comparison can resolve",)
    several = len(variant.techniques) > 1
    found = []
    for number, (technique, step, model) in enumerate(zip(variant.techniques, variant.steps, variant.found, strict=True), 1):
        where = f"step {number}, {step.step.technique}: " if several else ""
        found += [f"{where}{cause}" for cause in technique.causes(model, batch_size, device)]
    found += _not_compiled(variant, original)
    found += _graph_breaks(variant.model)
    found += _small_coverage(variant)
    found += _launch_bound(original, speeds.calls_s("original"), batch_size)
    found += _page_faults(speeds.original, speeds.variant)
    return tuple(dict.fromkeys(found))


def _not_compiled(variant: Variant, original: nn.Module) -> Iterator[str]:
    if runs_uncompiled(variant, original):
        yield "the original runs through torch.compile, and this copy does not"


def _graph_breaks(model: nn.Module) -> Iterator[str]:
    breaks: tuple[str, ...] = getattr(model, "graph_breaks", ())
    if breaks:
        places = "one place" if len(breaks) == 1 else f"{len(breaks)} places"
        yield f"torch.compile had to cut the model in {places} and goes back to Python there: {breaks[0]}"


def _small_coverage(variant: Variant) -> Iterator[str]:
    shares = [float(step.weight_share.value) for step in variant.steps if step.layers]
    if shares and max(shares) < SMALL_SHARE:
        most = max(variant.steps, key=lambda step: float(step.weight_share.value))
        layers = f"{most.num_changed_layers.value:g} of {most.num_layers.value:g} layers were changed"
        yield f"{format_share(1 - max(shares))} of the weights were left as they were: {layers}"


def _launch_bound(original: nn.Module, calls_s: Sequence[float], batch_size: int) -> Iterator[str]:
    latency_s = percentile(calls_s, 50)
    num_leaves = sum(1 for module in original.modules() if not any(module.children()))
    per_layer_s = latency_s / num_leaves
    if per_layer_s < OVERHEAD_PER_LAYER_S:
        each = f"one call takes {format_seconds(latency_s)} for {num_leaves} modules, {format_seconds(per_layer_s)} each"
        yield f"{each}: at batch {batch_size} most of that is the overhead of starting operators, which stays"


def _page_faults(original: Sequence[Burst], variant: Sequence[Burst]) -> Iterator[str]:
    before, after = (percentile([b.page_faults for b in side], 50) for side in (original, variant))
    seconds = percentile([b.seconds for b in variant], 50)
    if (after - before) * PAGE_FAULT_S > FAULTS_SHARE * seconds:
        yield (
            f"a call of the variant touches {after:,.0f} pages of memory anew, one of the original {before:,.0f}: "
            "its intermediate results are returned to the system after each call and cleared again for the next"
        )


def across_sizes(points: Sequence[TrialPoint]) -> Iterator[str]:
    """What the comparison of batch sizes itself says about the cause."""
    faster = [p.batch_size for p in points if p.verdict == "faster"]
    others = [p.batch_size for p in points if p.verdict in ("no gain", "slower")]
    if faster and others and max(others) < min(faster):
        yield f"it pays from batch {min(faster)} on: at {_listed(others)} a call has too little arithmetic for what the technique saves"
    if faster and others and max(faster) < min(others):
        yield f"it pays up to batch {max(faster)}: at {_listed(others)} arithmetic outweighs what the technique saves, such as reading weights"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(f"batch {size}" for size in sorted(sizes))
