"""What was tried so far: the newest trial of each recipe, and which copies are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ....records import TrialResult
from ....study import StudyState
from .base import FACTS

MOST = 12
LAYERS_SHOWN = 40
"""Layers that a step left as they were, which are listed one by one."""


@FACTS.register("tries")
def tries(study: StudyState) -> list[dict[str, Any]]:
    """Newest first; a copy that a search or a plan made, and nobody tried by itself, has no record."""
    memory = {item.name: msgspec.to_builtins(item.memory) for item in study.variants.items}
    tried = [(record.setting.recipe.name, i, _without_ballast(record)) for i, record in newest_trials(study.results)]
    untried = [(name, None, None) for name in memory if name not in {name for name, *_ in tried}]
    return [{"name": name, "index": i, "memory": memory.get(name), "record": record} for name, i, record in (*tried, *reversed(untried))]


def newest_trials(results: Sequence[object]) -> list[tuple[int, TrialResult]]:
    """Place among the results and record: one of each recipe, newest first."""
    found: dict[str, tuple[int, TrialResult]] = {}
    for i, record in reversed([*enumerate(results)]):
        if isinstance(record, TrialResult):
            found.setdefault(record.setting.recipe.name, (i, record))
    return list(found.values())[:MOST]


def _without_ballast(record: TrialResult) -> dict[str, Any]:
    """The record as JSON; of layers only those that fell back."""
    found: dict[str, Any] = msgspec.to_builtins(record)
    for step in found["steps"]:
        left = [layer for layer in step["layers"] if not layer["changed"]]
        step["num_left"], step["layers"] = len(left), left[:LAYERS_SHOWN]
    return found
