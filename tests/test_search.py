"""The search over settings and the samplers that choose them: no model is run, what is optimised is a table."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from aimass_lab.errors import InputError, UnknownNameError, UnsupportedError
from aimass_lab.records import INTERRUPTED, Environment, ModelInfo, Note, Number, SearchResult, Setting, TrialResult, from_json, to_json
from aimass_lab.samplers.base import SAMPLERS, Tried, point_key
from aimass_lab.search import make_search_result, pareto_front, search, to_setting

MODEL = ModelInfo(name="Table", type="none", num_parameters=1, weight_bytes=4, dtype="float32", digest="0")
MACHINE = Environment(
    device="cpu", device_name="x", memory_bytes=1, cpu_cores=1, threads=1, python="3", torch="2", platform="x", taken_at="2026-01-01T00:00:00+00:00"
)


def ratio(value: float) -> Number:
    return Number(value=value, unit="ratio", source="assumed", method="table")


def result(setting: Setting, speedup: float, fidelity: float, verdict: str = "faster", notes: tuple[Note, ...] = ()) -> TrialResult:
    seconds = Number(value=1.0, unit="s", source="assumed", method="table")
    count = Number(value=1, unit="layer", source="assumed", method="table")
    size = Number(value=4, unit="B", source="assumed", method="table")
    return TrialResult(
        model=MODEL, environment=MACHINE, setting=setting, batch_size=setting.batch_size or 1, verdict=verdict, reasons=(), speedup=ratio(speedup),
        latency_original=seconds, latency_variant=seconds, size_bytes=size, size_original_bytes=size, fidelity=ratio(fidelity),
        relative_error=ratio(0.0), num_changed_layers=count, num_eligible_layers=count, apply_time=seconds, notes=notes,
    )  # fmt: skip


TABLE = {"a": (2.0, 0.9, "faster"), "b": (1.5, 0.99, "faster"), "c": (1.4, 0.95, "faster"), "d": (9.0, 0.1, "not equivalent"), "e": (0.5, 1.0, "slower")}


def run_table(setting: Setting) -> TrialResult:
    speedup, fidelity, verdict = TABLE[setting.technique]
    return result(setting, speedup, fidelity, verdict)


# --- samplers: what every member promises ---------------------------------------------------

SPACES = [
    {"x": [1, 2, 3]},
    {"technique": ["bf16", "none"], "batch_size": [1, 8, 32], "flag": [True, False, None]},
    {"x": [1, True, "1", 1]},  # three different values, one of them twice
]


def walk(name: str, space: dict, seed: int = 0) -> list[dict]:
    sampler = SAMPLERS[name](space, seed=seed)
    history: list[Tried] = []
    while (point := sampler.ask(history)) is not None:
        history.append(Tried(point, (1.0,) if len(history) % 2 else None))
    return [t.point for t in history]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_asks_for_every_point_exactly_once(name: str, space: dict) -> None:
    points = walk(name, space)
    expected = {point_key({})}
    for dimension, values in space.items():
        expected = {tuple(sorted((*key, (dimension, repr(value))))) for key in expected for value in values}
    assert Counter(point_key(p) for p in points) == Counter(expected)
    assert all(any(value is v for v in space[dimension]) for p in points for dimension, value in p.items())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_determined_by_its_seed_and_its_history(name: str) -> None:
    space = SPACES[1]
    points = walk(name, space, seed=3)
    assert points == walk(name, space, seed=3)
    # a new sampler takes the search up where the history ends, whoever wrote it
    history = [Tried(p, (1.0,)) for p in points[:7]]
    assert SAMPLERS[name](space, seed=3).ask(history) == points[7]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_starts_at_once_in_a_huge_space(name: str) -> None:
    space = {f"x{i}": list(range(100)) for i in range(8)}
    sampler = SAMPLERS[name](space, seed=0)
    point = sampler.ask([])
    assert point is not None
    assert set(point) == set(space)
    assert sampler.ask([Tried(point, None)]) != point


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("space", [{}, {"x": []}, {"x": "bf16"}, {"x": 3}])
def test_a_sampler_refuses_a_space_that_is_none(name: str, space: dict) -> None:
    with pytest.raises(InputError):
        SAMPLERS[name](space)


def test_random_order_draws_every_first_point_equally_often() -> None:
    space = {"x": [0, 1, 2, 3]}
    firsts = Counter(SAMPLERS["random"](space, seed=seed).ask([])["x"] for seed in range(800))  # type: ignore[index]
    # 200 expected of each, standard deviation 12
    assert set(firsts) == {0, 1, 2, 3}
    assert all(abs(count - 200) < 60 for count in firsts.values())


# --- search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_best_first_with_the_pareto_front_marked(sampler: str) -> None:
    outcome = search(run_table, {"technique": list(TABLE)}, sampler=sampler)
    names = [t.setting.technique for t in outcome.trials]
    assert names == ["a", "b", "c", "e", "d"]  # equivalent ones by speed, then the rest
    assert outcome.best == 0
    assert {names[i] for i in outcome.front} == {"a", "b", "d", "e"}  # c is slower than b and less faithful
    assert outcome.stopped == "every setting of the space was tried"
    record = make_search_result(MODEL, sampler, outcome)
    assert from_json(to_json(record), SearchResult) == record


def test_without_anything_faster_the_original_stays_the_best() -> None:
    outcome = search(run_table, {"technique": ["d", "e"]})
    assert outcome.best is None
    assert len(outcome.trials) == 2


def test_a_failure_is_noted_with_its_cause_and_the_search_goes_on() -> None:
    def run(setting: Setting) -> TrialResult:
        if setting.technique == "b":
            raise UnsupportedError("b is not possible here: no such layer", help="none")
        if setting.technique == "c":
            raise ZeroDivisionError("division by zero\nsecond line")
        return run_table(setting)

    outcome = search(run, {"technique": ["b", "c", "a"], "batch_size": [4]})
    assert [t.setting.technique for t in outcome.trials] == ["a"]
    assert outcome.failures == (
        Note(code="b", text="b at batch 4: b is not possible here: no such layer"),
        Note(code="c", text="c at batch 4: ZeroDivisionError: division by zero"),
    )


def test_the_budget_stops_the_search_and_its_clock_is_the_one_given() -> None:
    times = iter(range(0, 10_000, 4))
    outcome = search(run_table, {"technique": list(TABLE)}, budget_s=10, clock=lambda: next(times))
    assert len(outcome.trials) == 2  # begun at 4 and 8 s of 10
    assert outcome.stopped == "the 10 s were spent"


def test_at_most_as_many_trials_as_asked_for() -> None:
    outcome = search(run_table, {"technique": list(TABLE)}, max_trials=3)
    assert len(outcome.trials) == 3
    assert outcome.stopped.startswith("3 settings were tried")


def test_an_interrupt_keeps_everything() -> None:
    def run(setting: Setting) -> TrialResult:
        if setting.technique == "c":
            raise KeyboardInterrupt
        return run_table(setting)

    outcome = search(run, {"technique": ["a", "b", "c", "d"]})
    assert [t.setting.technique for t in outcome.trials] == ["a", "b"]
    assert outcome.stopped == "interrupted"


def test_a_trial_that_was_cut_short_ends_the_search_and_is_kept() -> None:
    def run(setting: Setting) -> TrialResult:
        return result(setting, 2.0, 1.0, notes=(Note(code=INTERRUPTED, text="interrupted after 7 rounds"),))

    outcome = search(run, {"technique": ["a", "b"]})
    assert len(outcome.trials) == 1
    assert outcome.stopped == "interrupted"


def test_options_belong_to_their_technique_and_nothing_is_tried_twice() -> None:
    asked: list[Setting] = []

    def run(setting: Setting) -> TrialResult:
        asked.append(setting)
        return run_table(setting)

    search(run, {"technique": ["a", "b"], "a.mode": ["x", "y"], "batch_size": [1, 2]})
    assert asked == [
        Setting(technique="a", options={"mode": "x"}, batch_size=1),
        Setting(technique="a", options={"mode": "x"}, batch_size=2),
        Setting(technique="a", options={"mode": "y"}, batch_size=1),
        Setting(technique="a", options={"mode": "y"}, batch_size=2),
        Setting(technique="b", batch_size=1),
        Setting(technique="b", batch_size=2),
    ]
    assert to_setting({"technique": "b", "a.mode": "x"}) == Setting(technique="b")


def test_progress_tells_what_is_tried() -> None:
    told: list[tuple[float, str]] = []
    search(run_table, {"technique": ["a", "b"], "batch_size": [8]}, progress=lambda share, text: told.append((share, text)))
    assert [text for _, text in told] == ["trial 1: a at batch 8", "trial 2: b at batch 8"]
    assert all(0 <= share <= 1 for share, _ in told)


@pytest.mark.parametrize(
    ("space", "options"),
    [
        ({"batch_size": [1]}, {}),
        ({"technique": ["a"], "mode": ["x"]}, {}),
        ({"technique": ["a"], "b.mode": ["x"]}, {}),
        ({"technique": []}, {}),
        ({"technique": ["a"]}, {"budget_s": 0}),
        ({"technique": ["a"]}, {"max_trials": 0}),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(space: dict, options: dict) -> None:
    with pytest.raises(InputError):
        search(run_table, space, **options)


def test_an_unknown_sampler_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="grid, random"):
        search(run_table, {"technique": ["a"]}, sampler="gird")


def test_the_front_keeps_equals_and_drops_what_is_beaten() -> None:
    points = [(2.0, 0.9), (2.0, 0.9), (1.0, 1.0), (1.9, 0.9), (2.0, 0.8)]
    assert pareto_front([result(Setting(technique="a"), *p) for p in points]) == (0, 1, 2)


def test_searching_needs_no_torch() -> None:
    code = "import sys; import aimass_lab.search; from aimass_lab.samplers.base import SAMPLERS; list(SAMPLERS); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
