"""Finds an allocation: the cheapest that serves everybody, or where there is none the fairest of those that there are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .fair import Reached, in_order, left, nearly_in_order
from .formulate import Formulation, total
from .packing import pack
from .problem import EPS, Placed, Problem, Solution, cost_of, shares_of
from .program import Optimum

EXACT_SIZE = 1500
"""Up to so many variables, nodes are written one by one where packing does not reach the bound."""
ROUNDS = 4
"""Times that node types are shrunk to what packing fills of them, where nodes are too many to be written one by one."""
_CLOSE = 1e-3
"""Relative gap at which large programs stop, and below which packing is not tried anew where it cannot be proven anyway."""
_LARGE = 2000
"""Options from which on a program is large."""
_LARGE_FAIRNESS = 200
"""Options from which on fairness is settled as if replicas could be cut up."""


def solve(problem: Problem, *, seconds: float = 10.0) -> Solution:
    """Allocate.

    Args:
        problem: The question.
        seconds: Time to spend; what was found until then is returned, with its distance to the bound.
    """
    deadline = time.monotonic() + seconds
    found = None
    if problem.objective == "cost" and len({o.model for o in problem.options}) == len(problem.clients):
        found = _whole(problem, deadline)
    return found or _elastic(problem, deadline)


@dataclass(frozen=True)
class _Found:
    chosen: Sequence[int | None]
    replicas: Sequence[int]
    placed: Sequence[Placed]


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _gap(problem: Problem) -> float:
    return _CLOSE if len(problem.options) >= _LARGE else 0.0


# --- everybody ---------------------------------------------------------------------------


def _whole(problem: Problem, deadline: float) -> Solution | None:
    """The cheapest that serves everybody; None where there is none, or none was found in time."""
    bound, best = 0.0, None
    shrink: dict[int, float] = {}
    for _ in range(ROUNDS):
        cheapest = _cheapest(problem, shrink, deadline)
        if cheapest is None:
            break
        program, optimum, least = cheapest
        if not shrink:
            bound = least
        if least > problem.budget + EPS:
            break
        found = _packed(problem, program, optimum)
        if _fits(problem, found.placed) and (best is None or cost_of(problem, found.placed) < cost_of(problem, best.placed)):
            best = found
        if best is not None and cost_of(problem, best.placed) <= bound * (1 + _gap(problem)) + program.slack:
            break
        sizes = _sizes(problem, found.placed, best)
        if sizes is not None:
            return _whole_exactly(problem, sizes, best, bound, deadline)
        shrink, before = _shrunk(program, optimum, found.placed, shrink), shrink
        if shrink == before or left(deadline) <= 0:
            break
    if best is None:
        return None
    cost = cost_of(problem, best.placed)
    return _solution(problem, best, elastic=False, bound=min(bound, cost), exact=cost <= bound + program.slack)


def _cheapest(problem: Problem, shrink: Mapping[int, float], deadline: float) -> tuple[Formulation, Optimum, float] | None:
    """The cheapest if replicas could be cut up between nodes, and what nothing costs less than; None where there is none.

    Of a large program, only options are written at first that make nothing worse by more than the gap, as the prices of the linear relaxation
    tell: whatever takes another one costs more than that.
    """
    program, gap = Formulation(problem, full=True, shrink=shrink), _gap(problem)
    relaxed = program.program.relax(program.cheapest, seconds=left(deadline))
    if relaxed is None or relaxed.objective - program.slack > problem.budget + EPS:
        return None  # known without whole numbers, which take longer
    if gap:
        most = gap * relaxed.objective
        few = Formulation(problem, full=True, shrink=shrink, kept=program.within(relaxed, most))
        optimum = few.program.minimise(few.cheapest, seconds=left(deadline), gap=gap)
        if optimum is not None:
            bound = min(optimum.bound, relaxed.objective + most)
            if optimum.objective <= bound * (1 + gap):
                return few, optimum, max(0.0, bound - few.slack)
    optimum = program.program.minimise(program.cheapest, seconds=left(deadline), gap=gap)
    return None if optimum is None else (program, optimum, program.cost_bound(optimum))


def _whole_exactly(problem: Problem, sizes: Sequence[int], best: _Found | None, bound: float, deadline: float) -> Solution | None:
    program = Formulation(problem, full=True, nodes=sizes)
    optimum = program.program.minimise(program.cheapest, seconds=left(deadline))
    if optimum is None:
        return None if best is None else _solution(problem, best, elastic=False, bound=bound, exact=False)
    found = _Found(*program.read(optimum), program.placed(optimum))
    if not _fits(problem, found.placed):
        return None if best is None else _solution(problem, best, elastic=False, bound=bound, exact=False)
    if best is not None and cost_of(problem, best.placed) < cost_of(problem, found.placed) - EPS:
        found = best
    bound = max(bound, min(program.cost_bound(optimum), cost_of(problem, found.placed)))
    return _solution(problem, found, elastic=False, bound=bound, exact=optimum.bound >= optimum.objective - 1e-9)


def _packed(problem: Problem, program: Formulation, optimum: Optimum) -> _Found:
    chosen, replicas = program.read(optimum)
    return _Found(chosen, replicas, pack(problem, chosen, replicas, limited=False)[0])


def _fits(problem: Problem, placed: Sequence[Placed]) -> bool:
    used = [sum(p.node == n for p in placed) for n in range(len(problem.nodes))]
    return cost_of(problem, placed) <= problem.budget + EPS and all(u <= node.count for u, node in zip(used, problem.nodes, strict=True))


def _sizes(problem: Problem, placed: Sequence[Placed], best: _Found | None) -> list[int] | None:
    """How many nodes of each type an exact program needs: no more than a known answer's cost pays for; None: too many."""
    paid = min(problem.budget, cost_of(problem, best.placed)) if best else problem.budget
    sizes = []
    for n, node in enumerate(problem.nodes):
        options = [o for o, option in enumerate(problem.options) if option.node == n]
        replicas = problem.most(options)
        sizes.append(int(min(node.count, replicas, (paid + EPS) // node.price if node.price else replicas)))
    variables = sum(sizes[o.node] * (problem.nodes[o.node].devices if o.lot else 1) for o in problem.options)
    return sizes if variables <= EXACT_SIZE else None


def _shrunk(program: Formulation, optimum: Optimum, placed: Sequence[Placed], shrink: Mapping[int, float]) -> dict[int, float]:
    """Take every type for as small as packing has found it."""
    shrunk = dict(shrink)
    for n, variable in program.types.items():
        packed, planned = sum(p.node == n for p in placed), round(optimum.values[variable])
        if packed > planned > 0:
            shrunk[n] = shrunk.get(n, 1.0) * planned / packed
    return shrunk


# --- not everybody -----------------------------------------------------------------------


def _elastic(problem: Problem, deadline: float) -> Solution:
    """What serves as many as there is room for: fairly, or where value is asked for, what is worth most."""
    shrink: dict[int, float] = {}
    bound = sum(problem.clients[i].value for i in {option.model for option in problem.options})
    best = _Found([None] * len(problem.clients), [0] * len(problem.clients), [])
    exact = False
    for _ in range(ROUNDS // 2):
        reached = _reached(problem, shrink, deadline)
        if reached is None:  # out of time
            break
        bound = bound if shrink else reached.bound
        found = _packed(problem, reached.program, reached.optimum)
        exact = reached.proven and not shrink and _fits(problem, found.placed) and _costs_what_was_planned(problem, reached, found)
        sizes = None if exact else _sizes(problem, found.placed, None)
        if sizes is not None and (better := _reached(problem, shrink, deadline, sizes)) is not None:
            each = better.program
            best, bound, exact = _Found(*each.read(better.optimum), each.placed(better.optimum)), better.bound, better.proven
            break
        best = max(best, _within(problem, found), key=lambda f: _worth(problem, f))
        if _fits(problem, found.placed) or left(deadline) <= 0:
            break
        shrink = _shrunk(reached.program, reached.optimum, found.placed, shrink)
    found = best
    solution = _solution(problem, found, elastic=True, bound=bound, exact=exact)
    return replace(solution, elastic=min(solution.shares, default=1.0) < 1 - EPS)


def _reached(problem: Problem, shrink: Mapping[int, float], deadline: float, nodes: Sequence[int] | None = None) -> Reached | None:
    if problem.objective != "value" and len(problem.options) >= _LARGE_FAIRNESS:
        return nearly_in_order(problem, shrink, nodes, deadline)
    return in_order(problem, Formulation(problem, full=False, shrink=shrink, nodes=nodes), deadline, _gap(problem))


def _costs_what_was_planned(problem: Problem, reached: Reached, found: _Found) -> bool:
    """Whether packing took no more nodes than the program had, in which what is on one device need not fit there."""
    return cost_of(problem, found.placed) <= total(reached.program.costs, reached.optimum.values) + reached.program.slack + EPS


def _within(problem: Problem, found: _Found) -> _Found:
    """What of it there is room for."""
    if _fits(problem, found.placed):
        return found
    placed, there = pack(problem, found.chosen, found.replicas, limited=True)
    return _Found(found.chosen, there, placed)


def _worth(problem: Problem, found: _Found) -> tuple[float, float]:
    """By what answers are compared: the least share of a tenant where fairness is asked for, then the attained value."""
    shares = shares_of(problem, [o if count else None for o, count in zip(found.chosen, found.replicas, strict=True)], found.replicas)
    by_tenant = [sum(problem.clients[i].value * shares[i] for i in models) / weight for _, models, weight in problem.groups()]
    return (0.0 if problem.objective == "value" else min(by_tenant)), sum(c.value * s for c, s in zip(problem.clients, shares, strict=True))


def _solution(problem: Problem, found: _Found, *, elastic: bool, bound: float, exact: bool) -> Solution:
    chosen = [o if count else None for o, count in zip(found.chosen, found.replicas, strict=True)]
    return Solution(
        chosen=tuple(chosen),
        replicas=tuple(found.replicas),
        shares=shares_of(problem, chosen, found.replicas),
        placed=tuple(found.placed),
        cost=cost_of(problem, found.placed),
        elastic=elastic,
        bound=bound,
        exact=exact,
    )
