"""Timing: how many calls, which percentile, which interval; the clock of the machine has no say in these tests."""

import itertools
import math
import os
import sys

import numpy as np
import psutil
import pytest
import torch

from aimass_lab import timing
from aimass_lab.environment import Clocks, LoadMeter, read_environment, usable_cores
from aimass_lab.timing import (
    calls_until_steady,
    interleave,
    latency_number,
    median_interval,
    percentile,
    percentile_interval,
    ratio_interval,
    sample_latency,
    stopwatch,
    timed,
    warm_up,
)

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a test's function says so."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def pass_time(seconds):
        now[0] += seconds

    return pass_time


def test_timed_is_the_time_of_the_call(clock):
    assert timed(lambda: clock(0.25), CPU) == 0.25


def test_sampling_ends_with_the_budget(clock):
    durations = itertools.cycle([0.01, 0.05])  # never stable
    samples = sample_latency(lambda: clock(next(durations)), CPU, budget_s=1.0)
    assert 30 <= len(samples) <= 36
    assert set(np.round(samples, 6)) == {0.01, 0.05}


def test_sampling_ends_when_the_median_is_known(clock):
    assert len(sample_latency(lambda: clock(0.01), CPU, budget_s=100.0)) == 20


def test_a_few_samples_are_taken_whatever_they_cost(clock):
    assert len(sample_latency(lambda: clock(60.0), CPU, budget_s=0.1, min_samples=3)) == 3


def test_warm_up_is_not_counted(clock):
    durations = iter([9.0, *[0.01] * 50])
    assert max(sample_latency(lambda: clock(next(durations)), CPU, budget_s=1.0, warmup=1)) == pytest.approx(0.01)


def test_processor_time_is_kept_beside_the_wall_time(clock, monkeypatch):
    spent = itertools.count()
    monkeypatch.setattr(timing.time, "process_time", lambda: 0.5 * next(spent))
    cpu = []
    samples = sample_latency(lambda: clock(0.1), CPU, budget_s=0.5, cpu_into=cpu)
    assert len(cpu) == len(samples)
    assert set(cpu) == {0.5}


def test_warming_up_ends_when_two_calls_agree(clock):
    durations = iter([5.0, 2.0, 1.0, 0.99, 0.5])
    calls = warm_up(lambda: clock(next(durations)), CPU, first_s=10.0, budget_s=100.0)
    assert calls == pytest.approx([10.0, 5.0, 2.0, 1.0, 0.99])


def test_warming_up_ends_with_its_time_and_its_calls(clock):
    assert warm_up(lambda: clock(2.0), CPU, first_s=9.0, budget_s=1.0) == [9.0], "not even one more call fits"
    halving = iter(0.5**i for i in range(100))
    assert len(warm_up(lambda: clock(next(halving)), CPU, first_s=3.0, budget_s=1e9, max_calls=4)) == 5


def test_calls_until_steady():
    steady = [1.0, 1.0, 1.1, 1.2]
    assert calls_until_steady([9.0, 3.0, 1.05, 2.0], steady) == 2
    assert calls_until_steady([1.0], steady) == 0
    assert calls_until_steady([9.0, 8.0], steady) is None


def test_an_interrupted_caller_keeps_the_samples(clock):
    kept, calls = [], itertools.count()

    def call():
        if next(calls) == 4:
            raise KeyboardInterrupt
        clock(0.1)

    with pytest.raises(KeyboardInterrupt):
        sample_latency(call, CPU, budget_s=10, warmup=0, into=kept)
    assert kept == pytest.approx([0.1] * 4)


def test_interleaved_rounds_meet_drift_alike(clock):
    drift = itertools.count()
    functions = [lambda: clock(1.0 + 0.001 * next(drift)), lambda: clock(2.0 + 0.001 * next(drift))]
    *_, rounds = interleave(functions, CPU, budget_s=1e9, max_rounds=40)
    assert [len(samples) for samples in rounds] == [40, 40]
    assert np.median(rounds[1]) - np.median(rounds[0]) == pytest.approx(1.0, abs=0.01)


def test_interleave_asks_whether_it_is_enough(clock):
    rounds = list(interleave([lambda: clock(1.0)], CPU, budget_s=1e9, min_rounds=3, stop=lambda samples: len(samples[0]) >= 7))
    assert len(rounds) == 7


@pytest.mark.parametrize("q", [50, 95])
def test_intervals_of_percentiles_cover_the_truth(q):
    rng = np.random.default_rng(0)
    truth = math.exp(0.3 * {50: 0.0, 95: 1.6448536}[q])
    held = 0
    for _ in range(400):
        low, high = percentile_interval(rng.lognormal(0, 0.3, 200).tolist(), q)
        held += low <= truth <= high
    assert held / 400 > 0.93


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("q", [50, 95, 99])
def test_an_interval_holds_its_percentile(n, q):
    samples = np.random.default_rng(n).random(n).tolist()
    low, high = percentile_interval(samples, q)
    assert min(samples) <= low <= percentile(samples, q) <= high <= max(samples)


def test_the_median_interval_is_made_of_observations():
    samples = [3.0, 1.0, 2.0, 5.0, 4.0]
    assert set(median_interval(samples)) <= set(samples)


