"""Writes a problem as a mixed-integer program: over node types as a whole, which is fast, or node by node, which is exact."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

from .problem import EPS, Node, Option, Placed, Problem
from .program import Optimum, Program, Relaxed

if TYPE_CHECKING:
    from .program import Array

FAIR_GROUPS = 12
"""Up to so many tenants (or models), fairness is settled from the least share to the greatest; beyond, for the least only."""
_TIE = 1e-4
"""Part of the cheapest node's price that all replicas together may weigh: among equal costs, fewer replicas."""
_OUTWEIGHS = 10.0
"""How much more it is worth to come near to a fair share than to attain as much value."""
_LEFT_BEHIND = 3.0
"""How much more it is worth to lift a model that is below everybody's least share than to lift its tenant."""


def add(*parts: tuple[float, Mapping[int, float]]) -> dict[int, float]:
    """A weighted sum of sums."""
    summed: dict[int, float] = defaultdict(float)
    for factor, terms in parts:
        for variable, coefficient in terms.items():
            summed[variable] += factor * coefficient
    return summed


def total(terms: Mapping[int, float], values: Array) -> float:
    """What a sum amounts to."""
    return sum(coefficient * float(values[variable]) for variable, coefficient in terms.items())


class Aim(NamedTuple):
    """Something to be made large."""

    terms: dict[int, float]
    attained: Callable[[Array], float]
    """What it is at most with the shares of some values, which may have been found before its own variables were written."""


