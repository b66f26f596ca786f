"""The search over settings: no model is run, what is optimised is a table; several processes share one history for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from aimass_lab.errors import DoesNotFitError, InputError, ModelError, OutOfTime, StoreError, UnknownNameError, UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.records import INTERRUPTED, Candidate, Environment, ModelInfo, Note, Number, SearchResult, Setting, TrialPoint, TrialResult, from_json, to_json
from aimass_lab.searching import Search, Space, make_limits, make_objectives
from aimass_lab.searching.claims import Failure, MemoryLog, Owner, key_of, search_digest
from aimass_lab.searching.engine import Problem, describe
from aimass_lab.searching.failures import describe_failure
from aimass_lab.searching.findings import best_so_far, make_search_result
from aimass_lab.searching.objectives import compare, cost_of, numbers_of
from aimass_lab.searching.pareto import near_front, pareto_front
from aimass_lab.searching.space import make_recipe
from aimass_lab.store import Store

MODEL = ModelInfo(name="Table", type="none", num_parameters=1, weight_bytes=4, dtype="float32", digest="0")
MACHINE = Environment(
    device="cpu", device_name="x", memory_bytes=1, cpu_cores=2, threads=1, python="3", torch="2", platform="x", taken_at="2026-01-01T00:00:00+00:00"
)


def number(value: float, unit: str = "ratio", spread: float = 0.0) -> Number:
    interval = (value * (1 - spread), value * (1 + spread)) if spread else None
    return Number(value=value, unit=unit, source="measured", method="table", interval=interval, interval_kind="95 %" if spread else None)


def trial(
    setting: Setting, *, speedup: float = 1.0, drop: float = 0.0, verdict: str = "faster", size: float = 4.0, spread: float = 0.01, **extra
) -> TrialResult:
    """A trial whose throughput is 100 items/s for each item of a batch and each instance, times the speed-up."""
    batch_size = setting.batch_size or 1
    per_s = 100 * speedup * setting.instances * batch_size**0.5
    latency = number(batch_size * setting.instances / per_s, "s", spread)
    point = TrialPoint(
        batch_size=batch_size, verdict=verdict if verdict in ("faster", "slower", "cannot tell") else "no gain", speedup=number(speedup, spread=spread),
        latency_original=latency, latency_variant=latency, latency_p99_variant=number(1.5 * latency.value, "s"), throughput_original=number(100, "item/s"),
        throughput_variant=number(per_s, "item/s", spread),
    )  # fmt: skip
    return TrialResult(
        model=MODEL, environment=MACHINE, setting=setting, verdict=verdict, recommended=verdict == "faster", reasons=(), points=(point,),
        size_bytes=number(size, "B"), size_original_bytes=number(4, "B"), stored_bytes=number(size, "B"), stored_original_bytes=number(4, "B"),
        fidelity=number(1 - drop), relative_error=number(0), metric_drop=number(drop), apply_time=number(0.1, "s"), **extra,
    )  # fmt: skip


TABLE = {
    "none": {"speedup": 1.0, "verdict": "no gain"},
    "bf16": {"speedup": 2.0, "drop": 0.02, "size": 2.0},
    "int8_dynamic": {"speedup": 1.5, "drop": 0.001, "size": 1.0},
    "channels_last": {"speedup": 1.2, "drop": 0.01},
    "unstructured_pruning": {"speedup": 9.0, "drop": 0.5, "verdict": "not equivalent"},
    "int8_weight_only": {"speedup": 0.5, "verdict": "slower", "size": 1.0},
}


def run_table(setting: Setting) -> TrialResult:
    return trial(setting, **TABLE[setting.recipe.name])


def problem(dimensions: dict | None = None, *, objectives=("throughput", "drop"), limits=None, prices=None, check=lambda recipe: None, cores=None) -> Problem:
    prices = prices or {}
    return Problem(
        space=Space(dimensions or {"recipe": list(TABLE)}, check=check, cores=cores),
        objectives=make_objectives(objectives, has_metric=True, priced=bool(prices)),
        limits=make_limits(limits or {}, has_metric=True, priced=bool(prices)),
        prices={name: Number(value=value, unit="USD/h", source="user", method="given") for name, value in prices.items()},
    )


def searched(given: Problem | None = None, evaluate=run_table, *, sampler="grid", log=None, elsewhere=None, **limits) -> SearchResult:
    search = Search(given or problem(), evaluate, sampler=sampler, log=log)
    search.run(**limits)
    return make_search_result(search, MODEL, MACHINE, elsewhere)


def names(result: SearchResult, indices=None) -> list[str]:
    return [result.candidates[i].setting.recipe.name for i in (range(len(result.candidates)) if indices is None else indices)]


# --- the space ---


def test_a_point_is_a_recipe_with_its_cast_its_options_and_its_runtime():
    point = {"recipe": "low_rank + recover + channels_last", "dtype": "bfloat16", "runtime": "compile", "recover.learning_rate": 3e-4, "batch_size": 8}
    assert make_recipe(point).name == "low_rank + recover(learning_rate=0.0003) + bf16 + channels_last + compile"
    assert make_recipe({"recipe": "none", "dtype": "float32", "runtime": "eager"}).name == "none"
    with pytest.raises(InputError, match="no step makes it float32"):
        make_recipe({"recipe": "none", "dtype": "float32"}, dtype="bfloat16")


def check_order(recipe):
    """Order and forms, without a model."""
    from types import SimpleNamespace

    from aimass_lab.errors import AimassError
    from aimass_lab.recipe import check_recipe

    try:
        check_recipe(recipe, SimpleNamespace(device=SimpleNamespace(type="cpu"), train=None))
    except AimassError as error:
        return error.message
    return None


def test_an_order_that_cannot_be_is_left_out():
    space = Space({"recipe": ["none", "int8_dynamic"], "dtype": ["float32", "bfloat16"], "batch_size": [1, 8, 32]}, check=check_order)
    assert space.num_points == 9
    assert [(n.num_points.value, n.cause.partition(":")[0]) for n in space.pruned] == [(3, "bf16 cannot follow int8_dynamic")]


def test_more_threads_and_instances_than_cores_are_left_out():
    space = Space({"threads": [1, 2, 4], "instances": [1, 2]}, cores=2)
    assert space.num_points == 3
    assert sum(n.num_points.value for n in space.pruned) == 3
    assert Space({"threads": [1, 2, 4], "instances": [1, 2]}).num_points == 6


def test_options_are_seen_only_by_recipes_that_have_the_step():
    space = Space({"recipe": ["none", "low_rank", "low_rank + int8_dynamic"], "low_rank.ratio": [0.25, 0.5], "batch_size": [1, 2]})
    settings = [space.setting(p) for p in space._points() if space.possible(p)]
    assert len(settings) == len({key_of(s) for s in settings}) == space.num_points == 2 * (1 + 2 + 2)
    assert not space.pruned  # the same twice is nothing to tell of
    assert all(space.setting(space.point_of(s)) == s for s in settings)
    assert space.point_of(Setting(recipe=read_recipe("bf16"))) is None


def test_the_same_recipe_by_two_ways_is_one_setting():
    assert Space({"recipe": ["int8_dynamic", "int8_dynamic + compile"], "runtime": ["eager", "compile"]}, check=check_order).num_points == 2


def test_features_tell_what_points_have_in_common():
    space = Space({"recipe": ["none", "low_rank(ratio=0.25)", "low_rank(ratio=0.5)"], "runtime": ["eager", "compile"], "batch_size": [1, 8]})
    features = space.features({"recipe": "low_rank(ratio=0.25)", "runtime": "compile", "batch_size": 8})
    assert features["low_rank"] is True
    assert features["compile"] is True
    assert features["low_rank.ratio"] == 0.25
    assert features["batch_size"] == 8
    assert "low_rank" not in space.features({"recipe": "none", "runtime": "eager", "batch_size": 1})
    assert space.cost({"recipe": "none", "runtime": "eager", "batch_size": 1}) < space.cost({"recipe": "none", "runtime": "compile", "batch_size": 1})


@pytest.mark.parametrize("ending", [".yaml", ".json"])
def test_a_space_in_a_file(tmp_path, ending):
    path = tmp_path / f"space{ending}"
    content = {"recipe": ["none", "bf16"], "batch_size": [1, 8], "runtime": "eager"}
    path.write_text(json.dumps(content) if ending == ".json" else "recipe: [none, bf16]\nbatch_size: [1, 8]\nruntime: eager\n")
    assert Space(path).dimensions == {"recipe": ("none", "bf16"), "batch_size": (1, 8), "runtime": ("eager",)}


@pytest.mark.parametrize(
    "dimensions",
    [
        {"recipe": []},
        {"recipe": "bf16"},
        {"mode": ["x"]},
        {"recipe": ["none"], "bf16.mode": ["x"]},
        {"batch_size": [0]},
        {"batch_size": [True]},
        {"dtype": ["float8"]},
        {"recipe": ["low_rank"], "low_rank.ratio": [0.5], "low_rank.rotation": [1]},
        {"recipe": ["nothing_like_it"]},
        "space.txt",
        "there_is_no_such.yaml",
    ],
)
def test_a_space_that_is_none_is_refused(dimensions):
    with pytest.raises(InputError):
        Space(dimensions)


def test_a_space_where_nothing_is_possible_says_why():
    with pytest.raises(InputError, match="no such layer"):
        Space({"recipe": ["bf16"]}, check=lambda recipe: "no such layer")


def test_more_recipes_than_can_be_checked_are_refused():
    with pytest.raises(InputError, match="recipes of its dimensions"):
        Space({"recipe": ["low_rank"], "low_rank.ratio": [k / 30_000 for k in range(1, 25_000)]})


# --- objectives, limits, fronts ---


def test_the_numbers_of_a_trial():
    price = Number(value=0.36, unit="USD/h", source="user", method="given")
    result = trial(Setting(batch_size=4), speedup=2.0, drop=0.25, size=3.0)
    numbers = numbers_of(result, price)
    assert numbers["throughput"].value == pytest.approx(400)
    assert numbers["latency"].value == pytest.approx(0.01)
    assert numbers["latency_p99"].value == pytest.approx(0.015)
    assert numbers["dissimilarity"].value == pytest.approx(0.25)
    assert numbers["size"].value == 3.0
    assert numbers["cost"].value == pytest.approx(0.36 / 3600 / 400)
    assert numbers["cost"].interval == pytest.approx((0.36 / 3600 / 404, 0.36 / 3600 / 396))
    assert numbers["cost"].trust == "user"
    assert "cost" not in numbers_of(result)


def test_a_million_items_cost_what_an_hour_costs_over_what_it_makes():
    from aimass_lab.headlines import format_number

    cost = cost_of(number(1000, "item/s"), Number(value=3.6, unit="USD/h", source="user", method="given"))
    assert format_number(cost) == "1.00 USD per million items"


def test_within_noise_is_where_intervals_overlap():
    low, high = number(100, spread=0.02), number(103, spread=0.02)
    assert compare("throughput", high, low) == "within noise"
    assert compare("throughput", number(110, spread=0.02), low) == "better"
    assert compare("latency", number(110, spread=0.02), low) == "worse"


def test_the_front_keeps_equals_and_drops_what_is_beaten():
    objectives = make_objectives(("throughput", "drop"), has_metric=True, priced=False)
    pairs = [(2.0, 0.1), (2.0, 0.1), (1.0, 0.0), (1.9, 0.1), (2.0, 0.2)]
    numbers = {i: {"throughput": number(t, "item/s"), "drop": number(d)} for i, (t, d) in enumerate(pairs)}
    assert pareto_front(numbers, objectives) == (0, 1, 2)
    assert near_front(numbers, objectives, (0, 1, 2)) == ()
    noisy = {i: {"throughput": number(t, "item/s", 0.05), "drop": number(d)} for i, (t, d) in enumerate(pairs)}
    assert near_front(noisy, objectives, (0, 1, 2)) == (3,)  # 1.9 and 2.0 overlap; 0.2 is surely more than 0.1


@pytest.mark.parametrize(
    ("asked", "has_metric"), [(("accuracy",), True), (("drop",), False), (("throughput", "throughput"), True), (("cost",), True)]
)  # fmt: skip
def test_objectives_that_cannot_be_are_refused(asked, has_metric):
    with pytest.raises(InputError):
        make_objectives(asked, has_metric=has_metric, priced=False)


@pytest.mark.parametrize("limits", [{"throughput": 1.0}, {"latency": 0.0}, {"quality": -0.1}, {"cost": 1.0}, {"latency": float("nan")}])
def test_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(InputError):
        make_limits(limits, has_metric=True, priced=False)


def test_without_a_metric_quality_is_the_outputs_similarity():
    assert list(make_limits({"quality": 0.1}, has_metric=False, priced=False)) == ["dissimilarity"]
    assert [o.name for o in make_objectives(None, has_metric=False, priced=False)] == ["throughput", "dissimilarity"]


# --- the search ---


@pytest.mark.parametrize("sampler", ["grid", "random", "guided", "tpe"])
def test_best_first_with_the_front_and_the_reasons(sampler):
    result = searched(sampler=sampler)
    # recommended ones by throughput, then what is slower, then what is not equivalent
    assert names(result) == ["bf16", "int8_dynamic", "channels_last", "none", "int8_weight_only", "unstructured_pruning"]
    assert result.best == 0
    assert set(names(result, result.front)) == {"unstructured_pruning", "bf16", "int8_dynamic", "none"}
    assert result.runner_up.candidate == 1
    assert not result.runner_up.within_noise
    assert "150 [148, 152] items/s against 200 [198, 202] items/s" in result.runner_up.text
    assert names(result, [result.refused.candidate]) == ["unstructured_pruning"]
    assert "not equivalent" in result.refused.text
    assert result.code == "study.trial('bf16')\nmodel = study.variant('bf16')"
    assert result.stopped == "every setting of the space was tried"
    assert result.measured_share.value == 1.0
    assert from_json(to_json(result), SearchResult) == result


def test_a_winner_by_less_than_the_noise_says_so():
    given = problem({"recipe": ["bf16", "int8_dynamic"]})
    result = searched(given, lambda s: trial(s, speedup={"bf16": 2.0, "int8_dynamic": 1.99}[s.recipe.name]))
    assert result.runner_up.within_noise
    assert "overlap" in result.runner_up.text


def test_what_is_slower_or_not_equivalent_never_wins():
    result = searched(problem({"recipe": ["unstructured_pruning", "int8_weight_only"]}))
    assert result.best is None
    assert result.code is None
    assert result.refused is not None


@pytest.mark.parametrize("sampler", ["grid", "random", "guided", "tpe"])
def test_what_a_busy_machine_could_not_tell_is_no_fact(sampler):
    # given a copy that looks nine times as fast, measured beside other work
    def run(setting: Setting) -> TrialResult:
        busy = setting.recipe.name == "int8_dynamic"
        found = trial(setting, **{**TABLE[setting.recipe.name], **({"speedup": 9.0, "verdict": "cannot tell"} if busy else {})})
        noisy = {name: msgspec.structs.replace(getattr(found.points[0], name), quality="noisy") for name in ("speedup", "throughput_variant")}
        return msgspec.structs.replace(found, points=(msgspec.structs.replace(found.points[0], **noisy),)) if busy else found

    result = searched(evaluate=run, sampler=sampler)
    untold = names(result).index("int8_dynamic")
    assert names(result, [result.best]) == ["bf16"]
    assert not result.candidates[untold].recommended
    assert untold not in result.front
    assert untold in result.near_front  # nor is it beaten
    assert any(note.code == "W-NOISY" and "at 1 of 6 settings the machine was too busy to tell" in note.text for note in result.notes)


def test_the_original_called_in_a_better_way_may_win():
    result = searched(problem({"recipe": ["none"], "batch_size": [1, 16], "instances": [1, 2]}))
    assert result.code == "study.trial('none', batch=16, instances=2)\nmodel = study.variant('none')"


def test_limits_mark_what_is_beyond_them_and_say_what_they_cost():
    result = searched(problem(limits={"quality": 0.005, "size": 3.0}))
    assert names(result, [result.best]) == ["int8_dynamic"]
    by_name = {c.setting.recipe.name: c for c in result.candidates}
    assert by_name["bf16"].beyond == ("drop",)
    assert by_name["channels_last"].beyond == ("drop", "size")
    assert not by_name["bf16"].recommended
    drop, size = result.limits
    assert (drop.num_excluded.value, drop.num_excluded_alone.value) == (3, 1)
    assert names(result, [drop.relaxed]) == ["bf16"]
    assert "200 [198, 202] items/s against 150 [148, 152] items/s" in drop.text
    assert (size.num_excluded.value, size.num_excluded_alone.value, size.relaxed) == (3, 1, None)
    assert set(names(result, result.front)) == {"int8_dynamic", "int8_weight_only"}


def test_cost_is_an_objective_where_a_price_is_known():
    result = searched(problem(objectives=("cost", "drop"), prices={"cpu": 0.36}))
    assert names(result, [result.best]) == ["bf16"]
    assert result.candidates[0].numbers["cost"].value == pytest.approx(0.36 / 3600 / 200)


def test_other_devices_are_predicted_from_what_was_measured_here():
    def elsewhere(candidate: Candidate, device: str):
        if candidate.setting.recipe.name == "bf16":
            return "what it does is not known there"
        value = number(1e4, "item/s", 0.3)
        return {"throughput": msgspec.structs.replace(value, source="estimated", method="roofline"), "latency": number(1e-4, "s")}

    given = problem({"recipe": ["none", "bf16", "int8_dynamic"], "threads": [1, 2], "device": ["cpu", "l4"]}, prices={"l4": 0.8})
    result = searched(given, elsewhere=elsewhere)
    predicted = [c for c in result.candidates if c.status == "predicted"]
    assert {(c.setting.recipe.name, c.setting.device, c.setting.threads) for c in predicted} == {("none", "l4", None), ("int8_dynamic", "l4", None)}
    assert all(c.numbers["throughput"].source == "estimated" and c.numbers["drop"].source == "measured" for c in predicted)
    assert all("cost" in c.numbers and not c.recommended for c in predicted)
    assert result.candidates[result.best].status == "measured"
    assert [n.text for n in result.notes] == ["1 settings are not predicted on l4, what it does is not known there"]
    assert result.num_points.value == 12
    assert result.measured_share.value == 0.5

    only_there = problem({"recipe": ["none", "int8_dynamic"], "device": ["l4"]})
    result = searched(only_there, elsewhere=elsewhere)
    assert result.candidates[result.best].setting.device == "l4"


def test_hyper_parameters_of_a_step_are_searched_like_anything_else():
    def run(setting: Setting) -> TrialResult:
        rate = setting.recipe.steps[-1].options["learning_rate"]
        return trial(setting, drop=abs(rate - 3e-4) * 100)

    dimensions = {"recipe": ["low_rank + recover"], "recover.learning_rate": ["1e-4", "2e-4", "3e-4", "4e-4", "1e-2"], "recover.epochs": [1, 3]}
    result = searched(problem(dimensions, objectives=("drop",)), run, sampler="cma_es")
    assert "learning_rate=0.0003" in result.code
    assert len(result.candidates) == 10


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (UnsupportedError("no such layer", help="none"), "unsupported", "no such layer"),
        (DoesNotFitError("there was not enough memory"), "out of memory", "there was not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), "out of memory", "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"),
        (ModelError("the variant's outputs are not finite"), "not finite", "the variant's outputs are not finite"),
        (ZeroDivisionError("division by zero\nsecond line"), "error", "ZeroDivisionError: division by zero"),
        (ValueError(), "error", "ValueError"),
    ],
)
def test_failures_are_candidates_with_a_cause_and_the_search_goes_on(error, kind, cause):
    def run(setting: Setting) -> TrialResult:
        if setting.recipe.name == "bf16":
            raise error
        return run_table(setting)

    result = searched(problem({"recipe": ["bf16", "int8_dynamic"]}), run)
    assert names(result) == ["int8_dynamic", "bf16"]
    failed = result.candidates[1]
    assert (failed.status, failed.failure, failed.cause, failed.recommended) == ("failed", kind, cause, False)
    assert result.stopped == "every setting of the space was tried"


def test_an_error_of_a_compiler_is_known_by_where_it_comes_from():
    class BackendError(Exception):
        pass

    BackendError.__module__ = "torch._dynamo.exc"
    error = UnsupportedError("compile cannot be applied")
    error.__cause__ = BackendError("no kernel")
    assert describe_failure(error) == Failure(kind="compile error", cause="compile cannot be applied")


def test_the_budget_stops_the_search_and_its_clock_is_the_one_given():
    times = iter(range(0, 10_000, 4))
    search = Search(problem(), run_table, sampler="grid", clock=lambda: next(times))
    search.run(budget_s=10)
    assert len(search.rows) == 2  # begun at 4 and 8 s of 10
    assert search.stopped == "the 10 s were spent"


def test_a_copy_that_takes_too_long_is_given_up_and_the_search_goes_on():
    now, allowed = [0.0], []

    def run(setting: Setting) -> TrialResult:
        allowed.append(search.making_s)
        if setting.recipe.name == "bf16":
            now[0] += 25
            raise OutOfTime("making the copy took more than 20 s and was given up (rounding)")
        now[0] += 1
        return run_table(setting)

    search = Search(problem(), run, sampler="grid", clock=lambda: now[0])
    search.run(budget_s=100)
    result = make_search_result(search, MODEL, MACHINE)
    assert search.stopped == "every setting of the space was tried"
    assert set(allowed) == {20.0}  # a fifth
    (failed,) = [c for c in result.candidates if c.status == "failed"]
    assert failed.failure == "out of time"
    assert failed.cause is not None
    assert failed.cause.startswith("making the copy took more than 20 s and was given up (rounding): no setting gets more than 20 % of a search's time")


def test_what_was_being_made_as_the_time_ran_out_is_left_for_the_next_search():
    now, allowed = [0.0], []

    def run(setting: Setting) -> TrialResult:
        allowed.append(search.making_s)
        now[0] += 30
        if now[0] > 100:
            raise OutOfTime("making the copy took more than 10 s and was given up")
        return run_table(setting)

    log = MemoryLog()
    search = Search(problem(), run, sampler="grid", clock=lambda: now[0], log=log)
    search.run(budget_s=100)
    assert search.stopped == "the 100 s were spent"
    assert allowed == [20.0, 20.0, 20.0, 10.0]  # a fifth, or what is left but no less than ten seconds
    assert len(log.rows()) == 3
    assert not any(isinstance(row.outcome, Failure) for row in log.rows())


def test_at_most_as_many_trials_as_asked_for_and_more_in_the_next_run():
    search = Search(problem(), run_table, sampler="random")
    search.run(max_trials=3)
    assert len(search.rows) == 3
    assert search.stopped.startswith("3 settings were tried")
    search.run(max_trials=2)
    assert len(search.rows) == 5


def test_an_interrupt_keeps_everything_and_gives_the_setting_back():
    def run(setting: Setting) -> TrialResult:
        if setting.recipe.name == "int8_dynamic":
            raise KeyboardInterrupt
        return run_table(setting)

    search = Search(problem(), run, sampler="grid")
    search.run()
    assert search.stopped == "interrupted"
    assert [row.setting.recipe.name for row in search.rows] == ["none", "bf16"]
    assert make_search_result(search, MODEL, MACHINE).best == 0


def test_a_trial_that_was_cut_short_ends_the_search_and_is_kept():
    notes = (Note(code=INTERRUPTED, text="interrupted after 7 rounds"),)
    result = searched(problem({"recipe": ["bf16", "none"]}), lambda setting: trial(setting, notes=notes))
    assert len(result.candidates) == 1
    assert result.stopped == "interrupted"


def test_the_best_so_far_is_told_with_every_setting_and_can_be_asked_for():
    told: list[tuple[float, str]] = []
    search = Search(problem({"recipe": ["none", "int8_dynamic", "bf16"]}), run_table, sampler="grid")

    def progress(share: float, text: str) -> None:
        told.append((share, text))
        assert make_search_result(search, MODEL, MACHINE).stopped == "it goes on"

    search.run(progress=progress, best=lambda: best_so_far(search))
    assert [text for _, text in told] == [
        "1 of 3: none",
        "2 of 3: int8_dynamic; best so far 100 items/s: none",
        "3 of 3: bf16; best so far 150 items/s: int8_dynamic",
    ]
    assert all(0 <= share <= 1 for share, _ in told)


def test_a_setting_in_words():
    setting = Setting(recipe=read_recipe("int8_dynamic + compile"), batch_size=8, threads=1, instances=2)
    assert describe(setting) == "int8_dynamic + compile at batch 8, 2 instances of 1 thread"
    assert describe(Setting(device="l4")) == "none on l4"


@pytest.mark.parametrize("limits", [{"budget_s": 0}, {"max_trials": 0}])
def test_a_search_that_cannot_be_made_is_refused(limits):
    with pytest.raises(InputError):
        searched(**limits)


def test_an_unknown_sampler_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="grid, guided, nsga2, random"):
        searched(sampler="gird")


def test_a_prediction_that_is_missing_at_some_points_does_not_stop_the_guided_one():
    given = problem({"recipe": list(TABLE), "batch_size": [1, 4]})
    search = Search(given, run_table, sampler="guided", prior=lambda p: (1.0 * p["batch_size"] if p["recipe"] == "none" else None, None))
    search.run()
    assert len(search.rows) == 12


# --- one history for several searches ---


def test_what_was_tried_is_not_tried_again_when_resumed(tmp_path):
    store, tried = Store(tmp_path / "h.db"), []

    def run(setting: Setting) -> TrialResult:
        tried.append(setting.recipe.name)
        if setting.recipe.name == "channels_last":
            raise UnsupportedError("no such layer")
        return run_table(setting)

    searched(evaluate=run, log=store.search_log("d", resume=False), max_trials=4)
    assert len(tried) == 4
    result = searched(evaluate=run, log=store.search_log("d", resume=True))
    assert len(tried) == len(set(tried)) == 6
    assert result == msgspec.structs.replace(searched(evaluate=run), stopped=result.stopped)
    # another digest, and one that is begun anew, share nothing
    assert not store.search_log("e", resume=True).rows()
    assert not store.search_log("d", resume=False).rows()


def test_a_taken_setting_is_taken_once_and_can_be_given_back(tmp_path):
    setting = Setting(batch_size=3)
    for log in (MemoryLog(), Store(tmp_path / "h.db").search_log("d", resume=True)):
        assert log.claim(setting)
        assert not log.claim(setting)
        assert [(row.state, row.mine) for row in log.rows()] == [("running", True)]
        log.release(setting)
        assert not log.rows()
        assert log.claim(setting)
        log.finish(setting, Failure(kind="error", cause="x"))
        log.release(setting)  # too late to forget it
        assert not log.claim(setting)


def test_what_a_busy_machine_left_undecided_is_tried_again_when_resumed(tmp_path):
    store, tried, busy = Store(tmp_path / "h.db"), [], {"none", "bf16", "channels_last"}

    def run(setting: Setting) -> TrialResult:
        tried.append(setting.recipe.name)
        return trial(setting, **{**TABLE[setting.recipe.name], **({"verdict": "cannot tell"} if setting.recipe.name in busy else {})})

    def undecided(result: SearchResult) -> set[str]:
        return {c.setting.recipe.name for c in result.candidates if c.verdict == "cannot tell"}

    first = searched(evaluate=run, log=store.search_log("d", resume=False), max_trials=4)
    assert tried == ["none", "bf16", "int8_dynamic", "channels_last"]
    assert undecided(first) == busy
    # as busy as before: one of them shows it, then what was never tried comes first, and the rest at last
    tried.clear()
    again = searched(evaluate=run, log=store.search_log("d", resume=True))
    assert tried == ["none", "unstructured_pruning", "int8_weight_only", "bf16", "channels_last"]
    assert undecided(again) == busy
    # quiet now: those that were left, and no other
    tried.clear()
    busy.clear()
    last = searched(evaluate=run, log=store.search_log("d", resume=True))
    assert tried == ["none", "bf16", "channels_last"]
    assert last == msgspec.structs.replace(searched(evaluate=run_table), stopped=last.stopped)


def test_what_is_tried_again_and_interrupted_is_as_undecided_as_before(tmp_path):
    store = Store(tmp_path / "h.db")
    searched(evaluate=lambda setting: trial(setting, verdict="cannot tell"), log=store.search_log("d", resume=False), max_trials=1)
    shared = store.search_log("d", resume=True)
    (row,) = shared.rows()
    late = store.search_log("d", resume=True)
    for log in (MemoryLog([row]), shared):
        assert log.claim(row.setting)
        assert [r.outcome for r in log.rows()] == [None]
        assert not log.claim(row.setting)
        log.release(row.setting)
        assert [r.outcome for r in log.rows()] == [row.outcome]
    assert shared.claim(row.setting) is late.claim(row.setting) is False  # once each, and who opened it before sees what became of it
    assert store.search_log("d", resume=True).claim(row.setting)


def test_a_history_that_breaks_costs_the_sharing_and_not_the_search(tmp_path):
    store = Store(tmp_path / "h.db")
    log = store.search_log("d", resume=False)

    def run(setting: Setting) -> TrialResult:
        if setting.recipe.name == "int8_dynamic":
            store.path.write_bytes(b"no database any more" * 100)
        return run_table(setting)

    result = searched(evaluate=run, log=log)
    assert len(result.candidates) == 6
    assert [n.code for n in result.notes] == ["W-STORE"]
    with pytest.raises(StoreError):
        store.search_log("d", resume=True)


def test_a_process_is_known_again():
    here = Owner.this()
    assert here.alive()
    assert Owner(here.host, here.pid, here.started).alive()
    assert not Owner(here.host, here.pid, here.started - 3600).alive()  # the number was given to another process
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert not Owner(here.host, child.pid, here.started).alive()
    assert Owner("another-machine", child.pid, 0.0).alive()  # nobody can tell


def test_the_digest_follows_from_the_facts():
    facts = {"model": "a", "dimensions": {"recipe": ("none",), "batch_size": (1, 2)}}
    assert search_digest(**facts) == search_digest(**dict(reversed(facts.items())))
    assert search_digest(**facts) != search_digest(**{**facts, "model": "b"})


WORKER = """
import os, pathlib, sys, time
sys.path.insert(0, {tests!r})
from test_search import problem, run_table, Search, Store, TABLE

