"""Records: what a number insists on, and that JSON, schema and type agree."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from aimass_lab.records import RECORDS, TRUST, Check, Finding, Number, Promise, any_from_json, derived, from_json, json_schema, to_json
from aimass_lab.schemas import FOLDER, schema_texts


def measured(value=1.0, **fields):
    return Number(value=value, unit="s", source="measured", method="clock", **fields)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_is_finite(value):
    with pytest.raises(ValueError, match="must be finite"):
        measured(value)


def test_an_interval_is_not_reversed():
    with pytest.raises(ValueError, match="not an interval"):
        measured(interval=(2.0, 1.0))


def test_only_a_derived_number_states_its_trust():
    with pytest.raises(ValueError, match="trust"):
        measured(trust="measured")
    with pytest.raises(ValueError, match="trust"):
        Number(value=1, unit="s", source="derived", method="sum")


@given(st.lists(st.sampled_from(TRUST), min_size=1, max_size=5))
def test_a_derived_number_is_as_trusted_as_its_weakest_input(sources):
    inputs = [(str(i), Number(value=1, unit="s", source=source, method="m")) for i, source in enumerate(sources)]
    once = derived(1, "s", "sum", inputs)
    twice = derived(1, "s", "sum of sum", [("once", once), ("fresh", measured())])
    weakest = min(sources, key=TRUST.index)
    assert once.weakest_source == weakest
    assert twice.weakest_source == weakest


def test_doubt_and_environment_are_handed_on():
    noisy, clean = measured(quality="noisy", environment="a"), measured(environment="a")
    assert derived(1, "s", "sum", [("x", noisy), ("y", clean)]).quality == "noisy"
    assert derived(1, "s", "sum", [("x", noisy), ("y", clean)]).environment == "a"
    assert derived(1, "s", "sum", [("x", clean), ("y", measured(environment="b"))]).environment is None


def example():
    promise = Promise(name="latency_p99", relation="<=", limit=measured(0.05), measured=measured(0.04, interval=(0.03, 0.05), n=99), passed=True)
    return Check(subject="somewhere", passed=True, promises=(promise,), findings=(Finding(code="W-NOISY", path="", text="busy"),))


def test_a_record_survives_the_journey_as_json():
    record = example()
    assert from_json(to_json(record), Check) == record
    assert any_from_json(to_json(record, indent=None)) == record


def test_unknown_fields_and_wrong_types_are_refused_with_their_path():
    data = json.loads(to_json(example()))
    data["promises"][0]["limit"]["value"] = "much"
    with pytest.raises(msgspec.ValidationError, match=r"promises\[0\]\.limit\.value|promises\[...\]\.limit\.value"):
        any_from_json(json.dumps(data))


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        example().passed = False


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_published_schemas_are_valid_and_up_to_date(kind):
    schema = json_schema(kind)
    Draft202012Validator.check_schema(schema)
    name = f"{kind.__struct_config__.tag}.schema.json"
    assert (FOLDER / name).read_text() == schema_texts()[name], "run: make schemas"


def test_an_independent_validator_accepts_what_we_write_and_refuses_the_rest():
    validator = Draft202012Validator(json_schema(Check))
    data = json.loads(to_json(example()))
    validator.validate(data)
    data["promises"][0]["relation"] = "about"
    assert [error.json_path for error in validator.iter_errors(data)] == ["$.promises[0].relation"]
