"""A plan from what was simulated: the numbers with what they rest on, what binds, what else was considered, and what would be feasible instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..records import LoadPoint, Note, Plan, PlanOption, derived
from ..units import format_quantity, format_seconds, format_share
from .allocation import Allocation, Allocator, Candidate
from .loads import simulate_loads
from .problem import Problem
from .simulate import Simulation

MAX_OPTIONS = 30
_DEAR = 10
"""So many times the replicas that the rate needs are worth a word."""
_TOLD_REACH = 0.1
"""Of the target: a band that reaches less further than this needs no word."""
_RELAXED = 1.5
"""A target this much above the smallest p99 that can be reached is offered as feasible: closer to it, replicas soar."""


def feasible_plan(problem: Problem, winner: Allocation, found: Sequence[Allocation], allocator: Allocator) -> Plan:
    """The plan that `winner` comes to, beside all that was `found`."""
    return _plan(problem, winner, found, allocator, feasible=True, binding=_binding(problem, winner))


def _binding(problem: Problem, winner: Allocation) -> str:
    """One sentence on why fewer replicas do not do."""
    candidate, replicas = winner.candidate, winner.replicas
    limit = problem.throughput_limit(candidate, 1).value
    if replicas == 1:
        return f"nothing binds: one replica is enough, and would carry up to {_rate(limit)} before its queue grows"
    if replicas * limit - limit <= problem.rate:
        how = f"in batches of {candidate.max_batch_size}"
        if problem.server_binds(candidate):
            how = f"whatever its model does, for its server spends {format_seconds(1 / limit)} of a core on each at least"
        return f"throughput binds: a replica answers at most {_rate(limit)} {how}, so with {_replicas(replicas - 1)} the queue would grow without bound"
    below = winner.below
    seen = "" if below is None or below.unstable else f" ({_latency(below)})"
    fewest = math.floor(problem.rate / limit) + 1
    return (
        f"latency binds: {fewest} replica{'s' if fewest > 1 else ''} would be enough for the rate, but with fewer than {replicas} "
        f"the p99 is not safely within {format_seconds(problem.target.latency_p99.value)}{seen}"
    )


def infeasible_plan(problem: Problem, found: Sequence[Allocation], allocator: Allocator) -> Plan:
    """Say what binds, and what would be feasible instead."""
    needing = [a for a in found if a.meets]
    if needing:
        closest = allocator.confirm(min(needing, key=lambda a: (a.candidate.weight(a.replicas), a.candidate.max_wait_s)))
        device = closest.candidate.device
        most = problem.most(device)
        highest = allocator.highest_rate(closest.candidate, most, problem.arrivals) / (1 + problem.target.headroom)
        binding = (
            f"{problem.limit_word(device)} binds: {_rate(problem.rate)} need {closest.replicas} replicas of {device}, and {most} are allowed; "
            f"feasible would be {closest.replicas} replicas, or up to {_rate(highest)} with {most}"
        )
        shown = replace(closest, replicas=most, simulation=allocator.simulate(closest.candidate, most, thorough=True), meets=False)
        return _plan(problem, shown, found, allocator, feasible=False, binding=binding)
    shown, best = _fastest(found, allocator, problem)
    device = shown.candidate.device
    most = problem.most(device)
    alone = shown.candidate.alone_s() + problem.overhead_s
    target = format_seconds(problem.target.latency_p99.value)
    if math.isinf(best):
        binding = (
            f"latency and {problem.limit_word(device)} bind: a request alone takes {format_seconds(alone)} on {device} (target {target}), "
            f"and {most} replicas do not carry {_rate(problem.rate)}; at least {shown.candidate.fewest_replicas(allocator.load)} would"
        )
    else:
        feasible = format_seconds(_RELAXED * best)
        binding = (
            f"latency binds: a request alone takes up to {format_seconds(alone)} (p99) on {device}, the target is {target}, "
            f"and more replicas do not change that; the smallest p99 that {_replicas(most)} can reach is {format_seconds(best)}; "
            f"feasible would be {feasible} with {_replicas(shown.replicas)}, or a faster model"
        )
    return _plan(problem, shown, found, allocator, feasible=False, binding=binding)


def _fastest(found: Sequence[Allocation], allocator: Allocator, problem: Problem) -> tuple[Allocation, float]:
    """The allocation with nearly the smallest p99 that can be reached, and that p99."""
    reach = [(allocator.simulate(a.candidate, problem.most(a.candidate.device)).latency_p99_s.high, k) for k, a in enumerate(found)]
    best, index = min(reach)
    candidate = found[index].candidate
    most = problem.most(candidate.device)
    if math.isinf(best):
        fewest = min((a.candidate for a in found), key=lambda c: c.fewest_replicas(allocator.load))
        most = problem.most(fewest.device)
        return Allocation(candidate=fewest, replicas=most, simulation=allocator.simulate(fewest, most, thorough=True)), best
    relaxed = Allocator(replace(allocator.load, latency_p99_s=_RELAXED * best), quick=allocator.quick, thorough=allocator.thorough, known=allocator.known)
    return replace(relaxed.confirm(relaxed.smallest(candidate, most)), meets=False), best


def _plan(problem: Problem, chosen: Allocation, found: Sequence[Allocation], allocator: Allocator, *, feasible: bool, binding: str) -> Plan:
    candidate, simulation, replicas = chosen.candidate, chosen.simulation, chosen.replicas
    assert simulation is not None
    device = candidate.device
    inputs = problem.inputs(device)
    spare = f" at {1 + problem.target.headroom:g} times the rate" if problem.target.headroom else ""
    by_load = _by_load(problem, chosen, allocator)
    method = f"fewest whose simulated p99, upper end of the band, is within the target{spare}" if feasible else "closest that is allowed"
    return Plan(
        model=problem.model,
        target=problem.target,
        burst=problem.burstiness or 1.0,
        feasible=feasible,
        device=device,
        replicas=problem.replicas(device, replicas, method),
        max_batch_size=derived(candidate.max_batch_size, "item", "best of the powers of two that were simulated", inputs),
        max_wait=derived(candidate.max_wait_s, "s", "best of the waiting times that were simulated", inputs),
        scheduling_policy=problem.policy.text,
        latency_p50=problem.latency(device, simulation.latency_p50_s, "p50"),
        latency_p99=problem.latency(device, simulation.latency_p99_s, "p99"),
        utilization=problem.utilization(device, simulation),
        throughput_limit=problem.throughput_limit(candidate, replicas),
        cost=problem.cost(device, replicas),
        binding=binding,
        service_time=tuple(problem.ladders[device]),
        server_time=problem.overhead.record if problem.overhead else None,
        experience=problem.experience,
        options=_options(problem, chosen, found, feasible),
        by_load=by_load,
        notes=(*_notes(problem, candidate, simulation), *(_dear_notes(problem, chosen, allocator, by_load) if feasible else ())),
    )


def _by_load(problem: Problem, chosen: Allocation, allocator: Allocator) -> tuple[LoadPoint, ...]:
    candidate, limit = chosen.candidate, problem.throughput_limit(chosen.candidate, 1)
    assert chosen.simulation is not None

    def make(rate: float, simulation: Simulation) -> LoadPoint:
        return LoadPoint(
            requests_per_s=derived(rate, "request/s", f"{format_share(rate / limit.value)} of what one replica carries", [("throughput_limit", limit)]),
            latency_p99=problem.latency(candidate.device, simulation.latency_p99_s, "p99"),
            utilization=problem.utilization(candidate.device, simulation),
        )

    planned = (problem.rate / chosen.replicas, chosen.simulation)
    return simulate_loads(limit.value, planned, lambda rate: allocator.simulate(candidate, 1, arrivals=problem.arrivals(rate)), make)


def _options(problem: Problem, chosen: Allocation, found: Sequence[Allocation], feasible: bool) -> tuple[PlanOption, ...]:
    """All that was considered, the best first, the least promising cut."""
    others = [a for a in found if not (feasible and a is chosen)]
    ordered = sorted(others, key=lambda a: (not a.meets, a.simulation is None, a.candidate.weight(a.replicas), _p99(a)))
    shown = ([chosen] if feasible else []) + ordered
    return tuple(_option(problem, a, chosen, feasible) for a in shown[:MAX_OPTIONS])


def _option(problem: Problem, option: Allocation, chosen: Allocation, feasible: bool) -> PlanOption:
    candidate, simulation = option.candidate, option.simulation
    device = candidate.device
    return PlanOption(
        device=device,
        replicas=problem.replicas(device, option.replicas, "fewest that were found to do" if option.meets else "most that were looked at"),
        max_batch_size=derived(candidate.max_batch_size, "item", "simulated", problem.inputs(device)),
        max_wait=derived(candidate.max_wait_s, "s", "simulated", problem.inputs(device)),
        latency_p99=problem.latency(device, simulation.latency_p99_s, "p99") if simulation else None,
        utilization=problem.utilization(device, simulation) if simulation else None,
        cost=problem.cost(device, option.replicas),
        feasible=option.meets and problem.allows(option),
        reason=_reason(problem, option, chosen, feasible),
    )


def _reason(problem: Problem, option: Allocation, chosen: Allocation, feasible: bool) -> str:
    if feasible and option is chosen:
        return "the answer"
    if option.reason == "alone":
        return f"a request alone already takes {format_seconds(option.candidate.alone_s() + problem.overhead_s)} (p99)"
    if option.reason == "throughput":
        return f"needs at least {_replicas(option.replicas)} for the rate alone, more than another allocation needs"
    if option.reason == "latency":
        assert option.simulation is not None
        seen = "the queue grows" if option.simulation.unstable else f"p99 is {_latency(option.simulation)}"
        return f"with {_replicas(option.replicas)} {seen}: not safely within the target"
    if not problem.allows(option):
        return f"needs {option.replicas} replicas, {problem.most(device := option.candidate.device)} are allowed by {problem.limit_word(device)}"
    ours, best = option.candidate.weight(option.replicas), chosen.candidate.weight(chosen.replicas)
    if ours > best:
        return "meets the target at a higher cost" if problem.priced else f"meets the target with {_replicas(option.replicas - chosen.replicas)} more"
    return "meets the target too, with a higher p99 or less room for bursts"


def _notes(problem: Problem, candidate: Candidate, simulation: Simulation) -> tuple[Note, ...]:
    ladder = problem.ladders[candidate.device]
    notes = [Note(code="assumes:random-split", text="requests are spread over the replicas at random, each replica with a queue of its own")]
    beyond = [device for device in problem.ladders if not problem.most(device)]
    if beyond:
        notes.append(Note(code="beyond:budget", text=f"the budget does not pay for one replica of {', '.join(beyond)}"))
    notes += [*_server_notes(problem), *_reach_notes(problem)]
    if any(point.latency_p50.weakest_source != "measured" for point in ladder):
        notes.append(Note(code="W-NOT-MEASURED", text=f"latencies on {candidate.device} are {ladder[0].latency_p50.weakest_source}, not measured"))
    if any(point.latency_p50.quality == "noisy" for point in ladder):
        notes.append(Note(code="W-NOISY", text="the machine was busy while the latencies were measured; measure again when it is quiet"))
    if any(point.latency_p50.quality == "extrapolated" for point in ladder):
        notes.append(Note(code="W-EXTRAPOLATED", text="a latency in the ladder lies beyond what was measured"))
    if candidate.max_batch_size not in {point.batch_size for point in ladder}:
        notes.append(Note(code="interpolated:batch", text=f"a batch of {candidate.max_batch_size} was interpolated between measured sizes"))
    if problem.policy.name != "fcfs" and not problem.mix:
        notes.append(Note(code="alike:requests", text=f"all requests are alike, so {problem.policy.text} serves them in the order of arrival"))
    if not simulation.unstable and math.isinf(simulation.latency_p99_s.high):
        notes.append(Note(code="W-NEAR-LIMIT", text="at the upper end of the measured latencies the queue would grow without bound"))
    return tuple(notes)


def _dear_notes(problem: Problem, chosen: Allocation, allocator: Allocator, by_load: Sequence[LoadPoint]) -> list[Note]:
    """That a target just above what a request takes alone is paid with idle replicas, and which target is not."""
    fewest = chosen.candidate.fewest_replicas(allocator.load)
    if chosen.replicas < _DEAR * fewest:
        return []
    alone = format_seconds(chosen.candidate.alone_s() + problem.overhead_s)
    text = f"{chosen.replicas} replicas, where {fewest} would carry the rate, because a request alone takes {alone} (p99) and hardly any may wait"
    for point in by_load:
        needed = math.ceil(problem.rate / point.requests_per_s.value)
        if point.latency_p99 and point.latency_p99.interval and needed <= chosen.replicas / 2:
            text += f": a p99 of {format_seconds(point.latency_p99.ends[1])} would take {_replicas(needed)}"
            break
    return [Note(code="W-DEAR-TARGET", text=text)]


def _server_notes(problem: Problem) -> list[Note]:
    """What stands for the server's own milliseconds."""
    if problem.overhead is None:
        return [Note(code="missing:overhead", text="latencies hold queue and model; decoding and transport of the server come on top")]
    number = problem.overhead.number
    low, high = number.ends
    text = f"each request spends {format_seconds(number.value)} ({format_seconds(low)} to {format_seconds(high)}) in the server and on its way: {number.method}"
    return [Note(code="server-time" if number.weakest_source == "measured" else "assumes:server-time", text=text)]


def _reach_notes(problem: Problem) -> list[Note]:
    """That runs here went beyond what was said of them, where it shows."""
    added = problem.experience.p99_reach[1] if problem.experience else 0.0
    if added < _TOLD_REACH * problem.target.latency_p99.value:
        return []
    text = f"rehearsals of this model here came to a p99 of up to {format_seconds(added)} above their bands, so that much is added to the upper end"
    return [Note(code="reach", text=f"{text}; the newest ones count, so rehearsals on a quiet machine narrow it in time")]


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
