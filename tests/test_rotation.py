"""Models that take turns on one device: cut without a change, run under policies, predicted, replayed."""

import contextlib
import math
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from aimass_lab import Study, Workload, chart
from aimass_lab.errors import InputError, ModelError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_plain
from aimass_lab.headlines import describe_policy
from aimass_lab.records import Rotation, from_json, to_json
from aimass_lab.rotation import Stream, rotate
from aimass_lab.rotation.figures import Outcome, fairness
from aimass_lab.rotation.lanes import Crew, ModelLane
from aimass_lab.rotation.segments import Pieces, _spread
from aimass_lab.rotation.tasks import make_requests, rates_for
from aimass_lab.rotation.worker import Worker, pause
from aimass_lab.scheduling import Limits, Request, SimulatedLane, make_policy, run_jobs


def chain(width=512, depth=8):
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())])


def workload(name, width=512, depth=8, rows=16):
    return Workload(chain(width, depth), torch.randn(rows, width), name=name)


def threads():
    return {t for t in threading.enumerate() if t.name == "aimass-rotation"}


# --- workers -----------------------------------------------------------------------------


def test_a_worker_stops_where_it_is_told_and_goes_on_there():
    seen = []

    def work():
        for k in range(3):
            seen.append(k)
            pause()
        return "done"

    worker = Worker()
    worker.start(work)
    assert seen == []
    for k in range(3):
        worker.step()
        assert seen == list(range(k + 1))
        assert not worker.finished
    worker.step()
    assert worker.finished
    assert worker.result == "done"
    worker.close()
    assert not threads()


def test_an_error_comes_out_of_the_step_in_which_it_happened():
    def work():
        pause()
        raise KeyError("weights")

    worker = Worker()
    worker.start(work)
    worker.step()
    with pytest.raises(KeyError, match="weights"):
        worker.step()
    worker.start(lambda: 7)  # the worker lives
    worker.step()
    assert worker.result == 7
    worker.close()


def test_a_call_that_is_not_wanted_any_more_is_unwound():
    ended = []

    def work():
        try:
            pause()
        finally:
            ended.append(True)

    worker = Worker()
    worker.start(work)
    worker.step()
    worker.close()
    assert ended == [True]
    assert not threads()


def test_elsewhere_a_pause_is_nothing():
    pause()


# --- segments ----------------------------------------------------------------------------


def test_segments_are_about_equal_and_not_too_short():
    seen = [((f"{k}", 1), 0.001 * k) for k in range(16)]
    chosen = sorted(int(name) for name, _ in _spread(seen, 0.016))
    assert len(chosen) == 15  # 16 segments
    assert sorted(int(name) for name, _ in _spread(seen, 0.0012)) in ([1], [])
    assert _spread(seen, 0.0004) == frozenset()
    assert _spread([], 1.0) == frozenset()


def test_a_call_in_segments_computes_what_it_computes_at_once_and_calls_that_cross_do_not_meet():
    net = workload("net", width=64, depth=4, rows=4)
    pieces = Pieces(net)
    pieces.places = frozenset({("2", 1), ("4", 1)})
    with torch.inference_mode():
        whole = net.model(*net.call.args)
    with pieces:
        first, second = Worker(), Worker()
        for worker in (first, second):
            worker.start(pieces.call)
        steps = 0
        while not (first.finished and second.finished):
            steps += 1
            for worker in (first, second):
                worker.step()
    assert steps == 3
    for worker in (first, second):
        assert torch.allclose(worker.result, whole, atol=1e-6)
        worker.close()
    assert not any(module._forward_pre_hooks for module in net.model.modules())


# --- jobs --------------------------------------------------------------------------------


def test_streams_without_a_rate_share_the_load():
    streams = [Stream(workload=workload(name, 8, 1), rate=rate) for name, rate in (("a", None), ("b", 20.0), ("c", None))]
    rates = rates_for(streams, [0.001, 0.01, 0.1], 0.8, 1)
    assert rates == pytest.approx([300, 20, 3])
    with pytest.raises(InputError, match="given rates alone keep 2"):
        rates_for(streams, [0.001, 0.1, 0.1], 0.8, 1)


