"""Promises that every scheduling policy keeps, and what each does of its own."""

import math
from dataclasses import replace

import numpy as np
import pytest

from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.options import describe_options
from aimass_lab.planning.queueing import ServiceTimes
from aimass_lab.planning.simulate import simulate_queue
from aimass_lab.scheduling import POLICIES, Queue, Request, make_policy, read_policy

SERVICE = ServiceTimes.from_values({1: 0.010, 4: 0.016, 8: 0.025})
everyone = pytest.mark.parametrize("name", sorted(POLICIES))


def some_requests(count=400, seed=1):
    """Requests of all kinds, with several that arrive together."""
    rng = np.random.default_rng(seed)
    times = np.round(np.cumsum(rng.exponential(0.006, count)), 2)
    return [Request(k, t, int(rng.integers(1, 5)), int(rng.integers(0, 3)), t + float(rng.choice([0.05, 0.5, math.inf]))) for k, t in enumerate(times.tolist())]


def run(policy, requests, **options):
    return simulate_queue(requests, SERVICE, policy, **{"max_batch_size": 8, **options})


def order(policy, requests):
    """The order in which a policy serves requests that all wait already."""
    queue = Queue(policy)
    for request in requests:
        queue.add(request, request.arrival_s)
    return [queue.take(1)[0].index for _ in requests]


@everyone
def test_no_request_is_lost_or_served_twice(name):
    requests = some_requests()
    result = run(make_policy(name), requests)
    assert result.batch_items.sum() == sum(r.num_items for r in requests)
    assert (result.finish_s > result.arrival_s).all()
    served = np.array([r.num_items for r in requests])
    for start, took, items in zip(result.batch_start_s, result.batch_service_s, result.batch_items, strict=True):
        in_batch = np.isclose(result.finish_s, start + took, rtol=0, atol=1e-12)
        assert served[in_batch].sum() == items <= 8
        assert (result.arrival_s[in_batch] <= start).all()


@everyone
@pytest.mark.parametrize("num_workers", [1, 3])
def test_work_is_conserved(name, num_workers):
    """With no holding, every worker is busy up to the moment at which somebody who had to wait is served."""
    times = np.random.default_rng(0).uniform(0.02, 0.06, 500)  # all different, so that an end tells its batch
    service = ServiceTimes.from_samples(dict.fromkeys((1, 8), times))
    result = simulate_queue(some_requests(), service, make_policy(name), max_batch_size=8, num_workers=num_workers)
    starts, ends = result.batch_start_s, result.batch_start_s + result.batch_service_s
    start_of = dict(zip(ends.tolist(), starts.tolist(), strict=True))
    assert len(start_of) == len(ends)
    served_at = np.array([start_of[end] for end in result.finish_s.tolist()])
    waited = 0
    for start in starts:
        if ((result.arrival_s < start) & (served_at >= start)).any():
            waited += 1
            assert ((starts < start) & (ends >= start)).sum() == num_workers
    assert waited > 10


@everyone
def test_the_same_again_gives_the_same(name):
    first, second = (run(make_policy(name), some_requests()) for _ in range(2))
    assert (first.finish_s == second.finish_s).all()


@everyone
def test_ties_go_to_the_earlier_arrival(name):
    alike = [Request(k, 1.0) for k in range(20)]
    assert order(make_policy(name), alike) == list(range(20))


@everyone
def test_options_are_checked(name):
    with pytest.raises(InputError, match="no option 'speed'"):
        make_policy(name, speed=2)


@everyone
def test_a_policy_is_written_as_it_is_read(name):
    assert read_policy(name).text == name
    others = {"bool": False, "float": 60.5}
    changed = replace(make_policy(name), **{option.name: others[option.kind] for option in describe_options(POLICIES[name])})
    assert read_policy(changed.text) == changed


def test_unknown_policy():
    for text in ("lifo", "lifo(ageing_s=1)"):
        with pytest.raises(UnknownNameError, match="scheduling policy"):
            read_policy(text)
    with pytest.raises(InputError, match=r"'priority\(ageing_s=60' is no scheduling policy"):
        read_policy("priority(ageing_s=60")


REQUESTS = [Request(0, 0.0, 5, 2, 9.0), Request(1, 0.1, 1, 1, 3.0), Request(2, 0.2, 3, 0, math.inf), Request(3, 0.3, 1, 1, 2.0)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fcfs", {}, [0, 1, 2, 3]),
        ("sjf", {}, [1, 3, 2, 0]),
        ("edf", {}, [3, 1, 0, 2]),
        ("priority", {"ageing_s": 100.0}, [2, 1, 3, 0]),
        ("priority", {"ageing_s": 0.01}, [0, 1, 2, 3]),
    ],
)
def test_the_order_that_the_name_promises(name, options, expected):
    assert order(make_policy(name, **options), REQUESTS) == expected


def test_ageing_bounds_how_many_pass():
    """One request of the lowest class in a stream of urgent ones, 9 ms apart, that alone is more than the server takes."""
    before = [Request(k, k * 0.009) for k in range(50)]
    patient = Request(50, 0.450, 1, 3)
    requests = [*before, patient, *[Request(k + 1, k * 0.009) for k in range(51, 300)]]
    requests = [Request(k, r.arrival_s, r.num_items, r.priority) for k, r in enumerate(requests)]
    waits = {}
    for ageing_s in (0.1, 100.0):
        result = simulate_queue(requests, SERVICE, make_policy("priority", ageing_s=ageing_s), max_batch_size=1)
        waits[ageing_s] = result.latency_s[50]
    backlog, passing = 50 * 0.001, 3 * 0.1 / 0.009 * 0.010
    assert waits[0.1] <= backlog + passing + 3 * 0.010
    assert waits[100.0] > 2  # practically without ageing, it is served last


@pytest.mark.parametrize("ageing_s", [0, -1, math.nan, -math.inf])
def test_ageing_must_be_a_time(ageing_s):
    with pytest.raises(InputError, match="ageing_s"):
        make_policy("priority", ageing_s=ageing_s)


def test_a_batch_stops_at_the_first_that_does_not_fit():
    queue = Queue(make_policy("fcfs"))
    for request in [Request(0, 0.0, 3), Request(1, 0.1, 4), Request(2, 0.2, 2), Request(3, 0.3, 1)]:
        queue.add(request, request.arrival_s)
    assert [r.index for r in queue.take(8)] == [0, 1]
    assert queue.num_items == 3
    assert queue.oldest_arrival_s == 0.2
    assert [r.index for r in queue.take(8)] == [2, 3]
    assert queue.oldest_arrival_s == math.inf
