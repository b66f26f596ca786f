"""People's units, there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimass_lab.errors import InputError
from aimass_lab.units import format_bytes, format_decimal, format_quantity, format_seconds, format_share, parse_bytes, parse_rate, parse_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (2.5e-7, "250 ns"), (4.2e-5, "42.0 µs"), (0.0123, "12.3 ms"), (1.5, "1.50 s"), (119, "119 s"), (600, "10.0 min"), (7200, "2.00 h")],
)
def test_seconds_read_well(value, text):
    assert format_seconds(value) == text


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


@pytest.mark.parametrize(("text", "value"), [("400", 400), ("400/s", 400), ("24000/min", 400), (12.5, 12.5)])
def test_rates_are_read(text, value):
    assert parse_rate(text) == pytest.approx(value)


def test_sizes_are_read():
    assert parse_bytes("2GiB") == 2**31
    assert parse_bytes("16GB") == 16e9


@pytest.mark.parametrize("text", ["", "fast", "50 parsecs", "-1ms", "0", "nan", "inf", True])
def test_what_is_no_time_is_refused_with_its_value(text):
    with pytest.raises(InputError) as caught:
        parse_seconds(text)
    assert repr(text) in str(caught.value)


@given(st.floats(min_value=1e-9, max_value=60, allow_nan=False))
def test_a_written_time_reads_back_within_its_digits(value):
    assert parse_seconds(format_seconds(value).replace(",", "")) == pytest.approx(value, rel=0.006)
