"""Autoscalers by their published rules, the pool that they steer, loads that change, and the choice among ways to follow them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimass_lab import Study, chart
from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_plain
from aimass_lab.planning.follow import Asked, Comparison
from aimass_lab.planning.pool import Pool, simulate_pool
from aimass_lab.planning.queueing import Bursty, Poisson, ServiceTimes, Trace
from aimass_lab.planning.simulate import simulate_fcfs
from aimass_lab.planning.workloads import Mmpp, Timetable, read_mmpp, read_timetable
from aimass_lab.records import ScalePlan, from_json, to_json
from aimass_lab.scaling import SCALERS, Observation, make_scaler
from aimass_lab.store import Store

SERVICE = ServiceTimes.from_values({b: 0.004 + 0.001 * b for b in range(1, 17)})
everyone = pytest.mark.parametrize("name", sorted(SCALERS))


def arrivals(law, count, seed=0):
    return law.times_s(count, np.random.default_rng(seed))


def pool(**options):
    return Pool(**{"service": SERVICE, "max_batch_size": 8, **options})


def answers(scaler, seen):
    """What a scaler wants, tick by tick, of (ready, metric per replica)."""
    controller, wanted, found = scaler.start(), seen[0][0], []
    for k, (ready, metric) in enumerate(seen, 1):
        fields = {"utilization": 0.0, "requests_per_s": 0.0, "ongoing": 0.0, scaler.metric: metric * (1 if scaler.metric == "utilization" else ready)}
        wanted = controller.wanted(Observation(k * scaler.period_s, ready, wanted, **fields))
        found.append(wanted)
    return found


# --- the rules ---------------------------------------------------------------------------


def test_the_horizontal_pod_autoscaler_by_hand():
    """Twice the target: twice the replicas, at once. Within 10 % of it: nothing. Idle: nothing for five minutes, then what is left to do."""
    scaler = make_scaler("hpa", target=0.5)
    assert answers(scaler, [(4, 1.0)]) == [8]
    assert answers(scaler, [(4, 0.54)]) == [4]
    assert answers(scaler, [(1, 1.0), (1, 1.0)]) == [2, 2]  # the one that is starting counts as idle
    calm = answers(scaler, [(10, 0.5), *[(10, 0.1)] * 25])
    assert calm[:20] == [10] * 20
    assert calm[-1] == 2
    assert answers(make_scaler("hpa", by="requests_per_s", target=10), [(2, 90.0)]) == [6]  # four more at most, or twice as many


def test_keda_by_hand():
    scaler = make_scaler("keda", target=100)
    assert answers(scaler, [(3, 200.0)]) == [6]
    assert answers(scaler, [(3, 105.0)]) == [3]
    assert answers(scaler, [(3, 0.0)] * 11)[-1] == 0


def test_knative_by_hand():
    """Steady: concurrency over 70 % of the target. A jump to more than twice what the pool carries: panic, by the last 6 s alone."""
    scaler = make_scaler("knative", target=10)
    assert answers(scaler, [(2, 7.0)] * 30)[-1] == 2
    jump = answers(scaler, [(2, 7.0)] * 30 + [(2, 70.0)] * 3)
    assert jump[-1] == 20
    idle = answers(scaler, [(1, 7.0)] * 5 + [(1, 0.0)] * 60)
    assert idle[5:30] == [1] * 25
    assert idle[-1] == 0


def test_ray_serve_by_hand():
    """More must be wanted for 30 s, less for 10 minutes."""
    scaler = make_scaler("ray_serve", target=2)
    assert answers(scaler, [(2, 4.0)] * 4) == [2, 2, 2, 4]
    calm = answers(scaler, [(4, 1.0)] * 62)
    assert calm[:60] == [4] * 60
    assert calm[-1] == 2


@everyone
def test_every_scaler_holds_a_pool_that_has_what_it_should(name):
    scaler = make_scaler(name)
    aim = scaler.target * (scaler.target_utilization if name == "knative" else 1)
    assert set(answers(scaler, [(5, aim)] * 100)) == {5}


@everyone
def test_every_scaler_checks_its_options(name):
    with pytest.raises(InputError, match="must be a number above 0"):
        make_scaler(name, target=0)
    with pytest.raises(InputError, match="no option 'speed'"):
        make_scaler(name, speed=1)


# --- the pool ----------------------------------------------------------------------------


def test_one_replica_is_one_queue():
    """The other simulator's trajectory, request by request."""
    times = arrivals(Poisson(400), 20_000)
    run = simulate_pool(times, pool(max_replicas=1))
    alone = simulate_fcfs(times, SERVICE, max_batch_size=8)
    assert (run.finish_s == alone.finish_s).all()
    assert run.mean_replicas == 1
    assert run.attainment(0.02) == pytest.approx((alone.latency_s <= 0.02).mean())


