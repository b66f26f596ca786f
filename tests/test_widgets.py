"""The kernel's side of the workbench: what its views say of themselves, what they are sent, and what their forms are answered."""

import dataclasses
import json
import re
import threading
from typing import get_args

import pytest
import torch
from torch import nn

from aimass_lab import Study
from aimass_lab.compression.base import TECHNIQUES
from aimass_lab.frontends.background import Worker
from aimass_lab.frontends.lines import read_line
from aimass_lab.frontends.widgets import source
from aimass_lab.frontends.widgets.calls import VerbCall
from aimass_lab.frontends.widgets.facts.base import FACTS
from aimass_lab.frontends.widgets.questions import check_text
from aimass_lab.options import describe_options
from aimass_lab.records import RECORDS, SearchResult
from aimass_lab.study.showing import View

PATIENCE_S = 120


def said(view, what):
    """What a view's module says of itself, as source.py reads it."""
    (found,) = re.findall(rf"^  {what}: (.*),$", source._read(view), re.M)
    return re.findall(r'"([^"]*)"', found)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A classifier of small pictures, with one try of the control and one that ruins it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    accuracy = lambda outputs, wanted: (outputs.argmax(1) == wanted).float().mean().item()  # noqa: E731
    study = Study(model, images[:4], data=(images, labels), metric=accuracy, name="net", store=tmp_path_factory.mktemp("store") / "history.db")
    study.trial("none", seconds=0.2)
    study.trial("unstructured_pruning(sparsity=0.9)", seconds=0.2)
    return study


# --- the views


def test_the_verb_knows_every_view_and_no_other():
    assert tuple(name for view in source.VIEWS for name in said(view, "name")) == get_args(View)


def test_views_draw_records_and_facts_that_there_are():
    tags = {str(kind.__struct_config__.tag) for kind in RECORDS}
    assert set(source.shown_kinds()) <= tags
    for view in source.VIEWS:
        assert said(view, "kinds"), f"{view} draws no record, so a picture would never hold it"
        assert set(said(view, "facts")) <= set(FACTS)
    assert {fact for view in source.VIEWS for fact in said(view, "facts")} == set(FACTS)


def test_the_program_is_one_text_in_which_nothing_is_imported():
    assert not re.findall(r"^\s*import ", source.script(), re.M)
    for module in source.MODULES[:-1]:
        assert f"const ${module.removesuffix('.js')} = " in source.script()


# --- the facts


def test_every_fact_can_be_sent(study):
    for name, fact in FACTS.items():
        sent = json.dumps(fact(study), allow_nan=False)
        assert json.dumps(json.loads(sent)) == sent, name


def test_techniques_are_told_with_every_option_as_the_registry_has_them_and_what_is_lacking(study):
    told = {one["name"]: one for one in FACTS["techniques"](study)}
    assert set(told) == set(TECHNIQUES)
    for name, one in told.items():
        assert [field["name"] for field in one["options"]] == [option.name for option in describe_options(TECHNIQUES[name])]
        assert one["text"]
    ratio = next(field for field in told["low_rank"]["options"] if field["name"] == "ratio")
    assert (ratio["kind"], ratio["optional"], ratio["bounds"], ratio["within"]) == ("float", True, {"gt": 0, "lt": 1}, "above 0 and below 1")
    assert "nothing to learn from" in told["recover"]["lacking"]
    assert told["unstructured_pruning"]["lacking"] is None


def test_tries_are_told_newest_first_with_the_copies_that_are_left(study):
    told = FACTS["tries"](study)
    assert [one["name"] for one in told] == ["unstructured_pruning(sparsity=0.9)", "none"]
    assert [one["index"] for one in told] == [1, 0]
    assert told[0]["record"]["verdict"] == study.results[1].verdict
    assert told[0]["memory"]["value"] == study.variants.items[1].memory.value
    (step,) = told[0]["record"]["steps"]
    assert step["num_left"] == sum(not layer.changed for layer in study.results[1].steps[0].layers)


