"""The search itself: asks a sampler, has the setting tried, writes down what came of it, and goes on whatever that was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import InputError, OutOfTime, StoreError
from ..records import Note, Number, Objective, ObjectiveName, Setting, TrialResult, was_interrupted
from ..samplers.base import SAMPLERS, Knowledge, Tried
from ..units import format_share
from .claims import Failure, MemoryLog, Outcome, Row, TrialLog, is_undecided
from .failures import describe_failure
from .objectives import excess_of, numbers_of, values_of
from .space import Space

MAKING_SHARE, LEAST_MAKING_S = 0.2, 10.0
"""Of the time for a whole search: the most that making one copy may take, so that one slow technique does not stand for all; and seconds that
each may take, however little is left."""

Progress = Callable[[float, str], None]
Evaluate = Callable[[Setting], TrialResult]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is searched for."""

    space: Space
    objectives: tuple[Objective, ...]
    limits: Mapping[ObjectiveName, Number]
    prices: Mapping[str, Number]
    """USD per hour by device."""

    def numbers(self, result: TrialResult) -> dict[ObjectiveName, Number]:
        """What a trial on this machine says about each quantity."""
        return numbers_of(result, self.prices.get(self.space.here))

    def tried(self, row: Row) -> Tried | None:
        """A row of the log as a sampler is told of it; None where the space has no such point."""
        point = self.space.point_of(row.setting)
        if point is None:
            return None
        if not isinstance(row.outcome, TrialResult):
            return Tried(point, None, pending=row.outcome is None)
        if is_undecided(row.outcome):  # what was measured would lead a sampler astray
            return Tried(point, None, pending=True)
        numbers = self.numbers(row.outcome)
        values = values_of(numbers, self.objectives)
        if values is None:
            return Tried(point, None)
        # What is not equivalent is never recommended, so it counts as beyond a limit whatever the user's limits are.
        return Tried(point, values, (*excess_of(numbers, self.limits), 1.0 if row.outcome.verdict == "not equivalent" else -1.0))


