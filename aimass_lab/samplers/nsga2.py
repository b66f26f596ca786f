"""Evolutionary search for several objectives at once: Optuna's NSGA-II."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ._optuna import OptunaSampler
from .base import SAMPLERS

if TYPE_CHECKING:
    import optuna

POPULATION = 16
"""Points of one generation: with Optuna's 50 most searches here would end before the second one."""


@SAMPLERS.register("nsga2")
class Nsga2(OptunaSampler):
    """Several objectives by non-dominated sorting; limits heeded (Deb and others, IEEE Trans. Evol. Comput. 6(2), 2002)."""

    replayed: ClassVar[bool] = True

    def make(self, seed: int) -> optuna.samplers.BaseSampler:
        """Generations of `POPULATION` points."""
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(population_size=POPULATION, seed=seed)
