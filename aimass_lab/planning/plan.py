"""Request rate and latency target in; device, replicas, batching and predicted latency out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import InputError
from ..records import BatchPoint, Experience, LoadPoint, ModelInfo, Note, Number, Plan, PlanOption, Target, derived
from ..scheduling import make_policy
from ..units import format_bytes, format_quantity, format_seconds
from .allocation import Allocation, Allocator, Candidate, Load
from .loads import simulate_loads
from .overhead import Overhead
from .queueing import Arrivals, Bursty, Poisson, ServiceTimes
from .simulate import BAND_KIND, Band, RequestClass, Simulation, WaitPolicy
from .simulations import Simulations

MAX_OPTIONS = 30
_RELAXED = 1.5
"""A target this much above the smallest p99 that can be reached is offered as feasible: closer to it, replicas soar."""
SIMULATION = Number(value=1, unit="ratio", source="estimated", method="the simulated queue stands for the real one")
"""An input of everything that is planned: however sure the measurements are, what follows from them is a prediction."""
_DOUBT = 0.05
"""Share by which p99s may differ and still be nearly the same."""


def make_plan(
    model: ModelInfo,
    service_time: Mapping[str, Sequence[BatchPoint]],
    target: Target,
    *,
    prices: Mapping[str, float] | None = None,
    max_wait_s: Sequence[float] = (0.0, 0.002, 0.005),
    wait_policy: WaitPolicy = "adaptive",
    policy: str = "fcfs",
    mix: Sequence[RequestClass] = (),
    memory_limit: Mapping[str, Number] | None = None,
    overhead: Overhead | None = None,
    experience: Experience | None = None,
    burstiness: float | None = None,
    seed: int = 0,
    known: Simulations | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Plan:
    """Find the cheapest allocation whose simulated p99 stays within the target.

    Every batch limit (powers of two up to the largest in the ladder) and every waiting time is
    tried on every device. An allocation meets the target when the upper end of the 90 % band
    of its p99 does. A replica is one worker with its own queue; requests are spread over the
    replicas at random, as a Kubernetes Service spreads them.

    Args:
        model: What is served.
        service_time: Batch ladder by device.
        target: Rate, latency, and the most replicas.
        prices: USD per hour and replica by device. Where every device has one, the cheapest
            allocation is chosen, else the one with the fewest replicas. A budget needs one for each.
        max_wait_s: Times to try for which a batch is held back at most; 0 is natural batching.
        wait_policy: What a batch that is held back waits for: ``"adaptive"``, as a bundle's server
            does unless told otherwise, or ``"always"`` for a full one; see `simulate`.
        policy: Which waiting requests go first: a name of `scheduling.POLICIES`.
        mix: Kinds of requests; empty: one item each, all alike.
        memory_limit: Memory of a device by name; batches whose measured peak is above it are left out.
        overhead: Time that the server adds to every request besides queue and model; None: latencies are without it, and say so.
        experience: How earlier plans fared: what p50 and p99 are corrected and their bands widened by.
        burstiness: Rate of bursts over the rate between them; None or 1: Poisson arrivals.
        seed: Of everything random; the same seed gives the same plan.
        known: What was simulated for earlier plans; what is simulated for this one is added.
        progress: Called with the share done and what is being done.

    Raises:
        InputError: no device, no ladder, or a value out of range.
        UnknownNameError: there is no such policy.
    """
    _check(service_time, target, prices, max_wait_s, burstiness)
    request = _Request(model, service_time, target, prices or {}, policy, tuple(mix), memory_limit or {}, overhead, experience, burstiness)
    tell = progress or (lambda share, text: None)
    allocator = Allocator(request.load(seed), **request.effort(), known=known or Simulations())
    candidates = request.candidates(max_wait_s, wait_policy)
    if not candidates:
        raise InputError("no batch fits the memory of any device", help=f"limits: {_limits(memory_limit or {})}")
    found = allocator.all(candidates, request.allows, lambda share: tell(0.8 * share, f"simulating {len(candidates)} allocations"))
    tell(0.8, "confirming the best")
    winner, found = _winner(found, allocator, request.allows)
    plan = _feasible(request, winner, found, allocator) if winner else _infeasible(request, found, allocator)
    tell(1.0, "planned")
    return plan


@dataclass(frozen=True)
class _Request:
    """Everything that was asked, and the numbers made from it."""

    model: ModelInfo
    ladders: Mapping[str, Sequence[BatchPoint]]
    target: Target
    prices: Mapping[str, float]
    policy: str
    mix: tuple[RequestClass, ...]
    memory_limit: Mapping[str, Number]
    overhead: Overhead | None
    experience: Experience | None
    burstiness: float | None

    @property
    def rate(self) -> float:
        """Requests per second to plan for, headroom included."""
        return self.target.requests_per_s.value * (1 + self.target.headroom)

    @property
    def priced(self) -> bool:
        return all(device in self.prices for device in self.ladders)

    def most(self, device: str) -> int:
        """Replicas on a device that are allowed: by their greatest number, and by the budget."""
        budget, most = self.target.budget, self.target.max_replicas
        return most if budget is None or not self.prices[device] else min(most, math.floor(budget.value / self.prices[device] + 1e-9))

    def allows(self, allocation: Allocation) -> bool:
        """Whether there may be so many replicas."""
        return allocation.replicas <= self.most(allocation.candidate.device)

    def limit_word(self, device: str) -> str:
        """What limits the replicas on a device."""
        return "the budget" if self.most(device) < self.target.max_replicas else "max_replicas"

    @property
    def overhead_s(self) -> float:
        return self.overhead.number.value if self.overhead else 0.0

    def arrivals(self, rate: float) -> Arrivals:
        """The law of arrivals at the whole service."""
        return Bursty(rate, burst=self.burstiness) if self.burstiness and self.burstiness > 1 else Poisson(rate)

    def load(self, seed: int) -> Load:
        policy = make_policy(self.policy)
        batched = self.policy == "fcfs" and not self.mix
        return Load(
            arrivals=self.arrivals(self.rate),
            latency_p99_s=self.target.latency_p99.value,
            overhead=self.overhead,
            experience=self.experience,
            policy=None if batched else policy,
            mix=self.mix,
            seed=seed,
        )

    def effort(self) -> dict[str, tuple[int, int]]:
        """Requests and replications: bursts need longer runs, the event loop affords shorter ones."""
        if self.policy != "fcfs" or self.mix:
            return {"quick": (2_000, 5), "thorough": (6_000, 11)}
        if self.burstiness and self.burstiness > 1:
            return {"quick": (16_000, 5), "thorough": (40_000, 21)}
        return {"quick": (8_000, 5), "thorough": (20_000, 21)}

    def candidates(self, max_wait_s: Sequence[float], wait_policy: WaitPolicy) -> list[Candidate]:
        smallest = max((kind.num_items for kind in self.mix), default=1)
        return [
            Candidate(
                device=device,
                service=service,
                max_batch_size=size,
                max_wait_s=wait,
                wait_policy=wait_policy,
                price=self.prices[device] if self.priced else None,
            )
            for device, points in self.ladders.items()
            if self.most(device)
            for service in [ServiceTimes.from_points(points)]
            for size in _powers_of_two(service.max_batch_size)
            for wait in (sorted(set(max_wait_s)) if size > 1 else sorted(set(max_wait_s))[:1])
            if self._fits(device, size) and size >= smallest
        ]

    def _fits(self, device: str, batch_size: int) -> bool:
        limit = self.memory_limit.get(device)
        peaks = [p.peak_memory_bytes.value for p in self.ladders[device] if p.peak_memory_bytes and p.batch_size >= batch_size]
        return limit is None or not peaks or min(peaks) <= limit.value

    # --- numbers -------------------------------------------------------------------------

    def inputs(self, device: str) -> list[tuple[str, Number]]:
        """What the simulation of `device` read; the ladder as one number, as sure as its weakest."""
        ladder = ladder_number(self.ladders[device])
        asked = [("requests_per_s", self.target.requests_per_s), ("latency_p99_target", self.target.latency_p99)]
        return [*asked, ("service_time", ladder), *([("overhead", self.overhead.number)] if self.overhead else []), ("simulation", SIMULATION)]

    def replicas(self, device: str, count: int, method: str) -> Number:
        return derived(count, "replica", method, self.inputs(device))

    def latency(self, device: str, band: Band, percentile: str) -> Number | None:
        """The simulated latency; None where it has no bound."""
        if math.isinf(band.value):
            return None
        interval = (band.low, band.high) if math.isfinite(band.high) else None
        learnt = f"; corrected and its band widened by what {self.experience.n} runs of plans here taught" if self.experience else ""
        return derived(
            band.value,
            "s",
            f"{percentile} of the simulated queue{' and the server' if self.overhead else ''}, median of the replications{learnt}",
            self.inputs(device),
            interval=interval,
            interval_kind=BAND_KIND if interval else None,
        )

    def utilization(self, device: str, simulation: Simulation) -> Number:
        busy = 1.0 if simulation.unstable else min(simulation.utilization, 1.0)
        return derived(busy, "ratio", "simulated share of time that a replica computes", self.inputs(device))

    def cost(self, device: str, replicas: int) -> Number | None:
        if device not in self.prices:
            return None
        price = Number(value=self.prices[device], unit="USD/h", source="user", method=f"price of {device}")
        count = self.replicas(device, replicas, "replicas")
        return derived(round(replicas * self.prices[device], 9), "USD/h", "replicas x price", [("price", price), ("replicas", count)])

    def throughput_limit(self, candidate: Candidate, replicas: int) -> Number:
        items = sum(kind.share * kind.num_items for kind in self.mix) if self.mix else 1.0
        value = replicas * candidate.service.stable_rate(candidate.max_batch_size) / items
        method = f"replicas x {candidate.max_batch_size} / mean time of a batch of {candidate.max_batch_size}"
        return derived(value, "request/s", method, self.inputs(candidate.device))


def ladder_number(points: Sequence[BatchPoint]) -> Number:
    """A batch ladder as one input, as sure as its weakest point."""
    return derived(points[0].latency_p50.value, "s", "batch ladder", [(f"batch {point.batch_size}", point.latency_p50) for point in points])


def _powers_of_two(largest: int) -> list[int]:
    return [2**k for k in range(largest.bit_length())]


def _winner(found: list[Allocation], allocator: Allocator, allows: Callable[[Allocation], bool]) -> tuple[Allocation | None, list[Allocation]]:
    """Confirm the best by a long simulation; when that costs it its place, confirm the next best.

    Ties in cost go to the lower p99; where that is nearly the same, to natural batching and to the
    larger batch: it costs nothing while traffic is low, lets a burst through, and takes requests
    of several items. Not to one that alone takes half of the target.
    """

    def rank(allocation: Allocation) -> tuple[float, float]:
        assert allocation.simulation is not None
        weight = allocation.candidate.weight(allocation.replicas)
        candidate = allocation.candidate
        items_per_s = candidate.service.stable_rate(candidate.max_batch_size)
        slack = allocation.replicas * items_per_s / allocator.load.items_per_s
        blocks = candidate.max_batch_size / items_per_s > allocator.load.latency_p99_s / 2
        credit = 0.0 if blocks else _DOUBT / 5 * math.log2(max(1.0, slack))
        penalty = _DOUBT * (candidate.max_wait_s > 0) + _DOUBT * blocks + 2 * _DOUBT * max(0, 2 - slack) - credit
        return weight, allocation.simulation.latency_p99_s.value * (1 + penalty)

    confirmed: set[int] = set()
    while True:
        open_ = [k for k, a in enumerate(found) if a.meets and allows(a)]
        if not open_:
            return None, found
        best = min(open_, key=lambda k: rank(found[k]))
        if best in confirmed:
            return found[best], found
        found[best] = allocator.confirm(found[best])
        confirmed.add(best)


# --- the answer --------------------------------------------------------------------------


def _feasible(request: _Request, winner: Allocation, found: Sequence[Allocation], allocator: Allocator) -> Plan:
    return _plan(request, winner, found, allocator, feasible=True, binding=_binding(request, winner))


def _binding(request: _Request, winner: Allocation) -> str:
    """One sentence on why fewer replicas do not do."""
    candidate, replicas = winner.candidate, winner.replicas
    limit = request.throughput_limit(candidate, 1).value
    if replicas == 1:
        return f"nothing binds: one replica is enough, and would carry up to {_rate(limit)} before its queue grows"
    if replicas * limit - limit <= request.rate:
        return (
            f"throughput binds: a replica answers at most {_rate(limit)} in batches of {candidate.max_batch_size}, "
            f"so with {_replicas(replicas - 1)} the queue would grow without bound"
        )
    below = winner.below
    seen = "" if below is None or below.unstable else f" ({_latency(below)})"
    fewest = math.floor(request.rate / limit) + 1
    return (
        f"latency binds: {fewest} replica{'s' if fewest > 1 else ''} would be enough for the rate, but with fewer than {replicas} "
        f"the p99 is not safely within {format_seconds(request.target.latency_p99.value)}{seen}"
    )


def _infeasible(request: _Request, found: Sequence[Allocation], allocator: Allocator) -> Plan:
    """Say what binds, and what would be feasible instead."""
    needing = [a for a in found if a.meets]
    if needing:
        closest = allocator.confirm(min(needing, key=lambda a: (a.candidate.weight(a.replicas), a.candidate.max_wait_s)))
        device = closest.candidate.device
        most = request.most(device)
        highest = allocator.highest_rate(closest.candidate, most, request.arrivals) / (1 + request.target.headroom)
        binding = (
            f"{request.limit_word(device)} binds: {_rate(request.rate)} need {closest.replicas} replicas of {device}, and {most} are allowed; "
            f"feasible would be {closest.replicas} replicas, or up to {_rate(highest)} with {most}"
        )
        shown = replace(closest, replicas=most, simulation=allocator.simulate(closest.candidate, most, thorough=True), meets=False)
        return _plan(request, shown, found, allocator, feasible=False, binding=binding)
    shown, best = _fastest(found, allocator, request)
    device = shown.candidate.device
    most = request.most(device)
    alone = shown.candidate.alone_s() + request.overhead_s
    target = format_seconds(request.target.latency_p99.value)
    if math.isinf(best):
        binding = (
            f"latency and {request.limit_word(device)} bind: a request alone takes {format_seconds(alone)} on {device} (target {target}), "
            f"and {most} replicas do not carry {_rate(request.rate)}; at least {shown.candidate.fewest_replicas(allocator.load)} would"
        )
    else:
        feasible = format_seconds(_RELAXED * best)
        binding = (
            f"latency binds: a request alone takes up to {format_seconds(alone)} (p99) on {device}, the target is {target}, "
            f"and more replicas do not change that; the smallest p99 that {_replicas(most)} can reach is {format_seconds(best)}; "
            f"feasible would be {feasible} with {_replicas(shown.replicas)}, or a faster model"
        )
    return _plan(request, shown, found, allocator, feasible=False, binding=binding)


def _fastest(found: Sequence[Allocation], allocator: Allocator, request: _Request) -> tuple[Allocation, float]:
    """The allocation with nearly the smallest p99 that can be reached, and that p99."""
    reach = [(allocator.simulate(a.candidate, request.most(a.candidate.device)).latency_p99_s.high, k) for k, a in enumerate(found)]
    best, index = min(reach)
    candidate = found[index].candidate
    most = request.most(candidate.device)
    if math.isinf(best):
        fewest = min((a.candidate for a in found), key=lambda c: c.fewest_replicas(allocator.load))
        most = request.most(fewest.device)
        return Allocation(candidate=fewest, replicas=most, simulation=allocator.simulate(fewest, most, thorough=True)), best
    relaxed = Allocator(replace(allocator.load, latency_p99_s=_RELAXED * best), quick=allocator.quick, thorough=allocator.thorough, known=allocator.known)
    return replace(relaxed.confirm(relaxed.smallest(candidate, most)), meets=False), best


def _plan(request: _Request, chosen: Allocation, found: Sequence[Allocation], allocator: Allocator, *, feasible: bool, binding: str) -> Plan:
    candidate, simulation, replicas = chosen.candidate, chosen.simulation, chosen.replicas
    assert simulation is not None
    device = candidate.device
    inputs = request.inputs(device)
    spare = f" at {1 + request.target.headroom:g} times the rate" if request.target.headroom else ""
    method = f"fewest whose simulated p99, upper end of the band, is within the target{spare}" if feasible else "closest that is allowed"
    return Plan(
        model=request.model,
        target=request.target,
        burst=request.burstiness or 1.0,
        feasible=feasible,
        device=device,
        replicas=request.replicas(device, replicas, method),
        max_batch_size=derived(candidate.max_batch_size, "item", "best of the powers of two that were simulated", inputs),
        max_wait=derived(candidate.max_wait_s, "s", "best of the waiting times that were simulated", inputs),
        scheduling_policy=request.policy,
        latency_p50=request.latency(device, simulation.latency_p50_s, "p50"),
        latency_p99=request.latency(device, simulation.latency_p99_s, "p99"),
        utilization=request.utilization(device, simulation),
        throughput_limit=request.throughput_limit(candidate, replicas),
        cost=request.cost(device, replicas),
        binding=binding,
        service_time=tuple(request.ladders[device]),
        server_time=request.overhead.record if request.overhead else None,
        experience=request.experience,
        options=_options(request, chosen, found, feasible),
        by_load=_by_load(request, chosen, allocator),
        notes=_notes(request, candidate, simulation),
    )


def _by_load(request: _Request, chosen: Allocation, allocator: Allocator) -> tuple[LoadPoint, ...]:
    candidate, limit = chosen.candidate, request.throughput_limit(chosen.candidate, 1)
    assert chosen.simulation is not None

    def make(rate: float, simulation: Simulation) -> LoadPoint:
        return LoadPoint(
            requests_per_s=derived(rate, "request/s", f"{rate / limit.value:.0%} of what one replica carries", [("throughput_limit", limit)]),
            latency_p99=request.latency(candidate.device, simulation.latency_p99_s, "p99"),
            utilization=request.utilization(candidate.device, simulation),
        )

    planned = (request.rate / chosen.replicas, chosen.simulation)
    return simulate_loads(limit.value, planned, lambda rate: allocator.simulate(candidate, 1, arrivals=request.arrivals(rate)), make)


def _options(request: _Request, chosen: Allocation, found: Sequence[Allocation], feasible: bool) -> tuple[PlanOption, ...]:
    """All that was considered, the best first, the least promising cut."""
    others = [a for a in found if not (feasible and a is chosen)]
    ordered = sorted(others, key=lambda a: (not a.meets, a.simulation is None, a.candidate.weight(a.replicas), _p99(a)))
    shown = ([chosen] if feasible else []) + ordered
    return tuple(_option(request, a, chosen, feasible) for a in shown[:MAX_OPTIONS])


def _option(request: _Request, option: Allocation, chosen: Allocation, feasible: bool) -> PlanOption:
    candidate, simulation = option.candidate, option.simulation
    device = candidate.device
    return PlanOption(
        device=device,
        replicas=request.replicas(device, option.replicas, "fewest that were found to do" if option.meets else "most that were looked at"),
        max_batch_size=derived(candidate.max_batch_size, "item", "simulated", request.inputs(device)),
        max_wait=derived(candidate.max_wait_s, "s", "simulated", request.inputs(device)),
        latency_p99=request.latency(device, simulation.latency_p99_s, "p99") if simulation else None,
        utilization=request.utilization(device, simulation) if simulation else None,
        cost=request.cost(device, option.replicas),
        feasible=option.meets and request.allows(option),
        reason=_reason(request, option, chosen, feasible),
    )


def _reason(request: _Request, option: Allocation, chosen: Allocation, feasible: bool) -> str:
    if feasible and option is chosen:
        return "the answer"
    if option.reason == "alone":
        return f"a request alone already takes {format_seconds(option.candidate.alone_s() + request.overhead_s)} (p99)"
    if option.reason == "throughput":
        return f"needs at least {_replicas(option.replicas)} for the rate alone, more than another allocation needs"
    if option.reason == "latency":
        assert option.simulation is not None
        seen = "the queue grows" if option.simulation.unstable else f"p99 is {_latency(option.simulation)}"
        return f"with {_replicas(option.replicas)} {seen}: not safely within the target"
    if not request.allows(option):
        return f"needs {option.replicas} replicas, {request.most(device := option.candidate.device)} are allowed by {request.limit_word(device)}"
    ours, best = option.candidate.weight(option.replicas), chosen.candidate.weight(chosen.replicas)
    if ours > best:
        return "meets the target at a higher cost" if request.priced else f"meets the target with {_replicas(option.replicas - chosen.replicas)} more"
    return "meets the target too, with a higher p99 or less room for bursts"


def _notes(request: _Request, candidate: Candidate, simulation: Simulation) -> tuple[Note, ...]:
    ladder = request.ladders[candidate.device]
    notes = [Note(code="assumes:random-split", text="requests are spread over the replicas at random, each replica with a queue of its own")]
    beyond = [device for device in request.ladders if not request.most(device)]
    if beyond:
        notes.append(Note(code="beyond:budget", text=f"the budget does not pay for one replica of {', '.join(beyond)}"))
    notes += _server_notes(request)
    if any(point.latency_p50.weakest_source != "measured" for point in ladder):
        notes.append(Note(code="W-NOT-MEASURED", text=f"latencies on {candidate.device} are {ladder[0].latency_p50.weakest_source}, not measured"))
    if any(point.latency_p50.quality == "noisy" for point in ladder):
        notes.append(Note(code="W-NOISY", text="the machine was busy while the latencies were measured; measure again when it is quiet"))
    if any(point.latency_p50.quality == "extrapolated" for point in ladder):
        notes.append(Note(code="W-EXTRAPOLATED", text="a latency in the ladder lies beyond what was measured"))
    if candidate.max_batch_size not in {point.batch_size for point in ladder}:
        notes.append(Note(code="interpolated:batch", text=f"a batch of {candidate.max_batch_size} was interpolated between measured sizes"))
    if request.policy != "fcfs" and not request.mix:
        notes.append(Note(code="alike:requests", text=f"all requests are alike, so {request.policy} serves them in the order of arrival"))
    if not simulation.unstable and math.isinf(simulation.latency_p99_s.high):
        notes.append(Note(code="W-NEAR-LIMIT", text="at the upper end of the measured latencies the queue would grow without bound"))
    return tuple(notes)


def _server_notes(request: _Request) -> list[Note]:
    """What stands for the server's own milliseconds."""
    if request.overhead is None:
        return [Note(code="missing:overhead", text="latencies hold queue and model; decoding and transport of the server come on top")]
    number = request.overhead.number
    low, high = number.interval or (number.value, number.value)
    text = f"each request spends {format_seconds(number.value)} ({format_seconds(low)} to {format_seconds(high)}) in the server and on its way: {number.method}"
    return [Note(code="server-time" if number.weakest_source == "measured" else "assumes:server-time", text=text)]