def test_requests_come_at_their_rates_in_order():
    streams = [Stream(workload=workload(name, 8, 1), deadline_s=0.5, priority=k) for k, name in enumerate("ab")]
    requests, stream_of = make_requests(streams, [300.0, 30.0], [0.001, 0.01], seconds=20)
    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)
    assert stream_of.count(0) == pytest.approx(6000, rel=0.05)
    assert stream_of.count(1) == pytest.approx(600, rel=0.15)
    assert {(r.tenant, r.priority, r.expected_s) for r in requests} == {("a", 0, 0.001), ("b", 1, 0.01)}
    assert all(r.deadline_s == r.arrival_s + 0.5 for r in requests)


def test_fairness_counts_from_when_all_have_work():
    requests = [Request(0, 0.0, tenant="a"), Request(1, 0.0, tenant="b")]
    shared = run_jobs(requests, make_policy("round_robin", quantum_s=1), [SimulatedLane([[1] * 10, [1] * 10])])
    alone = run_jobs(requests, make_policy("fcfs"), [SimulatedLane([[1] * 10, [1] * 10])])
    assert fairness(Outcome([0, 1], shared, shared, [], []), [1, 1]) == pytest.approx(1, abs=0.01)
    assert fairness(Outcome([0, 1], alone, alone, [], []), [1, 1]) == pytest.approx(0.5)


# --- the real thing ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def rotation():
    nets = [workload("small", 512, 12, rows=64), workload("large", 1024, 10, rows=64)]  # the small one takes several pieces on a fast machine too
    states = [{k: v.clone() for k, v in net.model.state_dict().items()} for net in nets]
    nets[0].model.train()
    streams = [Stream(workload=net, priority=k, weight=2 - k, deadline_s=1.0) for k, net in enumerate(nets)]
    policies = [make_policy("fcfs"), make_policy("round_robin", quantum_s=0.002), make_policy("priority")]
    record = rotate(streams, policies, load=0.8, seconds=0.8)
    assert nets[0].model.training
    for net, state in zip(nets, states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in net.model.state_dict().items())
        assert not any(module._forward_pre_hooks for module in net.model.modules())
    assert not threads()
    return record


def test_every_call_is_run_under_every_policy(rotation):
    counts = {run.num_jobs for run in rotation.runs}
    assert len(counts) == 1
    assert [run.policy for run in rotation.runs] == ["fcfs", "round_robin", "priority"]
    for run in rotation.runs:
        jobs = [job for job, finished in zip(run.real.job, run.real.finished, strict=True) if finished]
        assert sorted(jobs) == list(range(run.num_jobs)) or len(run.real.job) == 2000
        assert run.metric("mean latency").measured.n == run.num_jobs
        assert all(end <= start for end, start in zip(run.real.end_s, run.real.start_s[1:], strict=False))


def test_models_are_cut_and_only_policies_that_interrupt_interrupt(rotation):
    assert all(model.segments > 1 for model in rotation.models)
    fcfs, turns, urgent = rotation.runs
    assert fcfs.interruptions.value == 0
    assert turns.interruptions.value > 0
    assert urgent.metric("mean latency", "small").measured.value < fcfs.metric("mean latency", "small").measured.value


def test_the_replay_is_the_run_and_errors_add_up(rotation):
    """A few calls decide a p99, and one pause of the machine moves them: the bar is for the middle of all policies. The exact check follows."""
    errors = []
    for run in rotation.runs:
        for metric in run.metrics:
            if metric.name in ("mean latency", "p99 latency") and not metric.model:
                errors.append(abs(metric.mechanism_error.value))
                product = (1 + metric.mechanism_error.value) * (1 + metric.service_error.value)
                assert product == pytest.approx(1 + metric.error.value)
    assert np.median(errors) < 0.25


