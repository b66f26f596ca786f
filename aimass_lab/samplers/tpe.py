"""Bayesian search by the density of good and bad points: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._optuna import OptunaSampler
from .base import SAMPLERS

if TYPE_CHECKING:
    import optuna


@SAMPLERS.register("tpe")
class Tpe(OptunaSampler):
    """Several objectives by non-dominated ranks; limits heeded (Watanabe and Hutter, https://arxiv.org/abs/2211.14411)."""

    def make(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's own settings: ten points by lot first."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed)
