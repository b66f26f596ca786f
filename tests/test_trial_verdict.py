"""Trials: the rules by which speed is judged, on synthetic samples whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from aimass_lab.timing import FEWEST_RANKS, paired_ratio
from aimass_lab.trial.verdict import BAND, FIRST_LOOK, LOOKS, Decision, Looks, Ratio, decide_speed, is_enough


def decide(pair: Callable[[random.Random], tuple[float, float]], seed: int, max_rounds: int = 150) -> str:
    """What a trial would say of rounds that are drawn by `pair`."""
    draw, looks = random.Random(seed), Looks()
    original: list[float] = []
    variant: list[float] = []
    for _ in range(max_rounds):
        one, other = pair(draw)
        original.append(one)
        variant.append(other)
        if looks.due(len(original)) and is_enough(wall_decision(Ratio.of(original, variant))):
            break
    return Ratio.of(original, variant).verdict


def wall_decision(ratio: Ratio) -> Decision:
    return decide_speed(ratio, None, noisy=False, threads=1)


def log_normal(true_ratio: float, noise: float) -> Callable[[random.Random], tuple[float, float]]:
    """Log-normal seconds with some calls ten times slower, as on a busy machine."""

    def pair(draw: random.Random) -> tuple[float, float]:
        one, other = (math.exp(draw.gauss(0, noise)) * (10 if draw.random() < 0.03 else 1) for _ in range(2))
        return true_ratio * one, other

    return pair


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_two_equal_models_are_called_different_in_fewer_than_five_of_a_hundred(noise: float) -> None:
    verdicts = [decide(log_normal(1.0, noise), seed) for seed in range(100)]
    assert sum(v != "no gain" for v in verdicts) <= 2


def test_so_are_two_that_other_work_disturbs_for_seconds_at_a_time() -> None:
    # given one disturbance that comes and goes slowly, and an order that is drawn by lot, then neither model takes the blame
    def pair(draw: random.Random) -> tuple[float, float]:
        state["now"] = 0.95 * state["now"] + draw.gauss(0, 0.3)
        first = math.exp(state["now"])
        state["now"] = 0.95 * state["now"] + draw.gauss(0, 0.3)
        second = math.exp(state["now"])
        return (first, second) if draw.random() < 0.5 else (second, first)

    state = {"now": 0.0}
    assert sum(decide(pair, seed) != "no gain" for seed in range(100)) <= 2


@pytest.mark.parametrize(("ratio", "expected"), [(1.3, "faster"), (0.7, "slower"), (1.01, "no gain")])
def test_a_real_difference_is_found_and_a_tiny_one_is_none(ratio: float, expected: str) -> None:
    assert [decide(log_normal(ratio, 0.05), seed) for seed in range(20)] == [expected] * 20


@pytest.mark.parametrize(
    ("low", "high", "verdict", "resolved"),
    [
        (1.03, 1.2, "faster", True),
        (1.02, 1.2, "no gain", False),  # the band belongs to no gain
        (0.7, 0.97, "slower", True),
        (0.99, 1.01, "no gain", True),
        (0.5, 2.0, "no gain", False),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_band(low: float, high: float, verdict: str, resolved: bool) -> None:
    ratio = Ratio(math.sqrt(low * high), low, high, 40)
    assert (ratio.verdict, ratio.resolved) == (verdict, resolved)
    sentence = wall_decision(ratio).explain()
    assert "40 rounds by wall time" in sentence
    assert ("not shown" in sentence) == (not resolved)


def test_rounds_are_looked_at_ten_times_at_most_and_first_after_ten() -> None:
    looks = Looks()
    asked = [n for n in range(1, 2000) if looks.due(n)]
    assert asked[0] == FIRST_LOOK
    assert len(asked) == LOOKS - 1  # the end is one more
    assert 400 <= asked[-1] <= 500


def test_the_intervals_of_all_looks_hold_together_in_nineteen_of_twenty() -> None:
    # given rounds of two equal models, when looked at as a trial does but never stopped, then how often does any of the intervals miss 1?
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        logs = rng.standard_t(3, size=200) * 0.05
        looks = Looks()
        due = [n for n in range(1, 201) if looks.due(n)] + [200]
        ratios = [Ratio.of(np.exp(logs[:n]).tolist(), [1.0] * n) for n in due]
        missed += any(not r.low <= 1 <= r.high for r in ratios)
    assert missed <= 10


@pytest.mark.parametrize("num_rounds", [3, 5, FIRST_LOOK - 1])
def test_a_trial_that_ends_before_the_first_look_is_looked_at_once(num_rounds: int) -> None:
    # given few rounds, because one takes long, of equal models and of a slower one, with noise that has heavy tails
    rng = np.random.default_rng(1)
    noise = 0.03 * rng.standard_t(3, size=(1000, num_rounds))
    equal = [Ratio.of(np.exp(logs).tolist(), [1.0] * num_rounds) for logs in noise]
    slower = [Ratio.of((0.7 * np.exp(logs)).tolist(), [1.0] * num_rounds) for logs in noise]
    # then its one interval holds as often as it says, equal models are hardly ever called different, and the slower one mostly is
    assert sum(not r.low <= 1 <= r.high for r in equal) <= 65  # 50 are expected at most, give or take two deviations
    assert sum(r.verdict != "no gain" for r in equal) <= 20
    assert sum(r.verdict == "slower" for r in slower) >= 850


# --- intervals of paired samples --------------------------------------------------------------


def test_the_interval_is_that_of_the_signed_ranks() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    logs = rng.normal(0.2, 0.3, 25)
    for level in (0.9, 0.95, 0.995):
        ratio, low, high = paired_ratio(np.exp(logs).tolist(), [1.0] * 25, level=level)
        assert low < ratio < high
        # a value inside is not rejected by the test at this level, one just outside is
        for end, inward in ((low, 1), (high, -1)):
            inside, outside = math.log(end) + inward * 1e-9, math.log(end) - inward * 1e-9
            assert stats.wilcoxon(logs - inside, method="exact").pvalue > 1 - level
            assert stats.wilcoxon(logs - outside, method="exact").pvalue <= 1 - level


def test_of_many_rounds_the_interval_is_nearly_that_of_the_exact_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    logs = np.random.default_rng(4).normal(0.0, 1.0, 200)
    _, low, high = paired_ratio(np.exp(logs).tolist(), [1.0] * 200, level=0.95)
    for end in (low, high):
        assert stats.wilcoxon(logs - math.log(end), method="approx").pvalue == pytest.approx(0.05, abs=0.002)


def test_few_rounds_are_judged_by_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    logs = np.array([0.30, 0.35, 0.28, 0.33, 0.31])
    expected = stats.t.interval(0.995, 4, loc=logs.mean(), scale=stats.sem(logs))
    found = paired_ratio(np.exp(logs).tolist(), [1.0] * 5, level=0.995)
    assert np.log(found) == pytest.approx([logs.mean(), *expected])
    assert len(logs) < FEWEST_RANKS


def test_what_slows_both_of_a_pair_down_cancels() -> None:
    drift = np.random.default_rng(5).lognormal(0.0, 1.0, 30)
    assert paired_ratio((2 * drift).tolist(), drift.tolist()) == pytest.approx((2.0, 2.0, 2.0))


# --- which clock decides ----------------------------------------------------------------------

SLOWER, FASTER, UNCLEAR = Ratio(0.7, 0.68, 0.72, 30), Ratio(1.69, 1.6, 1.8, 30), Ratio(1.0, 0.8, 1.3, 30)


def test_wall_time_decides_on_a_quiet_machine() -> None:
    found = decide_speed(FASTER, SLOWER, noisy=False, threads=2)
    assert (found.clock, found.verdict, found.ratio) == ("wall", "faster", FASTER)


def test_processor_time_decides_for_one_thread_beside_other_work() -> None:
    found = decide_speed(SLOWER, FASTER, noisy=True, threads=1)
    assert (found.clock, found.verdict, found.ratio) == ("processor", "faster", FASTER)
    assert "processor time, because other work takes the cores away" in found.explain()


@pytest.mark.parametrize("one_thread", [SLOWER, FASTER, UNCLEAR, None])
def test_several_threads_beside_other_work_get_no_verdict_and_are_told_what_one_thread_says(one_thread: Ratio | None) -> None:
    # given both clocks agree that several threads are slower, as was seen of int8 that is 1.5 times as fast
    found = replace(decide_speed(SLOWER, SLOWER, noisy=True, threads=2), one_thread=one_thread)
    assert (found.clock, found.verdict, found.resolved) == ("wall", "cannot tell", False)
    assert "it cannot be told, because threads that wait for each other suffer more from other work" in found.explain()
    assert ("processor time of one thread says" in found.explain()) == (one_thread is not None)
    assert is_enough(found) == (SLOWER.high - SLOWER.low <= 0.2 * SLOWER.value)  # more rounds would not help


def test_where_the_host_takes_the_processor_no_clock_is_left() -> None:
    for processor, threads in ((FASTER, 1), (FASTER, 2), (None, 1)):
        found = decide_speed(FASTER, processor, noisy=True, threads=threads, robbed=True)
        assert (found.verdict, found.resolved) == ("cannot tell", False)
        assert "the host took the processor away" in found.explain()


def test_a_slower_copy_is_not_measured_for_its_figure() -> None:
    # given intervals of the same relative width
    slower, faster = Ratio(0.2, 0.17, 0.24, 10), Ratio(2.0, 1.7, 2.4, 10)
    # then the slower one, which is refused, needs no more rounds, and the faster one does; nor do ten rounds that scatter end a trial
    assert is_enough(wall_decision(slower))
    assert not is_enough(wall_decision(faster))
    assert not is_enough(wall_decision(Ratio(0.6, 0.4, 0.9, 10)))


def test_a_gpu_has_one_clock() -> None:
    assert decide_speed(FASTER, None, noisy=False, threads=1).verdict == "faster"
    assert decide_speed(FASTER, None, noisy=True, threads=1).verdict == "cannot tell"


def test_five_rounds_that_scatter_show_nothing() -> None:
    # given five rounds beside other work in which one model was in luck, then their spread is too wide for a verdict
    ratio = Ratio.of([0.71, 0.55, 1.1, 0.62, 0.68], [1.0, 0.9, 1.05, 1.2, 0.7])
    assert ratio.verdict == "no gain"
    assert ratio.low < 1 - BAND
    assert not ratio.resolved
