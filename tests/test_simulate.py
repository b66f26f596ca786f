"""The simulator against closed forms, an exact Markov chain, and trajectories worked out by hand."""

import math

import numpy as np
import pytest

from aimass_lab.errors import InputError
from aimass_lab.planning.overhead import Overhead
from aimass_lab.planning.queueing import Bursty, Poisson, ServiceTimes, Trace
from aimass_lab.planning.simulate import RequestClass, replicate, simulate_fcfs, simulate_queue
from aimass_lab.planning.simulations import Simulations
from aimass_lab.records import BatchPoint, Number
from aimass_lab.scheduling import Request, make_policy


def constant(seconds, max_batch_size=1):
    return ServiceTimes.from_values({1: seconds}, max_batch_size)


def linear(fixed, slope, max_batch_size):
    return ServiceTimes.from_values({b: fixed + slope * b for b in range(1, max_batch_size + 1)})


def poisson(rate, count, seed=0):
    return Poisson(rate).times_s(count, np.random.default_rng(seed))


# --- trajectories by hand ----------------------------------------------------------------


def test_natural_batching_by_hand():
    """A batch of 1 takes 10, of 2 takes 12, of 3 takes 14; requests at 0, 1, 2, 3, 4, 50."""
    service = ServiceTimes.from_values({1: 10, 2: 12, 3: 14})
    result = simulate_fcfs([0, 1, 2, 3, 4, 50], service, max_batch_size=3)
    assert result.batch_items.tolist() == [1, 3, 1, 1]
    assert result.batch_start_s.tolist() == [0, 10, 24, 50]
    assert result.finish_s.tolist() == [10, 24, 24, 24, 34, 60]


def test_holding_by_hand():
    """A full batch starts at once; an incomplete one when its oldest has waited 5, arrivals at that moment included."""
    service = ServiceTimes.from_values({1: 1, 2: 1, 3: 1})
    result = simulate_fcfs([0, 1, 2, 10, 15, 40], service, max_batch_size=3, max_wait_s=5, wait_policy="always")
    assert result.batch_start_s.tolist() == [2, 15, 45]
    assert result.batch_items.tolist() == [3, 2, 1]
    assert result.latency_s.tolist() == [3, 2, 1, 6, 1, 6]


def test_adaptive_holding_by_hand():
    """Held only after a batch of several, until as many wait again or the oldest has waited 5.

    0 goes alone; 1, 2, 3 gather meanwhile. Then 30 is held for three: 31 and 32 make it three. 50 is held
    for three again, in vain until 55. That was a batch of one, so 70 goes at once.
    """
    service = ServiceTimes.from_values(dict.fromkeys(range(1, 5), 10))
    result = simulate_fcfs([0, 1, 2, 3, 30, 31, 32, 50, 70], service, max_batch_size=4, max_wait_s=5)
    assert result.batch_items.tolist() == [1, 3, 3, 1, 1]
    assert result.batch_start_s.tolist() == [0, 10, 32, 55, 70]


def test_two_workers_by_hand():
    result = simulate_fcfs([0, 1, 2, 3], constant(10), max_batch_size=1, num_workers=2)
    assert result.finish_s.tolist() == [10, 11, 20, 21]
    assert result.utilization(2) == pytest.approx(40 / 42)


def test_shortest_first_by_hand():
    requests = [Request(0, 0.0, 1), Request(1, 1.0, 3), Request(2, 2.0, 1), Request(3, 3.0, 2)]
    result = simulate_queue(requests, ServiceTimes.from_values({1: 10, 3: 10}), make_policy("sjf"), max_batch_size=3)
    assert result.finish_s.tolist() == [10, 30, 20, 20]


@pytest.mark.parametrize("max_wait_s", [0.0, 0.002, 0.05])
@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("max_batch_size", [1, 2, 8])
@pytest.mark.parametrize("wait_policy", ["adaptive", "always"])
@pytest.mark.parametrize("law", [Poisson(300), Bursty(300, burst=6)])
def test_event_by_event_gives_the_same_trajectory(law, wait_policy, max_batch_size, num_workers, max_wait_s):
    rng = np.random.default_rng(5)
    service = ServiceTimes.from_samples({b: (0.004 + 0.001 * b) * rng.lognormal(0, 0.2, 50) for b in (1, 2, 4, 8)})
    times = law.times_s(3_000, rng)
    limits = {"max_batch_size": max_batch_size, "max_wait_s": max_wait_s, "wait_policy": wait_policy, "num_workers": num_workers, "seed": 7}
    fast = simulate_fcfs(times, service, **limits)
    slow = simulate_queue([Request(k, t) for k, t in enumerate(times.tolist())], service, make_policy("fcfs"), **limits)
    assert (fast.finish_s == slow.finish_s).all()
    assert (fast.batch_start_s == slow.batch_start_s).all()
    assert (fast.batch_items == slow.batch_items).all()


