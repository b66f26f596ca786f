"""Rehearsals: a real bundle's server under load, predicted, replayed, compared, kept in the ledger and in the spec."""

import dataclasses
import json
import math
import os
import sqlite3
import types

import numpy as np
import pytest
import torch

from aimass_lab import Study
from aimass_lab.bundle import write_bundle
from aimass_lab.errors import BundleError, InputError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_plain
from aimass_lab.planning.ladders import join_ladders
from aimass_lab.planning.overhead import Overhead
from aimass_lab.planning.queueing import Poisson, ServiceTimes
from aimass_lab.planning.simulate import Band, simulate_fcfs
from aimass_lab.prediction.bookkeeping import through_ledger
from aimass_lab.prediction.ledger import FEWEST_SCORED, ordinary, outcomes_of, plan_kind, reach_of, rehearsal_kind
from aimass_lab.records import INTERRUPTED, BatchPoint, Experience, Number, Recovery, Rehearsal, ServerTime, from_json, to_json
from aimass_lab.rehearsal import Asked, rehearse
from aimass_lab.rehearsal.figures import UNITS, Load, _disturbed, figures, replay
from aimass_lab.rehearsal.journal import Events, read_journal, recoveries
from aimass_lab.rehearsal.replicas import Replicas, Run
from aimass_lab.rehearsal.verdict import disturbance
from aimass_lab.serving.config import load_config
from aimass_lab.serving.load import LoadResult
from aimass_lab.serving.watch import Disturbance
from aimass_lab.store import Store
from tests.models import TinyMLP, features

QUIET = Disturbance(foreign_cores=0.0, stolen_cores=0.0, ends=np.array([0.0, 1.0]), stalls_s=np.zeros(1))


def seconds(value, *, source="measured", interval=None, quality="ok"):
    return Number(value=value, unit="s", source=source, method="given", interval=interval, quality=quality)


def rate(value):
    return Number(value=value, unit="request/s", source="user", method="given")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    torch.manual_seed(0)
    return Study(TinyMLP().eval(), features(8), name="tiny", store=tmp_path_factory.mktemp("history") / "history.db")


@pytest.fixture(scope="module")
def plan(study):
    return study.plan(rate=60, p99="60s")


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(folder, study.workload, rate=40.0, max_batch_size=4, threads=1, format="onnx", calibrate=False)
    return folder


@pytest.fixture(scope="module")
def rehearsal(study, plan):
    """One real run of a bundle that is written for it, with a worker killed in the middle."""
    return study.rehearse(rate=60, p99="60s", seconds=2, kill=1)


# --- a real run --------------------------------------------------------------------------


def test_every_request_is_sent_and_answered_though_a_worker_is_killed(rehearsal):
    assert (rehearsal.num_requests, rehearsal.num_failed) == (round(2 * rehearsal.requests_per_s.value), 0)
    (recovery,) = rehearsal.recoveries
    assert recovery.failed == 0
    assert recovery.ready_after is None or recovery.ready_after.value > 0
    assert rehearsal.worker_startup.value > 0
    assert "killed" in {note.code for note in rehearsal.notes}


def test_figures_are_measured_predicted_and_replayed_and_errors_multiply(rehearsal):
    assert [metric.name for metric in rehearsal.metrics] == list(UNITS)
    for metric in rehearsal.metrics:
        assert metric.measured.source == "measured"
        assert metric.predicted.weakest_source == "estimated"
        parts = [metric.mechanism_error, metric.service_error, metric.arrivals_error]
        assert math.prod(1 + part.value for part in parts) == pytest.approx(1 + metric.error.value)
        low, high = metric.predicted.interval
        assert metric.inside == (low <= metric.measured.value <= high)
    planned = rehearsal.metric("latency p99").planned
    assert planned is not None
    assert rehearsal.metric("latency p99").planned_error.value == pytest.approx(planned.value / rehearsal.metric("latency p99").measured.value - 1)


def test_batches_of_many_sizes_were_seen_in_the_server_under_load(rehearsal, plan):
    sizes = [point.batch_size for point in rehearsal.service_time]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert 1 < sizes[-1] <= rehearsal.max_batch_size == plan.max_batch_size.value
    assert all(point.latency_p50.n for point in rehearsal.service_time)
    assert rehearsal.server_time.typical.value > 0
    assert list(rehearsal.server_time.quantiles_s) == sorted(rehearsal.server_time.quantiles_s)
    assert rehearsal.front_end.value > 0
    assert rehearsal.capacity.value > 0


