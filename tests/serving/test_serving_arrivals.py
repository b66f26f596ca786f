"""Times of requests: as many as asked for, spread as the pattern says, judged by laws that the generators do not use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from aimass_lab.serving.arrivals import BURST_FACTOR, BURST_SHARE, PATTERNS, arrival_times, read_trace
from aimass_lab.serving.errors import ServerError


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_many_as_are_due_in_order_and_the_same_for_the_same_seed(pattern: str) -> None:
    for rate, duration_s, count in ((100.0, 10.0, 1000), (0.1, 1.0, 1), (3.0, 1.5, 4)):
        times = arrival_times(pattern, rate=rate, duration_s=duration_s, seed=1)
        assert len(times) == count
        assert (np.diff(times) >= 0).all()
        assert 0 <= times[0] <= times[-1] <= count / rate
        np.testing.assert_array_equal(times, arrival_times(pattern, rate=rate, duration_s=duration_s, seed=1))
    if pattern != "steady":
        assert (arrival_times(pattern, rate=100, duration_s=10, seed=2) != arrival_times(pattern, rate=100, duration_s=10, seed=1)).any()


def dispersion(pattern: str, width_s: float) -> float:
    """Variance of the counts in windows over their mean; 1 for a Poisson process."""
    times = arrival_times(pattern, rate=50, duration_s=4000, seed=3)
    counts = np.histogram(times, np.arange(0, 4000 + width_s, width_s))[0]
    return float(counts.var() / counts.mean())


def test_poisson_arrivals_have_exponential_gaps_and_no_bursts() -> None:
    gaps = np.diff(arrival_times("poisson", rate=50, duration_s=400, seed=0))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.001
    assert dispersion("poisson", 1.0) == pytest.approx(1.0, abs=0.1)
    assert dispersion("steady", 1.0) < 0.05


def test_bursts_are_as_much_denser_as_they_should_be() -> None:
    # of a process with two rates in long windows: between that of one rate and that of a switch in each window
    assert dispersion("bursty", 1.0) > 5
    assert dispersion("bursty", 0.01) == pytest.approx(1.0, abs=0.35)
    times = arrival_times("bursty", rate=1000, duration_s=4000, seed=4)
    counts = np.histogram(times, np.arange(0, 4000, 0.1))[0]
    base = 1000 / (1 - BURST_SHARE + BURST_FACTOR * BURST_SHARE)
    middle = base * (1 + BURST_FACTOR) / 2 * 0.1
    assert np.median(counts[counts < middle]) / 0.1 == pytest.approx(base, rel=0.05)
    assert np.median(counts[counts > middle]) / 0.1 == pytest.approx(BURST_FACTOR * base, rel=0.05)
    assert (counts > middle).mean() == pytest.approx(BURST_SHARE, abs=0.03)


def test_a_trace_begins_with_its_first_request(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("time\n10.5\n10\n12.25, more\n")
    np.testing.assert_allclose(read_trace(file), [0, 0.5, 2.25])
    np.testing.assert_allclose(read_trace(file, speed=0.5), [0, 1.0, 4.5])


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "holds no times"), ("time\n", "holds no times"), ("1\nx\n", "line 2 .* begins with 'x'"), ("1\nnan\n", "not finite"), ("1\ninf\n", "not finite")],
)
def test_a_trace_that_is_none_says_why(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "trace"
    file.write_text(content)
    with pytest.raises(ServerError, match=text):
        read_trace(file)
    with pytest.raises(ServerError, match="cannot read the trace"):
        read_trace(tmp_path / "missing")
