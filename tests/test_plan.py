"""Plans: what they promise, checked by simulating anew; what they say when there is none."""

import math

import msgspec
import numpy as np
import pytest
from plans import LADDER, MODEL, ladder, number, target

from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.frontends.layouts.base import ladder_table
from aimass_lab.planning import simulations
from aimass_lab.planning.allocation import Allocation, Allocator, Candidate, Load
from aimass_lab.planning.answer import MAX_OPTIONS
from aimass_lab.planning.overhead import Overhead
from aimass_lab.planning.plan import make_plan
from aimass_lab.planning.queueing import Bursty, Poisson, ServiceTimes
from aimass_lab.planning.simulate import RequestClass, replicate, simulate_fcfs
from aimass_lab.planning.simulations import Simulations
from aimass_lab.records import Experience, Plan, Target, from_json, to_json


def p99_of(plan, *, replicas, rate, law=Poisson, seed=99, count=200_000):
    """An independent look at one replica: other seed, one long run, from the ladder itself."""
    service = ServiceTimes.from_points(plan.service_time)
    times = law(rate).split(replicas).times_s(count, np.random.default_rng(seed))
    run = simulate_fcfs(times, service, max_batch_size=int(plan.max_batch_size.value), max_wait_s=plan.max_wait.value, seed=seed)
    return float(np.percentile(run.latency_s, 99))


@pytest.mark.parametrize(("rate", "p99"), [(400, 0.050), (400, 0.020), (3_000, 0.030), (20, 0.050)])
def test_the_plan_meets_its_target_and_one_replica_less_does_not(rate, p99):
    plan = make_plan(MODEL, {"cpu": LADDER}, target(rate, p99))
    replicas = plan.replicas.value
    assert plan.feasible
    assert plan.latency_p99.interval[1] <= p99
    assert p99_of(plan, replicas=replicas, rate=rate) <= p99
    assert p99_of(plan, replicas=replicas, rate=rate) == pytest.approx(plan.latency_p99.value, rel=0.1)
    if replicas > 1:
        slow = 1.02  # the plan holds at the upper end of the measured latencies too
        fewer = slow * p99_of(plan, replicas=replicas - 1, rate=rate * slow)
        assert fewer > 0.95 * p99


def test_no_other_batch_or_wait_needs_fewer_replicas():
    """Brute force over every allocation, on the same terms."""
    plan = make_plan(MODEL, {"cpu": ladder(0.004, 0.0012, doubt=0)}, target(2_000, 0.030))
    service = ServiceTimes.from_points(plan.service_time)
    for size in (1, 2, 4, 8, 16):
        for wait in (0.0, 0.002, 0.005):
            times = Poisson(2_000).split(plan.replicas.value - 1).times_s(60_000, np.random.default_rng(5))
            run = simulate_fcfs(times, service, max_batch_size=size, max_wait_s=wait)
            assert np.percentile(run.latency_s, 99) > 0.97 * 0.030


def test_the_same_question_gets_the_same_answer():
    one, two = (make_plan(MODEL, {"cpu": LADDER}, target(900, 0.030)) for _ in range(2))
    assert one == two


def test_more_load_or_less_time_never_needs_fewer_replicas():
    by_rate = [make_plan(MODEL, {"cpu": LADDER}, target(rate, 0.030)).replicas.value for rate in (100, 1_600, 6_400)]
    by_time = [make_plan(MODEL, {"cpu": LADDER}, target(1_600, p99)).replicas.value for p99 in (0.100, 0.025, 0.0125)]
    assert by_rate == sorted(by_rate)
    assert by_time == sorted(by_time)


def test_headroom_and_bursts_and_overhead_cost_replicas():
    plain = make_plan(MODEL, {"cpu": LADDER}, target(1_500, 0.030))
    spare = make_plan(MODEL, {"cpu": LADDER}, target(1_500, 0.030, headroom=0.5))
    bursty = make_plan(MODEL, {"cpu": LADDER}, target(1_500, 0.030), burstiness=4.0)
    slow_server = make_plan(MODEL, {"cpu": LADDER}, target(1_500, 0.030), overhead=Overhead.from_quantiles((0.012,), number(0.012)))
    assert plain.replicas.value < spare.replicas.value
    assert plain.replicas.value < bursty.replicas.value
    assert plain.replicas.value < slow_server.replicas.value
    assert slow_server.latency_p99.interval[0] > 0.012
    assert p99_of(bursty, replicas=bursty.replicas.value, rate=1_500, law=lambda rate: Bursty(rate, burst=4.0)) <= 1.1 * 0.030
    assert "missing:overhead" in {note.code for note in plain.notes}
    assert "missing:overhead" not in {note.code for note in slow_server.notes}


