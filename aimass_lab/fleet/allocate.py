"""Allocates several models on a fleet: ways to run them, the cheapest choice, a simulation of all together, and what binds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..records import FleetAllocation, FleetObjective, ResourceDemand
from ..units import format_quantity, format_seconds
from .answer import Answer
from .inventory import Fleet, NodeKind
from .joint import simulate_jointly
from .limits import find_limits
from .packing import fits_alone
from .problem import Client, Node, Option, Problem, Quota, Solution
from .solve import solve
from .ways import Ask, Way, find_ways, option_of, unbeaten

ROUNDS = 3
"""Times that a model which misses its target in the joint simulation is given more room."""
HELD_BACK = 0.06
"""Share of what a replica carries that is held back each time."""

Formula = Callable[[Ask, Way, float], "ResourceDemand | str"]
"""Model, way and served rate -> the formula's first cut, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is asked of the allocation as a whole."""

    budget: float | None = None
    """USD per hour."""
    max_jobs: int | None = None
    """Most replicas of all models together."""
    quotas: tuple[Quota, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of tenants, or of models without one, where not everything fits."""
    objective: FleetObjective = "cost"
    burst: float = 1.0
    """Rate of bursts over the rate between them; 1 is a Poisson stream."""
    headroom: float = 0.0
    """Spare share of every rate."""
    seed: int = 0
    seconds: float = 10.0
    """Time for the choice itself."""


def make_allocation(
    asks: Sequence[Ask], fleet: Fleet, terms: Terms, *, formula: Formula | None = None, progress: Callable[[float, str], None] | None = None
) -> FleetAllocation:
    """Choose variant, node type, share, batch limit and replicas of every model, and put the replicas on nodes.

    Everybody is served at the least cost; where that cannot be, the shares are max-min fair and what binds is said. What was chosen is
    simulated together with other arrivals; a model that misses its target there gets more room, and the choice is made again.

    Args:
        asks: Models with rates and targets.
        fleet: Nodes and tenants.
        terms: Limits and aims.
        formula: Gives the first cut that is shown beside the answer.
        progress: Told the share done and what is being done.

    Raises:
        InputError: no model, two of one name, or a value out of range.
    """
    _check(asks, fleet, terms)
    tell = progress or (lambda share, text: None)
    held_back: dict[str, float] = {}
    spent = 0.0
    for k in range(ROUNDS + 1):
        problem = _problem(asks, fleet, terms, held_back, lambda text: tell(0.1, text))
        begun = time.perf_counter()
        solution = solve(problem, seconds=terms.seconds)
        spent += time.perf_counter() - begun
        outcomes = simulate_jointly(problem, solution, burst=terms.burst, seed=terms.seed, progress=lambda text: tell(0.5, text))
        missed = [ask.name for ask, outcome in zip(asks, outcomes, strict=True) if outcome and outcome.latency_p99_s.high > ask.p99.value]
        if not missed or k == ROUNDS:
            break
        held_back |= {name: held_back.get(name, 0.0) + HELD_BACK for name in missed}
    tell(0.8, "looking at what binds")
    limits = find_limits(problem, solution)
    firsts = _first_cuts(asks, problem, solution, formula) if formula else {}
    tell(1.0, "allocated")
    reasons = {ask.name: _why_no_way(ask, fleet.kinds, problem, i) for i, ask in enumerate(asks) if solution.chosen[i] is None}
    return Answer(asks, fleet.kinds, terms.burst, terms.headroom, problem, solution, outcomes, limits, firsts, reasons, spent).record()


def _problem(asks: Sequence[Ask], fleet: Fleet, terms: Terms, held_back: Mapping[str, float], progress: Callable[[str], None]) -> Problem:
    priced = all(kind.price is not None for kind in fleet.kinds)
    nodes = tuple(_node(kind, priced) for kind in fleet.kinds)
    options: list[Option] = []
    for i, ask in enumerate(asks):
        ways = find_ways(ask, fleet.kinds, burst=terms.burst, seed=terms.seed, held_back=held_back, progress=progress)
        mine = [option_of(i, place, way) for place, way in ways]
        options += unbeaten([option for option in mine if fits_alone(option, nodes[option.node])])
    return Problem(
        nodes=nodes,
        clients=tuple(Client(name=a.name, rate=a.rate.value * (1 + terms.headroom), value=a.value, tenant=a.tenant) for a in asks),
        options=tuple(options),
        budget=float("inf") if terms.budget is None else terms.budget,
        max_jobs=float("inf") if terms.max_jobs is None else terms.max_jobs,
        quotas=(*fleet.quotas, *terms.quotas),
        weights={**fleet.weights, **terms.weights},
        objective=terms.objective,
    )


def _node(kind: NodeKind, priced: bool) -> Node:
    limits = {name: number.value for name, number in (("cores", kind.cores), ("memory", kind.memory)) if number is not None}
    count = {} if kind.count is None else {"count": kind.count}
    return Node(name=kind.name, devices=kind.devices, price=kind.price.value if priced and kind.price else 1.0, **limits, **count)  # type: ignore[arg-type]


def _first_cuts(asks: Sequence[Ask], problem: Problem, solution: Solution, formula: Formula) -> dict[str, ResourceDemand | str]:
    served = [(ask, o, share) for ask, o, share in zip(asks, solution.chosen, solution.shares, strict=True) if o is not None]
    return {ask.name: formula(ask, problem.options[o].tag, share * ask.rate.value) for ask, o, share in served}


def _why_no_way(ask: Ask, kinds: Sequence[NodeKind], problem: Problem, i: int) -> str:
    """Why a model is not served at all."""
    if any(option.model == i for option in problem.options):
        return "not served: what there is goes to others"
    ladders = [(v, kind, share.ladder(v.ladder)) for kind in kinds for v in ask.variants.get(kind.device, ()) for share in kind.shares]
    if not ladders:
        return f"not served: its latency is known on none of {', '.join(kind.name for kind in kinds)}"
    best = min((min(p.latency_p99.value for p in ladder), kind.name, v.technique) for v, kind, ladder in ladders)
    if best[0] > ask.p99.value:
        return f"not served: a request alone takes {format_seconds(best[0])} (p99) on {best[1]} at best, the target is {format_seconds(ask.p99.value)}"
    return f"not served: no replica that holds {format_seconds(ask.p99.value)} fits on a node; {format_quantity(ask.model.weight_bytes, 'B')} of weights"


def _check(asks: Sequence[Ask], fleet: Fleet, terms: Terms) -> None:
    names = [ask.name for ask in asks]
    if not asks or len(set(names)) < len(names):
        raise InputError(f"models must have names of their own, got {', '.join(names) or 'none'}", help="give them names: Study(model, inputs, name=...)")
    if terms.budget is not None and not all(kind.price is not None for kind in fleet.kinds):
        unpriced = ", ".join(kind.name for kind in fleet.kinds if kind.price is None)
        raise InputError(f"a budget of {terms.budget:g} USD per hour says nothing without prices: {unpriced}", help="give them, for example --price l4=0.8")
    for what, value, least in (("budget", terms.budget, 0), ("max_jobs", terms.max_jobs, 0), ("headroom", terms.headroom, 0), ("burst", terms.burst, 1)):
        if value is not None and not least <= value < float("inf"):
            raise InputError(f"the {what} must be at least {least}, got {value}")
    tenants = {ask.tenant for ask in asks if ask.tenant}
    for tenant in (quota.tenant for quota in terms.quotas):
        if tenant not in tenants:
            raise InputError(f"no model belongs to the tenant {tenant!r}", help=f"tenants: {', '.join(sorted(tenants)) or 'none; give --tenant MODEL=NAME'}")
    for name in terms.weights:
        if name not in tenants | {ask.name for ask in asks if not ask.tenant}:
            known = ", ".join(sorted(tenants)) or "none"
            raise InputError(f"there is a weight for {name!r}, which is no tenant and no model without one", help=f"tenants: {known}")
    for name, number in ((ask.name, n) for ask in asks for n in (ask.rate, ask.p99)):
        if not number.value > 0:
            raise InputError(f"rate and p99 of {name} must be above 0, got {number.value:g} {number.unit}")


__all__ = ["Formula", "Terms", "make_allocation"]
