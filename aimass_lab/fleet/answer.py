"""Makes the record of an allocation: every number with what it was computed from, and what binds in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..planning.problem import SIMULATION, ladder_number
from ..planning.simulate import BAND_KIND, Band
from ..records import (
    FleetAllocation,
    FleetLimit,
    FleetModel,
    FleetNode,
    FleetNodeType,
    FleetReplicas,
    Note,
    Number,
    ResourceDemand,
    Unit,
    derived,
)
from ..units import format_count, format_quantity, format_seconds, format_share
from .inventory import NodeKind
from .joint import Outcome
from .limits import SMALL, Tight
from .problem import EPS, Placed, Problem, Solution, shares_of
from .shares import ISOLATION
from .ways import Ask, Way

CHOICE = Number(value=1, unit="ratio", source="estimated", method="replicas carry what the simulated queue says")


@dataclass(frozen=True)
class Answer:
    """Everything that the record is made from."""

    asks: Sequence[Ask]
    kinds: Sequence[NodeKind]
    burst: float
    headroom: float
    problem: Problem
    solution: Solution
    outcomes: Sequence[Outcome | None]
    limits: Sequence[Tight]
    first_cuts: Mapping[str, ResourceDemand | str]
    reasons: Mapping[str, str]
    seconds: float

    def record(self) -> FleetAllocation:
        """Put it together."""
        limits = tuple(self._limit(limit) for limit in self.limits)
        models = tuple(self._model(i) for i in range(len(self.asks)))
        return FleetAllocation(
            status="not all served" if self.solution.elastic else "all served",
            objective=self.problem.objective,
            models=models,
            node_types=tuple(self._node_type(n, kind) for n, kind in enumerate(self.kinds)),
            nodes=self._nodes(),
            cost=self._cost(),
            gap=self._gap(),
            least_share=self._choice(min(self.solution.shares), "ratio", "least of the models' shares"),
            fairness=self._choice(_jain(self._group_shares()), "ratio", "Jain's index of the tenants' shares over their weights"),
            node_loss=self._choice(self._node_loss(), "ratio", "least share of a model when the node is lost that costs it most, nothing moved yet"),
            burst=self.burst,
            headroom=self.headroom,
            binding=_binding(self.solution, models, self.limits),
            limits=limits,
            solve_time=Number(value=self.seconds, unit="s", source="measured", method="wall time of the choice, without simulations", n=1),
            notes=self._notes(),
        )

    # --- numbers -------------------------------------------------------------------------

    def _choice(self, value: float, unit: Unit, method: str, i: int | None = None) -> Number:
        """A number that follows from the choice: of model `i`, or of all together."""
        if i is None:
            return derived(value, unit, method, [*self._all, ("simulation", CHOICE)])
        way = self._way(i)
        return derived(value, unit, method, [("rate", self.asks[i].rate), *([("capacity", way.capacity)] if way else []), ("simulation", CHOICE)])

    @cached_property
    def _all(self) -> list[tuple[str, Number]]:
        """Rates and capacities of all models, as one number each: as sure as the weakest."""
        rates = [(ask.name, ask.rate) for ask in self.asks]
        capacities = [(ask.name, way.capacity) for i, ask in enumerate(self.asks) if (way := self._way(i))]
        named = (("rates", rates), ("capacities", capacities))
        return [(name, derived(sum(n.value for _, n in numbers), "request/s", "sum", numbers)) for name, numbers in named if numbers]

    def _way(self, i: int) -> Way | None:
        o = self.solution.chosen[i]
        return None if o is None else self.problem.options[o].tag

    def _cost(self) -> Number | None:
        prices = [(f"price of {kind.name}", kind.price) for kind in self.kinds if kind.price is not None]
        if len(prices) < len(self.kinds):
            return None
        return derived(round(self.solution.cost, 9), "USD/h", "nodes x price", [*prices, ("simulation", CHOICE)])

    def _gap(self) -> Number:
        solution = self.solution
        if solution.exact:
            away, method = 0.0, "proven: no choice or placement is better"
        elif solution.elastic or self.problem.objective == "value":
            away = 1 - solution.value(self.problem) / solution.bound if solution.bound else 0.0
            method = "attained value below the bound that ignores how replicas are packed on nodes and, of many models, that replicas are whole"
        else:
            away = 1 - solution.bound / solution.cost if solution.cost else 0.0
            method = "cost above the bound that ignores how replicas are packed on nodes"
        return self._choice(min(1.0, max(0.0, away)), "ratio", method)

    def _group_shares(self) -> list[float]:
        clients, shares = self.problem.clients, self.solution.shares
        return [
            sum(clients[i].value * shares[i] for i in models) / sum(clients[i].value for i in models) / weight for _, models, weight in self.problem.groups()
        ]

    def _node_loss(self) -> float:
        """Of each node that could be lost, the least share that is left to any model that is served."""
        solution, least = self.solution, min((s for s, o in zip(self.solution.shares, self.solution.chosen, strict=True) if o is not None), default=0.0)
        for placed in set(solution.placed):
            lost: Counter[int] = Counter()
            for o, _, count in placed.replicas:
                lost[self.problem.options[o].model] += count
            left = [count - lost[i] for i, count in enumerate(solution.replicas)]
            shares = shares_of(self.problem, solution.chosen, left)
            least = min([least, *(shares[i] for i in lost)])
        return least

    # --- one model -----------------------------------------------------------------------

    def _model(self, i: int) -> FleetModel:
        ask, way, outcome = self.asks[i], self._way(i), self.outcomes[i]
        share = self._choice(self.solution.shares[i], "ratio", "served part of the rate", i)
        weighed = sum(option.model == i for option in self.problem.options)
        asked = FleetModel(
            model=ask.model, tenant=ask.tenant, value=ask.value, requests_per_s=ask.rate, latency_target=ask.p99, share=share, options=weighed,
            reason=self.reasons.get(ask.name, ""),
        )  # fmt: skip
        if way is None or outcome is None:
            return asked
        count = self.solution.replicas[i]
        busy, first, difference = self._first_cut(ask, way, count)
        fields = {
            "technique": way.variant.technique,
            "node_type": way.kind.name,
            "device_share": None if way.kind.on_processor else way.share.name,
            "isolation": "cores of its own; memory bandwidth is shared with the node's others" if way.kind.on_processor else ISOLATION[way.share.kind],
            "replicas": self._choice(count, "replica", "rate over what one carries, rounded up" if share.value == 1 else "as many as there is room for", i),
            "max_batch_size": way.candidate.max_batch_size,
            "capacity": way.capacity,
            "cores": way.cores,
            "memory": way.memory,
            "device_memory": way.device_memory,
            "latency_p50": self._latency(way, outcome.latency_p50_s, "p50"),
            "latency_p99": self._latency(way, outcome.latency_p99_s, "p99"),
            "utilization": derived(outcome.utilization, "ratio", "simulated share of time with work", self._simulated(way)),
            "meets": outcome.latency_p99_s.high <= ask.p99.value,
            "formula_busy": busy,
            "formula_replicas": first,
            "formula_difference": difference,
            "reason": _reason(way, count, self.solution.shares[i], weighed),
        }
        return FleetModel(**{name: getattr(asked, name) for name in asked.__struct_fields__} | fields)

    def _simulated(self, way: Way) -> list[tuple[str, Number]]:
        return [("service_time", ladder_number(way.ladder)), ("capacity", way.capacity), ("simulation", SIMULATION)]

    def _latency(self, way: Way, band: Band, percentile: str) -> Number | None:
        if math.isinf(band.value):
            return None
        interval = (band.low, band.high) if math.isfinite(band.high) else None
        return derived(
            band.value, "s", f"{percentile} of all models simulated together, median of the replications", self._simulated(way),
            interval=interval, interval_kind=BAND_KIND if interval else None,
        )  # fmt: skip

    def _first_cut(self, ask: Ask, way: Way, count: int) -> tuple[Number | None, Number | None, str | None]:
        first = self.first_cuts.get(ask.name)
        if first is None or isinstance(first, str):
            return None, None, first
        return first.busy_devices, first.replicas, _difference(first, way, ask, count)

    # --- nodes ---------------------------------------------------------------------------

    def _node_type(self, n: int, kind: NodeKind) -> FleetNodeType:
        return FleetNodeType(
            name=kind.name, device=kind.device, devices=kind.devices, cores=kind.cores, memory=kind.memory, device_memory=kind.device_memory,
            price=kind.price, boot=kind.boot, count=kind.count, used=sum(placed.node == n for placed in self.solution.placed),
        )  # fmt: skip

    def _nodes(self) -> tuple[FleetNode, ...]:
        alike = Counter(self.solution.placed)
        return tuple(self._node(placed, count) for placed, count in sorted(alike.items(), key=lambda pair: (pair[0].node, -pair[1])))

    def _node(self, placed: Placed, count: int) -> FleetNode:
        options = [(self.problem.options[o], device, n) for o, device, n in placed.replicas]
        ways: list[Way] = [option.tag for option, _, n in options for _ in range(n)]
        known = [way.memory for way in ways if way.memory is not None]
        memory = derived(sum(n.value for n in known), "B", "sum over its replicas", [("memory", n) for n in known]) if len(known) == len(ways) else None
        return FleetNode(
            node_type=self.kinds[placed.node].name,
            count=count,
            replicas=tuple(FleetReplicas(model=self.asks[o.model].name, count=n, device=None if device < 0 else device) for o, device, n in options),
            cores_used=derived(sum(way.cores.value for way in ways), "core", "sum over its replicas", [("cores", way.cores) for way in ways]),
            memory_used=memory,
        )

    # --- limits and notes ----------------------------------------------------------------

    def _limit(self, limit: Tight) -> FleetLimit:
        given = Number(value=limit.limit, unit=limit.unit, source="user", method="given")
        method = "solved again with so much more" if len(self.asks) <= SMALL else "linear relaxation with so much more, against that without"
        gain = None
        if limit.after is not None:
            gain = self._choice(limit.gained, "request/s", method) if not limit.saved else self._choice(limit.saved, "USD/h", method)
        return FleetLimit(
            name=limit.name,
            limit=given,
            used=self._choice(limit.used, limit.unit, "sum over the answer"),
            binds=limit.binds,
            more=None if limit.more is None else Number(value=limit.more, unit=limit.unit, source="assumed", method="least step that could change anything"),
            gain=gain,
            text=_limit_text(limit),
        )

    def _notes(self) -> tuple[Note, ...]:
        ways = [way for i in range(len(self.asks)) if (way := self._way(i)) is not None]
        notes = [
            Note(code="assumes:random-split", text="requests go to a model's replicas at random, each with a queue of its own; the rest is turned away"),
            Note(code="missing:overhead", text="latencies hold queue and model; decoding and transport of the server come on top"),
        ]
        if self._cost() is None:
            notes.append(Note(code="missing:price", text="not every type of node has a price, so the fewest nodes are looked for"))
        shared = sorted({way.share.name for way in ways if way.share.kind not in ("whole",)})
        if shared:
            text = f"nothing was measured on {', '.join(shared)}: latencies there are those of the whole device over the part of it"
            notes.append(Note(code="W-SHARE-NOT-MEASURED", text=text))
        for kind in {way.share.kind for way in ways} & {"mps", "time_slice"}:
            notes.append(Note(code="W-SHARING-NO-ISOLATION", text=ISOLATION[kind]))
        if any(way.kind.on_processor for way in ways):
            text = "replicas on one processor have cores of their own; what they take of each other's memory bandwidth is not in the figures"
            notes.append(Note(code="assumes:own-cores", text=text))
        estimated = sorted({way.kind.device for way in ways if any(p.latency_p50.weakest_source != "measured" for p in way.variant.ladder)})
        if estimated:
            notes.append(Note(code="W-NOT-MEASURED", text=f"latencies on {', '.join(estimated)} are predicted or given, not measured"))
        if any(p.latency_p50.quality == "noisy" for way in ways for p in way.ladder):
            notes.append(Note(code="W-NOISY", text="the machine was busy while latencies were measured; measure again when it is quiet"))
        if not self.solution.exact:
            notes.append(Note(code="W-GAP", text="the answer is not proven to be the best: see its gap"))
        missed = [ask.name for ask, o in zip(self.asks, self.outcomes, strict=True) if o is not None and o.latency_p99_s.high > ask.p99.value]
        if missed:
            notes.append(Note(code="W-JOINT", text=f"simulated together, {', '.join(missed)} may miss the target even with more room: leave headroom"))
        return tuple(notes)


def _jain(shares: Sequence[float]) -> float:
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def _reason(way: Way, count: int, share: float, weighed: int) -> str:
    carries = f"{count} x {format_quantity(way.capacity.value, 'request/s')}"
    if share > 1 - EPS:
        return f"{carries} carry it; {format_count(weighed, 'way')} weighed"
    return f"{carries} is what there is room for"


def _difference(first: ResourceDemand, way: Way, ask: Ask, count: int) -> str:
    """The formula's replicas against the answer's, and why they differ."""
    cut = round(first.replicas.value)
    head = f"the formula has {first.busy_devices.value:.3g} {first.busy_devices.unit}s busy, so {cut} at {format_share(first.utilization.value)}"
    if cut == count:
        return f"{head}; so has the answer"
    if way.read_at_most:
        return f"{head}; the formula knows no server: one reads at most {format_quantity(way.variant.front_end_per_s, 'request/s')}, whatever its model carries"
    full = way.candidate.service.stable_rate(way.candidate.max_batch_size)
    load = way.capacity.value / full if full else 0.0
    target = format_seconds(ask.p99.value)
    if count > cut:
        part = "" if way.share.compute == 1 else f", and a replica has {way.share.name} of the device"
        return f"{head}; the formula knows no waiting: for a p99 of {target} a replica is loaded to {format_share(load)} of what full batches carry{part}"
    loaded = f"a replica may be loaded to {format_share(load)}, in batches of up to {way.candidate.max_batch_size}"
    return f"{head}; the answer needs fewer: for a p99 of {target} {loaded}"


def _limit_text(limit: Tight) -> str:
    of = f"{format_quantity(limit.used, limit.unit)} of {format_quantity(limit.limit, limit.unit)}"
    if limit.more is None:
        return f"{limit.name}: {of} used, there is room left"
    more = f"{format_quantity(limit.more, limit.unit)} more"
    if limit.before is None or limit.after is None:
        return f"{limit.name}: {of} used; what {more} would buy was not found for sure in the time there was"
    if limit.after.everybody and not limit.before.everybody:
        return f"{limit.name}: {of} used; with {more} everybody would be served"
    if limit.saved > 1e-3:
        return f"{limit.name}: {of} used; {more} would save {format_quantity(limit.saved, 'USD/h')}"
    if limit.binds:
        least = (
            f"the least share would be {format_share(limit.after.least)} instead of {format_share(limit.before.least)}"
            if limit.after.least > limit.before.least + 1e-4
            else ""
        )
        served = f"{format_quantity(limit.gained, 'request/s')} more would be served" if limit.gained > 1e-6 else ""
        return f"{limit.name}: {of} used; with {more} {' and '.join(filter(None, (served, least)))}"
    return f"{limit.name}: {of} used; {more} alone would change nothing"


def _binding(solution: Solution, models: Sequence[FleetModel], limits: Sequence[Tight]) -> str:
    """One sentence on what keeps the answer from being better."""
    tight = [_limit_text(limit) for limit in sorted(limits, key=lambda t: (-t.gained, -t.saved)) if limit.binds]
    if not solution.elastic:
        return f"everybody is served; {tight[0]}" if tight else "everybody is served, and no limit makes it dearer"
    short = ", ".join(f"{m.model.name} {format_share(m.share.value)}" for m in models if 0 < m.share.value < 1 - EPS)
    dropped = [m for m in models if m.share.value == 0]
    hopeless = [m for m in dropped if m.options == 0]
    parts = [f"served in part: {short}" if short else "", f"not served: {', '.join(m.model.name for m in dropped)}" if dropped else ""]
    parts += [f"{m.model.name} is {m.reason}" for m in hopeless]
    parts += tight[:2] or ([] if len(hopeless) == len(dropped) and not short else ["several limits bind together: no single one helps"])
    return "; ".join(filter(None, parts))