def test_holding_for_full_batches_costs_latency_at_low_load():
    held = make_plan(MODEL, {"cpu": LADDER}, target(20, 0.050), max_wait_s=(0.020,), wait_policy="always")
    adaptive = make_plan(MODEL, {"cpu": LADDER}, target(20, 0.050), max_wait_s=(0.020,))
    size_1 = held.max_batch_size.value == 1
    assert size_1 or held.latency_p50.value > 0.020
    assert adaptive.latency_p50.value < 0.015


def test_a_stream_with_burst_ratio_1_is_a_poisson_stream():
    assert make_plan(MODEL, {"cpu": LADDER}, target(900, 0.030), burstiness=1.0) == make_plan(MODEL, {"cpu": LADDER}, target(900, 0.030))


def test_prices_choose_the_device():
    ladders = {"cpu": LADDER, "l4": ladder(0.002, 0.0001, source="estimated")}
    cheap_gpu = make_plan(MODEL, ladders, target(4_000, 0.050), prices={"cpu": 1.0, "l4": 1.5})
    cheap_cpu = make_plan(MODEL, ladders, target(4_000, 0.050), prices={"cpu": 0.01, "l4": 1.5})
    unpriced = make_plan(MODEL, ladders, target(4_000, 0.050), prices={"cpu": 0.01})
    assert (cheap_gpu.device, cheap_cpu.device, unpriced.device) == ("l4", "cpu", "l4")
    assert cheap_cpu.cost.value == pytest.approx(0.01 * cheap_cpu.replicas.value)
    assert cheap_cpu.cost.unit == "USD/h"
    assert unpriced.cost is None


def test_every_number_says_where_it_comes_from():
    measured = make_plan(MODEL, {"cpu": LADDER}, target(900, 0.030))
    guessed = make_plan(MODEL, {"l4": ladder(0.002, 0.0001, source="estimated")}, target(900, 0.030))
    noisy = make_plan(MODEL, {"cpu": ladder(0.004, 0.0012, quality="noisy")}, target(900, 0.030))
    for field in ("replicas", "max_batch_size", "max_wait", "latency_p50", "latency_p99", "utilization", "throughput_limit"):
        assert getattr(measured, field).source == "derived"
        assert getattr(measured, field).trust == "estimated"  # whatever was measured, a simulated queue is a prediction
        assert getattr(guessed, field).trust == "estimated"
        assert getattr(noisy, field).quality == "noisy"
    assert measured.latency_p99.interval_kind
    assert "W-NOT-MEASURED" in {note.code for note in guessed.notes}
    assert "W-NOISY" in {note.code for note in noisy.notes}
    assert not {"W-NOT-MEASURED", "W-NOISY"} & {note.code for note in measured.notes}


def test_doubt_about_the_latencies_costs_replicas():
    sure = make_plan(MODEL, {"l4": ladder(0.004, 0.0012, doubt=0.0)}, target(3_000, 0.030))
    unsure = make_plan(MODEL, {"l4": ladder(0.004, 0.0012, doubt=0.3)}, target(3_000, 0.030))
    assert unsure.replicas.value > sure.replicas.value


def test_options_hold_what_was_considered_with_a_reason():
    plan = make_plan(MODEL, {"cpu": LADDER, "l4": ladder(0.002, 0.0001)}, target(4_000, 0.050))
    assert 2 <= len(plan.options) <= MAX_OPTIONS
    assert plan.options[0].reason == "the answer"
    assert [o.reason for o in plan.options].count("the answer") == 1
    assert plan.options[0].replicas.value == plan.replicas.value
    assert all(option.reason for option in plan.options)
    assert {option.device for option in plan.options} == {"cpu", "l4"}
    assert all(o.replicas.value >= plan.replicas.value for o in plan.options if o.feasible)


# --- what binds --------------------------------------------------------------------------


def test_throughput_binds():
    plan = make_plan(MODEL, {"cpu": LADDER}, target(6_500, 0.500))
    assert plan.binding.startswith("throughput binds")
    assert plan.replicas.value == math.floor(6_500 / (plan.throughput_limit.value / plan.replicas.value)) + 1


