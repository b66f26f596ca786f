"""What binds: every limit with what is used of it, and for those that are used up what a little more would buy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..records import Unit
from .formulate import Formulation
from .problem import EPS, Problem, Quota, Solution
from .solve import solve

SMALL = 50
"""Up to so many models, what more would buy is found by solving again; beyond, by the linear relaxation."""
UNITS: dict[str, Unit] = {"replicas": "replica", "devices": "device", "cores": "core", "memory": "B"}


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What an answer amounts to."""

    served: float
    """Requests per second, of all models together."""
    least: float
    """The least share of any model."""
    cost: float
    everybody: bool
    proven: bool = True
    """Nothing better is possible; without, that more of a limit does not help says nothing."""


@dataclass(frozen=True, kw_only=True)
class Tight:
    """One limit."""

    name: str
    unit: Unit
    limit: float
    used: float
    more: float | None
    """By how much it was raised; None: there was room left."""
    before: Reach | None = None
    after: Reach | None = None

    @property
    def saved(self) -> float:
        """Cost that more of it saves while everybody is served all the same."""
        if self.before is None or self.after is None or not (self.before.everybody and self.after.everybody):
            return 0.0
        return max(0.0, self.before.cost - self.after.cost)

    @property
    def gained(self) -> float:
        """Requests per second that more of it serves in addition."""
        return 0.0 if self.before is None or self.after is None else max(0.0, self.after.served - self.before.served)

    @property
    def binds(self) -> bool:
        """Whether more of it makes the answer better."""
        raised = self.before is not None and self.after is not None and self.after.least > self.before.least + 1e-4
        return raised or self.saved > 1e-3 or self.gained > 1e-6


def find_limits(problem: Problem, solution: Solution, *, seconds: float = 3.0) -> list[Tight]:
    """Look at every limit that there is.

    Args:
        problem: The question.
        solution: Its answer.
        seconds: Time to spend on each that is used up.
    """
    small = len(problem.clients) <= SMALL
    before = _reach(problem, solution) if small else _relaxed(problem)
    found = []
    for name, unit, limit, used, step, raised in _limits(problem, solution):
        if used + step <= limit + EPS:
            found.append(Tight(name=name, unit=unit, limit=limit, used=used, more=None))
            continue
        after = _again(raised, seconds) if small else _relaxed(raised)
        tight = Tight(name=name, unit=unit, limit=limit, used=used, more=step, before=before, after=after)
        found.append(tight if tight.binds or after is None or after.proven else replace(tight, after=None))
    return found


def _limits(problem: Problem, solution: Solution) -> Iterator[tuple[str, Unit, float, float, float, Problem]]:
    """Name, unit, limit, what is used, the least that more of it would be, and the problem with so much more."""
    for n, node in enumerate(problem.nodes):
        if any(option.node == n for option in problem.options) and node.count < 1_000_000:
            nodes = (*problem.nodes[:n], replace(node, count=node.count + 1), *problem.nodes[n + 1 :])
            used = sum(placed.node == n for placed in solution.placed)
            yield f"nodes {node.name}", "node", node.count, used, 1, replace(problem, nodes=nodes)
    if math.isfinite(problem.budget):
        step = min((problem.nodes[o.node].price for o in problem.options if problem.nodes[o.node].price > 0), default=1.0)
        yield "budget", "USD/h", problem.budget, solution.cost, step, replace(problem, budget=problem.budget + step)
    if math.isfinite(problem.max_jobs):
        yield "max_jobs", "replica", problem.max_jobs, sum(solution.replicas), 1, replace(problem, max_jobs=problem.max_jobs + 1)
    for q, quota in enumerate(problem.quotas):
        theirs = [option for option in problem.options if problem.clients[option.model].tenant == quota.tenant]
        step = min((use for option in theirs if (use := option.use(quota.resource)) > 0), default=math.inf)
        if math.isinf(step):
            continue
        quotas = (*problem.quotas[:q], replace(quota, limit=quota.limit + step), *problem.quotas[q + 1 :])
        yield f"{quota.resource} of {quota.tenant}", UNITS[quota.resource], quota.limit, _held(problem, solution, quota), step, replace(problem, quotas=quotas)


def _held(problem: Problem, solution: Solution, quota: Quota) -> float:
    """What a tenant holds."""
    by_model = zip(problem.clients, solution.chosen, solution.replicas, strict=True)
    return sum(count * problem.options[o].use(quota.resource) for client, o, count in by_model if o is not None and client.tenant == quota.tenant)


def _again(problem: Problem, seconds: float) -> Reach:
    solution = solve(problem, seconds=seconds)
    return replace(_reach(problem, solution), proven=solution.exact)


def _reach(problem: Problem, solution: Solution) -> Reach:
    served = sum(client.rate * share for client, share in zip(problem.clients, solution.shares, strict=True))
    return Reach(served=served, least=min(solution.shares, default=1.0), cost=solution.cost, everybody=not solution.elastic)


def _relaxed(problem: Problem) -> Reach | None:
    """As if nodes and replicas could be cut up: quick, and no worse than what is real."""
    whole = Formulation(problem, full=True)
    if len({o.model for o in problem.options}) == len(problem.clients):
        cheapest = whole.program.minimise(whole.costs, seconds=1.0, integers=False)
        if cheapest is not None:
            return Reach(served=sum(client.rate for client in problem.clients), least=1.0, cost=cheapest.objective, everybody=True)
    part = Formulation(problem, full=False, cut=True)
    rates = {share: problem.clients[i].rate for i, share in part.shares.items()}
    most = part.program.minimise({share: -rate for share, rate in rates.items()}, seconds=1.0, integers=False)
    return None if most is None else Reach(served=-most.objective, least=0.0, cost=0.0, everybody=False)
