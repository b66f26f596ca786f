"""The loop that shares devices among jobs: worked out by hand, against queueing theory, and what holds for any jobs at all."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimass_lab.errors import InputError
from aimass_lab.scheduling import POLICIES, Limits, Request, SimulatedLane, make_policy, run_jobs

everyone = pytest.mark.parametrize("name", sorted(POLICIES))


def run(name, requests, times, *, lanes=1, options=None, overhead_s=0.0, resume_s=0.0, **more):
    """Sorted requests on simulated lanes that share a clock's origin."""
    made = [SimulatedLane(times, overhead_s=overhead_s, resume_s=resume_s) for _ in range(lanes)]
    return run_jobs(requests, make_policy(name, options), made, **more)


def finishes(schedule):
    return [job.finish_s for job in schedule.jobs]


@st.composite
def some_jobs(draw, largest=30):
    """Whole arrivals, and segments of one second each, so that a job can be left at any whole second."""
    count = draw(st.integers(1, largest))
    arrivals = sorted(draw(st.lists(st.integers(0, 40), min_size=count, max_size=count)))
    sizes = draw(st.lists(st.integers(1, 8), min_size=count, max_size=count))
    slack = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
    kinds = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    requests = [
        Request(k, float(a), 1, kind, float(a + n + s), float(n), f"tenant {kind}", kind + 1.0)
        for k, (a, n, s, kind) in enumerate(zip(arrivals, sizes, slack, kinds, strict=True))
    ]
    return requests, [[1.0] * n for n in sizes]


# --- by hand -----------------------------------------------------------------------------


def test_parts_of_a_job_by_hand():
    """Four lanes; a search of four trials, two at once, and a batch that comes in only when the search, as one job, has ended; calls come in at once."""
    search = [Request(k, 0.0, tenant="lab", job="search") for k in range(4)]
    requests = [*search, Request(4, 0.0, tenant="lab", job="batch"), Request(5, 0.5, tenant="online")]
    times = [[3.0], [1.0], [1.0], [4.0], [2.0], [1.0]]
    schedule = run("fcfs", requests, times, lanes=4, limits=Limits(quotas={"lab": 1}, parallel={"search": 2}, jobs_only=True))
    assert finishes(schedule) == [3, 1, 2, 6, 8, 1.5]
    assert schedule.most_jobs == 1


def test_a_job_whose_last_part_is_turned_away_gives_its_place_back():
    requests = [Request(0, 0.0, job="a"), Request(1, 2.0, job="b"), Request(2, 2.5, job="a"), Request(3, 9.0, job="c")]
    schedule = run("fcfs", requests, [[1.0]] * 4, limits=Limits(max_jobs=1, max_waiting=0))
    assert [job.dropped for job in schedule.jobs] == [False, True, False, False], "one place: b finds it taken by a, which has a part to come"
    assert finishes(schedule)[3] == 10


def test_strict_priority_never_lets_waiting_make_up_for_a_class():
    requests = [Request(0, 0.0, priority=1), *(Request(k, 1000.0 + k, priority=0) for k in range(1, 4))]
    times = [[1.0] * 1010, [1.0], [1.0], [1.0]]
    assert finishes(run("priority", requests, times, options={"ageing_s": "inf"})) == [1013, 1002, 1003, 1004]
    assert make_policy("priority", ageing_s=8.0).sped_up(4) == make_policy("priority", ageing_s=2.0)


def test_first_come_first_served_by_hand():
    requests = [Request(0, 0.0), Request(1, 1.0), Request(2, 20.0)]
    assert finishes(run("fcfs", requests, [[2, 2], [3], [1, 1]])) == [4, 7, 22]


def test_round_robin_by_hand():
    """Segments of 1, turns of 2: 0 runs 0-2, 1 runs 2-4, 0 again 4-6 and is done, then 1 to its end."""
    requests = [Request(0, 0.0), Request(1, 0.5)]
    schedule = run("round_robin", requests, [[1] * 4, [1] * 5], options={"quantum_s": 2})
    assert finishes(schedule) == [6, 9]
    assert [(t.job, t.start_s, t.end_s, t.segments, t.finished) for t in schedule.turns] == [
        (0, 0, 2, 2, False), (1, 2, 4, 2, False), (0, 4, 6, 2, True), (1, 6, 9, 3, True)
    ]  # fmt: skip


