"""Search guided by predictions: what is predicted comes first, what is measured corrects it, and the point that promises most is next."""

from __future__ import annotations

from collections.abc import Sequence

from ._gaussian import Array, Columns, predict, to_columns
from ._hypervolume import expected_improvement, front_of, normal_cdf
from .base import SAMPLERS, Point, Sampler, Tried, point_key

MOST_WEIGHED = 5000
"""Points that are weighed against one another; of more, as many are drawn by lot anew for every point."""
OPTIMISM = 3.0
"""Standard deviations: a point that is beaten, or beyond a limit, even if so much better than expected is left for the end."""
LEAST_CHANCE = 0.01
"""Of a point to run: what failed beside it does not rule it out."""


@SAMPLERS.register("guided")
class Guided(Sampler):
    """Predictions corrected by a Gaussian process; chosen by expected hypervolume improvement times the chance to run and to hold the limits.

    The first points are few and together hold every word, and low, middle and high numbers, of every feature. Where nothing is predicted, the process
    starts from a constant.
    """

    def ask(self, history: Sequence[Tried]) -> Point | None:
        """The point whose measurement is expected to add most to what was found."""
        tried = {point_key(t.point) for t in history}
        left = [row for row, point in enumerate(self.listed()) if point_key(point) not in tried]
        if not left:
            return next((p for p in self.shuffled() if point_key(p) not in tried), None) if self.size > len(self.listed()) else None
        rows = {point_key(point): row for row, point in enumerate(self.listed())}
        known = [(rows[key], t) for t in history if (key := point_key(t.point)) in rows]
        uncovered = self._cover([row for row, _ in known], left)
        if uncovered is not None:
            return self.listed()[uncovered]
        return self.listed()[self._most_promising(known, left, self.seed_of(len(history)))]

    @property
    def _columns(self) -> Columns:
        if not hasattr(self, "_cached_columns"):
            self._cached_columns = to_columns([self.knowledge.features(point) for point in self.listed()])
        return self._cached_columns

    @property
    def _costs(self) -> Array:
        import numpy as np

        if not hasattr(self, "_cached_costs"):
            self._cached_costs = np.array([self.knowledge.cost(point) for point in self.listed()])
        return self._cached_costs

    def _priors(self, num_objectives: int) -> Array:
        """What is predicted at every listed point, of shape (points, objectives); the mean of the others where nothing is."""
        import numpy as np

        if not hasattr(self, "_cached_priors"):
            prior = self.knowledge.prior
            table = np.full((len(self.listed()), num_objectives), np.nan)
            if prior is not None:
                table[:] = [[np.nan if v is None else v for v in prior(point)] for point in self.listed()]
            means = [0.0 if np.isnan(column).all() else float(np.nanmean(column)) for column in table.T]
            self._cached_priors = np.where(np.isnan(table), means, table)
        return self._cached_priors

    def _cover(self, known: Sequence[int], left: Sequence[int]) -> int | None:
        """The point left that holds most values no tried point holds for what it costs, those furthest from all others first.

        None once every value is held.
        """
        import numpy as np

        values = self._columns.levels()
        held = [set(column[known]) for column in values.T] if len(known) else [set() for _ in values.T]
        new = np.array([[value not in seen for value in values[left, c]] for c, seen in enumerate(held)]).sum(axis=0)
        if not new.any():
            return None
        worth = new / self._costs[left]
        best = np.flatnonzero(worth >= worth.max() * (1 - 1e-9))
        rng = np.random.default_rng(self.seed_of(len(known)))
        if not len(known):
            return left[int(rng.choice(best))]
        candidates = [left[i] for i in rng.permutation(best)[:256]]
        apart = self._columns.distances(candidates, list(known)).sum(axis=0).min(axis=1)
        return candidates[int(np.argmax(apart))]

    def _most_promising(self, known: Sequence[tuple[int, Tried]], left: Sequence[int], seed: int) -> int:
        import numpy as np

        found = [(row, t) for row, t in known if t.values is not None]
        rng = np.random.default_rng(seed)
        if len(found) < 2:
            return left[int(rng.integers(len(left)))]
        if len(left) > MOST_WEIGHED:
            left = sorted(rng.choice(left, MOST_WEIGHED, replace=False).tolist())
        rows = [row for row, _ in found]
        values = np.array([t.values for _, t in found], dtype=float)
        priors = self._priors(values.shape[1])
        distances = self._columns.distances(rows)
        means, deviations = zip(*(predict(distances, rows, column, priors[:, i]) for i, column in enumerate(values.T)), strict=True)
        mean, deviation = np.stack(means, axis=1), np.stack(deviations, axis=1)
        feasible = values[[t.feasible for _, t in found]]
        reference = _reference(feasible if len(feasible) else values)
        waiting = mean[[row for row, t in known if t.pending]]
        front = np.concatenate([feasible, waiting])
        front = front_of(front) if len(front) else front.reshape(0, values.shape[1])
        chance, hopeless = self._chance(known, distances, rows, [t for _, t in found])
        promise = expected_improvement(mean[left], deviation[left], front, reference) * chance[left]
        optimistic = mean[left] + OPTIMISM * deviation[left]
        beaten = np.any(np.all(front[None, :, :] >= optimistic[:, None, :], axis=2), axis=1) if len(front) else np.zeros(len(left), dtype=bool)
        order = np.lexsort((rng.random(len(left)), -deviation[left].mean(axis=1), -promise, beaten | hopeless[left]))
        return left[int(order[0])]

    def _chance(self, known: Sequence[tuple[int, Tried]], distances: Array, rows: Sequence[int], found: Sequence[Tried]) -> tuple[Array, Array]:
        """At every point: the chance that it runs and is within all limits, and whether even an optimist would not think so."""
        import numpy as np

        decided = [(row, t.values is None) for row, t in known if not t.pending]
        failed = np.array([failure for _, failure in decided], dtype=float)
        chance = np.ones(len(self.listed()))
        if failed.any():
            at = [row for row, _ in decided]
            expected, _ = predict(self._columns.distances(at), at, failed, np.zeros(len(chance)))
            chance = np.clip(1.0 - expected, LEAST_CHANCE, 1.0)
        hopeless = np.zeros(len(chance), dtype=bool)
        excess = np.array([t.excess for t in found], dtype=float)
        for column in excess.T:
            mean, deviation = predict(distances, rows, column, np.zeros(len(chance)))
            chance *= normal_cdf(-mean / deviation)
            hopeless |= mean - OPTIMISM * deviation > 0
        return chance, hopeless


def _reference(values: Array) -> Array:
    """The corner that improvements are measured from: a little below the worst that was found."""
    low, high = values.min(axis=0), values.max(axis=0)
    return low - 0.1 * (high - low) - 1e-9