@pytest.mark.parametrize("name", ["fcfs", "round_robin", "priority"])
def test_with_each_segments_own_times_the_simulation_is_the_run(name):
    """Whatever the machine did: the loop takes the same decisions at the same times."""

    class AsRun(SimulatedLane):
        def run(self, job):
            self._overhead_s = next(overheads)
            return super().run(job)

    nets = [workload("a", 256, 6), workload("b", 128, 8)]
    streams = [Stream(workload=net, priority=k) for k, net in enumerate(nets)]
    requests, stream_of = make_requests(streams, [900.0, 900.0], [0.0003, 0.0002], seconds=0.05)
    policy = make_policy(name, {"quantum_s": 1e-6} if name == "round_robin" else None)
    pieces = [Pieces(net) for net in nets]
    for piece in pieces:
        piece.places = frozenset({("2", 1), ("4", 1)})
    with contextlib.ExitStack() as stack:
        crew = stack.enter_context(Crew(time.thread_time))
        for piece in pieces:
            stack.enter_context(piece)
        lane = ModelLane(pieces, stream_of, crew)
        real = run_jobs(requests, policy, [lane])
    times = [[used for _, used in sorted(lane.segments_s[k])] for k in range(len(requests))]
    overheads = iter(lane.overheads_s)
    again = run_jobs(requests, policy, [AsRun(times)])
    assert [(t.job, t.finished) for t in again.turns] == [(t.job, t.finished) for t in real.turns]
    assert [job.finish_s for job in again.jobs] == pytest.approx([job.finish_s for job in real.jobs])


def test_the_record_travels_and_is_shown(rotation):
    assert from_json(to_json(rotation), Rotation) == rotation
    text = render_plain(rotation)
    assert "round_robin(quantum_s=0.002)" in text
    assert "of it mechanism" in text
    assert "<table" in render_html(rotation)
    figure = chart(rotation)
    assert len(figure.data) == len(rotation.runs) * len(rotation.models)
    assert {kind for bar in figure.data for kind in bar.y} == {"run", "replay", "prediction"}


def test_two_lanes_finish_sooner_by_their_own_clocks():
    nets = [workload("a", 512, 6), workload("b", 512, 6)]
    one, two = (rotate([Stream(workload=net, rate=400.0) for net in nets], [make_policy("fcfs")], seconds=0.2, lanes=lanes) for lanes in (1, 2))
    assert set(two.runs[0].real.lane) == {0, 1}
    assert max(two.runs[0].real.end_s) < max(one.runs[0].real.end_s)
    assert "assumes:independent-lanes" in {note.code for note in two.notes}


def test_a_model_without_a_place_to_stop_is_one_segment_and_says_so():
    class Whole(nn.Module):
        def forward(self, x):
            return x @ x.T

    record = rotate([Stream(workload=Workload(Whole(), torch.randn(64, 64)))], [make_policy("srpt")], seconds=0.05)
    assert record.models[0].segments == 1
    assert "W-SINGLE-SEGMENT" in {note.code for note in record.notes}


def test_calls_beyond_the_limit_are_turned_away_and_counted():
    record = rotate([Stream(workload=workload("net"), rate=2000.0)], [make_policy("fcfs")], seconds=0.2, limits=Limits(max_jobs=2, max_waiting=3))
    assert "dropped" in {note.code for note in record.notes}
    assert record.runs[0].metric("mean latency").measured.n < record.runs[0].num_jobs


def test_a_model_that_raises_in_the_middle_says_so_and_leaves_nothing_behind():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.calls = nn.Linear(8, 8), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 9:
                raise RuntimeError("enough")
            return self.first(x)

    model = Moody()
    with pytest.raises(ModelError, match="enough"):
        rotate([Stream(workload=Workload(model, torch.randn(2, 8)))], [make_policy("fcfs")], seconds=0.1)
    assert model.calls == 0
    assert not threads()