class Formulation:
    """One program for one problem.

    Args:
        problem: The question.
        full: Whether every model must get its whole rate.
        nodes: By type, how many nodes are written one by one; None: each type as a whole, as if replicas could be cut up between
            nodes. Nothing real is better than that, so its optimum is a bound.
        shrink: By type, the part of a node that packing was seen to fill; only where nodes are not written one by one.
        kept: The only options that are written; None: all. Models without any are those that get nothing.
        cut: Whether replicas may be cut up: a program half as large, whose linear relaxation is the same.
    """

    def __init__(
        self, problem: Problem, *, full: bool, nodes: Sequence[int] | None = None, shrink: Mapping[int, float] | None = None,
        kept: Collection[int] | None = None, cut: bool = False,
    ) -> None:  # fmt: skip
        self.problem, self.full, self.cut, self.shrink = problem, full, cut, shrink or {}
        self.kept = range(len(problem.options)) if kept is None else sorted(kept)
        self.program = Program()
        self.counts: list[dict[int, float]] = [{} for _ in problem.options]
        """By option: its number of replicas as a sum."""
        self.entries: list[int | None] = [None] * len(problem.options)
        """By option: a variable that is above 0 wherever it is taken; None: it is not written."""
        self.costs: dict[int, float] = {}
        self.types: dict[int, int] = {}
        """By type: its number of nodes; only where they are not written one by one."""
        self.whole: list[int] = []
        """Numbers of nodes, and of their devices by what they are used for; only there too."""
        self._on: list[tuple[int, int, int, int, int]] = []
        """Node by node: variable, type, node, device and option."""
        self._demand()
        self._by_node: dict[int, list[int]] = defaultdict(list)
        for o in self.kept:
            self._by_node[problem.options[o].node].append(o)
        for n, options in self._by_node.items():
            if nodes is None:
                self._type(n, options)
            else:
                self._each(n, options, nodes[n])
        self._limits()

    # --- what is asked -------------------------------------------------------------------

    def _demand(self) -> None:
        """Choice, replicas and share of every model.

        Where a model may get a part of its rate, the replica that completes it is counted by itself: it is worth only what the others leave
        over. So for each model alone, the linear relaxation is no better than whole replicas are.
        """
        program, problem = self.program, self.problem
        choice: dict[int, dict[int, float]] = {option.model: {} for option in problem.options}
        carried: dict[int, dict[int, float]] = {i: {} for i in choice}
        for o in self.kept:
            option, most = problem.options[o], problem.full(o)
            chosen, worth = choice[option.model], carried[option.model]
            if self.full or most == 1:
                taken = program.variable(high=1, integer=True)
                self.counts[o], self.entries[o] = {taken: most}, taken
                chosen[taken] = worth[taken] = 1.0
            else:
                before, last = program.variable(high=most - 1, integer=True), program.variable(high=1, integer=True)
                self.counts[o], self.entries[o] = {before: 1, last: 1}, before
                each = option.rate / problem.clients[option.model].rate
                worth |= {before: each, last: 1 - (most - 1) * each}
                program.row({last: most - 1, before: -1}, high=0)
                if self.cut:
                    chosen[before] = 1 / (most - 1)
                else:
                    taken = program.variable(high=1, integer=True)
                    chosen[taken] = 1.0
                    program.row({before: 1, taken: 1 - most}, high=0)
        self.shares: dict[int, int] = {}
        for i, chosen in choice.items():
            program.row(chosen, low=1 if self.full else -math.inf, high=1)
            if not self.full:
                self.shares[i] = program.variable(high=1)
                program.row(add((1, {self.shares[i]: 1}), (-1, carried[i])), high=0)

    def _limits(self) -> None:
        problem = self.problem
        if math.isfinite(problem.budget) and self.costs and not self.full:  # the cheapest tells by itself whether it is within the budget, and faster
            self.program.row(self.costs, high=problem.budget)
        if math.isfinite(problem.max_jobs):
            self.program.row(self.replicas, high=problem.max_jobs)
        for quota in problem.quotas:
            options = [o for o, option in enumerate(problem.options) if problem.clients[option.model].tenant == quota.tenant]
            used = add(*((problem.options[o].use(quota.resource), self.counts[o]) for o in options))
            if used:
                self.program.row(used, high=quota.limit)

    @cached_property
    def replicas(self) -> dict[int, float]:
        """All of them, as a sum."""
        return add(*((1, count) for count in self.counts))

    # --- what there is -------------------------------------------------------------------

    def _affordable(self, node: Node) -> float:
        """Nodes of a type that the budget pays for."""
        return (self.problem.budget + EPS) // node.price if node.price > 0 and math.isfinite(self.problem.budget) else math.inf

    def _type(self, n: int, options: list[int]) -> None:
        """All nodes of a type together."""
        import numpy as np

        node, program = self.problem.nodes[n], self.program
        number = program.variable(high=min(node.count, self.problem.most(options), self._affordable(node)), integer=True)
        self.costs[number] = node.price
        self.types[n] = number
        self.whole.append(number)
        room = self.shrink.get(n, 1.0)
        for name, capacity in (("cores", node.cores), ("memory", node.memory)):
            if not math.isfinite(capacity):
                continue
            sizes = np.array([getattr(self.problem.options[o], name) for o in options]) / capacity
            self._within(dict(zip(options, sizes.tolist(), strict=True)), {number: -room})
            for k in (1, 2, 3):
                rounded = _rounded(sizes, k)
                if (rounded > sizes + EPS).any():
                    self._within(dict(zip(options, rounded.tolist(), strict=True)), {number: -1})
        lots = {lot: [o for o in options if self.problem.options[o].lot == lot] for lot in {self.problem.options[o].lot for o in options} - {""}}
        used = {lot: program.variable(integer=True) for lot in sorted(lots)}
        self.whole += used.values()
        for lot, devices in used.items():
            for name in ("compute", "device_memory"):
                self._within({o: getattr(self.problem.options[o], name) for o in lots[lot]}, {devices: -1})
        if used:
            program.row(add((1, dict.fromkeys(used.values(), 1.0)), (-node.devices * room, {number: 1})), high=0)

    def _within(self, sizes: Mapping[int, float], capacity: Mapping[int, float]) -> None:
        self.program.row(add(*((size, self.counts[o]) for o, size in sizes.items() if size), (1, capacity)), high=0)

    def _each(self, n: int, options: list[int], most: int) -> None:
        """Node by node, device by device."""
        node, program, before = self.problem.nodes[n], self.program, None
        here: dict[int, dict[int, float]] = {o: {} for o in options}
        for k in range(min(most, node.count)):
            used = program.variable(high=1, integer=True)
            self.costs[used] = node.price
            if before is not None:
                program.row({before: 1, used: -1}, low=0)  # nodes are alike: the first ones are used
            before = used
            on = [(o, device, program.variable(integer=True)) for o in options for device in self._devices(self.problem.options[o], node.devices)]
            self._on += [(variable, n, k, device, o) for o, device, variable in on]
            for o, _, variable in on:
                here[o][variable] = 1.0
            for name, capacity in (("cores", node.cores), ("memory", node.memory)):
                if math.isfinite(capacity):
                    program.row({**{v: getattr(self.problem.options[o], name) / capacity for o, _, v in on}, used: -1}, high=0)
            for device in range(node.devices):
                self._device([(o, v) for o, d, v in on if d == device], used)
        for o in options:
            program.row(add((1, self.counts[o]), (-1, here[o])), low=0, high=0)

    def _devices(self, option: Option, devices: int) -> Iterable[int]:
        return range(devices) if option.lot else (-1,)

    def _device(self, on: Sequence[tuple[int, int]], used: int) -> None:
        """One device serves one lot."""
        lots = sorted({self.problem.options[o].lot for o, _ in on})
        serves = {lot: self.program.variable(high=1, integer=True) for lot in lots}
        self.program.row({**dict.fromkeys(serves.values(), 1.0), used: -1}, high=0)
        for lot in lots:
            for name in ("compute", "device_memory"):
                sizes = {v: getattr(self.problem.options[o], name) for o, v in on if self.problem.options[o].lot == lot}
                self.program.row({**sizes, serves[lot]: -1}, high=0)

    # --- what is wanted ------------------------------------------------------------------

    @cached_property
    def cheapest(self) -> dict[int, float]:
        """The cost, and among equals the fewest replicas; the latter weighs less than any difference in cost that matters."""
        return add((1, self.costs), (self.tie, self.replicas))

    @cached_property
    def tie(self) -> float:
        """Weight of one replica."""
        return self.slack / max(1, self.problem.most(range(len(self.problem.options))))

    @property
    def slack(self) -> float:
        """Weight of all replicas together: costs that differ by less are the same."""
        return _TIE * min((node.price for node in self.problem.nodes if node.price > 0), default=1.0)

    def cost_bound(self, optimum: Optimum) -> float:
        """What no allocation costs less than."""
        return max(0.0, optimum.bound - self.slack)

    def value(self) -> dict[int, float]:
        """Attained value, as a sum."""
        return {share: self.problem.clients[i].value for i, share in self.shares.items()}

    def fairness(self) -> Iterator[Aim]:
        """Aims to be made large one after the other: the sum of the k least shares, for k = 1, 2, ... (Ogryczak and Tamir 2003).

        Making them large in this order raises the least share as far as it goes, then the second least, and so on. A tenant's share is the
        mean of its models' by value, over its weight. Each is written when it is its turn.
        """
        program, groups = self.program, self.groups
        for k in range(1, (len(groups) if len(groups) <= FAIR_GROUPS else 1) + 1):
            level = program.variable(low=-math.inf)
            below = [program.variable(high=math.inf if k > 1 else 0) for _ in groups]
            for group, short in zip(groups, below, strict=True):
                program.row(add((1, {level: 1, short: -1}), (-1, group)), high=0)
            yield Aim({level: float(k), **dict.fromkeys(below, -1.0)}, partial(self._least, k))
        if len(groups) < len(self.shares):  # among the models of a tenant too, nobody is left behind
            least = program.variable(low=-math.inf)
            for share in self.shares.values():
                program.row({least: 1, share: -1}, high=0)
            yield Aim({least: 1.0}, lambda values: min(float(values[share]) for share in self.shares.values()))

    def _least(self, k: int, values: Array) -> float:
        return sum(sorted(total(group, values) for group in self.groups)[:k])

    def shortfalls(self, levels: Sequence[float], least: float) -> dict[int, float]:
        """What shares are below given ones, as a sum that outweighs all value.

        Args:
            levels: Share of each tenant.
            least: Share of every model.
        """
        wanted = [(group, level, len(self.shares) / len(self.groups)) for group, level in zip(self.groups, levels, strict=True)]
        if least > 0:
            wanted += [({share: 1.0}, least, _LEFT_BEHIND) for share in self.shares.values()]
        weighed: dict[int, float] = {}
        for terms, level, models in wanted:
            short = self.program.variable()
            self.program.row(add((1, {short: 1}), (1, terms)), low=level)
            weighed[short] = _OUTWEIGHS * models * max((client.value for client in self.problem.clients), default=1.0)
        return weighed

    def within(self, relaxed: Relaxed, most: float) -> set[int]:
        """Options that take no more than `most` from what `relaxed` is the optimum of: for each of their replicas, if they are at 0 in it."""
        return {o for o, entry in enumerate(self.entries) if entry is not None and relaxed.reduced[entry] <= most}

    @cached_property
    def groups(self) -> list[dict[int, float]]:
        """Share of each tenant that has a model which can run, as a sum."""
        groups = (self._group(models, weight) for _, models, weight in self.problem.groups())
        return [group for group in groups if group]

    def _group(self, models: Sequence[int], weight: float) -> dict[int, float]:
        worth = {self.shares[i]: self.problem.clients[i].value for i in models if i in self.shares}
        return {share: value / sum(worth.values()) / weight for share, value in worth.items()}

    # --- what came out -------------------------------------------------------------------

    def read(self, optimum: Optimum) -> tuple[list[int | None], list[int]]:
        """Option and replicas by model."""
        chosen: list[int | None] = [None] * len(self.problem.clients)
        replicas = [0] * len(self.problem.clients)
        for o, option in enumerate(self.problem.options):
            count = round(sum(factor * optimum.values[v] for v, factor in self.counts[o].items()))
            if count > 0:
                chosen[option.model], replicas[option.model] = o, count
        return chosen, replicas

    def placed(self, optimum: Optimum) -> list[Placed]:
        """The nodes, where they were written one by one."""
        held: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for variable, n, k, device, o in self._on:
            if (count := round(optimum.values[variable])) > 0:
                held[n, k].append((o, device, count))
        return [Placed(node=n, replicas=tuple(sorted(each))) for (n, _), each in sorted(held.items())]


def _rounded(sizes: Array, k: int) -> Array:
    """A dual feasible function: what fits together still fits, and what wastes room counts for more (Fekete and Schepers 2001)."""
    import numpy as np

    scaled = (k + 1) * sizes
    return np.where(abs(scaled - scaled.round()) < EPS, sizes, np.floor(scaled) / k)