def _p99(allocation: Allocation) -> float:
    return allocation.simulation.latency_p99_s.value if allocation.simulation else math.inf


def _replicas(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def _rate(value: float) -> str:
    return format_quantity(value, "request/s")


def _latency(simulation: Simulation) -> str:
    band = simulation.latency_p99_s
    high = f"up to {format_seconds(band.high)}" if math.isfinite(band.high) else "without an upper end"
    return f"{format_seconds(band.value)}, {high}"


def _limits(memory_limit: Mapping[str, Number]) -> str:
    return ", ".join(f"{device} {format_bytes(limit.value)}" for device, limit in memory_limit.items()) or "none given"


def _check(
    service_time: Mapping[str, Sequence[BatchPoint]],
    target: Target,
    prices: Mapping[str, float] | None,
    max_wait_s: Sequence[float],
    burstiness: float | None,
) -> None:
    if not service_time:
        raise InputError("no device to plan for", help="give a batch ladder for one device at least")
    for device, points in service_time.items():
        if not points:
            raise InputError(f"the batch ladder of {device!r} is empty", help="profile the model on it, or estimate it")
    for name, number, unit in (("rate", target.requests_per_s, "request/s"), ("p99 target", target.latency_p99, "s")):
        if number.value <= 0 or number.unit != unit:
            raise InputError(f"the {name} must be above 0 and in {unit}, got {number.value} {number.unit}")
    if target.max_replicas < 1 or not target.headroom >= 0:
        raise InputError(f"max_replicas must be at least 1 and headroom at least 0, got {target.max_replicas} and {target.headroom}")
    if not max_wait_s or not all(math.isfinite(wait) and wait >= 0 for wait in max_wait_s):
        raise InputError(f"waiting times must be finite and at least 0, got {tuple(max_wait_s)}")
    for device, price in (prices or {}).items():
        if device not in service_time:
            raise InputError(f"there is a price for {device!r}, which is not planned for", help=f"devices: {', '.join(service_time)}")
        if not (math.isfinite(price) and price >= 0):
            raise InputError(f"the price of {device!r} must be at least 0, got {price}")
    if target.budget is not None:
        _check_budget(target.budget.value, service_time, prices or {})
    if burstiness is not None and not (math.isfinite(burstiness) and burstiness >= 1):
        raise InputError(f"burstiness must be at least 1, got {burstiness}", help="1 is a Poisson stream; 4 has bursts of four times the rate")


def _check_budget(budget: float, devices: Iterable[str], prices: Mapping[str, float]) -> None:
    unpriced = [device for device in devices if device not in prices]
    if unpriced:
        text = f"a budget of {budget:g} USD per hour says nothing without a price of {', '.join(unpriced)}"
        raise InputError(text, help=f"give the price of a replica: --price {unpriced[0]}=0.5")
    cheapest = min(prices[device] for device in devices)
    if not (math.isfinite(budget) and budget > 0) or cheapest > budget:
        raise InputError(f"a budget of {budget:g} USD per hour does not pay for one replica at {cheapest:g}", help="raise the budget")