def run(setting):
    with open({tried!r}, "a") as file:
        file.write(f"{{setting.recipe.name}} {{setting.batch_size}}\\n")
    pathlib.Path({tried!r} + f".{{os.getpid()}}").touch()
    while len(list(pathlib.Path({tried!r}).parent.glob("tried.*"))) < int(sys.argv[4]):  # until all have one, however late they were started
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
    return run_table(setting)

log = Store({path!r}).search_log("d", resume=True)
search = Search(problem({{"recipe": list(TABLE), "batch_size": [1, 2, 4, 8, 16]}}), run, sampler=sys.argv[2], seed=int(sys.argv[3]), log=log)
print("ready", flush=True)
search.run(budget_s=600)
print(sum(row.mine for row in search.rows), len(search.rows), flush=True)
"""


def worker(folder: Path, sleep_s: float, sampler: str, seed: int, *, together: int = 1) -> subprocess.Popen:
    code = textwrap.dedent(WORKER).format(tests=str(Path(__file__).parent), tried=str(folder / "tried"), path=str(folder / "h.db"))
    return subprocess.Popen([sys.executable, "-c", code, str(sleep_s), sampler, str(seed), str(together)], stdout=subprocess.PIPE, text=True)


def tried(folder: Path) -> list[str]:
    path = folder / "tried"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_until(condition, what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


@pytest.mark.parametrize("sampler", ["random", "guided"])
def test_several_processes_share_the_work_and_try_nothing_twice(tmp_path, sampler):
    workers = [worker(tmp_path, 0.02, sampler, seed, together=3) for seed in range(3)]
    counts = [[int(word) for word in process.communicate(timeout=120)[0].split()[1:]] for process in workers]
    assert all(process.returncode == 0 for process in workers)
    assert len(tried(tmp_path)) == len(set(tried(tmp_path))) == 30
    assert sum(mine for mine, _ in counts) == 30
    assert all(mine > 0 for mine, _ in counts)


def test_a_killed_search_is_taken_up_where_it_was(tmp_path):
    first = worker(tmp_path, 0.1, "random", 0)
    wait_until(lambda: len(tried(tmp_path)) >= 4, "it tries nothing")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = tried(tmp_path)
    second = worker(tmp_path, 0.0, "random", 0)
    mine, seen = (int(word) for word in second.communicate(timeout=120)[0].split()[1:])
    assert seen == 30
    # what was finished stays, and what was being tried as it was killed, and that alone, is tried again
    assert mine in (30 - len(before), 31 - len(before))
    after = tried(tmp_path)
    assert set(after) == {f"{name} {size}" for name in TABLE for size in (1, 2, 4, 8, 16)}
    assert len(after) - len(set(after)) <= 1


def test_searching_needs_no_torch():
    code = "import sys; import aimass_lab.searching, aimass_lab.searching.findings, aimass_lab.searching.possible; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_history_of_the_schema_before_learns_to_hold_searches(tmp_path):
    import contextlib
    import sqlite3

    store = Store(tmp_path / "h.db")
    store.add("x", MACHINE)
    with contextlib.closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("DROP TABLE search_trials")
        connection.execute("PRAGMA user_version = 2")
    log = store.search_log("d", resume=False)
    assert log.claim(Setting())
    assert len(store.runs()) == 1
