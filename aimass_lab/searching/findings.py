"""What a search found, put in order: candidates, front, the best, why the next one lost, what the limits cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ..comparison import is_doubtful
from ..headlines import format_measured, format_number
from ..records import Candidate, Environment, Limit, ModelInfo, Note, Number, Objective, ObjectiveName, RunnerUp, SearchResult, Setting, TrialResult
from .claims import Failure, Row
from .engine import Problem, Search, describe
from .objectives import LARGE, WORDS, beyond, compare, cost_of, merit
from .pareto import near_front, pareto_front

Elsewhere = Callable[[Candidate, str], Mapping[ObjectiveName, Number] | str]
"""Predicts throughput and latency of a measured candidate on another device, or says why they are not predicted."""
SAME_EVERYWHERE: tuple[ObjectiveName, ...] = ("drop", "dissimilarity", "size", "memory")
"""What a device has no part in, or so little that the measurement here stands for it."""


def make_search_result(search: Search, model: ModelInfo, environment: Environment, elsewhere: Elsewhere | None = None) -> SearchResult:
    """Put what a search found until now into a record.

    Args:
        search: Running or ended.
        model: What was searched for.
        environment: What was measured on.
        elsewhere: Predicts candidates on devices that are not here; needed where the space has such devices.
    """
    problem, space = search.problem, search.problem.space
    rows = [row for row in search.rows if row.outcome is not None and space.point_of(row.setting) is not None]
    candidates = [_candidate(problem, row) for row in rows]
    predicted, notes = _on_other_devices(problem, elsewhere, candidates)
    candidates += predicted
    ranked = tuple(sorted(candidates, key=lambda c: _rank(c, problem.objectives)))
    comparable = {i: c.numbers for i, c in enumerate(ranked) if _comparable(c, problem.objectives)}
    told = {i: numbers for i, numbers in comparable.items() if ranked[i].verdict != "cannot tell"}
    front = pareto_front(told, problem.objectives)
    best = next((i for i, c in enumerate(ranked) if c.recommended), None)
    return SearchResult(
        model=model, environment=environment, sampler=search.sampler, seed=search.seed, objectives=problem.objectives,
        limits=tuple(_limit(problem, name, ranked, best) for name in problem.limits), candidates=ranked, front=front,
        near_front=near_front(comparable, problem.objectives, front), best=best, runner_up=_runner_up(ranked, best, problem.objectives),
        refused=_refused(ranked, best, problem), code=None if best is None else code_of(ranked[best].setting),
        num_points=Number(value=space.num_points, unit="point", source="derived", trust="user", method="combinations that are possible"),
        measured_share=Number(value=min(1.0, len(rows) / space.num_points), unit="ratio", source="measured", method="settings tried over those possible"),
        pruned=space.pruned, stopped=search.stopped, notes=(*search.notes, *_noise_notes(ranked), *notes),
    )  # fmt: skip


def best_so_far(search: Search) -> str:
    """The best recommended setting until now in a few words; nothing while there is none."""
    problem = search.problem
    candidates = [c for row in search.rows if row.outcome is not None and (c := _candidate(problem, row)).recommended]
    if not candidates:
        return ""
    best = min(candidates, key=lambda c: _rank(c, problem.objectives))
    first = problem.objectives[0].name
    return f"; best so far {format_number(best.numbers[first])}: {describe(best.setting)}"


def code_of(setting: Setting) -> str:
    """Python that makes a setting's copy, measures it, and calls it."""
    recipe = repr(setting.recipe.name)
    given = (("batch", setting.batch_size), ("threads", setting.threads), ("instances", setting.instances if setting.instances > 1 else None))
    options = "".join(f", {name}={value}" for name, value in given if value is not None)
    where = "" if setting.device is None else f"  # predicted for {setting.device}; this measures it here"
    return f"study.trial({recipe}{options}){where}\nmodel = study.variant({recipe})"


# --- candidates ---


