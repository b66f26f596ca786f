"""Samplers: what every member of the family promises, and what those that learn are there for."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from aimass_lab.errors import InputError
from aimass_lab.samplers._gaussian import predict, to_columns
from aimass_lab.samplers._hypervolume import expected_improvement, front_of, hypervolume
from aimass_lab.samplers.base import SAMPLERS, Knowledge, Sampler, Tried, point_key

SPACES = [
    {"x": [1, 2, 3]},
    {"recipe": ["bf16", "none"], "batch_size": [1, 8, 32], "flag": [True, False, None]},
    {"x": [1, True, "1", 1]},  # three different values, one of them twice
    {"x": [4]},
]
QUICK = [name for name in SAMPLERS if name != "gp"]
"""All but Optuna's Gaussian process, which takes a second for a point once ten are known; it goes through smaller spaces."""


def result_of(point: dict, number: int) -> Tried:
    """Two objectives and one limit; every fifth point fails."""
    if number % 5 == 4:
        return Tried(point, None)
    size = point.get("batch_size", 1)
    return Tried(point, (math.log(size), -size / 40 - (point.get("recipe") == "bf16")), (size - 20.0,))


def walk(name: str, space: dict, seed: int = 0, knowledge: Knowledge | None = None, most: int = 1000) -> list[Tried]:
    sampler = SAMPLERS[name](space, seed=seed, knowledge=knowledge)
    history: list[Tried] = []
    while len(history) < most and (point := sampler.ask(history)) is not None:
        history.append(result_of(point, len(history)))
    return history


def combinations(space: dict) -> set:
    unique = {name: {repr(v): v for v in values}.values() for name, values in space.items()}
    return {point_key(dict(zip(unique, values, strict=True))) for values in itertools.product(*unique.values())}


# --- the family ---


@pytest.mark.parametrize(("name", "space"), [*itertools.product(QUICK, SPACES), ("gp", SPACES[0]), ("gp", {"x": [1, 2, 4, 8, 16, 32], "y": ["a", "b"]})])
def test_a_sampler_asks_for_every_point_exactly_once(name, space):
    points = [t.point for t in walk(name, space)]
    assert Counter(point_key(p) for p in points) == Counter(combinations(space))
    assert all(any(value is v for v in space[dimension]) for p in points for dimension, value in p.items())