def test_a_study_rotates_beside_others_in_any_form():
    study = Study(chain(), torch.randn(16, 512), name="mine")
    other = Study(chain(256, 4), torch.randn(16, 256), name="other")
    record = study.rotate(
        beside=(other, (chain(128, 4), torch.randn(16, 128))),
        policy=("edf",),
        seconds=0.1,
        deadline={"mine": "20ms"},
        weight={"other": 3},
        rate={"other": "50/s"},
    )
    assert [model.model.name for model in record.models] == ["mine", "other", "Sequential"]
    assert record.models[0].deadline.value == 0.02
    assert record.models[1].rate.source == "user"
    assert record.models[1].weight == 3
    assert "deadlines met" in {metric.name for metric in record.runs[0].metrics}
    assert study.results[-1] is record or study.results[-1] == record


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"policy": ("lifo",)}, "no scheduling policy called 'lifo'"),
        ({"policy": ("round_robin(quantum=1)",)}, "no option 'quantum'"),
        ({"policy": ("round_robin(quantum_s=-1)",)}, "quantum_s must be a positive time"),
        ({"policy": ("round robin",)}, "'round robin' is no scheduling policy"),
        ({"rate": {"other": "5/s"}}, "no model here is called 'other'"),
        ({"weight": {"mine": "heavy"}}, "'heavy' is not a number"),
        ({"weight": {"mine": "-1"}}, "weight of 'mine' must be above 0"),
        ({"load": 0.0}, "load must be above 0"),
        ({"clock": "wall", "lanes": 2}, "2 lanes cannot be run by the clock 'wall'"),
        ({"beside": ("net",)}, "a str cannot stand beside a model"),
        ({"burst": 0.5}, "burst: 0.5 is not a number from 1 to 1000"),
        ({"rate": {"mine": "1e9/s"}}, "calls are more than the 5,000,000 that are kept"),
    ],
)
def test_questions_that_make_no_sense(asked, message):
    study = Study(chain(8, 1), torch.randn(2, 8), name="mine")
    with pytest.raises(InputError, match=message):
        study.rotate(seconds=0.05, **asked)


def test_two_models_of_one_name_are_asked_for_names():
    with pytest.raises(InputError, match="two models are called 'a'"):
        rotate([Stream(workload=workload("a", 8, 1)), Stream(workload=workload("a", 8, 1))], [make_policy("fcfs")])


def test_on_the_command_line_further_models_are_named_like_the_first(model_file, capsys):
    words = [
        "rotate",
        f"{model_file}:make",
        "--beside",
        f"{model_file}:judged",
        "--seconds",
        "0.1",
        "--policy",
        "sjf",
        "--policy",
        "round_robin(quantum_s=0.01)",
        "--json",
    ]
    assert main(words) == 0
    record = from_json(capsys.readouterr().out, Rotation)
    assert [model.model.name for model in record.models] == ["Net", "judged"]
    assert [(run.policy, run.options) for run in record.runs] == [("sjf", {}), ("round_robin", {"quantum_s": 0.01})]
    assert main(["rotate", f"{model_file}:make", "--beside", "nothing"]) == 2
    assert "does not name a model" in capsys.readouterr().err
    assert math.isfinite(record.runs[0].overhead.value)


def test_in_a_notebook_further_models_are_variables():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "aimass_lab")
    shell.user_ns.update(net=chain(64, 2), x=torch.randn(4, 64), other=Workload(chain(32, 2), torch.randn(4, 32), name="other"))
    result = shell.run_line_magic("aimass", "rotate net x --beside other --seconds 0.05 --policy priority(ageing_s=60)")
    assert [model.model.name for model in result.models] == ["net", "other"]
    assert describe_policy(result.runs[0]) == "priority(ageing_s=60)"
    assert shell.run_line_magic("aimass", "demand").model.name == "net"  # the one that is meant without a name stays
    shell.run_line_magic("unload_ext", "aimass_lab")