def test_the_record_travels_and_is_shown(rehearsal):
    assert from_json(to_json(rehearsal), Rehearsal) == rehearsal
    text = render_plain(rehearsal)
    assert "of it mechanism" in text
    assert "Workers that ended" in text
    assert "<table" in render_html(rehearsal)


def test_an_interrupt_keeps_what_was_sent(folder):
    interrupts = []

    def interrupt():
        if not interrupts:
            interrupts.append(True)
            raise KeyboardInterrupt

    with Replicas(folder, 1) as replicas:
        run = replicas.send([np.arange(2000) * 0.01], 20.0, meanwhile=interrupt, keep=True)
        assert run.interrupted
        assert 0 < run.num_requests < 2000
        assert run.results[0].num_failed == 0
        assert len(run.events[0].queued_s) == run.num_requests
        interrupts.clear()
        with pytest.raises(KeyboardInterrupt):
            replicas.send([np.arange(2000) * 0.01], 20.0, meanwhile=interrupt)


def test_an_interrupted_run_is_a_record_of_what_was_sent(folder, monkeypatch):
    interrupts = []

    def interrupt(self):
        if not interrupts:
            interrupts.append(True)
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(Replicas, "kill_worker", interrupt)
    monkeypatch.setattr("aimass_lab.rehearsal.measure.FEWEST_REQUESTS", 1)
    record = rehearse(folder, Asked(rate=rate(40), seconds=4.0, kill=3))
    assert 0 < record.num_requests < 160
    assert record.num_failed == 0
    assert record.verdict in ("interrupted", "starved")
    assert INTERRUPTED in {note.code for note in record.notes}


# --- the replay: exact where the mechanism is ----------------------------------------------


def made_up(count=4000, load=0.8, max_batch_size=8, num_workers=1):
    """A run that the simulator itself made, as a server would have told of it."""
    samples = {size: 0.004 + 0.0012 * size + 0.003 * np.random.default_rng(size).random(50) for size in range(1, max_batch_size + 1)}
    service = ServiceTimes.from_samples(samples)
    times = Poisson(load * service.stable_rate(max_batch_size, num_workers)).times_s(count, np.random.default_rng(1))
    run = simulate_fcfs(times, service, max_batch_size=max_batch_size, max_wait_s=0.002, num_workers=num_workers, seed=3)
    order = np.argsort(run.arrival_s, kind="stable")
    events = Events(
        start_s=run.batch_start_s, seconds=run.batch_service_s, items=run.batch_items, queued_s=run.arrival_s[order], reply_s=run.finish_s[order]
    )  # fmt: skip
    own = 0.001 + 0.0005 * np.random.default_rng(2).random(count)
    duration = float(times[-1])
    result = LoadResult(
        rate=count / duration, duration_s=duration, sent_s=times, late_s=np.zeros(count), latency_s=run.latency_s + own, status=np.full(count, 200)
    )  # fmt: skip
    return service, Run(results=[result], events=[events], disturbance=QUIET, own_cores=0.5, front_end_s=0.1), run


@pytest.mark.parametrize("workers", [1, 2])
def test_a_replay_of_what_the_mechanism_did_is_exact(folder, workers):
    service, run, simulated = made_up(num_workers=workers)
    config = dataclasses.replace(load_config(folder), max_batch_size=8, max_wait_s=0.002, workers=workers)

    known = types.SimpleNamespace(service=service, overhead=Overhead.recorded())
    result = run.results[0]
    load = Load(pattern="poisson", rate=result.rate, seconds=result.duration_s)
    again = replay(load, run, known, config, seed=0)
    finish = result.sent_s + result.latency_s
    busy = float(simulated.batch_service_s.sum())
    expected = figures(result.latency_s, finish, busy, simulated.batch_items, rate=result.rate, duration_s=result.duration_s, workers=workers)
    assert again == pytest.approx(expected, rel=1e-9)
    assert expected["throughput"] == result.throughput()  # as the proof of a bundle counts it


def test_the_servers_own_time_is_what_queue_and_model_leave():
    _, run, simulated = made_up(count=500)
    sent, own = run.events[0].overhead_s(run.results[0])
    assert own == pytest.approx(run.results[0].latency_s - simulated.latency_s)
    assert sent.tolist() == run.results[0].sent_s.tolist()
    turned_away = dataclasses.replace(run.results[0], status=np.where(np.arange(500) == 7, 503, 200))
    assert run.events[0].overhead_s(turned_away) is None
    without = np.delete(np.arange(500), 7)
    others = dataclasses.replace(run.events[0], queued_s=run.events[0].queued_s[without], reply_s=run.events[0].reply_s[without])
    assert others.overhead_s(turned_away)[1] == pytest.approx(own[without])