def test_shortest_remaining_by_hand():
    """1 arrives when 6 of 0's seconds are left, needs 3, and goes first; 2 needs 4 and waits for 1, not for 0."""
    requests = [Request(0, 0.0, expected_s=8.0), Request(1, 2.0, expected_s=3.0), Request(2, 3.0, expected_s=4.0)]
    assert finishes(run("srpt", requests, [[1] * 8, [1] * 3, [1] * 4])) == [15, 5, 9]


def test_urgent_work_waits_for_the_end_of_a_segment_only():
    requests = [Request(0, 0.0, priority=1), Request(1, 1.0, priority=0)]
    assert finishes(run("priority", requests, [[4, 4, 4], [1]], options={"ageing_s": 100})) == [13, 5]
    assert finishes(run("priority", requests, [[4, 4, 4], [1]], options={"ageing_s": 100, "preemptive": False})) == [12, 13]


def test_the_earliest_deadline_by_hand():
    requests = [Request(0, 0.0, deadline_s=30.0), Request(1, 1.0, deadline_s=5.0), Request(2, 1.0)]
    assert finishes(run("edf", requests, [[2] * 5, [2], [1]])) == [12, 4, 13]


def test_shares_by_hand():
    """Weights 2 to 1, turns of 1: a has two thirds while both have work, then b the rest."""
    requests = [Request(0, 0.0, tenant="a", weight=2.0), Request(1, 0.0, tenant="b", weight=1.0)]
    schedule = run("weighted_fair", requests, [[1] * 6, [1] * 6], options={"quantum_s": 1})
    assert [t.job for t in schedule.turns for _ in range(t.segments)] == [0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 1]


def test_overhead_and_interruptions_take_time():
    requests = [Request(0, 0.0), Request(1, 0.0)]
    schedule = run("round_robin", requests, [[1, 1], [1]], options={"quantum_s": 1}, overhead_s=0.1, resume_s=0.5)
    assert finishes(schedule) == pytest.approx([3.8, 2.2])
    assert [job.used_s for job in schedule.jobs] == [2.5, 1]


def test_two_lanes_by_hand():
    """0 and 1 run at once; 2 takes the lane that is free first, and 3 the other."""
    requests = [Request(k, t) for k, t in enumerate([0.0, 1.0, 1.5, 1.5])]
    schedule = run("fcfs", requests, [[2, 2], [5], [1], [1]], lanes=2)
    assert finishes(schedule) == [4, 6, 5, 6]
    assert {(t.lane, t.job) for t in schedule.turns} == {(0, 0), (1, 1), (0, 2), (0, 3)}


def test_an_ensemble_ends_with_its_slowest_branch_and_what_joins_them():
    requests = [Request(k, 0.0) for k in range(4)]
    needs = {1: [0], 2: [0], 3: [1, 2]}
    assert finishes(run("fcfs", requests, [[1], [5], [2], [1]], lanes=2, needs=needs)) == [1, 6, 3, 7]
    assert finishes(run("fcfs", requests, [[1], [5], [2], [1]], needs=needs)) == [1, 6, 8, 9]


def test_jobs_beyond_the_limit_wait_outside_and_then_are_turned_away():
    requests = [Request(k, 0.0) for k in range(5)]
    schedule = run("round_robin", requests, [[1, 1]] * 5, options={"quantum_s": 1}, limits=Limits(max_jobs=2, max_waiting=2))
    assert [job.dropped for job in schedule.jobs] == [False] * 4 + [True]
    assert finishes(schedule)[:4] == [3, 4, 7, 8]
    assert math.isnan(finishes(schedule)[4])
    assert schedule.most_jobs == 2


# --- against theory ----------------------------------------------------------------------


