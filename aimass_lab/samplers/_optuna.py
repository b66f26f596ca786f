"""Samplers of Optuna on a finite space: the study is made anew from the history for every point that is asked for."""

from __future__ import annotations

import contextlib
import statistics
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Key, Point, Sampler, Tried, point_key

if TYPE_CHECKING:
    import optuna

SCALED_BY = 16
"""Trials with values whose spread says how much one objective weighs against another, where a sampler has only one."""


class OptunaSampler(Sampler):
    """A sampler of Optuna, seeded anew for every point.

    Values are passed as places in their list. Dimensions of numbers are sorted and passed as whole numbers, so that Optuna knows their order.
    """

    most_proposals: ClassVar[int] = 20
    """Points that it may propose before the nearest one that was not tried is taken: it does not know which are possible, and repeats itself."""
    one_objective: ClassVar[bool] = False
    """Whether it knows only one objective: the mean of all, each over its spread among the first trials, limits counted as losses."""
    replayed: ClassVar[bool] = False
    """Whether it has to go through the history trial by trial, because it keeps in each what the next one needs."""
    all_ordered: ClassVar[bool] = False
    """Whether it knows numbers only: words too are then passed as their places."""

    @abstractmethod
    def make(self, seed: int) -> optuna.samplers.BaseSampler:
        """Make Optuna's sampler."""

    def ask(self, history: Sequence[Tried]) -> Point | None:
        """What Optuna proposes, or the nearest point to it that is possible and was not tried."""
        tried = {point_key(t.point) for t in history}
        if all(point_key(point) in tried for point in self.listed()):
            return next((p for p in self.shuffled() if point_key(p) not in tried), None) if self.size > len(self.listed()) else None
        with _silent():
            study, distributions = self._rebuild(history)
            study.sampler = self.make(self.seed_of(len(history)))
            for _ in range(self.most_proposals):
                trial = study.ask(distributions)
                point = self._point(trial.params)
                if point_key(point) not in tried and self.knowledge.possible(point):
                    return point
                study.tell(trial, state=_state("FAIL"))
        return self._nearest(point, tried)

    def _rebuild(self, history: Sequence[Tried]) -> tuple[optuna.Study, dict[str, Any]]:
        import optuna

        places, distributions = self._encoding()
        told = _scalarized(history) if self.one_objective else list(history)
        num_objectives = max((len(t.values) for t in told if t.values is not None), default=1)
        study = optuna.create_study(directions=["maximize"] * num_objectives)
        for number, entry in enumerate(told):
            params = {name: places[name][repr(value)] for name, value in entry.point.items()}
            attributes: dict[str, Any] = {}
            if self.replayed and entry.values is not None:
                # What the sampler would have noted in this trial, had it proposed the point.
                study.sampler = self.make(self.seed_of(number))
                attributes = dict(study.tell(study.ask(distributions), state=_state("FAIL")).system_attrs)
            study.add_trial(_frozen(entry, params, distributions, attributes))
        return study, distributions

    def _encoding(self) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
        """Of each dimension: value -> place, and Optuna's distribution of the places."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        places, distributions = {}, {}
        for name, values in self._ordered().items():
            places[name] = {repr(value): place for place, value in enumerate(values)}
            counted = self.all_ordered or is_numeric(values)
            distributions[name] = IntDistribution(0, len(values) - 1) if counted else CategoricalDistribution(range(len(values)))
        return places, distributions

    def _ordered(self) -> Mapping[str, Sequence[Any]]:
        return {name: sorted(values) if is_numeric(values) else values for name, values in self.space.items()}

    def _point(self, params: Mapping[str, int]) -> Point:
        return {name: values[params[name]] for name, values in self._ordered().items()}

    def _nearest(self, point: Point, tried: set[Key]) -> Point:
        """The point that differs least from `point`: in the fewest dimensions, and there by the fewest places."""
        places, _ = self._encoding()

        def distance(other: Point) -> tuple[int, int]:
            steps = [abs(places[name][repr(point[name])] - places[name][repr(other[name])]) for name in point]
            return sum(step > 0 for step in steps), sum(steps)

        return min((p for p in self.listed() if point_key(p) not in tried), key=distance)


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether values have an order: they are numbers, and no switches."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _frozen(entry: Tried, params: Mapping[str, Any], distributions: Mapping[str, Any], attributes: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    from optuna.trial import create_trial

    known = {"params": dict(params), "distributions": dict(distributions), "system_attrs": dict(attributes)}
    if entry.values is None:
        return create_trial(state=_state("FAIL"), **known)
    return create_trial(values=list(entry.values), constraints={str(i): e for i, e in enumerate(entry.excess)}, **known)


def _scalarized(history: Sequence[Tried]) -> list[Tried]:
    """The history with one value each: the mean of the objectives in units of their spread, less what is beyond the limits."""
    known = [t.values for t in history if t.values is not None][:SCALED_BY]
    spreads = [max(column) - min(column) or 1.0 for column in zip(*known, strict=True)]
    told = []
    for entry in history:
        if entry.values is None:
            told.append(entry)
            continue
        value = statistics.fmean(v / s for v, s in zip(entry.values, spreads, strict=True))
        told.append(Tried(entry.point, (value - sum(1.0 + e for e in entry.excess if e > 0),), pending=entry.pending))
    return told


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Optuna's log lines and warnings, which speak to who calls it, from who does not know that it is called."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