def test_a_journal_is_read_from_a_moment_on_with_what_became_of_workers(tmp_path):
    events = [
        {"event": "ready", "worker": 1, "at": 9.0, "seconds": 0.5, "again": False},
        {"event": "batch", "worker": 1, "at": 9.5, "seconds": 0.01, "items": [1], "queued": [9.4]},
        {"event": "batch", "worker": 1, "at": 10.5, "seconds": 0.02, "items": [1, 2], "queued": [10.4, 10.45]},
        {"event": "handed_on", "worker": 1, "at": 11.0, "requests": 3, "failed": 1},
        {"event": "ended", "worker": 1, "at": 11.0, "code": -9, "batches": 2},
        {"event": "ready", "worker": 2, "at": 11.7, "seconds": 0.6, "again": True},
    ]
    (tmp_path / "j.1").write_text("\n".join(map(json.dumps, events[:3])) + "\n")  # rotated
    (tmp_path / "j").write_text("\n".join(map(json.dumps, events[3:])) + '\n{"event": "ba')  # half written
    found = read_journal(tmp_path / "j", 10.0)
    assert found.start_s.tolist() == [0.5]
    assert found.items.tolist() == [3]
    assert found.sojourn_s == pytest.approx([0.12, 0.07])
    (recovery,) = recoveries(found)
    assert (recovery.handed_on, recovery.failed) == (3, 1)
    assert recovery.ready_after.value == pytest.approx(0.7)


def test_a_busy_machine_is_a_verdict_of_its_own():
    _, run, _ = made_up(count=500)
    assert disturbance(run) is None
    assert "other work kept" in disturbance(dataclasses.replace(run, disturbance=dataclasses.replace(QUIET, foreign_cores=1000.0)))
    robbed = disturbance(dataclasses.replace(run, disturbance=dataclasses.replace(QUIET, stolen_cores=0.3 * os.cpu_count())))
    assert "the host took 30 % of the processor" in robbed


# --- what is learnt ----------------------------------------------------------------------


def judged(rehearsal, number, off=1.2):
    """The same run at another load, with a p99 that was measured higher than was said."""
    metrics = [
        dataclasses_replace(m, planned=m.planned or m.predicted, measured=dataclasses_replace(m.measured, value=off * (m.planned or m.predicted).value))
        for m in rehearsal.metrics
    ]
    return dataclasses_replace(
        rehearsal, verdict="measured", metrics=tuple(metrics), requests_per_s=dataclasses_replace(rehearsal.requests_per_s, value=number)
    )  # fmt: skip


def dataclasses_replace(struct, **changes):
    import msgspec

    return msgspec.structs.replace(struct, **changes)


def test_runs_of_plans_are_scored_each_by_its_load_and_teach_the_next_plan(study, rehearsal, tmp_path):
    known, study = study, Study(study.workload, store=tmp_path / "history.db")
    study._profiles.update(known._profiles)  # measured once
    first = study.plan(rate=60, p99="60s")
    assert first.experience is None
    assert first.server_time.typical.source == "estimated"
    assert "assumes:server-time" in {note.code for note in first.notes}
    for number in range(FEWEST_SCORED + 2):
        through_ledger(judged(rehearsal, 10.0 + number), study.store, digest="d")
    entries = study.store.entries()
    assert len([e for e in entries if e.kind == rehearsal_kind("latency p99")]) == FEWEST_SCORED + 2
    assert len([e for e in entries if e.kind == plan_kind(None, "latency p99")]) == FEWEST_SCORED + 2
    second = study.plan(rate=60, p99="60s")
    assert second.experience.n == FEWEST_SCORED + 2
    assert 1.0 < second.experience.p99[0] < 1.2
    assert "taught" in second.latency_p99.method


def with_p99(rehearsal, **changes):
    metrics = [dataclasses_replace(m, **changes) if m.name == "latency p99" else m for m in rehearsal.metrics]
    return dataclasses_replace(rehearsal, metrics=tuple(metrics), recoveries=(), verdict="measured")