@pytest.mark.parametrize("name", QUICK)
def test_a_sampler_asks_only_for_what_is_possible(name):
    space = SPACES[1]

    def possible(point):
        return not (point["recipe"] == "none" and point["flag"])

    points = [t.point for t in walk(name, space, knowledge=Knowledge(possible=possible))]
    expected = {key for key in combinations(space) if not {("recipe", "'none'"), ("flag", "True")} <= set(key)}
    assert Counter(point_key(p) for p in points) == Counter(expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_follows_from_its_seed_and_the_history(name):
    space, most = SPACES[1], 12
    walked = walk(name, space, seed=3, most=most)
    assert walked == walk(name, space, seed=3, most=most)
    # a new sampler takes the search up where the history ends, whoever wrote it
    for done in (0, 7, 11):
        assert SAMPLERS[name](space, seed=3).ask(walked[:done]) == walked[done].point


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_point_that_somebody_is_trying_is_not_asked_for(name):
    space = {"x": [1, 2, 3], "y": ["a", "b"]}
    history = [Tried({"x": 1, "y": "a"}, (1.0, 2.0)), Tried({"x": 2, "y": "b"}, None, pending=True), Tried({"x": 3, "y": "b"}, (2.0, 1.0))]
    sampler = SAMPLERS[name](space)
    asked = []
    while (point := sampler.ask(history)) is not None:
        asked.append(point_key(point))
        history.append(Tried(point, None, pending=True))
    assert len(asked) == len(set(asked)) == 3
    assert point_key({"x": 2, "y": "b"}) not in asked


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_starts_in_a_huge_space(name):
    space = {f"x{i}": list(range(100)) for i in range(8)}
    sampler = SAMPLERS[name](space, seed=0)
    point = sampler.ask([])
    assert point is not None
    assert set(point) == set(space)
    assert sampler.ask([Tried(point, None)]) != point


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("space", [{}, {"x": []}, {"x": "bf16"}, {"x": 3}])
def test_a_sampler_refuses_a_space_that_is_none(name, space):
    with pytest.raises(InputError):
        SAMPLERS[name](space)


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_failures_are_no_reason_to_stop(name):
    sampler = SAMPLERS[name]({"x": [1, 2, 4], "y": ["a", "b"]})
    history: list[Tried] = []
    while (point := sampler.ask(history)) is not None:
        history.append(Tried(point, None))
    assert len(history) == 6


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_printed_or_logged(name, capfd):
    walk(name, SPACES[1], most=13)
    assert capfd.readouterr() == ("", "")


def test_random_order_draws_every_first_point_equally_often():
    space = {"x": [0, 1, 2, 3]}
    firsts = Counter(SAMPLERS["random"](space, seed=seed).ask([])["x"] for seed in range(800))
    # 200 expected of each, standard deviation 12
    assert set(firsts) == {0, 1, 2, 3}
    assert all(abs(count - 200) < 60 for count in firsts.values())


def test_optuna_keeps_its_own_verbosity():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        walk("tpe", SPACES[1], most=3)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(optuna.logging.INFO)


def test_listing_the_samplers_loads_neither_torch_nor_optuna():
    code = "import sys; from aimass_lab.samplers.base import SAMPLERS; list(SAMPLERS); sys.exit(bool({'torch', 'optuna', 'cmaes'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- those that learn ---

BOWL = {"x": list(range(101)), "y": list(range(101))}


def bowl(point: dict) -> tuple[float, ...]:
    return (-((point["x"] - 70) ** 2) - (point["y"] - 25) ** 2.0,)


def best_of(name: str, seed: int, num_points: int, **kwargs) -> float:
    sampler: Sampler = SAMPLERS[name](BOWL, seed=seed, **kwargs)
    history: list[Tried] = []
    while len(history) < num_points:
        point = sampler.ask(history)
        history.append(Tried(point, bowl(point)))
    return max(t.values[0] for t in history)


@pytest.mark.parametrize(("name", "num_points", "seeds"), [("tpe", 40, 3), ("cma_es", 70, 2), ("nsga2", 80, 2), ("gp", 14, 1), ("guided", 20, 2)])
def test_what_learns_finds_the_bottom_of_a_bowl_sooner_than_lots_do(name, num_points, seeds):
    found = np.mean([best_of(name, seed, num_points) for seed in range(seeds)])
    # Of n points drawn by lot, one is expected in an n-th of the area: within a circle of this radius.
    assert -found < 101**2 / (math.pi * num_points)


@pytest.mark.parametrize(("name", "num_points", "most"), [("tpe", 50, 0.3), ("nsga2", 80, 0.4), ("guided", 24, 0.1)])
def test_limits_are_heeded(name, num_points, most):
    """The best values lie where the limit is broken: most points asked for later lie within it all the same."""
    space = {"x": list(range(200)), "y": list(range(5))}
    late: list[Tried] = []
    for seed in range(2):
        sampler = SAMPLERS[name](space, seed=seed)
        history: list[Tried] = []
        while len(history) < num_points:
            point = sampler.ask(history)
            history.append(Tried(point, (float(point["x"]), -float(point["y"])), ((point["x"] - 60.5) / 100,)))
        late += history[num_points // 2 :]
    # of points drawn by lot, 0.49
    assert np.mean([max(0.0, t.excess[0]) for t in late]) < most


def test_what_fails_is_avoided_by_the_guided_one():
    space = {"kind": ["good", "broken"], "x": list(range(200))}
    sampler = SAMPLERS["guided"](space, seed=0)
    history: list[Tried] = []
    for _ in range(20):
        point = sampler.ask(history)
        history.append(Tried(point, None if point["kind"] == "broken" else (-abs(point["x"] - 77.0),)))
    assert sum(t.point["kind"] == "broken" for t in history) <= 6


# --- the guided one ---


def test_the_first_points_hold_every_value_of_every_feature():
    space = {"recipe": ["a", "b", "c"], "batch_size": [1, 8, 32], "threads": [1, 2]}
    sampler = SAMPLERS["guided"](space, seed=5)
    history: list[Tried] = []
    for _ in range(3):
        point = sampler.ask(history)
        history.append(Tried(point, (1.0, 1.0)))
    assert all({t.point[name] for t in history} == set(values) for name, values in space.items())


def test_of_a_number_with_many_values_the_first_points_hold_low_middle_and_high():
    sampler = SAMPLERS["guided"]({"rate": [10.0**-k for k in range(30)]}, seed=2)
    history: list[Tried] = []
    for _ in range(3):
        point = sampler.ask(history)
        history.append(Tried(point, (1.0,)))
    exponents = sorted(-math.log10(t.point["rate"]) for t in history)
    assert exponents[0] < 8 < exponents[1] < 22 < exponents[2]


def test_among_first_points_that_say_as_much_cheap_ones_come_first():
    space = {"recipe": ["none", "a", "b"], "compile": [False, True]}
    sampler = SAMPLERS["guided"](space, seed=0, knowledge=Knowledge(cost=lambda p: 1.0 + 4 * p["compile"] + 2 * (p["recipe"] != "none")))
    assert sampler.ask([]) == {"recipe": "none", "compile": False}


def test_a_right_prediction_makes_the_first_choice_right():
    """Two points say nothing of a third dimension; only what was predicted can."""
    space = {"x": list(range(50)), "y": [0, 1]}
    truth = {x: math.sin(1.3 * x) * 3 for x in space["x"]}
    knowledge = Knowledge(prior=lambda point: (truth[point["x"]],), features=lambda point: {"y": point["y"]})
    sampler = SAMPLERS["guided"](space, seed=0, knowledge=knowledge)
    history: list[Tried] = []
    for _ in range(4):
        point = sampler.ask(history)
        history.append(Tried(point, (truth[point["x"]] + 0.01 * point["y"],)))
    best = max(truth, key=truth.get)
    assert history[2].point["x"] == best


def test_a_wrong_prediction_is_corrected():
    found = np.mean([best_of("guided", seed, 30, knowledge=Knowledge(prior=lambda p: (50.0 * p["y"],))) for seed in range(2)])
    assert found >= -25.0


def test_nothing_predicted_is_no_prediction():
    walked = walk("guided", SPACES[1], knowledge=Knowledge(prior=lambda point: (None, None)))
    assert [t.point for t in walked] == [t.point for t in walk("guided", SPACES[1])]


def test_a_gaussian_process_without_noise_goes_through_its_points_and_doubts_the_rest():
    columns = to_columns([{"x": x} for x in range(1, 22)])
    truth = np.sin(np.arange(21) / 4.0)
    rows = [0, 4, 8, 12, 16, 20]
    mean, deviation = predict(columns.distances(rows), rows, truth[rows], np.zeros(21))
    assert np.abs(mean[rows] - truth[rows]).max() < 0.05
    others = [row for row in range(21) if row not in rows]
    assert deviation[others].min() > deviation[rows].max()
    assert np.abs(mean - truth).max() < 0.4


def test_options_that_never_vary_do_not_set_a_technique_apart():
    many = {"a": True, "a.rate": 0.1, "a.mode": "x", "a.count": 16}
    columns = to_columns([{"recipe": "a", **many}, {"recipe": "b", "b": True}, {"recipe": "c", "c": True}])
    assert columns.values.shape == (3, 4)  # the recipe, and one for each technique
    distances = columns.distances([0], [1]).sum(), columns.distances([1], [2]).sum()
    assert distances[0] == distances[1]
    # a number that takes more values than two keeps its column beside the word that tells the same points apart
    columns = to_columns([{"recipe": f"a({ratio})", "a.ratio": ratio} for ratio in (0.25, 0.5, 0.75)])
    assert columns.values.shape == (3, 2)


def test_features_as_columns():
    columns = to_columns([{"word": "a", "size": 1, "same": 3}, {"word": "b", "size": 8, "same": 3}, {"word": "a", "size": 64, "same": 3, "ratio": 0.5}])
    assert columns.is_word.tolist() == [True, False, False]
    # sizes by their ratio; a ratio that only one point has lies as far from the others as nothing at all
    assert columns.values[:, 1].tolist() == pytest.approx([0.0, 0.5, 1.0])
    distances = columns.distances([0], slice(None))
    assert distances[:, 0, :].tolist() == [[0.0, 1.0, 0.0], pytest.approx([0.0, 0.5, 1.0]), pytest.approx([0.0, 0.0, 0.5])]


# --- volumes ---


def test_the_hypervolume_of_staircases_by_hand():
    reference = np.zeros(2)
    assert hypervolume(np.array([[2.0, 1.0], [1.0, 3.0], [0.5, 0.5], [-1.0, 9.0]]), reference) == pytest.approx(2 + 3 - 1)
    assert hypervolume(np.array([[-1.0, 1.0]]), reference) == 0.0
    assert hypervolume(np.array([[2.0, 3.0, 4.0], [3.0, 1.0, 1.0]]), np.zeros(3)) == pytest.approx(24 + 1)


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_the_hypervolume_is_the_share_of_lots_that_are_dominated(num_objectives):
    rng = np.random.default_rng(num_objectives)
    points = rng.random((8, num_objectives))
    lots = rng.random((40_000, num_objectives))
    share = (lots[:, None, :] <= points[None, :, :]).all(axis=2).any(axis=1).mean()
    assert hypervolume(points, np.zeros(num_objectives)) == pytest.approx(share, abs=4 * 0.5 / 200)


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
def test_the_expected_improvement_is_the_mean_over_lots(num_objectives):
    rng = np.random.default_rng(num_objectives)
    points, reference = rng.random((6, num_objectives)), np.zeros(num_objectives)
    mean, deviation = rng.random((3, num_objectives)), 0.1 + 0.3 * rng.random((3, num_objectives))
    expected = expected_improvement(mean, deviation, front_of(points), reference)
    before = hypervolume(points, reference)
    for i in range(3):
        lots = mean[i] + deviation[i] * rng.standard_normal((3000, num_objectives))
        gains = [hypervolume(np.vstack([points, lot]), reference) - before for lot in lots]
        assert expected[i] == pytest.approx(np.mean(gains), abs=5 * np.std(gains) / math.sqrt(len(gains)) + 1e-6)


def test_the_front_of_rows_keeps_one_of_equals():
    assert front_of(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])).tolist() == [[1.0, 2.0], [2.0, 1.0]]