# --- closed forms ------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "count"), [(0.3, 400_000), (0.6, 1_000_000)])
def test_mean_wait_of_m_d_1(load, count):
    """Pollaczek-Khinchine with constant service s: mean wait = load * s / (2 (1 - load))."""
    result = simulate_fcfs(poisson(load, count), constant(1.0), max_batch_size=1)
    assert (result.latency_s - 1).mean() == pytest.approx(load / (2 * (1 - load)), rel=0.01)


def test_mean_wait_of_m_g_1_with_drawn_service_times():
    """Pollaczek-Khinchine with the moments of the very samples that are drawn from."""
    samples = np.random.default_rng(3).lognormal(-0.5, 0.8, 500)
    load = 0.6
    rate = load / samples.mean()
    result = simulate_fcfs(poisson(rate, 1_500_000), ServiceTimes.from_samples({1: samples}), max_batch_size=1, seed=11)
    wait = rate * (samples**2).mean() / (2 * (1 - load))
    assert result.latency_s.mean() == pytest.approx(samples.mean() + wait, rel=0.02)


def test_mean_wait_of_m_m_c():
    """Erlang's C formula, service times drawn from 100 000 exponential quantiles."""
    servers, load = 3, 0.7
    exponential = -np.log1p(-(np.arange(100_000) + 0.5) / 100_000)
    result = simulate_fcfs(poisson(servers * load, 1_000_000), ServiceTimes.from_samples({1: exponential}), max_batch_size=1, num_workers=servers, seed=2)
    offered = servers * load
    last = offered**servers / math.factorial(servers) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)
    assert (result.latency_s.mean() - 1) == pytest.approx(waits / (servers - offered), rel=0.02)


def exact_mean_latency(rate, times, max_batch_size):
    """Mean latency under natural batching and constant times, from the chain of queue lengths at the ends of service.

    From a queue of q, min(q, B) are served (1, when one had to be waited for); Poisson arrivals of that
    service join the rest. Little's law turns the time average of the number present into the mean latency.
    """
    states = 400
    size = [min(max(q, 1), max_batch_size) for q in range(states)]
    moves = np.zeros((states, states))
    for q in range(states):
        mean = rate * times[size[q]]
        arrivals = np.exp(-mean + np.arange(states) * math.log(mean) - np.array([math.lgamma(k + 1) for k in range(states)]))
        left = max(q, 1) - size[q]
        moves[q, left:] = arrivals[: states - left]
    moves[:, -1] += 1 - moves.sum(axis=1)
    share = np.linalg.solve(np.vstack([(moves.T - np.eye(states))[:-1], np.ones(states)]), np.eye(states)[-1])
    lengths = np.array([times[b] for b in size])
    present = share @ (np.maximum(np.arange(states), 1) * lengths + rate * lengths**2 / 2)
    return present / (share @ lengths + share[0] / rate) / rate


@pytest.mark.parametrize(
    ("table", "load"),
    [
        ({1: 5.2, 2: 6.4, 3: 7.6, 4: 8.8, 5: 10.0, 6: 11.2, 7: 12.4, 8: 13.6}, 0.4),
        ({1: 5.2, 2: 6.4, 3: 7.6, 4: 8.8, 5: 10.0, 6: 11.2, 7: 12.4, 8: 13.6}, 0.8),
        ({1: 10.0, 2: 18.7, 3: 23.3, 4: 15.0}, 0.7),  # as measured tables are: not monotone
    ],
)
def test_natural_batching_against_the_exact_chain(table, load):
    largest = max(table)
    service = ServiceTimes.from_values(table)
    rate = load * service.stable_rate(largest)
    result = simulate_fcfs(poisson(rate, 1_000_000), service, max_batch_size=largest)
    assert result.latency_s.mean() == pytest.approx(exact_mean_latency(rate, table, largest), rel=0.01)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_inoue_bound(load):
    """Batches without limit and time ``fixed + slope b``: mean latency is at most, and under load nearly,

    3/2 fixed / (1 - load) + slope/2 (load + 2) / (1 - load^2) with load = rate * slope (Inoue, "Queueing
    analysis of GPU-based inference servers with dynamic batching", 2021): what a server would reach that
    starts an empty batch when nothing waits.
    """
    fixed, slope, limit = 4.0, 1.2, 256
    rate = load / slope
    bound = 1.5 * fixed / (1 - load) + slope / 2 * (load + 2) / (1 - load**2)
    mean = simulate_fcfs(poisson(rate, 400_000), linear(fixed, slope, limit), max_batch_size=limit).latency_s.mean()
    assert mean <= bound * 1.01
    assert mean == pytest.approx(bound, rel=0.2 if load < 0.5 else 0.02)


