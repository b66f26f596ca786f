"""People's units, there and back."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aimass_lab
from aimass_lab.errors import InputError
from aimass_lab.units import (
    format_bytes,
    format_decimal,
    format_quantity,
    format_seconds,
    format_share,
    parse_bytes,
    parse_latency,
    parse_part,
    parse_rate,
    parse_seconds,
    parse_share,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (2.5e-7, "250 ns"), (4.2e-5, "42.0 µs"), (0.0123, "12.3 ms"), (1.5, "1.50 s"), (119, "119 s"), (600, "10.0 min"), (7200, "2.00 h")],
)
def test_seconds_read_well(value, text):
    assert format_seconds(value) == text


def test_shares_of_fixed_digits():
    assert format_share(0.02, decimals=0) == "2 %"
    assert format_share(0.98734, decimals=2) == "98.73 %"
    assert format_share(0.99999, decimals=2) == "99.99 %"


def test_shares_are_written_by_one_helper():
    """Not by Python's own ``%``, which leaves out the space: one text had 97% and 97 % side by side."""
    package = Path(aimass_lab.__file__).parent
    own = list(package.rglob("*.py"))
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None and ast.unparse(node.format_spec).rstrip("'\"").endswith("%")
    ]
    assert len(own) > 100
    assert found == []


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (512, "512 B"), (2**20, "1.00 MiB"), (438_000_000, "418 MiB"), (5 * 2**40, "5.00 TiB")])
def test_bytes_read_as_the_operating_system_counts_them(value, text):
    assert format_bytes(value) == text


def test_other_units():
    assert format_decimal(22.35e9, "FLOP") == "22.4 GFLOP"
    assert format_quantity(3, "replica") == "3 replicas"
    assert format_quantity(1, "replica") == "1 replica"
    assert format_quantity(1.5, "core") == "1.50 cores"
    assert format_quantity(4790.2, "item/s") == "4,790 items/s"
    assert format_quantity(400.0, "request/s") == "400 requests/s"
    assert format_quantity(12_345, "request/s") == "12,345 requests/s"  # as somebody typed it
    assert format_quantity(87_286.6, "request/s") == "87,300 requests/s"
    assert format_quantity(999_900.5, "item/s") == "1.00 M items/s"
    assert format_quantity(109_482_240, "parameter") == "109 M parameters"
    assert format_quantity(1.234, "USD/h") == "1.23 USD/h"
    assert format_quantity(-0.5, "ratio") == "-0.500"
    assert format_quantity(4.99e-7, "ratio") == "4.99e-07"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (0.0002, "< 0.1 %"), (0.043, "4.3 %"), (0.498, "50 %"), (0.992, "99 %"), (0.99996, "99.99 %"), (1, "100 %"), (-0.12, "-12 %")],
)
def test_shares_read_as_percent_and_only_the_whole_is_called_so(value, text):
    assert format_share(value) == text


@pytest.mark.parametrize(("text", "value"), [("50ms", 0.05), ("0.05", 0.05), (0.05, 0.05), ("2 min", 120), ("250us", 2.5e-4), ("1e-3s", 1e-3)])
def test_times_are_read(text, value):
    assert parse_seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("50ms", 0.05), ("0.05", 0.05), (0.999, 0.999), ("20s", 20), ("1 ms", 1e-3)])
def test_latencies_are_read(text, value):
    assert parse_latency(text) == pytest.approx(value)


@pytest.mark.parametrize("text", [20, "20", 20.0, "1", "2e1"])
def test_a_bare_latency_of_one_and_more_is_asked_back(text):
    with pytest.raises(InputError, match=r"could be (20ms or 20s|1ms or 1s): give it with its unit") as caught:
        parse_latency(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize(("text", "value"), [("400", 400), ("400/s", 400), ("24000/min", 400), (12.5, 12.5)])
def test_rates_are_read(text, value):
    assert parse_rate(text) == pytest.approx(value)


def test_sizes_are_read():
    assert parse_bytes("2GiB") == 2**31
    assert parse_bytes("16GB") == 16e9


def test_shares_are_read_as_numbers_and_in_percent():
    assert parse_share("0.5%") == parse_share(0.005) == parse_share("0.005") == 0.005
    assert parse_share("150 %") == 1.5
    assert parse_part("99%") == 0.99
    for read, text in ((parse_share, "-1%"), (parse_share, "%"), (parse_share, "1%%"), (parse_part, "101%"), (parse_part, "0%")):
        with pytest.raises(InputError, match=re.escape(repr(text))):
            read(text)


@pytest.mark.parametrize("text", ["", "fast", "50 parsecs", "-1ms", "0", "nan", "inf", True])
def test_what_is_no_time_is_refused_with_its_value(text):
    with pytest.raises(InputError) as caught:
        parse_seconds(text)
    assert repr(text) in str(caught.value)


@given(st.floats(min_value=1e-9, max_value=60, allow_nan=False))
def test_a_written_time_reads_back_within_its_digits(value):
    assert parse_seconds(format_seconds(value).replace(",", "")) == pytest.approx(value, rel=0.006)