def test_the_next_plans_band_reaches_as_far_beyond_its_own_as_the_newest_runs_did(rehearsal):
    def reach(*runs, planned=False):
        seen = [with_p99(rehearsal, predicted=seconds(1.0, interval=(0.9, 1.1)), measured=seconds(middle, interval=ends)) for middle, ends in runs]
        return reach_of(seen, "latency p99", planned=planned)

    assert reach((1.2, (1.0, 1.25))) == (1.0, pytest.approx(0.15))
    assert reach((0.8, (0.72, 1.0))) == (pytest.approx(0.8), 0.0)
    assert reach((1.0, (0.95, 1.05))) == (1.0, 0.0)  # never narrower
    assert reach((1.2, (1.0, 1.25)), (0.8, (0.72, 1.0)), (1.0, (1.0, 1.2))) == (pytest.approx(0.8), pytest.approx(0.15))
    assert reach() == (1.0, 0.0)
    many = [(1.0 + 0.1 * k, (1.0, 1.1 + 0.1 * k)) for k in range(19)]
    assert reach(*many) == (1.0, pytest.approx(1.7))  # one of ten may be further
    assert reach(*many[:9]) == (1.0, pytest.approx(0.8))
    band = Band(10.0, 9.0, 12.0).reaching(0.5, 3.0)
    assert (band.value, band.low, band.high) == (10.0, 4.5, 15.0)


def test_runs_of_earlier_sessions_count_and_none_counts_twice(study, rehearsal, tmp_path):
    first = Study(study.workload, store=tmp_path / "history.db")
    lost, calm = first._keep("rehearse", rehearsal), first._keep("rehearse", with_p99(rehearsal))
    assert lost.recoveries
    assert first._runs("none") == [calm]
    assert Study(study.workload, store=tmp_path / "history.db")._runs("none") == [calm]
    assert first._runs("bf16") == []


def test_what_a_plans_band_reached_already_is_not_taken_for_its_own(rehearsal):
    experience = Experience(p99=(1.0, 2.0), p99_reach=(0.5, 1.0), n=1)
    measured = seconds(2.4, interval=(2.0, 2.5))
    run = with_p99(rehearsal, planned=seconds(1.0, interval=(0.4, 2.25)), measured=measured)  # [0.8, 1.25] of its own, stretched from the root of it
    run = dataclasses_replace(run, plan_experience=experience, verdict="measured")
    assert reach_of([run], "latency p99", planned=True) == (1.0, pytest.approx(2.5 - 1.25))
    [entry] = [e for e in outcomes_of(run, digest="d", corrections={}) if e.kind == plan_kind(run.plan_server_time, "latency p99")]
    assert entry.interval == (0.4, 2.25)
    assert entry.inside is False
    assert math.log(entry.interval[1] / entry.value) / entry.stretch == pytest.approx(math.log(1.25) / 2.0)
    low = dataclasses_replace(run, metrics=with_p99(run, measured=seconds(0.3)).metrics)
    [entry] = [e for e in outcomes_of(low, digest="d", corrections={}) if e.kind == plan_kind(run.plan_server_time, "latency p99")]
    assert math.log(entry.value / entry.interval[0]) / entry.stretch == pytest.approx(math.log(1 / 0.8) / 2.0)


def test_a_disturbed_run_rules_out_nothing_that_was_planned(rehearsal):
    figures = {"predicted": seconds(1.0, interval=(0.9, 1.1)), "planned": seconds(0.8, interval=(0.45, 1.6)), "measured": seconds(1.0, interval=(0.95, 1.05))}
    run = dataclasses_replace(with_p99(rehearsal, **figures), plan_experience=Experience(p99_reach=(1.0, 0.1), n=1))
    assert reach_of([dataclasses_replace(run, verdict="measured")], "latency p99", planned=False) == (1.0, 0.0)
    assert reach_of([dataclasses_replace(run, verdict="starved")], "latency p99", planned=False) == (pytest.approx(0.5), pytest.approx(0.4))


def test_runs_that_lost_workers_or_were_offered_too_much_widen_no_band(rehearsal):
    calm = dataclasses_replace(rehearsal, recoveries=())
    assert ordinary(calm)
    lost = Recovery(ended_at=seconds(1.0), handed_on=1, failed=0, ready_after=None)
    assert not ordinary(dataclasses_replace(calm, recoveries=(lost,)))
    assert not ordinary(dataclasses_replace(calm, requests_per_s=dataclasses_replace(calm.requests_per_s, value=1.1 * calm.capacity.value * calm.replicas)))


