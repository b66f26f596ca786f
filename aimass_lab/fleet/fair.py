"""Serves as many as there is room for: fairly from the least share to the greatest, then for the most value, then at the least cost."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from .formulate import FAIR_GROUPS, Aim, Formulation, add, total
from .problem import EPS, Problem
from .program import KEPT, Optimum, Relaxed

CLOSE = 5e-3
"""Relative gap at which programs stop where replicas are fitted to shares that were settled as if they could be cut up, and the part of such
a share that may be missing: replicas are whole."""
_BINDS = 1e-7
"""Least price of what binds."""
_WORTH = 0.02
"""Options that take more than so much of a model's value for each replica are left out at first."""


@dataclass(frozen=True)
class Reached:
    """Where a series of aims has led."""

    program: Formulation
    optimum: Optimum
    bound: float
    """On the attained value."""
    proven: bool
    """Nothing fairer, of more value or cheaper is possible."""


def left(deadline: float) -> float:
    """Seconds until then."""
    return deadline - time.monotonic()


def in_order(problem: Problem, program: Formulation, deadline: float, gap: float = 0.0) -> Reached | None:
    """Make one aim after the other as good as it gets, keeping those before it; None where nothing was found in time."""
    value = program.value()
    aims = chain(() if problem.objective == "value" else program.fairness(), (Aim(value, lambda values: total(value, values)),))
    optimum, proven = None, True
    for kept, aim in enumerate(aims):
        small = {v: -c for v, c in aim.terms.items()}
        found = _as_good(program, small, aim, optimum, kept, deadline) or program.program.minimise(small, seconds=left(deadline), gap=gap)
        if found is None:
            return None if optimum is None else Reached(program, optimum, sum(value.values()), False)
        optimum, proven = found, proven and found.closed
        program.program.keep(small, found.objective)
    assert optimum is not None, "the value is always an aim"
    cheapest = program.program.minimise(program.cheapest, seconds=left(deadline), gap=gap)
    return Reached(program, cheapest or optimum, -optimum.bound, proven and cheapest is not None and cheapest.closed)


def _as_good(program: Formulation, small: Mapping[int, float], aim: Aim, before: Optimum | None, kept: int, deadline: float) -> Optimum | None:
    """The optimum of the aims before, where the linear relaxation shows that it is one of this aim too."""
    if before is None:
        return None
    relaxed = program.program.minimise(small, seconds=left(deadline), integers=False)
    attained = aim.attained(before.values)
    room = 1e-6 + 2 * KEPT * kept  # what the aims before were allowed to lose
    if relaxed is None or relaxed.objective < -attained - room:
        return None
    return Optimum(before.values, -attained, -attained)


def nearly_in_order(problem: Problem, shrink: Mapping[int, float], nodes: Sequence[int] | None, deadline: float) -> Reached | None:
    """For large programs: fair shares as if replicas could be cut up, which is quick, and then whole replicas that fall short of them the least.

    How far from the best that is, is told by the last program with nodes whole and replicas not: nothing real is better.

    Args:
        problem: The question.
        shrink: As of a `Formulation`.
        nodes: As of a `Formulation`.
        deadline: When to stop.
    """
    cut = Formulation(problem, full=False, shrink=shrink, cut=True)
    fair = _fair_shares(cut, deadline)
    if fair is None:
        return None
    levels, least = [(1 - CLOSE) * level for level in fair[0]], (1 - CLOSE) * fair[1]
    aim = _short_of(cut, levels, least)
    relaxed = cut.program.minimise(aim, seconds=left(deadline), gap=CLOSE / 10, integers=cut.whole)
    if relaxed is None:
        return None

    def fitted(kept: Collection[int] | None, most: float) -> _Fitted | None:
        program = Formulation(problem, full=False, nodes=nodes, shrink=shrink, kept=kept)
        program.program.row(program.costs, high=most)
        aim = _short_of(program, levels, least)
        found = program.program.minimise(aim, seconds=left(deadline), gap=CLOSE)
        return None if found is None else _Fitted(program, aim, found)

    kept = _worth_writing(cut, aim, relaxed, deadline)
    few = Formulation(problem, full=False, shrink=shrink, kept=kept, cut=True)
    few.program.keep(_short_of(few, levels, least), relaxed.objective)
    cheapest = few.program.minimise(few.costs, seconds=left(deadline), gap=CLOSE / 10, integers=few.whole)
    spent = sum(problem.nodes[n].price * round(cheapest.values[v]) for n, v in few.types.items()) if cheapest else math.inf
    best = fitted(kept, spent + EPS)
    bound = relaxed.bound
    if best is None or not best.near(bound):
        every = fitted(None, math.inf)
        bound = max(bound, every.found.bound) if every else bound
        if every and (best is None or every.found.objective < best.found.objective):
            best = every.cheaper(deadline)
    if best is None:
        return None
    value = best.program.value()
    most = min(sum(value.values()), total(value, best.found.values) + best.found.objective - bound)
    return Reached(best.program, best.found, most, False)