def chopped(rng, count, load, parts):
    """Poisson arrivals, and exponential work of mean 1 in equal parts."""
    sizes = rng.exponential(1.0, count)
    times = np.cumsum(rng.exponential(1 / load, count))
    requests = [Request(k, t, expected_s=size) for k, (t, size) in enumerate(zip(times.tolist(), sizes.tolist(), strict=True))]
    return requests, [[size / n] * n for size in sizes.tolist() for n in [max(1, math.ceil(size * parts))]]


def test_small_turns_share_the_processor():
    """Processor sharing: a job of work x takes x / (1 - load) on average, however works are distributed (Kleinrock 1976)."""
    requests, times = chopped(np.random.default_rng(1), 15_000, 0.6, parts=8)
    jobs = run("round_robin", requests, times, options={"quantum_s": 0.05}).jobs
    for low, high in ((0.2, 0.8), (1.0, 3.0)):
        chosen = [job for job in jobs if low < job.request.work < high]
        slowdown = np.mean([job.latency_s for job in chosen]) / np.mean([job.request.work for job in chosen])
        assert slowdown == pytest.approx(1 / (1 - 0.6), rel=0.1)


def test_two_lanes_and_one_line_are_m_m_2():
    """Erlang's C formula with two servers: mean latency 1 / (1 - load^2)."""
    requests, times = chopped(np.random.default_rng(2), 40_000, 1.4, parts=1)
    latency = np.mean([job.latency_s for job in run("fcfs", requests, times, lanes=2).jobs])
    assert latency == pytest.approx(1 / (1 - 0.7**2), rel=0.06)


# --- whatever the jobs -------------------------------------------------------------------


@everyone
@given(jobs=some_jobs(), lanes=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_every_job_is_run_once_and_lanes_do_one_thing_at_a_time(name, jobs, lanes):
    requests, times = jobs
    schedule = run(name, requests, times, lanes=lanes)
    assert schedule.segments == sum(map(len, times))
    assert [job.used_s for job in schedule.jobs] == [sum(t) for t in times]
    for job in schedule.jobs:
        turns = [t for t in schedule.turns if t.job == job.request.index]
        assert turns[0].start_s >= job.request.arrival_s
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(turns))
        assert [t.finished for t in turns] == [False] * (len(turns) - 1) + [True]
        assert turns[-1].end_s == job.finish_s
    for lane in range(lanes):
        turns = sorted((t for t in schedule.turns if t.lane == lane), key=lambda t: t.start_s)
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(turns))


@everyone
@given(jobs=some_jobs())
@settings(max_examples=40, deadline=None)
def test_no_order_makes_the_device_idle(name, jobs):
    """On one lane, when the work is done does not depend on the order."""
    requests, times = jobs
    busy = 0.0
    for request in requests:
        busy = max(busy, request.arrival_s) + len(times[request.index])
    assert max(finishes(run(name, requests, times))) == busy


@given(jobs=some_jobs())
@settings(max_examples=60, deadline=None)
def test_no_order_has_a_smaller_mean_latency_than_shortest_remaining(jobs):
    requests, times = jobs
    best = sum(finishes(run("srpt", requests, times)))
    assert all(best <= sum(finishes(run(name, requests, times))) for name in POLICIES)


@given(jobs=some_jobs(largest=12))
@settings(max_examples=150, deadline=None)
def test_the_earliest_deadline_meets_what_any_order_meets(jobs):
    requests, times = jobs

    def met(name):
        return all(
            job.finish_s <= job.request.deadline_s for job in run(name, requests, times, options={"quantum_s": 1} if name == "round_robin" else None).jobs
        )

    assert met("edf") or not any(met(name) for name in POLICIES)


