"""Bayesian search by a Gaussian process: Optuna's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ._optuna import OptunaSampler
from .base import SAMPLERS

if TYPE_CHECKING:
    import optuna


@SAMPLERS.register("gp")
class GaussianProcess(OptunaSampler):
    """Several objectives by expected hypervolume improvement; limits heeded. Every point takes longer to choose than with the others."""

    most_proposals: ClassVar[int] = 2  # each takes about half a second, and the second is mostly the first again

    def make(self, seed: int) -> optuna.samplers.BaseSampler:
        """Optuna's own settings: ten points by lot first."""
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed)