def test_latency_binds():
    plan = make_plan(MODEL, {"cpu": LADDER}, target(400, 0.020))
    assert plan.binding.startswith("latency binds")
    assert plan.replicas.value == 2


def test_nothing_binds():
    plan = make_plan(MODEL, {"cpu": LADDER}, target(10, 0.500))
    assert plan.replicas.value == 1
    assert plan.binding.startswith("nothing binds")


def test_impossible_latency_says_which_would_be_possible():
    impossible = make_plan(MODEL, {"cpu": LADDER}, target(400, 0.003))
    assert not impossible.feasible
    assert "latency binds" in impossible.binding
    assert "feasible would be" in impossible.binding
    assert not any(option.feasible for option in impossible.options)
    replicas, p99 = impossible.replicas.value, impossible.latency_p99.interval[1]
    possible = make_plan(MODEL, {"cpu": LADDER}, target(400, 1.05 * p99, max_replicas=replicas + 2))
    assert possible.feasible


def test_too_few_replicas_says_what_they_carry():
    refused = make_plan(MODEL, {"cpu": LADDER}, target(4_000, 0.050, max_replicas=5))
    assert not refused.feasible
    assert "max_replicas binds" in refused.binding
    assert refused.replicas.value == 5
    assert refused.latency_p99 is None  # five replicas let the queue grow
    assert refused.utilization.value == 1
    needed = int(refused.binding.split(" need ")[1].split()[0])
    assert make_plan(MODEL, {"cpu": LADDER}, target(4_000, 0.050, max_replicas=needed)).feasible
    highest = float(refused.binding.split("up to ")[1].split(" requests")[0].replace(",", ""))
    assert make_plan(MODEL, {"cpu": LADDER}, target(0.97 * highest, 0.050, max_replicas=5)).feasible
    assert not make_plan(MODEL, {"cpu": LADDER}, target(1.1 * highest, 0.050, max_replicas=5)).feasible


def test_a_rate_beyond_all_reason_is_answered_from_few_simulations(monkeypatch):
    """Every way to run a replica was searched to its end, though none of them is allowed."""
    runs = []
    monkeypatch.setattr(simulations, "replicate", lambda *args, **options: runs.append(args) or replicate(*args, **options))
    refused = make_plan(MODEL, {"cpu": LADDER}, target(1e6, 0.050))
    assert len(runs) < 100
    assert "max_replicas binds" in refused.binding
    needed = int(refused.binding.split(" need ")[1].split()[0])
    batch = int(refused.max_batch_size.value)
    fewest = 1e6 * ServiceTimes.from_points(LADDER).mean_s(batch) / batch
    assert fewest < needed < 2 * fewest
    assert p99_of(refused, replicas=needed, rate=1e6) <= 0.050


def test_a_replica_takes_no_more_than_its_server_however_fast_the_model():
    """A card that answers 256 items in 0.1 ms: 100 µs of a core for each request, at the least, are 10,000 requests a second."""
    fast = {"card": ladder(1e-5, 3.5e-7, sizes=(1, 16, 256))}
    served = make_plan(MODEL, fast, target(100_000, 0.050), overhead=Overhead.recorded())
    assert served.feasible
    assert served.replicas.value == 11
    assert "its server spends 100 µs of a core on each" in served.binding
    assert served.throughput_limit.value == pytest.approx(11 * 10_000)
    assert make_plan(MODEL, fast, target(100_000, 0.050)).replicas.value == 1, "where nobody asked for the server, it is the model's"