def test_a_run_that_was_disturbed_says_what_it_may_be_on_other_days():
    """Of 900 requests those of one third had to wait for other work, by a tenth of a second each."""
    _, run, _ = made_up(count=900)
    result = run.results[0]
    third_s = result.duration_s / 3
    latency = np.where(result.sent_s < third_s, 0.15, 0.05)
    ends = np.linspace(0.0, 3 * third_s + 1.0, 200) + result.began_s
    stalls = np.where(ends[1:] < result.began_s + third_s, 0.1, 0.0)
    held_up = dataclasses.replace(run, results=[dataclasses.replace(result, latency_s=latency)], disturbance=Disturbance(2.0, 0.0, ends, stalls))
    least, worst = _disturbed(held_up, 0.5)
    assert worst == 0.15
    assert 0.0 <= least <= 0.05
    undisturbed = dataclasses.replace(held_up, disturbance=dataclasses.replace(held_up.disturbance, stalls_s=np.zeros(199)))
    assert _disturbed(undisturbed, 0.5) == (0.05, 0.15)


def test_a_starved_run_teaches_nothing(rehearsal, tmp_path):
    starved = dataclasses_replace(rehearsal, verdict="starved")
    assert outcomes_of(starved, digest="d", corrections={}) == []
    through_ledger(starved, Store(tmp_path / "h.db"), digest="d")
    assert Store(tmp_path / "h.db").entries() == ()


def test_a_plan_after_a_rehearsal_rests_on_what_the_server_showed(study, rehearsal, plan):
    quiet = dataclasses_replace(rehearsal.server_time, typical=dataclasses_replace(rehearsal.server_time.typical, quality="ok"))
    study.results.append(dataclasses_replace(rehearsal, server_time=quiet, verdict="measured", recoveries=()))
    spec = study._make_spec(plan, name=None, image=None)
    assert {metric.name for metric in spec.rehearsed} == set(UNITS)
    assert "Predicted, run, replayed" in render_html(spec)
    again = study.plan(rate=60, p99="60s")
    assert again.server_time == quiet
    assert again.experience.n == 1
    assert again.experience.p99_reach == reach_of([study.results[-2]], "latency p99", planned=False)
    measured = {point.batch_size: point for point in rehearsal.service_time}
    assert all(point.latency_p50 == measured[point.batch_size].latency_p50 for point in again.service_time if point.batch_size in measured)
    assert "server-time" in {note.code for note in again.notes}
    assert study._make_spec(again, name=None, image=None).rehearsed == ()  # that plan was not run


def test_above_the_servers_batch_limit_the_profile_goes_on_at_its_pace():
    def point(size, value, memory=None):
        latency = seconds(value, interval=(0.9 * value, 1.1 * value))
        throughput = Number(value=size / value, unit="item/s", source="measured", method="given")
        peak = memory and Number(value=memory, unit="B", source="measured", method="given")
        return BatchPoint(batch_size=size, latency_p50=latency, latency_p95=latency, latency_p99=latency, throughput=throughput, peak_memory_bytes=peak)

    joined = join_ladders([point(1, 0.006), point(2, 0.009), point(3, 0.0085)], [point(1, 0.004, 10), point(2, 0.006, 20), point(4, 0.010, 40)])
    assert [p.batch_size for p in joined] == [1, 2, 3, 4]
    assert [p.latency_p50.value for p in joined] == pytest.approx([0.006, 0.009, 0.0085, 0.015])
    assert (joined[3].latency_p50.weakest_source, joined[3].latency_p50.quality) == ("estimated", "extrapolated")
    assert joined[3].peak_memory_bytes.value == 40
    assert joined[2].peak_memory_bytes is None


def test_the_servers_own_time_is_drawn_within_its_band():
    record = ServerTime(typical=seconds(0.002, interval=(0.001, 0.004)), quantiles_s=(0.001, 0.002, 0.003))
    overhead = Overhead.from_record(record)
    rng = np.random.default_rng(0)
    low, middle, high = (np.median(overhead.draw(3000, rng, level)) for level in (0.0, 0.5, 1.0))
    assert (low, middle, high) == pytest.approx((0.001, 0.002, 0.004))
    assert overhead.least_s == pytest.approx(0.0005)
    assert overhead.record == record
    with pytest.raises(InputError, match="at least 0 s"):
        Overhead.from_quantiles((-1.0,), seconds(-1.0))