def test_a_released_copy_is_told_as_such_and_one_that_was_never_tried_without_a_record(study):
    verb, values = read_line('study.release("none")')
    assert verb.function(study, **values).names == ("unstructured_pruning(sparsity=0.9)",)
    assert read_line("%aimass release net none")[1] == values
    study._take_over(study._variant_of(study.recipe("unstructured_pruning(sparsity=0.9)")))
    study._served("clustering")
    told = {one["name"]: one for one in FACTS["tries"](study)}
    assert told["none"]["memory"] is None
    assert told["clustering"]["record"] is None
    study.release("clustering")


def test_the_worst_samples_come_as_pictures_or_numbers_with_their_labels(study):
    told = FACTS["samples"](study)
    worst = study.results[1].worst_samples[0]
    assert told[str(worst.index)]["label"] == worst.index % 10
    assert told[str(worst.index)]["image"].startswith("data:image/png;base64,")
    assert worst.same_class == (worst.class_original == worst.class_variant)
    numbers = Study(nn.Sequential(nn.ReLU6(), nn.Linear(3, 2)), torch.tensor([[1.0, 2.00001, float("inf")]]))
    numbers.trial("unstructured_pruning(sparsity=0.5)", seconds=0.2)
    samples = FACTS["samples"](numbers)
    numbers.workload.call = numbers.workload.call.map(lambda t: t.to("meta"))
    broken = Study(numbers.workload)
    broken.results = numbers.results
    assert "meta" in FACTS["samples"](broken)["0"]["lacking"]
    assert samples == {"0": {"label": None, "shape": [1, 3], "values": [1.0, 2.0, "inf"]}}


# --- what a form is answered


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("low_rank(ratio=0.5) + int8_dynamic", None),
        ("none", None),
        ("low_rank(ratio=2)", "ratio 2.0 of low_rank is not above 0 and below 1"),
        ("low_rank(rank=2)", "low_rank has no option 'rank'"),
        ("int8_dynamic + low_rank", "low_rank cannot follow int8_dynamic"),
        ("recover", "nothing to learn from"),
        ("low_rnk", "no technique called 'low_rnk'"),
        ("low_rank(ratio=", "is no step of a recipe"),
    ],
)
def test_a_recipe_is_checked_without_running_anything(study, text, error):
    answer = check_text(study, text)
    assert json.loads(json.dumps(answer)) == answer
    if error is None:
        assert answer == {"name": text, "error": None, "help": None, "unpredicted": None}
    else:
        assert error in answer["error"]


def test_a_recipe_whose_effect_is_not_predicted_says_why(study):
    assert "another runtime" in check_text(study, "onnxruntime")["unpredicted"]


# --- work that a cell takes the place of


class Resumable:
    """What a verb that resumes is called with, each time; ended from outside the first time."""

    def __init__(self):
        self.calls, self.began, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, study, **values):
        self.calls.append(values)
        study.progress(0.5, "working")
        self.began.set()
        while not self.go_on.wait(0.005):
            study.progress(0.5, "working")


def test_a_search_goes_on_after_a_cell_with_what_it_found_in_the_time_that_is_left(study, monkeypatch):
    search = read_line("study.search()")[0]
    function = Resumable()
    call = VerbCall(study, dataclasses.replace(search, function=function), {"seconds": "30s", "trials": 9})
    found = study.search(recipe="none", batch=4, trials=1, seconds=20)
    monkeypatch.setattr(type(study), "best_so_far", property(lambda self: found))
    worker = Worker()
    worker.submit(("study.search()", call), changed=lambda job: None)
    assert function.began.wait(PATIENCE_S)
    worker.hold()
    function.go_on.set()
    worker.release()
    assert worker.wait(PATIENCE_S)
    first, again = function.calls
    assert first == {"seconds": "30s", "trials": 9}
    assert again["resume"] is True
    assert again["trials"] == 8
    assert 1 <= again["seconds"] < 30


def test_what_a_search_has_found_is_told_while_it_runs(study):
    call = VerbCall(study, *read_line('study.search(recipe=("none", "bf16"), batch=(4,), runtime=("eager",), dtype=("float32",), trials=2, seconds=60)'))
    seen = []
    call(lambda share, text: seen.append(call.so_far()))
    assert all(isinstance(record, SearchResult) for record in seen)
    assert [len(record.candidates) for record in seen] == [0, 1]
    assert seen[-1].stopped == "it goes on"
    assert len(study.results[-1].candidates) == 2
    assert VerbCall(study, *read_line("study.profile()")).so_far() is None
