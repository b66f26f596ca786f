"""Recipes: text and files, order and compatibility checked before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from aimass_lab.compression.base import Context
from aimass_lab.errors import InputError, UnknownNameError, UnsupportedError
from aimass_lab.recipe import check_recipe, read_recipe, write_recipe
from aimass_lab.records import Recipe, Step
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Workload


def workload() -> Workload:
    torch.manual_seed(0)
    return Workload(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), torch.rand(8, 32))


def test_a_text_is_read_by_the_types_of_its_options_and_defaults_fall_away() -> None:
    recipe = read_recipe(" unstructured_pruning( sparsity = 0.25 ,scope=global)+int8_weight_only(group_size=8) + compile ", seed=3)
    assert recipe.steps == (
        Step(technique="unstructured_pruning", options={"sparsity": 0.25}),
        Step(technique="int8_weight_only", options={"group_size": 8}),
        Step(technique="compile"),
    )
    assert recipe.seed == 3
    assert recipe.name == "unstructured_pruning(sparsity=0.25) + int8_weight_only(group_size=8) + compile"
    assert read_recipe(recipe.name, seed=3) == recipe


def test_an_exponent_in_an_option_does_not_cut_the_text_in_two() -> None:
    assert read_recipe("recover(learning_rate=1e+1)").steps[0].options == {"learning_rate": 10.0}


def test_none_is_the_recipe_without_steps() -> None:
    assert read_recipe("none") == Recipe()
    assert Recipe().name == "none"


@pytest.mark.parametrize("ending", [".yaml", ".yml", ".json"])
def test_a_recipe_survives_its_file(tmp_path: Path, ending: str) -> None:
    recipe = read_recipe("low_rank + bf16 + compile(dynamic=true)", seed=7)
    path = tmp_path / f"recipe{ending}"
    write_recipe(recipe, path)
    assert read_recipe(str(path)) == read_recipe(path) == recipe


def test_a_file_may_hold_plain_texts(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("- low_rank\n- technique: int8_weight_only\n  options: {group_size: 8}\n")
    assert read_recipe(path).name == "low_rank + int8_weight_only(group_size=8)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bf16 +", "'' in 'bf16 +' is no step"),
        ("bf16(", "is no step"),
        ("compile(dynamic)", "'dynamic' in 'compile(dynamic)' is no option"),
        ("compile(dynamic=perhaps)", "'perhaps', not true or false"),
        ("compile(modus=x)", "no option 'modus'"),
        ("missing.yaml", "the recipe missing.yaml cannot be read: No such file or directory\nhelp"),
    ],
)
def test_what_is_no_recipe_says_where(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("steps: 3", "steps is 3, not a list"),
        ("- {tecnique: bf16}", r"there is no field 'tecnique' in steps\[0\]"),
        ("- {technique: 3}", r"steps\[0\].technique is 3, not text"),
        ("bf16", "it is 'bf16', not a table"),
        ("{", ""),
        (json.dumps({"steps": [], "speed": 1}), "there is no field 'speed'"),
    ],
)
def test_a_file_that_holds_no_recipe_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"holds no recipe: {words}"):
        read_recipe(path)


def test_an_unknown_technique_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'int8_dynamic'"):
        read_recipe("bf16 + int8_dynamc")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8_dynamic + low_rank", "low_rank cannot follow int8_dynamic: .* no plain numbers any more"),
        ("compile + int8_dynamic", "int8_dynamic cannot follow compile: .* a runtime took the model over"),
        ("unstructured_pruning + low_rank", "low_rank cannot follow unstructured_pruning: what is done first would be lost"),
        ("recover", "recover is not possible here: it learns, and there is nothing to learn from"),
    ],
)
def test_a_wrong_order_is_refused_before_anything_is_copied(text: str, words: str) -> None:
    case = workload()

    class Uncopyable(nn.Module):
        def __deepcopy__(self, memo: dict) -> nn.Module:
            raise AssertionError("it was copied")

    case.model.append(Uncopyable())
    with pytest.raises(UnsupportedError, match=words):
        apply_recipe(case, read_recipe(text))


def test_steps_of_several_families_compose_on_one_copy() -> None:
    case = workload()
    variant = apply_recipe(case, read_recipe("low_rank(ratio=0.5) + unstructured_pruning(sparsity=0.5) + int8_weight_only"))
    assert [report.step.technique for report in variant.steps] == ["low_rank", "unstructured_pruning", "int8_weight_only"]
    assert variant.model(torch.rand(2, 32)).shape == (2, 4)
    assert variant.size_bytes < 32 * 36 * 4 / 2


def test_training_may_stand_between_any_steps_that_leave_weights() -> None:
    case = workload()
    case.train = (case.call, None)
    check_recipe(read_recipe("recover + low_rank + recover + unstructured_pruning + recover + int8_dynamic"), Context.of(case))
    with pytest.raises(UnsupportedError, match="recover cannot follow int8_dynamic"):
        check_recipe(read_recipe("int8_dynamic + recover"), Context.of(case))
