"""The samples on which a trial's copy differs most from the original: as pictures where they are some, else as numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ....errors import first_line
from ....study import StudyState
from ._png import png_uri
from .base import FACTS
from .tries import newest_trials

if TYPE_CHECKING:
    import torch

    from ....workload import Workload

SHOWN = 6
"""Of each trial."""
SIDE = 48
"""Pixels; larger pictures are made smaller, for what is saved must stay small."""
FIRST_VALUES = 8
_known: WeakKeyDictionary[StudyState, dict[int, dict[str, Any]]] = WeakKeyDictionary()
"""Samples that were drawn before."""


@FACTS.register("samples")
def samples(study: StudyState) -> dict[str, dict[str, Any]]:
    """By index: ``image``, or ``values`` and ``shape``, or what is ``lacking``; and ``label`` where there is one."""
    known = _known.setdefault(study, {})
    wanted = {sample.index for _, record in newest_trials(study.results) for sample in record.worst_samples[:SHOWN]}
    for index in wanted - known.keys():
        known[index] = _drawn(study.workload, index)
    return {str(index): known[index] for index in sorted(wanted)}


def _drawn(workload: Workload, index: int) -> dict[str, Any]:
    try:
        return {"label": _label(workload, index), **_inputs(workload, index)}
    except Exception as error:  # a user's tensors may be of any kind, and the panel goes on without this one
        return {"label": None, "lacking": first_line(error)}


def _inputs(workload: Workload, index: int) -> dict[str, Any]:
    import torch

    call = workload.data[0] if workload.data else workload.call
    one = call.take(torch.tensor([index]))
    tensors = [t.detach().cpu() for t in one.tensors() if one.is_batched(t)]
    picture = next((t[0] for t in tensors if call.batch_axis == 0 and _is_picture(t)), None)
    if picture is not None:
        return {"image": _picture(picture)}
    if not tensors:
        return {"lacking": "no input holds one entry per item"}
    return {"shape": list(tensors[0].shape), "values": [*map(_plain, tensors[0].flatten()[:FIRST_VALUES].tolist())]}


def _plain(value: complex) -> float | str:
    """A number as JSON can carry it."""
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else str(value)


def _label(workload: Workload, index: int) -> int | None:
    labels = None if workload.data is None else workload.data[1]
    return None if labels is None or labels.dim() != 1 or labels.is_floating_point() else int(labels[index])


def _is_picture(tensor: torch.Tensor) -> bool:
    """Whether it looks like [items, channels, height, width]."""
    return tensor.dim() == 4 and tensor.shape[1] in (1, 3) and min(tensor.shape[2:]) >= 4 and not tensor.is_complex()


def _picture(sample: torch.Tensor) -> str:
    """[channels, height, width] of any range: its smallest value is black, its largest white."""
    import torch

    values = torch.nan_to_num(sample.float())
    shrink = max(values.shape[1:]) / SIDE
    if shrink > 1:
        height, width = (max(1, round(side / shrink)) for side in values.shape[1:])
        values = torch.nn.functional.adaptive_avg_pool2d(values[None], (height, width))[0]
    low, high = values.min(), values.max()
    grey = ((values - low) / (high - low if high > low else 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return png_uri([bytes(row.flatten().tolist()) for row in grey], grey.shape[1], grey.shape[2])