def test_replicas_share_at_random():
    """Each of four is an M/D/1 queue at a quarter of the rate (Pollaczek and Khinchine)."""
    service = ServiceTimes.from_values({1: 0.01})
    run = simulate_pool(arrivals(Poisson(240), 200_000), Pool(service=service, max_batch_size=1, min_replicas=4, max_replicas=4))
    assert run.latency_s.mean() == pytest.approx(0.01 + 0.01 * 0.6 / (2 * 0.4), rel=0.03)


def test_a_replica_that_starts_takes_nothing_until_it_is_ready():
    """Knative with a cold start of 20 s: nothing is answered before, and what came first waits longest."""
    run = simulate_pool(arrivals(Poisson(5), 200), pool(min_replicas=0, start_replicas=0, startup_s=(20.0,), scaler=make_scaler("knative")))
    assert run.finish_s.min() > 20
    assert run.latency_s[0] > 19
    assert run.dropped == 0


def test_what_fails_is_done_again_by_others():
    run = simulate_pool(arrivals(Poisson(1400), 60_000), pool(min_replicas=3, max_replicas=3, mtbf_s=20.0, startup_s=(5.0,)), seed=3)
    assert run.failures >= 3
    assert run.requeued > run.failures
    assert run.dropped == 0
    assert (run.latency_s > 0).all()
    fine = simulate_pool(arrivals(Poisson(1400), 60_000), pool(min_replicas=3, max_replicas=3), seed=3)
    assert run.attainment(0.05) < fine.attainment(0.05)


def test_limits_on_waiting_turn_requests_away_and_keep_the_others_fast():
    times = arrivals(Poisson(1000), 20_000)
    open_, door, patient = (simulate_pool(times, pool(max_replicas=1, **limit)) for limit in ({}, {"max_waiting": 16}, {"patience_s": 0.05}))
    assert open_.dropped == 0
    limit = SERVICE.stable_rate(8)
    for run in (door, patient):
        assert run.dropped / 20_000 == pytest.approx(1 - limit / 1000, abs=0.02)
    assert np.nanmax(door.latency_s) <= 0.012 + 3 * 0.012
    assert np.nanmax(patient.latency_s) <= 0.05 + 0.012


