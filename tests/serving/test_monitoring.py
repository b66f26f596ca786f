"""A server that is watched by its own metrics: quantiles of histograms against an oracle, and a real one that answers meanwhile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from aimass_lab.errors import InputError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_plain
from aimass_lab.monitoring import in_time, monitor, quantile
from aimass_lab.records import INTERRUPTED, Monitoring, from_json, to_json
from aimass_lab.serving.launch import Server
from aimass_lab.serving.metrics import SECONDS

from .servers import infer

ROW = [[1.0, 2.0, 3.0, 4.0]]


def cumulative(values: list[float]) -> dict[float, float]:
    """What a histogram of the server has of these values."""
    registry = CollectorRegistry()
    histogram = Histogram("x", "x", buckets=SECONDS, registry=registry)
    for value in values:
        histogram.observe(value)
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == "x_bucket"]
    return {float(sample.labels["le"]): sample.value for sample in samples}


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_real_one(values: list[float], share: float) -> None:
    found = quantile(cumulative(values), share)
    assert found is not None
    value, low, high = found
    real = float(np.quantile(values, share, method="inverted_cdf"))
    assert low <= value <= high
    if real > SECONDS[-1]:
        assert high == SECONDS[-1]
    else:
        assert low <= real <= high


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=200), st.floats(1e-3, 60))
def test_what_was_in_time_lies_between_what_the_buckets_leave_open(values: list[float], limit: float) -> None:
    value, low, high = in_time(cumulative(values), limit)
    assert low <= value <= high
    assert low <= sum(v <= limit for v in values) <= high


def test_nothing_observed_has_no_quantile() -> None:
    assert quantile(cumulative([]), 0.5) is None


def test_a_real_server_is_watched(linear: Server) -> None:
    sent = []

    def ask(share: float, text: str) -> None:
        assert 0 < share <= 1
        assert "busy" in text
        sent.extend(infer(linear, ROW).status for _ in range(5))
        if len(sent) == 10:
            assert infer(linear, [[1.0]]).status == 400
            raise KeyboardInterrupt

    record = monitor(linear.url, seconds=600, every=0.1, latency_s=math.nextafter(30, 31), progress=ask)
    assert record.models == ("net 1",)
    assert (record.requests.value, record.failed.value) == (11, 1)
    assert record.latency_p99 is not None
    assert record.batch_size is not None
    assert record.batch_size.value == 1
    assert record.restarts.value == 0
    assert record.budget is not None
    assert record.budget.attained.value == pytest.approx(10 / 11)
    assert record.budget.spent.value == pytest.approx(100 / 11)
    assert from_json(to_json(record), Monitoring) == record
    assert "error budget spent" in render_plain(record)
    assert "<table" in render_html(record)


def test_an_interrupt_keeps_what_was_seen_and_the_target_is_the_promised_one(linear: Server) -> None:
    def stop(share: float, text: str) -> None:
        infer(linear, ROW)
        raise KeyboardInterrupt

    record = monitor(linear.url, seconds=60, every=0.05, progress=stop)
    assert INTERRUPTED in {note.code for note in record.notes}
    assert record.budget is not None
    assert record.budget.latency.value == 5.0  # of the fixture's promises


def test_a_token_is_asked_for_and_given(guarded: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="answered 401"):
        monitor(guarded.url, seconds=0.1)
    assert main(["monitor", guarded.url, "--seconds", "0.1", "--every", "0.1", "--token", "secret", "--json"]) == 0
    record = from_json(capsys.readouterr().out, Monitoring)
    assert record.requests.value == 0
    assert "idle" in {note.code for note in record.notes}


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://127.0.0.1:9", {}, "nothing answers at"),
        ("127.0.0.1:9", {}, "nothing answers at"),
        ("http://127.0.0.1:9", {"seconds": 0.0}, "seconds must be above 0"),
        ("http://127.0.0.1:9", {"attainment": 1.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_watched(url: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        monitor(url, **{"seconds": 0.1, **options})
