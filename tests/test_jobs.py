"""Jobs beside models online: worked out by hand, against queueing theory, and what a user is told."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import TinyCNN, TinyMLP

from aimass_lab import Study, chart
from aimass_lab.errors import InputError, ModelError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.jobs import Online, Task, read_jobs
from aimass_lab.jobs import simulate as simulating
from aimass_lab.jobs.mix import draw_mix
from aimass_lab.jobs.simulate import Question, alone, simulate
from aimass_lab.planning.queueing import ServiceTimes
from aimass_lab.planning.simulate import band_of
from aimass_lab.profiling.steps import time_training_step
from aimass_lab.records import JobPlan, from_json, to_json
from aimass_lab.scheduling import SimulatedLane, make_policy, run_jobs
from aimass_lab.workload import Workload


@pytest.fixture
def study(tmp_path):
    return Study(TinyMLP(), torch.randn(4, 8), name="net", store=tmp_path / "store.db")


def ends(plan, run=None):
    """Seconds at which jobs end, by name."""
    return {job.job: None if job.ends is None else job.ends.value for job in (run or plan.chosen).jobs}


def batch(name="night", *, seconds, call_s=1.0, parallel=1, **more):
    calls = round(seconds / call_s / parallel)
    return Task(name=name, times=ServiceTimes.from_values({1: call_s}), batch=1, parts=parallel, calls=calls, parallel=parallel, **more)


def online(*, rate, call_s, name="net", p99_s=1.0, priority=0):
    return Online(name=name, times=ServiceTimes.from_values({1: call_s}), rate=rate, p99_s=p99_s, tenant=name, priority=priority)


# --- by hand -----------------------------------------------------------------------------


def test_three_kinds_of_jobs_by_hand(study):
    """Two devices. The batch is cut into two shards of five calls: 5 s. Then the training run, 8 steps of 0.5 s: 9 s. The search, four trials of 2 s
    on at most one device, waits for the first free one at 5 s and ends at 13 s."""
    jobs = {
        "night": "batch(items=100, batch=10, time=1s, priority=0)",
        "tune": "training(steps=8, time=0.5s, after=night, by=10s)",
        "sweep": "search(trials=4, steps=4, time=500ms, parallel=1, priority=2, by=12s)",
    }
    plan = study.schedule(job=jobs, devices=2, price=3.6, policy="priority(ageing_s=inf)")
    assert ends(plan) == {"night": 5.0, "tune": 9.0, "sweep": 13.0}
    assert [job.meets for job in plan.chosen.jobs] == [None, True, False]
    assert plan.chosen.jobs[0].cost.value == pytest.approx(0.01)
    assert plan.chosen.jobs[0].ends.weakest_source == "estimated", "a simulation is no measurement, whatever it starts from"
    assert not plan.feasible
    assert "sweep" in plan.binding or "no policy" in plan.binding
    assert [(r.change, r.feasible) for r in plan.remedies] == [("no limit on how many devices sweep may use at once", True)]
    assert from_json(to_json(plan), JobPlan) == plan
    assert [list(bar.y) for bar in chart(plan).data[:2]] == [["night", "tune", "sweep"], ["tune", "sweep"]]
    for text in (render_text(plan), render_html(plan)):
        assert "0.010 USD" in text
        assert "late by 1.00 s" in text


def test_a_job_too_long_for_its_deadline_says_so_and_what_would_do(study):
    plan = study.schedule(job={"night": "batch(items=100, batch=1, time=1s, by=40s)"}, policy="fcfs")
    assert "night ends after 100 s on 1 device where nobody else is, and is due by 40.0 s" in plan.binding
    assert "2 more devices" in plan.binding
    assert [(r.change, r.feasible) for r in plan.remedies] == [("2 more devices", True)]


def test_a_training_run_is_not_quicker_on_more_devices(study):
    plan = study.schedule(job={"tune": "training(steps=100, time=1s, by=40s)"}, policy="fcfs")
    assert ends(plan) == {"tune": 100.0}
    assert [r.feasible for r in plan.remedies] == [False]
    assert "not enough by itself" in plan.binding


def test_tenants_have_what_their_weights_say(study, tmp_path):
    """Equal work W for weights 2 : 1: the heavy one gets two thirds until it ends at 1.5 W, the other ends at 2 W."""
    table = tmp_path / "jobs.toml"
    table.write_text("""
        [jobs.a]
        kind = "training"
        steps = 1000
        time = "10ms"
        tenant = "heavy"
        [jobs.b]
        kind = "training"
        steps = 1000
        time = "10ms"
        tenant = "light"
        [tenants.heavy]
        weight = 2
        [tenants.light]
    """)
    plan = study.schedule(jobs=str(table), policy="weighted_fair")
    assert ends(plan)["a"] == pytest.approx(15, rel=0.01)
    assert ends(plan)["b"] == pytest.approx(20, rel=0.01)


def test_quotas_of_jobs_and_of_device_time(study, tmp_path):
    table = tmp_path / "jobs.toml"
    table.write_text("""
        [jobs.first]
        kind = "search"
        trials = 3
        time = "10s"
        tenant = "lab"
        [jobs.second]
        kind = "training"
        steps = 10
        time = "1s"
        tenant = "lab"
        priority = 2
        [jobs.third]
        kind = "training"
        steps = 30
        time = "1s"
        tenant = "lab"
        priority = 3
        [jobs.fourth]
        kind = "training"
        steps = 1
        time = "1s"
        after = ["third"]
        [tenants.lab]
        max_jobs = 1
        device_seconds = "60s"
    """)
    plan = study.schedule(jobs=str(table), devices=4, policy="fcfs")
    assert ends(plan) == {"first": 10.0, "second": 20.0, "third": None, "fourth": None}, "one job at a time, though there are four devices"
    assert "20.0 s of device time are left to lab, and it may take 30.0 s" in plan.job("third").refused
    assert "after third" in plan.job("fourth").refused
    assert sum(job.work.value for job in plan.jobs if job.tenant == "lab" and job.refused is None) <= 60
    assert not plan.feasible


# --- against theory ----------------------------------------------------------------------


def test_strict_priority_costs_the_rest_of_a_call_of_the_job():
    """A job that never ends is a server that takes vacations of one call V whenever the queue is empty. Mean latency of M/D/1 with such
    vacations: S + rate S² / 2 (1 - rate S) + V / 2 (Fuhrmann and Cooper 1985)."""
    rate, call_s, vacation_s = 40.0, 0.01, 0.03
    mix = draw_mix([online(rate=rate, call_s=call_s)], [batch(seconds=420, call_s=vacation_s)], span_s=600, factor=1, level=0.5, seed=[0])
    schedule = run_jobs(mix.requests, make_policy("priority", ageing_s=math.inf), [SimulatedLane(mix.segments_s)])
    latency = np.mean([job.latency_s for job in schedule.jobs if not job.request.job])
    expected = call_s + rate * call_s**2 / (2 * (1 - rate * call_s)) + vacation_s / 2
    assert latency == pytest.approx(expected, rel=0.03)


def test_the_job_gets_what_the_models_leave():
    """Two models keep 0.6 of a device busy: a job of 60 s needs 150 s."""
    models = (online(rate=10, call_s=0.03), online(rate=6, call_s=0.05, name="other"))
    question = Question(devices=1, online=models, tasks=(batch(seconds=60, call_s=0.05),))
    result = simulate(question, make_policy("priority", ageing_s=math.inf), replications=3)
    assert band_of(result.ends_s["night"]).value == pytest.approx(150, rel=0.1)
    assert 0.97 <= band_of(result.utilization).value <= 1


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("policy", ["fcfs", "edf", "srpt", "priority", "weighted_fair"])
def test_calls_alone_are_what_the_loop_makes_of_them(policy, devices):
    """Two models, of which one is more urgent, later due and shorter: some policies serve them as they come, some do not."""
    times = ServiceTimes.from_samples({1: np.random.default_rng(0).lognormal(-3.0, 0.8, 40)})
    urgent = Online(name="b", times=ServiceTimes.from_values({1: 0.01}), beside=(times,), rate=10, p99_s=5.0, tenant="b", priority=0)
    patient = Online(name="a", times=times, rate=10, p99_s=1.0, tenant="a", priority=1)
    ruled, chosen = False, make_policy(policy)
    for models in ((patient,), (patient, urgent)):
        calm = draw_mix(models, (), span_s=30, factor=1, level=0.5, seed=[1])
        looped = run_jobs(calm.requests, chosen, [SimulatedLane(calm.segments_s) for _ in range(devices)]).jobs
        assert [(job.begin_s, job.finish_s) for job in alone(calm, chosen, devices)] == [(job.begin_s, job.finish_s) for job in looped]
        begins = [job.begin_s for job in looped]
        ruled = ruled or begins != sorted(begins)
    assert ruled == (policy != "fcfs"), "or the policies make no difference here, and nothing was shown"


def test_a_long_plan_shows_that_it_is_at_work(study):
    """Each simulation tells, those that look for a remedy, too: between two of them a terminal that shows nothing looks dead, and an interrupt waits."""
    told = []
    with study.telling(lambda share, text: told.append((share, text))):
        plan = study.schedule(job={"night": "batch(items=100, batch=1, time=1s, by=40s)"}, policy=("fcfs", "edf"))
    assert [r.change for r in plan.remedies] == ["2 more devices"]
    shares, texts = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert texts.count("simulating 1 job under fcfs") == texts.count("simulating 1 job under edf") == simulating.REPLICATIONS
    assert texts.count("whether it would hold with 2 more devices") == 3


def test_jobs_simulated_shorter_than_they_are_end_when_they_would(monkeypatch):
    models = (online(rate=20, call_s=0.02),)
    tasks = (batch(seconds=30, call_s=0.04), batch("second", seconds=45, call_s=0.04, at_s=15.0))
    question = Question(devices=1, online=models, tasks=tasks)
    policy = make_policy("priority", ageing_s=math.inf)
    whole = simulate(question, policy, replications=3)
    assert question.factor == 1
    monkeypatch.setattr(simulating, "MOST_SEGMENTS", 1500)
    assert question.factor > 4
    short = simulate(question, policy, replications=7)
    for name in ("night", "second"):
        assert band_of(short.ends_s[name]).value == pytest.approx(band_of(whole.ends_s[name]).value, rel=0.12)


@pytest.mark.parametrize(("devices", "latency_s"), [(1, 0.04), (2, 0.03), (3, 0.03)])
def test_an_ensemble_answers_when_all_its_models_have(devices, latency_s):
    """Calls of 10 and 30 ms: one after the other on one device, side by side on more; at a rate at which requests hardly ever meet."""
    vote = Online(
        name="vote", times=ServiceTimes.from_values({1: 0.01}), beside=(ServiceTimes.from_values({1: 0.03}),), rate=0.05, p99_s=1.0, tenant="vote"
    )  # fmt: skip
    assert vote.busy == pytest.approx(0.05 * 0.04)
    mix = draw_mix([vote], [], span_s=4000, factor=1, level=0.5, seed=[0])
    schedule = run_jobs(mix.requests, make_policy("fcfs"), [SimulatedLane(mix.segments_s) for _ in range(devices)])
    answers = vote.latencies_s(schedule.jobs)
    assert len(answers) == len(mix.requests) / 2
    assert np.median([latency for _, latency in answers]) == pytest.approx(latency_s)


def test_first_come_first_served_lets_calls_wait_for_the_whole_job():
    question = Question(devices=1, online=(online(rate=10, call_s=0.01),), tasks=(batch(seconds=20, call_s=0.05),))
    waits = {name: simulate(question, make_policy(name), replications=3).p99_s["net"] for name in ("fcfs", "edf")}
    assert min(waits["fcfs"]) > 15, "nearly the whole job, for those that came first"
    assert max(waits["edf"]) < 1


# --- with a real model -------------------------------------------------------------------


def test_a_plan_is_measured_run_here_and_held_against_what_was_foretold(study, monkeypatch):
    """Calls of the model itself, and training steps of a copy, beside the model online; the simulation given the run's times ends where it ended.

    What passes between two calls is the same each time: the replay knows its mean, and one pause of the machine would be in one place of the run.
    """
    monkeypatch.setattr("aimass_lab.rotation.jobs.Pace", lambda: SimpleNamespace(lap=lambda: 2e-6))
    before = {name: value.clone() for name, value in study.model.state_dict().items()}
    threads = torch.get_num_threads()
    jobs = {"night": "batch(items=20000, batch=64, by=1h)", "tune": "training(steps=200, batch=2, after=night)"}
    rate, p99 = {"net": "300", "vote": "200"}, {"net": "30s", "vote": "1min"}
    plan = study.schedule(job=jobs, rate=rate, p99=p99, ensemble={"vote": "net+net"}, policy="priority(ageing_s=inf)", seconds=0.05, run=0.2, devices=2)
    assert plan.job("tune").call_time.weakest_source == "measured"
    assert plan.job("tune").work.weakest_source == "estimated", "nobody ran it yet"
    assert plan.job("tune").memory_bytes.value > 256 * 2**20
    assert plan.environment.device == "cpu"
    assert plan.online[1].call_time.value == pytest.approx(2 * plan.online[0].call_time.value)
    assert [outcome.model for outcome in plan.chosen.online] == ["net", "vote"]
    assert "assumes:step" in {note.code for note in plan.notes}
    found = {(m.name, m.model): m for m in plan.ran.metrics}
    assert set(found) == {("end", "night"), ("end", "tune"), *((name, model) for name in ("mean latency", "p99 latency") for model in ("net", "vote"))}
    assert found["end", "night"].measured.value < found["end", "tune"].measured.value
    for metric in plan.ran.metrics:
        assert metric.measured.source == "measured"
        assert metric.predicted.interval[0] <= metric.predicted.value <= metric.predicted.interval[1]
        assert metric.mechanism_error.value == pytest.approx(0, abs=1e-6)
    assert "predicted, run, replayed" in render_text(plan)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in study.model.state_dict().items())
    assert study.model.training


def test_another_devices_steps_are_predicted(study):
    plan = study.schedule(job={"tune": "training(steps=100)"}, device="l4", policy="fcfs")
    step = plan.job("tune").call_time
    assert step.weakest_source == "assumed", "nobody checked what a step takes over its FLOPs"
    assert step.interval[0] < step.value < step.interval[1]
    assert (plan.job("tune").accelerators, plan.environment) == (1, None)


def test_a_step_is_timed_on_a_copy():
    model = TinyCNN()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    workload = Workload(model, torch.randn(4, 1, 8, 8))
    state = torch.get_rng_state()
    step = time_training_step(workload, batch_size=2, budget_s=0.01)
    assert len(step.samples_s) >= 5
    assert step.latency_p50.source == "measured"
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items()), "batch norm's statistics too"


def test_a_step_that_cannot_be_made_says_why():
    frozen = TinyMLP().requires_grad_(False)
    with pytest.raises(InputError, match="no parameter to train"):
        time_training_step(Workload(frozen, torch.randn(4, 8)))

    class Breaks(TinyMLP):
        def forward(self, x):
            if self.training:
                raise RuntimeError("no labels")
            return super().forward(x)

    with pytest.raises(ModelError, match="no labels"):
        time_training_step(Workload(Breaks(), torch.randn(4, 8)))


# --- what a user gets wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no job"),
        ({"job": {"a": "batch(by=10min)"}}, "does not say how many items"),
        ({"job": {"a": "batch(items=many)"}}, r"job a=batch\(items=many\): items is 'many', not a whole number\nhelp"),
        ({"job": {"a": "batch(items=0)"}}, "items is '0', not a whole number of at least 1\nhelp"),
        ({"job": {"a": "batch(items=1, cores=-2)"}}, "cores is '-2', not a number above 0\nhelp"),
        ({"job": {"a": "nightly(items=3)"}}, "kind is 'nightly', not batch or training or search\nhelp"),
        ({"job": {"a": "batch(items=3, size=3)"}}, "there is no field 'size'\nhelp"),
        ({"job": {"a": "batch(items=3, time=1s, after=b)"}}, "after 'b', which is no job"),
        ({"job": {"a": "training(steps=3, time=1s, after=b)", "b": "training(steps=3, time=1s, after=a)"}}, "after itself"),
        ({"job": {"a": "training(steps=3, parallel=2)"}}, "trains on 2 devices at once"),
        ({"job": {"a": "batch(items=3, time=1s, at=20s, by=10s)"}}, "to end by 10s and is submitted at 20s"),
        ({"job": {"a": "batch(items=3, time=1s, model=other)"}}, "of the model 'other', which is not here"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "rate": {"net": "5"}}, "there is no p99 for net"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "ensemble": {"vote": "net+other"}}, "no model here is called 'other'"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "ensemble": {"net": "net+net"}}, "needs a name of its own"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "run": 1}, "a cannot be run: the time of a call was given"),
        ({"job": {"a": "training(steps=3)"}, "run": 1, "device": "l4"}, "not what the models are on"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "devices": 0}, "devices: 0 is not a whole number of at least 1"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "policy": "best"}, "no scheduling policy called 'best'"),
        ({"job": {"a": "batch(items=3, time=1s)"}, "policy": "priority(ageing_s=-1)"}, "ageing_s"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(study, options, message):
    with pytest.raises(InputError, match=message):
        study.schedule(**options)


def test_a_table_that_cannot_be_read_says_where(study, tmp_path):
    table = tmp_path / "jobs.toml"
    table.write_text("[jobs.a]\nkind = 'batch'\nitems = 0\n")
    with pytest.raises(InputError, match=r"jobs.toml: \[jobs.a\]: items is 0, not a whole number of at least 1"):
        study.schedule(jobs=str(table))
    table.write_text("[jobs.a]\nkind = 'batch'\nitems = 3\ntime = '1s'\n[tenants.nobody]\n")
    with pytest.raises(InputError, match="nobody belongs to the tenant 'nobody'"):
        study.schedule(jobs=str(table))


def test_the_command_line_fails_where_not_everything_holds(model_file, capsys):
    words = ["schedule", f"{model_file}:make", "--policy", "fcfs", "--json", "--job"]
    assert main([*words, "night=batch(items=100, batch=10, time=1s, by=1min)"]) == 0
    assert json.loads(capsys.readouterr().out)["record"] == "job_plan"
    assert main([*words, "night=batch(items=100, batch=10, time=10s, by=1min)"]) == 1


def test_the_jobs_of_the_readme_are_some(tmp_path):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (tmp_path / "jobs.toml").write_text(re.search(r"```toml\n(\[jobs.*?)```", text, re.DOTALL)[1])
    table = read_jobs(tmp_path / "jobs.toml")
    assert {name: job.kind for name, job in table.jobs.items()} == {"nightly": "batch", "tune": "training"}
    assert table.tenants["lab"].max_jobs == 1