def test_more_replicas_behind_one_queue_beat_a_random_split():
    shared = replicate(Poisson(360), constant(0.010), max_batch_size=1, num_workers=4, num_replications=3)
    split = replicate(Poisson(360).split(4), constant(0.010), max_batch_size=1, num_replications=3)
    assert shared.latency_p99_s.value < split.latency_p99_s.value
    assert shared.utilization == pytest.approx(split.utilization, rel=0.03)


# --- stability ---------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "unstable"), [(0.95, False), (1.05, True)])
def test_beyond_the_stable_rate_no_latency_is_told(share, unstable):
    service = linear(0.004, 0.0012, 8)
    result = replicate(Poisson(share * service.stable_rate(8)), service, max_batch_size=8, num_requests=20_000, num_replications=5)
    assert result.unstable is unstable
    assert math.isinf(result.latency_p99_s.value) is unstable


def test_the_stable_rate_is_that_of_full_batches():
    """A backlog makes every batch full, so a better smaller size does not help: between the two limits the queue grows."""
    service = ServiceTimes.from_values({1: 1.0, 2: 1.0, 3: 9.0})
    assert service.stable_rate(3) == pytest.approx(1 / 3)
    assert service.stable_rate(2) == 2
    run = simulate_fcfs(poisson(1.2, 20_000), service, max_batch_size=3)
    first, last = np.array_split(run.latency_s, 4)[0].mean(), np.array_split(run.latency_s, 4)[3].mean()
    assert last > 3 * first


def test_items_that_do_not_fill_batches_are_seen_to_be_too_many():
    """Requests of 5 items in batches of 8 leave 3 places empty: the rate in items alone would look sustainable."""
    service = ServiceTimes.from_values({8: 1.0})
    result = replicate(Poisson(1.4), service, max_batch_size=8, mix=[RequestClass(1.0, num_items=5)], num_requests=4_000, num_replications=3)
    assert result.stable_rate > 1.4 * 5
    assert result.unstable


# --- bands, tables, arrivals -------------------------------------------------------------


