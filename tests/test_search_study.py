"""The search as a study runs it: real recipes on a small network, measured, written down, and at hand afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from models import TinyCNN, assert_same, snapshot

from aimass_lab import Study
from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.frontends.charts import chart
from aimass_lab.frontends.layouts import lay_out
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.headlines import headline
from aimass_lab.records import SearchResult, from_json, to_json
from aimass_lab.searching import Space, make_objectives
from aimass_lab.searching.possible import default_space, make_check, make_elsewhere, make_prior
from aimass_lab.workload import Workload


def lots(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose left or right half is brighter, and which one."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(count, 1, 8, 8, generator=generator), torch.randint(0, 2, (count,), generator=generator)
    images[labels == 0, :, :, :4] += 1
    images[labels == 1, :, :, 4:] += 1
    return images, labels


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return (outputs.argmax(1) == labels).float().mean().item()


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyCNN()
        images, labels = lots(256, 0)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(15):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def study(trained, tmp_path) -> Study:
    inputs, labels = lots(64, 1)
    return Study(trained, inputs[:4], data=(inputs, labels), metric=accuracy, train=lots(128, 2), store=tmp_path / "history.db", name="halves")


def names(result: SearchResult) -> set[str]:
    return {candidate.setting.recipe.name for candidate in result.candidates}


def test_recipes_types_and_runtimes_are_searched_and_the_model_stays_as_it_was(study):
    before = snapshot(study.model)
    result = study.search(recipe=("none", "int8_dynamic", "low_rank(ratio=0.5)"), dtype=("float32", "bfloat16"), batch=(2,), seconds=300, sampler="grid")
    assert_same(before, snapshot(study.model))
    assert names(result) == {"none", "bf16", "int8_dynamic", "low_rank(ratio=0.5)", "low_rank(ratio=0.5) + bf16"}
    assert [p.cause.partition(":")[0] for p in result.pruned] == ["bf16 cannot follow int8_dynamic"]
    assert result.stopped == "every setting of the space was tried"
    assert result.measured_share.value == 1.0
    measured = [c for c in result.candidates if c.status == "measured"]
    assert all({"throughput", "speedup", "latency", "drop", "dissimilarity", "size", "memory"} <= set(c.numbers) for c in measured)
    assert all(c.numbers["throughput"].source in ("measured", "derived") for c in measured)
    assert from_json(to_json(result), SearchResult) == result
    assert study.best_so_far.candidates == result.candidates
    assert study.store.runs()[0].verb == "search"


def test_the_winner_is_at_hand_and_its_code_runs(study):
    result = study.search(recipe=("low_rank(ratio=0.5)", "channels_last"), batch=(2,), seconds=15, max_drop=0.5, sampler="grid")
    if result.best is None:
        assert result.code is None
        assert not study.variants.items
        return
    scope: dict = {"study": study}
    exec(result.code, scope)
    assert scope["model"](study.workload.call.args[0]).shape == (4, 10)
    assert result.candidates[result.best].setting.recipe.name in study.variants.names


def test_the_hyper_parameters_of_a_recovery_are_searched(study):
    result = study.search(
        recipe=("low_rank(ratio=0.25) + recover(epochs=1)",), vary={"recover.learning_rate": "1e-4,1e-2", "low_rank.ratio": "0.25,0.5"}, batch=(2,),
        objective=("dissimilarity", "size"), seconds=30, sampler="random",
    )  # fmt: skip
    assert len(names(result)) == 4
    by_name = {c.setting.recipe.name: c.numbers for c in result.candidates}
    sizes = {name: numbers["size"].value for name, numbers in by_name.items()}
    assert max(size for name, size in sizes.items() if "0.25" in name) < min(size for name, size in sizes.items() if "0.5" in name)
    assert [o.name for o in result.objectives] == ["dissimilarity", "size"]


def test_a_search_is_resumed_and_one_that_is_begun_anew_is_not(study):
    given = {"recipe": ("none", "channels_last", "bf16"), "batch": (2,), "sampler": "grid"}
    first = study.search(**given, trials=1, seconds=20)
    assert len(first.candidates) == 1
    again = study.search(**given, trials=2, seconds=20, resume=True)
    assert set(names(first)) < set(names(again))
    if first.candidates[0].verdict == "cannot tell":  # on a machine that is busy: it was tried again, and took one of the two trials
        assert len(again.candidates) == 2
    else:
        assert first.candidates[0] in again.candidates
        assert len(again.candidates) == 3
    anew = study.search(**given, trials=1, seconds=20)
    assert len(anew.candidates) == 1


def test_an_interrupt_keeps_what_was_found(study):
    told = []

    def interrupt(share, text):
        told.append(text)
        if len(told) == 2:
            assert len(study.best_so_far.candidates) == 1
            raise KeyboardInterrupt

    study.progress = interrupt
    result = study.search(recipe=("none", "channels_last", "bf16"), batch=(2,), seconds=20, sampler="grid")
    assert result.stopped == "interrupted"
    assert len(result.candidates) == 1


def test_devices_that_are_not_here_are_predicted_and_say_so(study):
    result = study.search(recipe=("none", "bf16"), batch=(2,), device=("cpu", "l4"), price={"cpu": "0.1", "l4": "0.8"}, seconds=15, sampler="grid")
    there = [c for c in result.candidates if c.setting.device == "l4"]
    assert {c.setting.recipe.name for c in there} == {"none", "bf16"}
    for candidate in there:
        assert candidate.status == "predicted"
        assert not candidate.recommended
        assert candidate.numbers["throughput"].weakest_source == "estimated"
        assert candidate.numbers["throughput"].interval is not None
        assert candidate.numbers["drop"].weakest_source == "measured"
        assert "cost" in candidate.numbers
        assert "l4" in candidate.cause


def test_a_space_in_a_file_and_one_that_is_worth_a_look(study, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("recipe: [none, channels_last]\nbatch_size: [1, 2]\nthreads: [1]\n")
    result = study.search(space=str(path), seconds=15, sampler="grid", runtime=("eager",))
    assert {(c.setting.recipe.name, c.setting.batch_size, c.setting.threads) for c in result.candidates} == {
        (name, size, 1) for name in ("none", "channels_last") for size in (1, 2)
    }


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sampler": "gird"}, UnknownNameError),
        ({"objective": ("accuracy",)}, UnknownNameError),
        ({"recipe": ("int9",)}, UnknownNameError),
        ({"p99": "soon"}, InputError),
        ({"cost": 1.0}, InputError),
        ({"vary": {"learning_rate": "1"}}, InputError),
        ({"vary": {"recover.learning_rate": ""}}, InputError),
        ({"seconds": 0}, InputError),
        ({"max_drop": -0.1}, InputError),
        ({"batch": (0,)}, InputError),
        ({"price": {"cpu": "cheap"}}, InputError),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_with_what_to_do(study, options, error):
    with pytest.raises(error):
        study.search(**{"recipe": ("none",), "seconds": 1, **options})


def test_it_is_shown_with_its_reasons(study):
    result = study.search(recipe=("none", "int8_static + onnxruntime", "bf16"), batch=(1, 4), seconds=20, max_drop=0.2, sampler="grid")
    page = lay_out(result)
    assert {table.title for table in page.tables} >= {"Best first"}
    assert len(page.tables[0].columns) == len(page.tables[0].rows[0])
    assert headline(result) in render_text(result)
    assert "halves" in render_html(result)
    figure = chart(result)
    marked = [trace.name for trace in figure.data]
    assert "not beaten" in marked
    assert ("best" in marked) == (result.best is not None)
    assert figure.layout.yaxis.title.text == "throughput, item/s"
    assert figure.layout.xaxis.title.text == "drop"


# --- what is possible, and what is expected ---


@pytest.fixture(scope="module")
def workload(trained) -> Workload:
    inputs, labels = lots(64, 1)
    return Workload(trained, inputs[:4], data=(inputs, labels), metric=accuracy, train=lots(128, 2))


def test_the_space_that_is_worth_a_look_holds_only_what_is_possible(workload):
    check = make_check(workload)
    dimensions = default_space(workload, check=check, cores=2)
    space = Space(dimensions, check=check, cores=2)
    assert dimensions["recipe"][0] == "none"
    assert "low_rank + recover" in dimensions["recipe"]
    assert "eager" in dimensions["runtime"]
    assert dimensions["batch_size"] == [1, 4, 8, 32]
    assert all(check(space.setting(point).recipe) is None for point in space._points() if space.possible(point))
    untrained = Workload(workload.model, workload.call)
    assert not any("recover" in recipe for recipe in default_space(untrained, check=make_check(untrained), cores=2)["recipe"])


def test_what_is_expected_before_anything_is_measured(workload):
    space = Space({"recipe": ["none", "bf16", "low_rank"], "batch_size": [1, 32], "instances": [1, 2]}, check=make_check(workload))
    prior = make_prior(workload, lambda point: space.setting(point).recipe, make_objectives(("throughput", "drop"), has_metric=True, priced=False))

    def throughput(**point) -> float:
        value, drop = prior({"recipe": "none", "batch_size": 1, "instances": 1, **point})
        assert drop is None  # nobody knows
        return value

    assert math.isfinite(throughput(batch_size=32))
    assert throughput(instances=2) == pytest.approx(throughput() + math.log(2))  # side by side
    assert throughput(recipe="low_rank") == throughput()  # what it does is not known before it is applied


def test_what_cannot_be_predicted_says_why(workload):
    from aimass_lab.recipe import read_recipe
    from aimass_lab.records import Candidate, Setting

    elsewhere = make_elsewhere(workload)
    known = elsewhere(Candidate(setting=Setting(batch_size=2), status="measured"), "l4")
    assert set(known) == {"latency", "throughput"}
    assert known["throughput"].value == pytest.approx(2 / known["latency"].value)
    unknown = elsewhere(Candidate(setting=Setting(recipe=read_recipe("low_rank")), status="measured"), "l4")
    assert "low_rank" in unknown