def test_ratio_interval_uses_pairs():
    rng = np.random.default_rng(1)
    drift = rng.lognormal(0, 1, 60)
    ratio, low, high = ratio_interval((2 * drift).tolist(), drift.tolist())
    assert ratio == pytest.approx(2)
    assert (low, high) == pytest.approx((2, 2)), "drift that hits both alike is no spread of their ratio"


def test_a_latency_is_a_measured_number_with_its_doubts():
    number = latency_number([0.1, 0.2, 0.3], 99, environment="abc", quality="noisy")
    assert (number.unit, number.source, number.n, number.environment, number.quality) == ("s", "measured", 3, "abc", "noisy")
    assert "too few calls" in number.method
    assert "too few" not in latency_number([0.1] * 3, 50, environment="abc").method


def test_stopwatch(clock):
    with stopwatch() as elapsed:
        clock(1.5)
        assert elapsed() == 1.5


def test_the_environment_is_one_that_json_can_hold():
    from aimass_lab.records import Environment, from_json, to_json

    environment = read_environment(CPU)
    assert from_json(to_json(environment), Environment) == environment
    assert environment.threads == torch.get_num_threads()
    assert environment.id == read_environment(CPU).id


def test_load_of_others_is_busy_time_less_our_own(monkeypatch):
    readings = iter([Clocks(0.0, 100.0, 10.0, 0.0), Clocks(2.0, 103.0, 11.0, 0.0)])
    monkeypatch.setattr(LoadMeter, "_read", staticmethod(lambda: next(readings)))
    with LoadMeter() as load:
        pass
    assert load.foreign_cores == 1.0
    assert load.noisy == (0.1 * usable_cores() < 1.0)
    assert bool(load.notes()) == load.noisy


@pytest.mark.parametrize(("share", "noisy"), [(0.0, False), (0.05, False), (0.3, True)])
def test_what_the_host_takes_disturbs_like_other_work_and_has_its_name(monkeypatch, share, noisy):
    readings = iter([Clocks(0.0, 100.0, 10.0, 7.0), Clocks(2.0, 101.0, 11.0, 7.0 + 2 * share * usable_cores())])
    monkeypatch.setattr(LoadMeter, "_read", staticmethod(lambda: next(readings)))
    monkeypatch.setattr(LoadMeter, "_read_waited", staticmethod(lambda: None))
    with LoadMeter() as load:
        pass
    assert load.stolen == pytest.approx(share)
    assert (load.foreign_cores, load.noisy, load.robbed) == (0.0, noisy, noisy)
    assert [note.code for note in load.notes()] == ["W-NOISY"] * noisy
    assert ("the host took 30 % of the processor" in load.reasons) == noisy
    assert read_environment(CPU, load=load).cpu_steal == pytest.approx(share)


def test_the_clocks_are_those_that_the_system_keeps():
    def kept():
        cores = [times for i, times in enumerate(psutil.cpu_times(percpu=True)) if i in os.sched_getaffinity(0)]
        return sum(t.user + t.nice + t.system + t.irq + t.softirq for t in cores), sum(t.steal for t in cores)

    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not tell")
    before, clocks, after = kept(), LoadMeter._read(), kept()
    for least, read, most in zip(before, (clocks.busy, clocks.stolen), after, strict=True):
        assert least - 1e-6 <= read <= most + 1e-6


def test_waiting_for_a_core_is_its_share_of_the_time(monkeypatch, clock):
    waited = iter([5.0, 5.5])
    monkeypatch.setattr(LoadMeter, "_read_waited", staticmethod(lambda: next(waited)))
    monkeypatch.setattr(LoadMeter, "_read", staticmethod(lambda: None))
    with LoadMeter() as load:
        clock(2.0)
    assert load.pressure == 0.25
    assert load.noisy
    assert "waited for a core 25 % of the time" in load.notes()[0].text
    assert read_environment(CPU, load=load).cpu_pressure == 0.25


def test_a_kernel_that_counts_no_waiting_says_nothing(monkeypatch, clock):
    monkeypatch.setattr(LoadMeter, "_read_waited", staticmethod(lambda: None))
    monkeypatch.setattr(LoadMeter, "_read", staticmethod(lambda: None))
    with LoadMeter() as load:
        clock(2.0)
    assert load.pressure is None
    assert not load.noisy


def test_a_driver_that_is_not_there_is_not_made_up(monkeypatch):
    from aimass_lab.environment import nvidia_driver

    nvidia_driver.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert nvidia_driver() is None
    nvidia_driver.cache_clear()


def test_the_driver_tells_its_own_version(monkeypatch, tmp_path):
    from aimass_lab.environment import nvidia_driver

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 550.54.15\n")
    tool.chmod(0o755)
    nvidia_driver.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_driver() == "550.54.15"
    nvidia_driver.cache_clear()


def test_too_short_a_look_says_nothing(monkeypatch):
    readings = iter([Clocks(0.0, 100.0, 10.0, 0.0), Clocks(0.01, 103.0, 11.0, 1.0)])
    monkeypatch.setattr(LoadMeter, "_read", staticmethod(lambda: next(readings)))
    with LoadMeter() as load:
        pass
    assert load.foreign_cores is None
    assert not load.noisy
    assert load.notes() == ()