def test_replications_are_reproducible_and_differ():
    service = linear(0.004, 0.0012, 8)
    first, again, other = (replicate(Poisson(300), service, max_batch_size=8, num_requests=4_000, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.latency_p99_s != other.latency_p99_s
    assert first.latency_p99_s.low < first.latency_p99_s.value < first.latency_p99_s.high


def test_the_band_covers_longer_runs():
    service = linear(0.004, 0.0012, 8)
    band = replicate(Poisson(400), service, max_batch_size=8, num_requests=8_000).latency_p99_s
    fresh = [np.percentile(simulate_fcfs(poisson(400, 8_000, seed=1000 + k), service, max_batch_size=8).latency_s, 99) for k in range(40)]
    inside = sum(band.low <= p99 <= band.high for p99 in fresh)
    assert inside >= 30  # 36 expected of a 90 % band


def test_doubt_about_the_service_times_widens_the_band():
    def points(spread):
        def number(value, interval=None):
            return Number(value=value, unit="s", source="estimated", method="test", interval=interval)

        return [
            BatchPoint(
                batch_size=b,
                latency_p50=number(0.004 * b, (0.004 * b * (1 - spread), 0.004 * b * (1 + spread)) if spread else None),
                latency_p95=number(0.0042 * b),
                latency_p99=number(0.0045 * b),
                throughput=Number(value=250, unit="item/s", source="estimated", method="test"),
            )
            for b in (1, 2)
        ]

    sure, unsure = (replicate(Poisson(100), ServiceTimes.from_points(points(s)), max_batch_size=2, num_requests=5_000).latency_p99_s for s in (0, 0.2))
    assert unsure.high - unsure.low > 2 * (sure.high - sure.low)
    assert unsure.value == pytest.approx(sure.value, rel=0.05)


def test_tables_are_interpolated_and_never_smoothed():
    service = ServiceTimes.from_values({2: 4.0, 4: 3.0, 8: 5.0}, 16)
    assert [service.mean_s(b) for b in (1, 2, 3, 4, 6, 8)] == pytest.approx([4.0, 4.0, 3.5, 3.0, 4.0, 5.0])
    assert service.mean_s(16) == pytest.approx(10.0)
    assert [service.is_extrapolated(b) for b in (8, 9)] == [False, True]


def test_percentiles_of_a_ladder_survive():
    def number(value, unit="s"):
        return Number(value=value, unit=unit, source="measured", method="test")

    point = BatchPoint(batch_size=1, latency_p50=number(1.0), latency_p95=number(2.0), latency_p99=number(4.0), throughput=number(1.0, "item/s"))
    row = ServiceTimes.from_points([point]).quantiles[1]
    assert np.percentile(row, [50, 95, 99]) == pytest.approx([1.0, 2.0, 4.0], rel=0.04)  # of 200 levels, the 99th lies between two


@pytest.mark.parametrize("law", [Poisson(50), Bursty(50, burst=8, share=0.1, cycle_s=0.5)])
def test_arrivals_keep_their_rate_and_split(law):
    times = law.times_s(200_000, np.random.default_rng(4))
    assert (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(50, rel=0.03)
    assert law.split(5).rate == pytest.approx(10)


def test_bursts_are_bursts():
    """The index of dispersion of counts is 1 for a Poisson stream and well above for a bursty one."""

    def dispersion(law):
        times = law.times_s(100_000, np.random.default_rng(4))
        counts = np.histogram(times, bins=np.arange(0, times[-1], 1.0))[0]
        return counts.var() / counts.mean()

    assert dispersion(Poisson(50)) == pytest.approx(1, abs=0.1)
    assert dispersion(Bursty(50)) > 5


def test_a_trace_is_replayed_and_split():
    recorded = tuple(poisson(100, 10_000).tolist())
    trace = Trace(recorded)
    assert trace.times_s(10**9, np.random.default_rng(0)).tolist() == list(recorded)
    assert trace.rate == pytest.approx(100, rel=0.05)
    part = trace.split(4).times_s(10**9, np.random.default_rng(0))
    assert len(part) == pytest.approx(2_500, rel=0.1)
    assert set(part) <= set(recorded)


@pytest.mark.parametrize("recorded", [(), (2.0, 1.0), (-1.0, 1.0), (math.nan,)])
def test_a_trace_must_make_sense(recorded):
    with pytest.raises(InputError, match="trace"):
        Trace(recorded)


@pytest.mark.parametrize(
    "options",
    [{"max_batch_size": 0}, {"max_batch_size": 9}, {"max_batch_size": 1, "max_wait_s": -1}, {"max_batch_size": 1, "num_workers": 0}],
)
def test_limits_out_of_range(options):
    with pytest.raises(InputError):
        simulate_fcfs([0.0], linear(1, 1, 8), **options)


def test_nothing_arrives_and_too_large_requests():
    with pytest.raises(InputError, match="nothing arrives"):
        simulate_fcfs([], constant(1), max_batch_size=1)
    with pytest.raises(InputError, match="larger than a batch"):
        simulate_queue([Request(0, 0.0, 5)], linear(1, 1, 8), make_policy("fcfs"), max_batch_size=4)
    with pytest.raises(InputError, match="add up to 0.5"):
        replicate(Poisson(1), constant(0.1), max_batch_size=1, mix=[RequestClass(0.5)])


@pytest.mark.parametrize("samples", [{}, {1: []}, {0: [1.0]}, {1: [0.0]}, {1: [-1.0]}, {1: [math.nan]}])
def test_service_times_must_be_times(samples):
    with pytest.raises(InputError):
        ServiceTimes.from_samples(samples)


def test_what_was_simulated_is_not_simulated_again_and_limits_that_no_batch_reached_are_one(monkeypatch):
    """Every limit on batches, as `replicate` simulates it, from as few runs as differ."""
    ran = []
    monkeypatch.setattr("aimass_lab.planning.simulations.replicate", lambda *law, **asked: ran.append(asked) or replicate(*law, **asked))
    service, known = ServiceTimes.from_values({size: 0.004 + 0.001 * size for size in range(1, 17)}), Simulations()
    asked = {"overhead": Overhead.recorded(), "num_requests": 400, "num_replications": 3, "seed": 0}
    cases = [(rate, wait, policy, limit) for rate in (20, 150, 900) for wait in (0.0, 0.01) for policy in ("adaptive", "always") for limit in (1, 2, 4, 8, 16)]
    for rate, wait, policy, limit in cases:
        batching = {"max_batch_size": limit, "max_wait_s": wait, "wait_policy": policy}
        assert known.run(Poisson(rate), service, **batching, **asked) == replicate(Poisson(rate), service, **batching, **asked), (rate, batching)
    assert len(ran) < 0.8 * len(cases)
    number = len(ran)
    again = ServiceTimes.from_values({size: 0.004 + 0.001 * size for size in range(1, 17)})  # another object with the same times
    for rate, wait, policy, limit in cases:
        known.run(Poisson(rate), again, max_batch_size=limit, max_wait_s=wait, wait_policy=policy, **asked)
    assert len(ran) == number
    known.run(Poisson(20), again, max_batch_size=1, max_wait_s=0.0, wait_policy="adaptive", **{**asked, "seed": 1})
    assert len(ran) == number + 1