@dataclass(frozen=True)
class _Fitted:
    """Whole replicas that come near to fair shares."""

    program: Formulation
    aim: Mapping[int, float]
    found: Optimum

    def near(self, bound: float) -> bool:
        """Whether nothing is better by more than the gap."""
        return self.found.objective - bound <= CLOSE * abs(self.found.objective)

    def cheaper(self, deadline: float) -> _Fitted:
        """The same at the least cost, as far as that is found in time."""
        self.program.program.keep(self.aim, self.found.objective)
        found = self.program.program.minimise(self.program.cheapest, seconds=left(deadline), gap=CLOSE)
        return self if found is None else replace(self, found=replace(found, objective=total(self.aim, found.values)))


def _short_of(program: Formulation, levels: Sequence[float], least: float) -> dict[int, float]:
    """What is made small: shortfalls first, then what is lacking in value."""
    return add((1, program.shortfalls(levels, least)), (-1, program.value()))


def _fair_shares(cut: Formulation, deadline: float) -> tuple[list[float], float] | None:
    """Fair shares of tenants, and the least of models that goes with them, if replicas could be cut up; nodes cannot.

    The least share is raised until it binds for some; theirs is then settled, and that of the others is raised on (progressive filling).
    """
    groups = cut.groups
    base = cut.program.copy()
    levels, rising = [0.0] * len(groups), set(range(len(groups)))
    relaxed = None
    while rising:
        program = base.copy()
        level = program.variable(low=-math.inf)
        rows = {g: program.row(add((1, {level: 1}), (-1, groups[g])), high=0) for g in rising}
        if relaxed is None:
            highest = program.minimise({level: -1.0}, seconds=left(deadline), gap=CLOSE / 10, integers=cut.whole)
            if highest is None:
                return None
            nodes = {v: float(round(highest.values[v])) for v in cut.whole}
            base.fix(nodes)
            program.fix(nodes)
        relaxed = program.relax({level: -1.0}, seconds=left(deadline))
        if relaxed is None:
            return None
        settled = {g for g in rising if abs(relaxed.prices[rows[g]]) > _BINDS}
        if not settled or len(groups) > FAIR_GROUPS:
            settled = rising
        for g in settled:
            levels[g] = -relaxed.objective
            base.row(groups[g], low=levels[g] - KEPT)
        rising = rising - settled
    if relaxed is None or len(groups) == len(cut.shares) or _left_out(cut, relaxed):
        return levels, 0.0
    least = base.variable(low=-math.inf)
    for share in cut.shares.values():
        base.row({least: 1, share: -1}, high=0)
    lifted = base.minimise({least: -1.0}, seconds=left(deadline), integers=False)
    return levels, -lifted.objective if lifted and -lifted.objective > CLOSE else 0.0


def _left_out(cut: Formulation, relaxed: Relaxed) -> bool:
    """Whether some model gets nothing in every optimum: whatever would serve it has its price."""
    served = {cut.problem.options[o].model for o in cut.within(relaxed, _BINDS)}
    return any(i not in served and relaxed.values[share] <= _BINDS for i, share in cut.shares.items())


def _worth_writing(cut: Formulation, aim: Mapping[int, float], relaxed: Optimum, deadline: float) -> set[int] | None:
    """Options that take little from the aim where nodes are as `relaxed` has them; None where that cannot be told."""
    program = cut.program.copy()
    program.fix({v: float(round(relaxed.values[v])) for v in cut.whole})
    prices = program.relax(aim, seconds=left(deadline))
    return None if prices is None else cut.within(prices, _WORTH * max(client.value for client in cut.problem.clients))
