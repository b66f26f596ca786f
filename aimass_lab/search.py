"""Many settings, best first; knows only a function to call, and nothing of what it optimises."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import AimassError, InputError
from .records import INTERRUPTED, ModelInfo, Note, SearchResult, Setting, TrialResult
from .samplers.base import SAMPLERS, Point, Tried, point_key

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found."""

    trials: tuple[TrialResult, ...]
    """Best first."""
    failures: tuple[Note, ...]
    """Settings that could not be tried: code is the technique, text the cause."""
    front: tuple[int, ...]
    """Indices of the trials that no other beats in speed and fidelity at once."""
    best: int | None
    """Index of the fastest trial whose verdict is faster; None where the original stays the best."""
    stopped: str
    """Why the search ended."""


def search(
    run: Callable[[Setting], TrialResult],
    space: Mapping[str, Sequence[Any]],
    *,
    sampler: str = "grid",
    budget_s: float = 60.0,
    max_trials: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchOutcome:
    """Try settings until all are tried, the time is up, or the user interrupts.

    A setting that cannot be tried is noted with its cause, and the search goes on.

    Args:
        run: Tries one setting.
        space: ``"technique"`` -> names; ``"batch_size"`` -> sizes (optional); ``"TECHNIQUE.OPTION"``
            -> values of an option of one technique, which the others do not see (optional).
        sampler: Name of the sampler that chooses what comes next.
        budget_s: Seconds after which no further setting is begun.
        max_trials: Most settings to try, failures included.
        seed: Of samplers that draw lots.
        progress: Called with the share done and what is being done.
        clock: Tells the seconds.

    Raises:
        UnknownNameError: there is no such sampler.
        InputError: the space or a limit cannot be used.
    """
    _check_space(space)
    if not budget_s > 0 or (max_trials is not None and max_trials < 1):
        raise InputError(f"budget_s={budget_s}, max_trials={max_trials} leave nothing to try", help="budget_s > 0 and max_trials >= 1")
    chooser = SAMPLERS[sampler](space, seed=seed)
    log = _Log(run)
    num_planned = min(chooser.size, max_trials or chooser.size)
    start = clock()
    stopped = "every setting of the space was tried"
    try:
        while not log.interrupted and (point := chooser.ask(log.history)) is not None:
            if max_trials is not None and len(log.done) >= max_trials:
                stopped = f"{max_trials} settings were tried, as many as were asked for"
                break
            if clock() - start > budget_s:
                stopped = f"the {budget_s:g} s were spent"
                break
            if progress is not None:
                share = max(len(log.done) / num_planned, (clock() - start) / budget_s)
                progress(min(1.0, share), f"trial {len(log.done) + 1}: {describe(to_setting(point))}")
            log.add(point)
    except KeyboardInterrupt:
        log.interrupted = True
    return _sort(log, "interrupted" if log.interrupted else stopped)


class _Log:
    """What was tried, and what came of it."""

    def __init__(self, run: Callable[[Setting], TrialResult]) -> None:
        self.run = run
        self.history: list[Tried] = []
        self.done: dict[tuple[Any, ...], tuple[float, float] | None] = {}
        self.trials: list[TrialResult] = []
        self.failures: list[Note] = []
        self.interrupted = False

    def add(self, point: Point) -> None:
        """Try a point, unless it differs from one that was tried only in options of other techniques."""
        setting = to_setting(point)
        key = (setting.technique, setting.batch_size, point_key(setting.options))
        if key not in self.done:
            self.done[key] = self._try(setting)
        self.history.append(Tried(point, self.done[key]))

    def _try(self, setting: Setting) -> tuple[float, float] | None:
        try:
            result = self.run(setting)
        except AimassError as error:
            cause = error.message
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            cause = f"{type(error).__name__}: {first_line}"
        else:
            self.trials.append(result)
            self.interrupted = any(note.code == INTERRUPTED for note in result.notes)
            return float(result.speedup.value), float(result.fidelity.value)
        self.failures.append(Note(code=setting.technique, text=f"{describe(setting)}: {cause}"))
        return None


def _check_space(space: Mapping[str, Sequence[Any]]) -> None:
    if "technique" not in space:
        raise InputError("the search space has no dimension 'technique'", help='for example {"technique": ["bf16", "int8_dynamic"], "batch_size": [1, 8]}')
    for name in space:
        technique, dot, _ = name.partition(".")
        if name not in ("technique", "batch_size") and not (dot and technique in space["technique"]):
            raise InputError(
                f"the search space has no place for a dimension {name!r}",
                help="there are 'technique', 'batch_size' and, for options, 'TECHNIQUE.OPTION' of a technique that is in the space",
            )


def to_setting(point: Point) -> Setting:
    """Read a point of the space as a setting: options of other techniques fall away."""
    technique = point["technique"]
    options = {name.partition(".")[2]: value for name, value in point.items() if name.partition(".")[0] == technique and "." in name}
    return Setting(technique=technique, options=options, batch_size=point.get("batch_size"))


def describe(setting: Setting) -> str:
    """``int8_dynamic (compile=True) at batch 8``."""
    options = ", ".join(f"{name}={value}" for name, value in setting.options.items())
    batch = "" if setting.batch_size is None else f" at batch {setting.batch_size}"
    return f"{setting.technique}{f' ({options})' if options else ''}{batch}"


def _sort(log: _Log, stopped: str) -> SearchOutcome:
    ranked = tuple(sorted(log.trials, key=lambda t: (t.verdict == "not equivalent", -float(t.speedup.value))))
    best = next((i for i, t in enumerate(ranked) if t.verdict == "faster"), None)
    return SearchOutcome(trials=ranked, failures=tuple(log.failures), front=pareto_front(ranked), best=best, stopped=stopped)


def pareto_front(trials: Sequence[TrialResult]) -> tuple[int, ...]:
    """Indices of the trials that no other beats: at least as fast and as faithful, and better in one of both."""
    values = [(float(t.speedup.value), float(t.fidelity.value)) for t in trials]

    def beaten(own: tuple[float, float]) -> bool:
        return any(other[0] >= own[0] and other[1] >= own[1] and other != own for other in values)

    return tuple(index for index, own in enumerate(values) if not beaten(own))


def make_search_result(model: ModelInfo, sampler: str, outcome: SearchOutcome) -> SearchResult:
    """Put what a search found into the record that is stored."""
    return SearchResult(
        model=model,
        sampler=sampler,
        trials=outcome.trials,
        failures=outcome.failures,
        front=outcome.front,
        best=outcome.best,
        stopped=outcome.stopped,
    )