@everyone
@given(low=st.integers(0, 3), most=st.integers(3, 9), seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_limits_on_replicas_hold_and_nothing_is_lost(name, low, most, seed):
    times = arrivals(Bursty(600, burst=8, cycle_s=60), 20_000, seed)
    run = simulate_pool(times, pool(min_replicas=low, max_replicas=most, startup_s=(3.0, 12.0), scaler=make_scaler(name), mtbf_s=200.0), seed=seed)
    assert run.most_replicas <= most
    assert all(low <= wanted <= most for wanted in run.wanted)
    assert run.dropped == 0
    assert (run.latency_s > 0).all()
    assert run.mean_replicas <= most


def test_a_pool_grows_with_its_load_and_shrinks_after_it():
    times = arrivals(Timetable(((0, 20), (600, 20), (601, 500), (1200, 500), (1201, 20), (3000, 20))), 340_000)
    run = simulate_pool(times[times < 3000], pool(max_batch_size=2, startup_s=(10.0,), scaler=make_scaler("hpa"), max_replicas=20))
    ready = dict(zip(run.time_s, run.ready, strict=True))
    assert ready[600.0] == 1
    assert 2 <= ready[1200.0] <= 5
    assert ready[2400.0] == 1


@pytest.mark.parametrize("options", [{"max_batch_size": 99}, {"min_replicas": 5, "max_replicas": 2}, {"startup_s": ()}, {"mtbf_s": 0}, {"startup_s": (-1.0,)}])
def test_pools_that_make_no_sense(options):
    with pytest.raises(InputError):
        pool(**options)


# --- loads -------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [Mmpp((20.0, 200.0, 50.0), (2.0, 0.5, 1.0)), Timetable(((0, 10), (5, 150), (10, 10)))])
def test_changing_rates_keep_their_mean_and_split(law):
    times = arrivals(law, 100_000)
    assert (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(law.rate, rel=0.05)
    assert law.split(4).rate == pytest.approx(law.rate / 4)


def test_a_timetable_is_followed():
    times = arrivals(read_timetable("0:100, 10:100 11:300 20:300"), 100_000)
    by_phase = np.histogram(times % 20, bins=[0, 10, 11, 20])[0] / (times[-1] / 20)
    assert by_phase == pytest.approx([1000, 200, 2700], rel=0.03)


def test_two_states_of_an_mmpp_are_the_bursty_law():
    """Index of dispersion of counts, of the general law and of the special one."""

    def dispersion(law):
        counts = np.histogram(times := arrivals(law, 300_000, 5), bins=np.arange(0, times[-1], 1.0))[0]
        return counts.var() / counts.mean()

    quiet = 50 / (0.8 + 0.2 * 4)
    assert dispersion(Mmpp((quiet, 4 * quiet), (1.6, 0.4))) == pytest.approx(dispersion(Bursty(50, burst=4)), rel=0.15)


@pytest.mark.parametrize("text", ["", "0:100", "5:1 6:2", "0:1 0:2", "0:-1 5:2", "0:0 5:0", "a:b c:d"])
def test_timetables_that_make_no_sense(text):
    with pytest.raises(InputError, match=r"timetable"):
        read_timetable(text)


def test_an_mmpp_as_text():
    assert read_mmpp("20:60, 200:5") == Mmpp((20.0, 200.0), (60.0, 5.0))
    for text in ("", "20:60", "fast:1 slow:2", "20 30"):
        with pytest.raises(InputError, match="MMPP"):
            read_mmpp(text)


@pytest.mark.parametrize(("rates", "times"), [((1.0,), (1.0,)), ((1.0, -1.0), (1.0, 1.0)), ((0.0, 0.0), (1.0, 1.0)), ((1.0, 2.0), (1.0, 0.0))])
def test_mmpps_that_make_no_sense(rates, times):
    with pytest.raises(InputError, match="MMPP"):
        Mmpp(rates, times)


# --- the choice --------------------------------------------------------------------------


def comparison(law, scalers=(), **options):
    asked = Asked(arrivals=law, **{"span_s": 120.0, "latency_s": 0.05, "max_replicas": 12, **options})
    return Comparison(asked, SERVICE, 8, scalers)


def test_the_static_number_is_the_fewest_that_meets_the_target():
    compared = comparison(Poisson(1500))
    (static,) = compared.all(lambda share, text: None)
    count = static.pool.min_replicas
    assert compared.meets(static)
    fewer = [simulate_pool(times, pool(min_replicas=count - 1, max_replicas=count - 1), seed=[0, k]) for k, times in enumerate(compared.chosen_by)]
    assert min(run.attainment(0.05) for run in fewer) < 0.99


def test_a_trace_is_cut_and_the_rest_held_out():
    recorded = tuple(arrivals(Poisson(100), 5_000).tolist())
    first, rest = Asked(arrivals=Trace(recorded), span_s=1, latency_s=0.05).draws()
    assert len(first[0]) + len(rest[0]) == 5_000
    assert len(first[0]) == pytest.approx(3_000, rel=0.05)
    assert rest[0][0] >= 0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    study = Study(net, torch.randn(4, 256), name="net")
    study.store = Store(tmp_path_factory.mktemp("store") / "history.db")
    study.profile(seconds=0.3)
    return study


def test_a_study_scales(study, tmp_path):
    limit = study.scale(rate=1, p99="1s", seconds=20, scaler=()).replica_limit.value
    rate = 0.4 * limit if limit < 5000 else 2000.0
    plan = study.scale(rate=rate, burst=3, p99="1s", seconds=60, attainment=0.9, scaler=("hpa", "knative"), startup="2s", price=0.5, max_replicas=6)
    assert plan.feasible
    best = plan.options[plan.recommended]
    assert best.meets
    assert best.held_out is not None
    assert best.reason == "the answer"
    assert best.cost.value == pytest.approx(0.5 * best.replicas.value)
    assert min(o.replicas.value for o in plan.options if o.meets) == pytest.approx(best.replicas.value, abs=1e-3)
    assert plan.unstable_from.value == pytest.approx(6 * plan.replica_limit.value)
    assert plan.startup_time.source == "user"
    assert from_json(to_json(plan), ScalePlan) == plan
    assert "one replica is unstable from" in render_plain(plan)
    assert len(chart(plan).data) == 6


def test_arrivals_that_jump_between_rates(study):
    plan = study.scale(mmpp="10:30 60:5", p99="5s", seconds=60, scaler=(), startup="1s")
    assert plan.requests_per_s.value == pytest.approx((10 * 30 + 60 * 5) / 35)
    assert "MMPP" in plan.load


def test_more_than_the_pool_carries_is_called_unstable(study):
    """The limit is asked for at the same target, which the largest batch follows: a smaller batch may carry more, where a busy machine slowed a large one."""
    limit = study.scale(rate=1, p99="20ms", seconds=5, scaler=()).replica_limit.value
    plan = study.scale(rate=1.5 * limit, p99="20ms", seconds=20_000 / limit, scaler=(), max_replicas=1, startup="1s")
    assert not plan.feasible
    assert plan.binding.startswith("unstable from")


def test_a_recorded_trace_on_the_command_line(model_file, tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    trace.write_text("time\n" + "\n".join(map(str, arrivals(Poisson(50), 2_000).tolist())))
    words = ["scale", f"{model_file}:make", "--trace", str(trace), "--p99", "2s", "--scaler", "keda", "--json", "--attainment", "0.9"]
    assert main(words) == 0
    plan = from_json(capsys.readouterr().out, ScalePlan)
    assert "2000 requests" in plan.load
    assert {option.scaler for option in plan.options} == {"none", "keda"}
    assert "W-STARTUP-NOT-MEASURED" in {note.code for note in plan.notes}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "none was given"),
        ({"rate": 5, "timetable": "0:1 5:2"}, "rate and timetable was given"),
        ({"trace": "nowhere.csv"}, "cannot read the trace"),
        ({"rate": 5, "attainment": 1.5}, "attainment: 1.5 is not a number above 0 and at most 1"),
        ({"rate": 5, "attainment": 1.0}, "attainment between 0 and 1"),
        ({"rate": 1e6, "seconds": 1e6}, r"1e\+12 requests to simulate"),
        ({"rate": 5, "seconds": math.inf}, "time"),
        ({"rate": 5, "price": -1.0}, "price: -1.0 is not a number of at least 0"),
    ],
)
def test_questions_that_make_no_sense(study, asked, message):
    with pytest.raises(InputError, match=message):
        study.scale(p99="1s", **asked)


def test_a_budget_is_never_exceeded(study):
    plan = study.scale(rate=300, burst=6, p99="1s", seconds=60, scaler=("hpa",), startup="1s", price=0.5, budget=2.2)
    assert all(option.max_replicas * 0.5 <= 2.2 and option.cost.interval[1] <= 2.2 for option in plan.options)
    with pytest.raises(InputError, match="does not pay for one replica"):
        study.scale(rate=5, p99="1s", price=3.0, budget=1.0)
    with pytest.raises(InputError, match="without a price"):
        study.scale(rate=5, p99="1s", budget=1.0)


def test_an_unknown_autoscaler(study):
    with pytest.raises(UnknownNameError, match="autoscaler"):
        study.scale(p99="1s", rate=5, scaler=("vpa",))