def _candidate(problem: Problem, row: Row) -> Candidate:
    if isinstance(row.outcome, Failure):
        return Candidate(setting=row.setting, status="failed", cause=row.outcome.cause, failure=row.outcome.kind)
    result = row.outcome
    assert isinstance(result, TrialResult)
    numbers = problem.numbers(result)
    over = beyond(numbers, problem.limits)
    asked_for = problem.space.here in problem.space.devices
    good = result.recommended or (not row.setting.recipe.steps and result.verdict != "not equivalent")
    complete = all(o.name in numbers for o in problem.objectives)
    return Candidate(
        setting=row.setting, status="measured", numbers=numbers, verdict=result.verdict, beyond=over,
        recommended=good and not over and asked_for and complete, cause=result.recommendation or None,
    )  # fmt: skip


def _noise_notes(candidates: Sequence[Candidate]) -> list[Note]:
    """Where other work kept copies from being compared with the original."""
    num_untold = sum(c.verdict == "cannot tell" for c in candidates)
    if not num_untold:
        return []
    measured = sum(c.status == "measured" for c in candidates)
    text = (
        f"at {num_untold} of {measured} settings the machine was too busy to tell whether the copy is faster: no copy is recommended there, "
        "none is on the front, and no choice rests on them; go on when it is quiet (resume), and they are tried again; or search with one thread: threads=1"
    )
    return [Note(code="W-NOISY", text=text)]


def _once_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The measured ones, one of each recipe and batch size: threads and instances of this machine say nothing about another device."""
    kept: dict[tuple[str, int | None], Candidate] = {}
    for c in candidates:
        if c.status == "measured":
            kept.setdefault((c.setting.recipe.name, c.setting.batch_size), c)
    return list(kept.values())


def _on_other_devices(problem: Problem, elsewhere: Elsewhere | None, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Note]]:
    """What is predicted of the measured candidates, and for how many nothing is."""
    predicted, missing = [], Counter[str]()
    for device in problem.space.devices:
        if elsewhere is None or device == problem.space.here:
            continue
        for candidate in _once_each(candidates):
            found = elsewhere(candidate, device)
            if isinstance(found, str):
                missing[f"on {device}, {found}"] += 1
            else:
                predicted.append(_predicted(problem, found, candidate, device))
    notes = [Note(code="missing:prediction", text=f"{count} settings are not predicted {cause}") for cause, count in missing.most_common()]
    return predicted, notes


def _predicted(problem: Problem, found: Mapping[ObjectiveName, Number], measured: Candidate, device: str) -> Candidate:
    setting = msgspec.structs.replace(measured.setting, device=device, threads=None, instances=1)
    numbers = {**{name: n for name, n in measured.numbers.items() if name in SAME_EVERYWHERE}, **found}
    if device in problem.prices and "throughput" in numbers:
        numbers["cost"] = cost_of(numbers["throughput"], problem.prices[device])
    over = beyond(numbers, problem.limits)
    complete = all(o.name in numbers for o in problem.objectives)
    nothing_measured = problem.space.here not in problem.space.devices
    basis = next(iter(found.values())).method if found else ""
    return Candidate(
        setting=setting, status="predicted", numbers=numbers, verdict="not equivalent" if measured.verdict == "not equivalent" else None, beyond=over,
        recommended=nothing_measured and complete and not over and measured.verdict != "not equivalent", cause=f"{basis}; quality and size as measured here",
    )  # fmt: skip


def _comparable(candidate: Candidate, objectives: Sequence[Objective]) -> bool:
    return candidate.status != "failed" and not candidate.beyond and all(o.name in candidate.numbers for o in objectives)


def _rank(candidate: Candidate, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Sorts the best to the front."""
    if candidate.recommended:
        group = 0
    elif candidate.status == "failed":
        group = 3
    else:
        group = 1 if not candidate.beyond and candidate.verdict != "not equivalent" else 2
    known = candidate.numbers
    merits = (-merit(o.name, float(known[o.name].value)) if o.name in known else float("inf") for o in objectives)
    return (group, *merits)


# --- why this one and not that one ---


def _against(objective: Objective, one: Candidate, other: Candidate) -> str:
    """``12,400 [12,300, 12,500] items/s against 12,600 [12,500, 12,700] items/s``, of two candidates that both have the number."""
    words = (format_measured(c.numbers[objective.name]) for c in (one, other))
    return f"{WORDS[objective.name]} {' against '.join(words)}"


