"""What recipes that begin alike share: the model as their last training left it, which need not be done again."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compression.base import Constraint
from ..errors import DoesNotFitError, ModelError
from ..records import Recipe, StepReport, was_interrupted
from ..workload import weight_bytes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Beginning:
    """What the first steps of a recipe, up to one that learns, made."""

    model: nn.Module
    """To be copied, never changed."""
    reports: tuple[StepReport, ...]
    found: tuple[nn.Module, ...]
    """See `Variant.found`."""
    constraints: tuple[Constraint, ...]
    """What a later training has to hold to."""

    @property
    def apply_time_s(self) -> float:
        """What the steps took when they were done."""
        return sum(float(report.apply_time.value) for report in self.reports)


class Beginnings:
    """The beginnings that fit into `memory_bytes`, those used last.

    A step draws from its recipe's seed and not from what follows it, so a recipe that goes on from one of them comes out as if it had been
    done from the start.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._kept: OrderedDict[tuple[str, int], Beginning] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Weights that are kept."""
        return sum(weight_bytes(beginning.model) for beginning in self._kept.values())

    def find(self, recipe: Recipe) -> Beginning | None:
        """The one that spares most of `recipe`'s steps."""
        for end in range(len(recipe.steps), 0, -1):
            key = _key(recipe, end)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return None

    def keep(
        self, recipe: Recipe, model: nn.Module, reports: list[StepReport], found: list[nn.Module], constraints: list[Constraint],
        copy: Callable[[nn.Module], nn.Module],
    ) -> None:  # fmt: skip
        """Keep a copy of what the first steps of `recipe`, one for each of `reports`, made; nothing where it does not fit or was cut short."""
        size = weight_bytes(model)
        if size > self.memory_bytes or was_interrupted(reports[-1].notes):
            return
        while self.held_bytes + size > self.memory_bytes:
            self._kept.popitem(last=False)
        with contextlib.suppress(ModelError, DoesNotFitError):  # it is then made again when it is needed
            self._kept[_key(recipe, len(reports))] = Beginning(copy(model), tuple(reports), tuple(found), tuple(constraints))

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()


def _key(recipe: Recipe, num_steps: int) -> tuple[str, int]:
    """What tells the first steps of a recipe from those of others."""
    return Recipe(steps=recipe.steps[:num_steps]).name, recipe.seed
