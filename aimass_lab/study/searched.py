"""One search as a study asks for it: the space, the objectives and the log of its trials, put together from words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..environment import read_environment, usable_cores
from ..errors import InputError, StoreError
from ..records import Candidate, Note, Number, Recipe, SearchResult
from ..searching import Search, Space, make_limits, make_objectives
from ..searching.claims import MemoryLog, TrialLog, search_digest
from ..searching.engine import Problem
from ..searching.findings import best_so_far, make_search_result
from ..searching.possible import default_space, make_check, make_elsewhere, make_prior
from ..targets import parse_prices
from ..units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from ..store import Store
    from ..trial import TrialSession
    from ..workload import Workload

GUIDED = "guided"
MOST_TRIAL_S, LEAST_TRIAL_S = 2.0, 0.3
TRIAL_SHARE = 1 / 40
"""Of the time for a whole search, for comparing at one setting; a 99th percentile needs the most there is."""
TAIL_SHARE = 1 / 3
"""Of the time for a whole search: what one setting may take where a 99th percentile is asked for, which of a slow model takes many seconds of calls."""


@dataclass(frozen=True)
class SearchRequest:
    """What a user asked for; None stands for what is worth a look."""

    dimensions: Mapping[str, Sequence[Any] | None]
    space: str | None
    objectives: Sequence[str] | None
    limits: Mapping[str, float | None]
    price: Mapping[str, str] | None
    sampler: str
    seed: int
    seconds: float
    resume: bool


class StudySearch:
    """A search of one study, and what it found so far.

    Args:
        workload: What is searched for.
        request: What the user asked for.
        session: Measures.
        store: Where trials are written down.
        here: The study's name of the device.
    """

    def __init__(self, workload: Workload, request: SearchRequest, session: TrialSession, store: Store, here: str) -> None:
        self.workload = workload
        self.environment = read_environment(workload.torch_device)
        prices = parse_prices(request.price)
        has_metric = workload.metric is not None
        space = _make_space(workload, request, here)
        problem = Problem(
            space=space,
            objectives=make_objectives(request.objectives, has_metric=has_metric, priced=bool(prices)),
            limits=make_limits(request.limits, has_metric=has_metric, priced=bool(prices)),
            prices={name: Number(value=value, unit="USD/h", source="user", method=f"price of {name}") for name, value in prices.items()},
        )
        log, notes = self._open_log(problem, session, store, resume=request.resume)
        asks_tail = "latency_p99" in problem.limits or any(o.name == "latency_p99" for o in problem.objectives)
        budget_s = MOST_TRIAL_S if asks_tail else min(MOST_TRIAL_S, max(LEAST_TRIAL_S, TRIAL_SHARE * request.seconds))
        tail_s = TAIL_SHARE * request.seconds if asks_tail else 0.0
        prior = make_prior(workload, lambda point: space.setting(point).recipe, problem.objectives) if request.sampler == GUIDED else None
        self.search = Search(
            problem, lambda setting: session.run(setting, budget_s=budget_s, tail_s=tail_s, making_s=self.search.making_s),
            sampler=request.sampler, seed=request.seed, log=log, prior=prior,
        )  # fmt: skip
        self.search.notes += notes
        self._elsewhere = make_elsewhere(workload)

    def _open_log(self, problem: Problem, session: TrialSession, store: Store, *, resume: bool) -> tuple[TrialLog, list[Note]]:
        """The trials of the same search in the history; of this process alone where that cannot be written."""
        digest = search_digest(
            model=self.workload.info().digest, environment=self.environment.id, dimensions=problem.space.dimensions,
            max_drop=session.max_drop, tolerance=session.tolerance,
        )  # fmt: skip
        try:
            return store.search_log(digest, resume=resume), []
        except StoreError as error:
            return MemoryLog(), [Note(code="W-STORE", text=f"the trials are not in the history, so this search cannot be resumed: {error.message}")]

    def run(self, *, seconds: float, trials: int | None, progress: Callable[[float, str], None]) -> SearchResult:
        """Try settings until the time is up."""
        self.search.run(budget_s=seconds, max_trials=trials, progress=progress, best=lambda: best_so_far(self.search))
        return self.result()

    def result(self) -> SearchResult:
        """What was found until now; may be asked while it runs."""
        return make_search_result(self.search, self.workload.info(), self.environment, self._elsewhere)

    def best_recipe(self, result: SearchResult) -> Recipe | None:
        """The recipe of the best; None where that is the original, or there is none."""
        best: Candidate | None = None if result.best is None else result.candidates[result.best]
        return best.setting.recipe if best is not None and best.setting.recipe.steps else None


def _make_space(workload: Workload, request: SearchRequest, here: str) -> Space:
    from ..searching.space import read_space

    check = make_check(workload)
    cores = max(1, int(usable_cores()))
    given = {name: values for name, values in request.dimensions.items() if values is not None}
    dimensions: dict[str, Sequence[Any]] = {}
    if request.space is not None:
        dimensions = dict(read_space(request.space))
    elif "recipe" not in given:
        dimensions = default_space(workload, check=check, cores=cores)
    elif "batch_size" not in given:
        dimensions = {"batch_size": (workload.call.batch_size,)}
    return Space({**dimensions, **given}, check=check, dtype=workload.info().dtype, here=here, cores=cores)


def read_vary(vary: Mapping[str, str] | None) -> dict[str, list[str]]:
    """Read ``STEP.option=value,value`` pairs.

    Raises:
        InputError: a name without a step, or no values.
    """
    found = {}
    for name, text in (vary or {}).items():
        values = [value.strip() for value in str(text).split(",") if value.strip()]
        if "." not in name or not values:
            raise InputError(f"{name}={text} varies nothing", help="STEP.option=value,value: recover.learning_rate=1e-4,3e-4")
        found[name] = values
    return found


def limits_of(
    max_drop: float | None, p99: float | str | None, memory: float | str | None, size: float | str | None, cost: float | None
) -> dict[str, float | None]:
    """The limits of the verb by what they limit; cost comes in USD per million items.

    Raises:
        InputError: a text that is no time or no size.
    """
    return {
        "quality": max_drop,
        "latency_p99": None if p99 is None else parse_seconds(p99),
        "memory": None if memory is None else parse_bytes(memory),
        "size": None if size is None else parse_bytes(size),
        "cost": None if cost is None else cost / 1e6,
    }


def open_session(workload: Workload, max_drop: float | None) -> TrialSession:
    """A session whose verdicts take for equivalent what the user said may be lost."""
    from ..trial import TrialSession

    if max_drop is None:
        return TrialSession(workload)
    if workload.metric is not None:
        return TrialSession(workload, max_drop=max_drop)
    return TrialSession(workload, tolerance=max_drop) if max_drop > 0 else TrialSession(workload)