def test_a_history_of_before_points_had_loads_is_read(tmp_path):
    store = Store(tmp_path / "h.db")
    entry = {
        "predicted_at": "2026-01-01", "model": "m", "model_digest": "d", "device": "cpu", "environment": "e", "technique": "none", "batch_size": 4,
        "quantity": "latency", "kind": "interpolated: latency", "unit": "s", "value": 1.0, "interval": [0.9, 1.1],
    }  # fmt: skip
    with sqlite3.connect(store.path) as connection:
        connection.execute(
            "CREATE TABLE predictions (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, model_digest TEXT NOT NULL, environment TEXT NOT NULL, "
            "technique TEXT NOT NULL, batch_size INTEGER NOT NULL, quantity TEXT NOT NULL, kind TEXT NOT NULL, settled INTEGER NOT NULL, entry TEXT NOT NULL, "
            "UNIQUE (model_digest, environment, technique, batch_size, quantity, kind, settled))"
        )
        row = ("m", "d", "e", "none", 4, "latency", "interpolated: latency", 0, json.dumps(entry))
        connection.execute(f"INSERT INTO predictions VALUES (7, {', '.join('?' * len(row))})", row)
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    (kept,) = store.entries()
    assert (kept.id, kept.value, kept.point) == (7, 1.0, "")
    store.settle([dataclasses_replace(kept, measured=1.05)])
    assert [e.measured for e in store.entries()] == [1.05]


# --- what makes no sense -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rate": rate(0)}, "rate must be above 0"),
        ({"seconds": math.inf}, "seconds must be above 0"),
        ({"rate": rate(3)}, "3 requests/s for 1.00 s are too few"),
        ({"kill": -1}, "workers to kill must be at least 0"),
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"replicas": 10_000}, "10000 replicas of .* need .* cores"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_questions_that_make_no_sense(folder, asked, message):
    with pytest.raises(InputError, match=message):
        rehearse(folder, Asked(**({"rate": rate(60), "seconds": 1.0} | asked)))


def test_what_cannot_be_run_says_so(tmp_path):
    study = Study(TinyMLP().eval(), features(8), name="tiny")
    with pytest.raises(InputError, match="no plan to run"):
        study.rehearse()
    with pytest.raises(InputError, match="rate and p99 belong together"):
        study.rehearse(rate=50)
    with pytest.raises(BundleError):
        study.rehearse(bundle=str(tmp_path / "nothing"))
    with pytest.raises(BundleError, match="nothing"):
        study.rehearse(rate=50, p99="1ns", bundle=str(tmp_path / "nothing"))
    assert study.results == []  # nothing was measured for a plan that nobody could run


def test_more_replicas_than_cores_are_one_at_its_share(folder, plan):
    from aimass_lab.rehearsal.measure import _count

    many = dataclasses_replace(plan, replicas=dataclasses_replace(plan.replicas, value=10_000))
    replicas, notes = _count(Asked(rate=rate(1), seconds=1.0, plan=many), load_config(folder))
    assert replicas == 1
    assert "one of them was run" in notes[0].text


def test_as_many_replicas_as_there_are_cores_share_them_with_the_load_where_that_is_asked_for(folder, plan, monkeypatch):
    from aimass_lab.rehearsal import measure

    config = load_config(folder)
    each = config.workers * config.threads_per_worker
    monkeypatch.setattr(measure, "usable_cores", lambda: 2.0 * each)
    replicas, (note,) = measure._count(Asked(rate=rate(1), seconds=1.0, replicas=2), config)
    assert (replicas, note.code) == (2, "W-SHARED-CORES")
    assert (
        measure._count(Asked(rate=rate(1), seconds=1.0, plan=dataclasses_replace(plan, replicas=dataclasses_replace(plan.replicas, value=2))), config)[0] == 1
    )
    with pytest.raises(InputError, match="3 replicas"):
        measure._count(Asked(rate=rate(1), seconds=1.0, replicas=3), config)


def test_on_the_command_line_a_bundle_is_run_at_the_rate_that_it_promises(folder, model_file, capsys):
    words = ["rehearse", f"{model_file}:make", "--bundle", str(folder), "--seconds", "1", "--json"]
    assert main(words) in (0, 5)  # 5: other work kept the machine busy
    record = from_json(capsys.readouterr().out, Rehearsal)
    assert (record.num_requests, record.num_failed, record.planned_replicas) == (40, 0, None)
    assert record.metric("latency p99").planned is None
    assert (record.max_batch_size, record.threads, record.format) == (4, 1, "onnx")
