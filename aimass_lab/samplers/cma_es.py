"""Evolutionary search by a normal distribution that learns: Optuna's CMA-ES."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ._optuna import OptunaSampler
from .base import SAMPLERS

if TYPE_CHECKING:
    import optuna


@SAMPLERS.register("cma_es")
class CmaEs(OptunaSampler):
    """One objective made of all, and every dimension as numbers: made for settings that are numbers, such as those of a fine-tune."""

    one_objective: ClassVar[bool] = True
    replayed: ClassVar[bool] = True
    all_ordered: ClassVar[bool] = True

    def make(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's own settings."""
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