def test_confirming_adds_as_few_replicas_as_searching_one_by_one():
    allocator = Allocator(Load(arrivals=Poisson(3000.0), latency_p99_s=0.020), quick=(200, 3), thorough=(4000, 5), known=Simulations())
    candidate = Candidate(device="cpu", service=ServiceTimes.from_points(LADDER), max_batch_size=4, max_wait_s=0.0)
    enough = next(n for n in range(1, 40) if allocator.meets(allocator.simulate(candidate, n, thorough=True)))
    for start in (enough // 2, enough - 3, enough, enough + 4):
        confirmed = allocator.confirm(Allocation(candidate=candidate, replicas=start, simulation=None))
        assert (confirmed.replicas, confirmed.meets) == (max(start, enough), True)
        assert (confirmed.below is None) == (start >= enough)
    assert not allocator.confirm(Allocation(candidate=candidate, replicas=enough // 4, simulation=None)).meets, "then another candidate is better"


def test_a_target_that_idle_replicas_pay_for_names_one_that_is_not():
    """A request alone takes 5.8 ms (p99 of the ladder, upper end): within 6 ms hardly any may meet another."""
    plan = make_plan(MODEL, {"cpu": LADDER}, target(100, 0.006))
    (note,) = (note.text for note in plan.notes if note.code == "W-DEAR-TARGET")
    assert f"{plan.replicas.value:g} replicas, where 1 would carry the rate" in note
    within, needed = note.split("a p99 of ")[1].split(" ms would take ")
    assert int(needed.split()[0]) <= plan.replicas.value / 2
    cheaper = make_plan(MODEL, {"cpu": LADDER}, target(100, 1.01 * float(within) / 1e3))
    assert cheaper.feasible
    assert cheaper.replicas.value <= int(needed.split()[0])
    assert "W-DEAR-TARGET" not in {note.code for note in cheaper.notes}


def test_both_bind():
    refused = make_plan(MODEL, {"cpu": LADDER}, target(4_000, 0.003, max_replicas=2))
    assert not refused.feasible
    assert "latency and max_replicas bind" in refused.binding


# --- options of the question -------------------------------------------------------------


def test_batches_that_do_not_fit_are_left_out():
    big = {"cpu": ladder(0.004, 0.0012, peak=1e9)}
    plan = make_plan(MODEL, big, target(400, 0.050), memory_limit={"cpu": number(4.5e9, "B", "datasheet")})
    assert plan.max_batch_size.value <= 4
    with pytest.raises(InputError, match="no batch fits"):
        make_plan(MODEL, big, target(400, 0.050), memory_limit={"cpu": number(0.5e9, "B")})


def test_a_server_slower_than_the_target_is_told():
    refused = make_plan(MODEL, {"cpu": LADDER}, target(1, 0.010), overhead=Overhead.from_quantiles((0.020,), number(0.020)))
    assert not refused.feasible
    assert "latency binds" in refused.binding


def test_a_policy_with_a_mix_of_requests():
    mix = [RequestClass(0.9, num_items=1, priority=0), RequestClass(0.1, num_items=8, priority=1)]
    plan = make_plan(MODEL, {"cpu": LADDER}, target(600, 0.100), policy="sjf", mix=mix, max_wait_s=(0.0,))
    assert plan.feasible
    assert plan.scheduling_policy == "sjf"
    assert plan.throughput_limit.value / plan.replicas.value < 700 / 1.5  # in requests, of 1.7 items each
    assert plan.max_batch_size.value >= 8


def test_a_policy_without_a_mix_says_that_it_changes_nothing():
    plan = make_plan(MODEL, {"cpu": LADDER}, target(300, 0.050), policy="priority(ageing_s=60)", max_wait_s=(0.0,))
    assert plan.scheduling_policy == "priority(ageing_s=60)"
    assert "alike:requests" in {note.code for note in plan.notes}


def test_progress_is_told():
    told = []
    make_plan(MODEL, {"cpu": LADDER}, target(300, 0.050), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(text for _, text in told)


def test_an_interrupt_gets_through():
    def stop(share, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_plan(MODEL, {"cpu": LADDER}, target(300, 0.050), progress=stop)


def test_a_plan_survives_json():
    plan = make_plan(MODEL, {"cpu": LADDER}, target(400, 0.020))
    assert from_json(to_json(plan), Plan) == plan


@pytest.mark.parametrize(
    ("ladders", "wanted", "options"),
    [
        ({}, target(1, 1), {}),
        ({"cpu": ()}, target(1, 1), {}),
        ({"cpu": LADDER}, target(0, 1), {}),
        ({"cpu": LADDER}, target(1, -1), {}),
        ({"cpu": LADDER}, target(1, 1, max_replicas=0), {}),
        ({"cpu": LADDER}, target(1, 1, headroom=-0.1), {}),
        ({"cpu": LADDER}, target(1, 1, headroom=math.nan), {}),
        ({"cpu": LADDER}, target(1, 1), {"prices": {"l4": 1.0}}),
        ({"cpu": LADDER}, target(1, 1), {"prices": {"cpu": -1.0}}),
        ({"cpu": LADDER}, target(1, 1, budget=number(1, "USD/h", "user")), {}),
        ({"cpu": LADDER}, target(1, 1, budget=number(1, "USD/h", "user")), {"prices": {"cpu": 2.0}}),
        ({"cpu": LADDER}, target(1, 1, budget=number(0, "USD/h", "user")), {"prices": {"cpu": 0.0}}),
        ({"cpu": LADDER}, target(1, 1), {"burstiness": 0.5}),
        ({"cpu": LADDER}, target(1, 1), {"max_wait_s": ()}),
        ({"cpu": LADDER}, target(1, 1), {"max_wait_s": (-1.0,)}),
        ({"cpu": (LADDER[0], LADDER[0])}, target(1, 1), {}),
        ({"cpu": LADDER}, Target(requests_per_s=number(1, "item/s"), latency_p99=number(1)), {}),
    ],
)
def test_questions_that_make_no_sense(ladders, wanted, options):
    with pytest.raises(InputError):
        make_plan(MODEL, ladders, wanted, **options)


def test_unknown_policy():
    with pytest.raises(UnknownNameError, match="scheduling policy"):
        make_plan(MODEL, {"cpu": LADDER}, target(1, 1), policy="lifo")


def test_among_equals_the_batch_limit_leaves_room():
    """At low load every limit gives the same p99; the plan takes a large one, unless its batches alone would eat the target."""
    roomy = make_plan(MODEL, {"cpu": LADDER}, target(1, 0.5))
    tight = make_plan(MODEL, {"cpu": LADDER}, target(1, 0.016))
    assert roomy.max_batch_size.value == max(point.batch_size for point in LADDER)
    assert tight.max_batch_size.value < roomy.max_batch_size.value


def test_what_one_replica_does_at_other_loads_holds_for_any_number_of_them():
    plan = make_plan(MODEL, {"cpu": ladder(0.004, 0.0012, doubt=0)}, target(1_500, 0.050))
    rates = [point.requests_per_s.value for point in plan.by_load]
    limit = plan.throughput_limit.value / plan.replicas.value
    assert rates == sorted(rates)
    assert rates[-1] < limit
    assert 1_500 / plan.replicas.value in rates
    for point in plan.by_load[1:-1]:
        assert p99_of(plan, replicas=4, rate=4 * point.requests_per_s.value, count=50_000) == pytest.approx(point.latency_p99.value, rel=0.1)


def test_a_budget_is_never_exceeded_and_says_when_it_binds():
    ladders = {"cpu": ladder(0.004, 0.0012, doubt=0)}
    free = make_plan(MODEL, ladders, target(1_500, 0.030), prices={"cpu": 0.5})
    count = free.replicas.value
    enough = make_plan(MODEL, ladders, target(1_500, 0.030, budget=number(0.5 * count, "USD/h", "user")), prices={"cpu": 0.5})
    short = make_plan(MODEL, ladders, target(1_500, 0.030, budget=number(0.5 * count - 0.1, "USD/h", "user")), prices={"cpu": 0.5})
    assert (enough.feasible, enough.replicas.value) == (True, count)
    assert not short.feasible
    assert short.cost.value <= short.target.budget.value
    assert short.binding.startswith("the budget binds")


def test_a_device_beyond_the_budget_is_not_considered():
    ladders = {"cpu": LADDER, "l4": ladder(0.002, 0.0001, source="estimated")}
    plan = make_plan(MODEL, ladders, target(400, 0.050, budget=number(1.0, "USD/h", "user")), prices={"cpu": 0.3, "l4": 1.5})
    assert {option.device for option in plan.options} == {"cpu"}
    assert "beyond:budget" in {note.code for note in plan.notes}


def test_a_band_that_runs_here_made_wider_is_told_where_it_shows():
    def told(added):
        plan = make_plan(MODEL, {"cpu": LADDER}, target(20, 0.1), experience=Experience(p99_reach=(1.0, added), n=2))
        return plan, [note.text for note in plan.notes if note.code == "reach"]

    plain, texts = told(0.001)
    assert texts == []
    wide, texts = told(0.02)
    assert len(texts) == 1
    assert "20.0 ms above their bands" in texts[0]
    assert wide.latency_p99.ends[1] - plain.latency_p99.ends[1] == pytest.approx(0.019)


def test_a_batch_size_seen_once_has_no_percentiles():
    (first, *_) = LADDER
    once = msgspec.structs.replace(
        first, **{name: msgspec.structs.replace(getattr(first, name), n=1) for name in ("latency_p50", "latency_p95", "latency_p99")}
    )
    assert ladder_table((once, first)).rows[0][1:4] == (once.latency_p50, "seen once", "seen once")
    assert ladder_table((once, first)).rows[1][2:4] == (first.latency_p95, first.latency_p99)
