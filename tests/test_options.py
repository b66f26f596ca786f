"""Fields of a dataclass as options, read from text."""

from __future__ import annotations

import dataclasses

import pytest

from aimass_lab.compression.base import TECHNIQUES, Technique, make_technique
from aimass_lab.errors import InputError, MissingPackageError, UnknownNameError
from aimass_lab.jobs.table import JobsFile
from aimass_lab.options import changed_options, describe_bounds, describe_options, read_call, read_table


def test_options_are_read_by_their_type() -> None:
    assert make_technique("compile", {"mode": "max-autotune", "dynamic": "true"}) == TECHNIQUES["compile"](mode="max-autotune", dynamic=True)
    assert changed_options(make_technique("int8_weight_only", {"group_size": "32"})) == {"group_size": 32}
    assert make_technique("int8_weight_only", {"group_size": "none"}) == make_technique("int8_weight_only")


@pytest.mark.parametrize("value", ["max-autotune", "'max-autotune'", '"max-autotune"', " 'max-autotune' "])
def test_a_value_may_be_in_quotes(value: str) -> None:
    assert read_call(f"compile(mode={value}, dynamic=true)", what="", help="") == ("compile", {"mode": "max-autotune", "dynamic": "true"})


@pytest.mark.parametrize("value", ["'", "'a\"", "'a"])
def test_half_a_pair_of_quotes_is_none(value: str) -> None:
    assert read_call(f"compile(mode={value})", what="", help="")[1] == {"mode": value}


def test_what_is_wrong_below_a_mapping_is_told_with_the_mapping() -> None:
    with pytest.raises(InputError, match=r"here: jobs\[\.\.\.\]\.items is \{'a': .*'items': 0\}\}, not a whole number of at least 1"):
        read_table({"jobs": {"a": {"kind": "batch", "items": 0}}}, JobsFile, "here", help="")


@pytest.mark.parametrize(
    ("technique", "options", "text"),
    [
        ("bf16", {"mode": "x"}, "bf16 has no options"),
        ("compile", {"modus": "x"}, "options of compile: mode, dynamic"),
        ("compile", {"mode": "fast"}, "'fast', not default or reduce-overhead or max-autotune"),
        ("compile", {"dynamic": "perhaps"}, "'perhaps', not true or false"),
        ("int8_weight_only", {"group_size": "many"}, "'many', not an integer or none"),
        ("int8_weight_only", {"group_size": "2.5"}, "'2.5', not an integer or none"),
        ("int8_weight_only", {"group_size": True}, "True, not an integer or none"),
        ("int8_weight_only", {"group_size": "-8"}, "group_size -8"),
    ],
)
def test_options_that_cannot_be_used_say_what_can(technique: str, options: dict, text: str) -> None:
    with pytest.raises(InputError) as caught:
        make_technique(technique, options)
    assert text in str(caught.value)


def test_an_unknown_technique_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'int8_dynamic'.*bf16"):
        make_technique("int8_dynamc")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wishful(Technique):
        """Needs what nobody has."""

        requires = ("no-such-package-here",)

    monkeypatch.setitem(TECHNIQUES._load(), "wishful", Wishful)
    with pytest.raises(MissingPackageError, match="pip install no-such-package-here"):
        make_technique("wishful")


def test_bounds_stand_in_the_description_that_a_form_is_made_from() -> None:
    options = {option.name: option for option in describe_options(TECHNIQUES["low_rank"])}
    assert describe_bounds(options["ratio"].bounds) == "above 0 and below 1"
    assert describe_bounds(options["min_share"].bounds) == "at least 0 and below 1"
    assert describe_bounds(options["ranks"].bounds) == ""
    assert describe_bounds(describe_options(TECHNIQUES["clustering"])[0].bounds) == "from 2 to 256"


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, float("nan"), float("inf"), True])
def test_a_number_out_of_bounds_is_refused_in_python_as_in_text(value: float) -> None:
    with pytest.raises(InputError, match="sparsity .* of unstructured_pruning is not above 0 and below 1"):
        TECHNIQUES["unstructured_pruning"](sparsity=value)  # type: ignore[call-arg]