@given(
    weights=st.lists(st.integers(1, 8), min_size=2, max_size=5),
    lengths=st.lists(st.floats(0.001, 0.02), min_size=5, max_size=5),
    expected=st.floats(0.001, 10),
)
@settings(max_examples=30, deadline=None)
def test_backlogged_tenants_get_their_share(weights, lengths, expected):
    """However long their segments are, and however wrong the expected times: within 5 % while all have work."""
    requests, times, each = [], [], 60
    for k in range(each * len(weights)):
        tenant = k % len(weights)
        requests.append(Request(k, 0.0, expected_s=expected, tenant=f"t{tenant}", weight=float(weights[tenant])))
        times.append([lengths[tenant]] * max(1, round(0.2 / lengths[tenant])))
    schedule = run("weighted_fair", requests, times)
    last = [max(job.finish_s for job in schedule.jobs if job.request.tenant == f"t{t}") for t in range(len(weights))]
    until = min(last)
    had = [sum(max(0.0, min(t.end_s, until) - t.start_s) for t in schedule.turns if t.job % len(weights) == k) for k in range(len(weights))]
    # One turn is the smallest piece that can be given; where all of it is little, it is allowed on top.
    turn = 0.005 + max(lengths)
    for k, weight in enumerate(weights):
        assert had[k] == pytest.approx(until * weight / sum(weights), rel=0.05, abs=2 * turn)


def test_a_tenant_that_comes_late_gets_its_share_and_not_the_past():
    early = [Request(k, 0.0, tenant="early") for k in range(200)]
    late = [Request(200 + k, 10.0, tenant="late") for k in range(200)]
    jobs = run("weighted_fair", [*early, *late], [[0.05, 0.05]] * 400).jobs
    at_20 = {who: sum(job.finish_s <= 20.0 for job in jobs if job.request.tenant == who) for who in ("early", "late")}
    assert at_20["early"] == pytest.approx(150, abs=2)
    assert at_20["late"] == pytest.approx(50, abs=2)


@given(jobs=some_jobs(), ageing=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_ageing_bounds_how_many_pass(jobs, ageing):
    """Nobody who arrives later than `priority * ageing_s` after a job begins before it."""
    requests, times = jobs
    schedule = run("priority", requests, times, options={"ageing_s": ageing})
    begun = {job.request.index: job.begin_s for job in schedule.jobs}
    for request in requests:
        for other in requests:
            if other.arrival_s + other.priority * ageing > request.arrival_s + request.priority * ageing:
                assert begun[other.index] > begun[request.index] or other.arrival_s < request.arrival_s


@pytest.mark.parametrize(("name", "starves", "cured"), [("sjf", {}, {"ageing": 0.5}), ("srpt", {}, {"ageing": 0.5})])
def test_ageing_serves_the_large_job_in_a_stream_of_small_ones(name, starves, cured):
    large = Request(0, 0.0, expected_s=5.0)
    requests = [large, *[Request(k, 0.9 * k - 0.9, expected_s=1.0) for k in range(1, 300)]]
    times = [[5.0], *[[1.0]] * 299]
    assert run(name, requests, times, options=starves).jobs[0].begin_s > 200
    assert run(name, requests, times, options=cured).jobs[0].begin_s < 60


@everyone
@given(jobs=some_jobs(), most=st.integers(1, 4), quota=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_limits_are_never_exceeded(name, jobs, most, quota):
    requests, times = jobs
    schedule = run(name, requests, times, limits=Limits(max_jobs=most, quotas={"tenant 1": quota}))
    assert not any(job.dropped for job in schedule.jobs)
    moments = [job.begin_s for job in schedule.jobs]
    for moment in moments:
        on_their_way = [job for job in schedule.jobs if job.begin_s <= moment < job.finish_s]
        assert len(on_their_way) <= most
        assert sum(job.request.tenant == "tenant 1" for job in on_their_way) <= quota
    assert schedule.most_jobs <= most


@pytest.mark.parametrize(
    ("requests", "more"),
    [
        ([], {}),
        ([Request(1, 0.0)], {}),
        ([Request(0, 1.0), Request(1, 0.0)], {}),
        ([Request(0, 0.0), Request(1, 0.0)], {"needs": {0: [1], 1: [0]}}),
        ([Request(0, 0.0)], {"needs": {0: [7]}}),
        ([Request(0, 0.0)], {"lanes": 0}),
    ],
)
def test_jobs_that_make_no_sense(requests, more):
    with pytest.raises(InputError):
        run("fcfs", requests, [[1.0]] * len(requests), **more)