def _runner_up(ranked: Sequence[Candidate], best: int | None, objectives: Sequence[Objective]) -> RunnerUp | None:
    second = next((i for i, c in enumerate(ranked) if c.recommended and i != best), None)
    if best is None or second is None:
        return None
    one, other = ranked[second], ranked[best]
    deciding = next((o for o in objectives if one.numbers[o.name].value != other.numbers[o.name].value), objectives[0])
    noise = compare(deciding.name, one.numbers[deciding.name], other.numbers[deciding.name]) == "within noise"
    busy = is_doubtful(one.numbers[deciding.name], other.numbers[deciding.name])
    doubt = f": {'the machine was busy' if busy else 'the intervals overlap'}, so another day it may win" if noise else ""
    return RunnerUp(candidate=second, within_noise=noise, text=f"{describe(one.setting)}: {_against(deciding, one, other)}{doubt}")


def _refused(ranked: Sequence[Candidate], best: int | None, problem: Problem) -> RunnerUp | None:
    """The candidate that would come first if only the first objective counted."""
    first = problem.objectives[0]
    known = [i for i, c in enumerate(ranked) if first.name in c.numbers and c.status == "measured"]
    if not known:
        return None
    leader = max(known, key=lambda i: (merit(first.name, float(ranked[i].numbers[first.name].value)), ranked[i].recommended))
    if ranked[leader].recommended:
        return None
    leading = ranked[leader]
    ahead = "" if best is None else f"; {_against(first, leading, ranked[best])}"
    noise = best is not None and compare(first.name, leading.numbers[first.name], ranked[best].numbers[first.name]) == "within noise"
    return RunnerUp(candidate=leader, within_noise=noise, text=f"{describe(leading.setting)} is refused: {_why_refused(leading, problem)}{ahead}")


def _why_refused(candidate: Candidate, problem: Problem) -> str:
    if candidate.verdict == "not equivalent":
        return "its outputs are not equivalent"
    if candidate.beyond:
        return ", ".join(_over(candidate, name, problem.limits[name]) for name in candidate.beyond)
    if problem.space.here not in problem.space.devices:
        return f"{problem.space.here} is not among the devices asked for"
    return candidate.cause or f"beside the original at the same setting: {candidate.verdict}"


def _over(candidate: Candidate, name: ObjectiveName, limit: Number) -> str:
    if name not in candidate.numbers:
        why = ": the model is too slow for enough calls in the time of this search, give it more" if name == "latency_p99" else ""
        return f"{WORDS[name]} is not known, and at most {format_number(limit)} is allowed{why}"
    return f"{WORDS[name]} {format_number(candidate.numbers[name])}, at most {format_number(limit)} allowed"


def _limit(problem: Problem, name: ObjectiveName, ranked: Sequence[Candidate], best: int | None) -> Limit:
    number = problem.limits[name]
    excluded = [i for i, c in enumerate(ranked) if name in c.beyond]
    alone = [i for i in excluded if ranked[i].beyond == (name,)]
    first = problem.objectives[0]
    gains = [i for i in alone if first.name in ranked[i].numbers and ranked[i].verdict != "not equivalent" and _gains(ranked, i, best, first)]
    relaxed = min(gains, key=lambda i: _rank(ranked[i], problem.objectives), default=None)
    text = "giving it up would gain nothing that was measured"
    if relaxed is not None:
        change = f", {_against(first, ranked[relaxed], ranked[best])}" if best is not None else ""
        text = f"without it, {describe(ranked[relaxed].setting)} comes first: {_over(ranked[relaxed], name, number)}{change}"
    return Limit(
        name=name, at_most=number, num_excluded=_count(len(excluded), "settings beyond the limit"),
        num_excluded_alone=_count(len(alone), "settings beyond this limit and no other"), relaxed=relaxed, text=text,
    )  # fmt: skip


def _gains(ranked: Sequence[Candidate], index: int, best: int | None, first: Objective) -> bool:
    if best is None:
        return True
    value, least = ranked[index].numbers[first.name].value, ranked[best].numbers[first.name].value
    return value > least if first.name in LARGE else value < least


def _count(value: int, method: str) -> Number:
    return Number(value=value, unit="point", source="measured", method=method)