class Search:
    """One search: `run` tries settings, and what was found can be read at any moment, from another thread too.

    Args:
        problem: What is searched for.
        evaluate: Tries one setting, spending no more than `making_s` on making its copy; whatever it raises is written down as a failure, and
            the search goes on.
        sampler: Name of the sampler that chooses what comes next.
        seed: Of samplers that draw lots.
        log: Where settings are taken and results written down; one of this search alone if not given.
        prior: What is predicted at a point, in the order and the sense of `objectives.values_of`.
        clock: Tells the seconds.

    Raises:
        UnknownNameError: there is no such sampler.
    """

    def __init__(
        self,
        problem: Problem,
        evaluate: Evaluate,
        *,
        sampler: str = "guided",
        seed: int = 0,
        log: TrialLog | None = None,
        prior: Callable[[dict[str, object]], Sequence[float | None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem, self.sampler, self.seed = problem, sampler, seed
        space = problem.space
        knowledge = Knowledge(possible=space.possible, features=space.features, cost=space.cost, prior=prior)
        self._chooser = SAMPLERS[sampler](space.dimensions, seed=seed, knowledge=knowledge)
        self._evaluate, self._clock = evaluate, clock
        self._log: TrialLog = MemoryLog() if log is None else log
        self._taken: Setting | None = None
        self._known: Sequence[Row] = ()
        self._patient = False
        """Whether what an earlier search could not tell waits until everything else was tried: this machine is as busy as that one was."""
        self.making_s = math.inf
        """Seconds that making the copy of the setting that is being tried may take."""
        self.notes: list[Note] = []
        self.stopped = "it goes on"

    @property
    def rows(self) -> Sequence[Row]:
        """All settings that were tried or are being tried, by this search and by others on the same store."""
        self._known = self._ask_log(lambda log: log.rows())
        return self._known

    def run(self, *, budget_s: float = 60.0, max_trials: int | None = None, progress: Progress | None = None, best: Callable[[], str] = lambda: "") -> None:
        """Try settings until all are tried, the time is up, or the user interrupts.

        Args:
            budget_s: Seconds after which no further setting is begun.
            max_trials: Most settings that this call tries, failures included.
            progress: Called with the share done and what is being done.
            best: Says what is best so far, for `progress`.

        Raises:
            InputError: a limit that leaves nothing to try.
        """
        if not budget_s > 0 or (max_trials is not None and max_trials < 1):
            raise InputError(f"budget_s={budget_s}, max_trials={max_trials} leave nothing to try", help="budget_s > 0 and max_trials >= 1")
        try:
            self.stopped = self._run(budget_s, max_trials, progress, best)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            if self._taken is not None:
                taken, self._taken = self._taken, None
                self._ask_log(lambda log: log.release(taken))

    def _run(self, budget_s: float, max_trials: int | None, progress: Progress | None, best: Callable[[], str]) -> str:
        start, num_own = self._clock(), 0
        size = self.problem.space.num_points // len(self.problem.space.devices)
        while True:
            if max_trials is not None and num_own >= max_trials:
                return f"{max_trials} settings were tried, as many as were asked for"
            left_s = start + budget_s - self._clock()
            if left_s < 0:
                return f"the {budget_s:g} s were spent"
            rows = self.rows
            point = self._next(rows)
            if point is None:
                pending = sum(row.outcome is None for row in rows)
                return f"the last {pending} settings are being tried by other processes" if pending else "every setting of the space was tried"
            setting = self.problem.space.setting(point)
            if not self._claim(setting):
                continue  # another process took it since the log was read
            if progress is not None:
                share = max(num_own / min(size, max_trials or size), (self._clock() - start) / budget_s)
                place = 1 + sum(row.setting != setting for row in rows)
                progress(min(1.0, share), f"{place} of {size}: {describe(setting)}{best()}")
            num_own += 1
            self.making_s = max(LEAST_MAKING_S, min(MAKING_SHARE * budget_s, left_s))
            if self._try(setting, start + budget_s):
                return "interrupted"

    def _next(self, rows: Sequence[Row]) -> dict[str, object] | None:
        """The point that comes next; None where none is left.

        What an earlier search could not tell counts as not tried yet, until one of these ends so again: then the others come last.
        """

        def ask(known: Sequence[Row]) -> dict[str, object] | None:
            return self._chooser.ask([tried for row in known if (tried := self.problem.tried(row)) is not None])

        decided = [row for row in rows if not row.again]
        point = ask(rows if self._patient else decided)
        return ask(decided) if point is None and self._patient else point

    def _claim(self, setting: Setting) -> bool:
        self._taken = setting  # first, so that an interrupt in between gives it back
        claimed = self._ask_log(lambda log: log.claim(setting))
        if not claimed:
            self._taken = None
        return claimed

    def _try(self, setting: Setting, end: float) -> bool:
        """Try one setting and write down what came of it; True where the user cut it short.

        One that was given up because all time is spent is left for a search that goes on.
        """
        outcome: Outcome
        try:
            outcome = self._evaluate(setting)
        except OutOfTime as error:
            if self._clock() > end:
                self._ask_log(lambda log: log.release(setting))
                self._taken = None
                return False
            outcome = Failure(
                kind="out of time", cause=f"{error}: no setting gets more than {format_share(MAKING_SHARE)} of a search's time; search for longer"
            )
        except Exception as error:
            outcome = describe_failure(error)
        self._patient = self._patient or is_undecided(outcome)
        self._ask_log(lambda log: log.finish(setting, outcome))
        self._taken = None
        return not isinstance(outcome, Failure) and was_interrupted(outcome.notes)

    def _ask_log(self, question: Callable[[TrialLog], T]) -> T:
        """Ask the log; from one that cannot be used any more, what is known is taken over into memory, and the search goes on."""
        try:
            return question(self._log)
        except StoreError as error:
            self.notes.append(Note(code="W-STORE", text=f"nothing more is written to the history, and other processes are not heeded: {error.message}"))
            self._log = MemoryLog(self._known)
            return question(self._log)


def describe(setting: Setting) -> str:
    """``int8_dynamic + compile at batch 8, 2 instances of 1 thread``."""
    batch = "" if setting.batch_size is None else f" at batch {setting.batch_size}"
    threads = "" if setting.threads is None else f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    instances = "" if setting.instances == 1 else f"{setting.instances} instances"
    device = "" if setting.device is None else f" on {setting.device}"
    load = " of ".join(filter(None, (instances, threads)))
    return f"{setting.recipe.name}{batch}{f', {load}' if load else ''}{device}"
