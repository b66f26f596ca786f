"""The ledger: what is kept and scored, what is learnt from it, and that learning helps on a biased predictor and on real ones."""

import json
import math
import random
import sqlite3
import statistics

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimass_lab import Study
from aimass_lab.errors import StoreError
from aimass_lab.operations import ledger
from aimass_lab.prediction.bookkeeping import through_ledger
from aimass_lab.prediction.ledger import (
    FEWEST_SCORED,
    LEAST_STRETCH,
    MOST_CORRECTION,
    MOST_STRETCH,
    NO_CORRECTION,
    apply_correction,
    learn,
    ledger_notes,
    measurements_of,
    score,
    summarise,
)
from aimass_lab.profiling import profile_model
from aimass_lab.records import (
    BatchPoint,
    Environment,
    Ledger,
    LedgerEntry,
    ModelInfo,
    Number,
    PredictedPoint,
    Prediction,
    Record,
    derived,
    from_json,
    to_json,
)
from aimass_lab.store import SCHEMA_VERSION, Store
from aimass_lab.workload import Workload
from tests.models import TinyMLP, features
from tests.trial_records import trial_record

MODEL = ModelInfo(name="net", type="Net", num_parameters=1, weight_bytes=4, dtype="float32", digest="d1")
HERE = Environment(
    device="cpu", device_name="a processor", memory_bytes=2**33, cpu_cores=2, threads=2, python="3.11", torch="2.13", platform="x", taken_at="2026-01-01"
)  # fmt: skip


def seconds(value, *, source="measured", spread=0.01, quality="ok", method="given"):
    return Number(
        value=value, unit="s", source=source, method=method, interval=(value * (1 - spread), value * (1 + spread)), environment=HERE.id, quality=quality
    )  # fmt: skip


def predicted(latencies, *, spread=0.1, technique="none", basis="interpolated", quality="ok"):
    points = []
    for batch, value in latencies.items():
        latency = seconds(value, source="estimated", spread=spread, quality=quality, method="interpolated")
        rate = derived(batch / value, "item/s", "batch over latency", [("latency", latency)])
        points.append(PredictedPoint(batch_size=batch, basis=basis, latency=latency, throughput=rate))
    return Prediction(model=MODEL, device="cpu", environment=HERE, technique=technique, points=tuple(points))


@pytest.fixture(scope="module")
def real_profile():
    return profile_model(Workload(TinyMLP().eval(), features(2)), ladder=(2,), budget_s=0.2)


@pytest.fixture
def profiled(real_profile):
    """A profile with latencies that are known by hand."""

    def make(latencies, quality="ok"):
        points = []
        for batch, value in latencies.items():
            number = seconds(value, quality=quality)
            rate = derived(batch / value, "item/s", "by hand", [("latency", number)])
            points.append(BatchPoint(batch_size=batch, latency_p50=number, latency_p95=number, latency_p99=number, throughput=rate))
        return msgspec.structs.replace(real_profile, model=MODEL, environment=HERE, ladder=tuple(points), notes=())

    return make


def trial(original, variant, technique="bf16", quality="ok", options=None):
    a, b = seconds(original, quality=quality), seconds(variant, quality=quality)
    return trial_record(MODEL, HERE, technique=technique, options=options, latency_original=a, latency_variant=b)


def entry(value, measured=None, *, half=0.1, kind="calibrated roofline: latency", batch=1, correction=1.0, stretch=1.0, **more):
    fields = {
        "predicted_at": "2026-01-01T00:00:00+00:00", "model": "net", "model_digest": "d1", "device": "cpu", "environment": HERE.id, "technique": "none",
        "batch_size": batch, "quantity": "latency", "kind": kind, "unit": "s", "value": value,
        "interval": (value * math.exp(-half * stretch), value * math.exp(half * stretch)), "correction": correction, "stretch": stretch,
        "measured": measured,
    }  # fmt: skip
    return LedgerEntry(**{**fields, **more})


# --- kept and scored ------------------------------------------------------------------------


def test_a_prediction_is_scored_when_the_same_point_is_measured(tmp_path, profiled):
    store = Store(tmp_path / "history.db")
    assert through_ledger(predicted({3: 1.0, 6: 2.0}), store, digest="d1").notes == ()
    profile = through_ledger(profiled({3: 1.05, 8: 9.0}), store, digest="d1")
    open_one, scored = sorted(store.entries(), key=lambda e: -e.batch_size)
    assert (open_one.batch_size, open_one.measured) == (6, None)
    assert (scored.batch_size, scored.measured, scored.inside) == (3, 1.05, True)
    assert scored.kind == "interpolated: latency"
    assert [note.code for note in profile.notes] == ["ledger"]
    assert "1 earlier prediction measured here: 1 inside the band" in profile.notes[0].text


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("another model", {"digest": "d2"}),
        ("another technique", {"technique": "bf16"}),
    ],
)
def test_only_the_same_point_scores(tmp_path, profiled, what, change):
    store = Store(tmp_path / "history.db")
    through_ledger(predicted({3: 1.0}), store, digest="d1")
    arguments = {"digest": "d1", "technique": "none", **change}
    assert through_ledger(profiled({3: 1.0}), store, **arguments).notes == ()
    assert [e.measured for e in store.entries()] == [None]


def test_another_environment_does_not_score(tmp_path, profiled):
    store = Store(tmp_path / "history.db")
    through_ledger(predicted({3: 1.0}), store, digest="d1")
    elsewhere = msgspec.structs.replace(HERE, threads=1)
    through_ledger(msgspec.structs.replace(profiled({3: 1.0}), environment=elsewhere), store, digest="d1")
    assert [e.measured for e in store.entries()] == [None]


def test_what_other_work_disturbed_scores_nothing(tmp_path, profiled):
    store = Store(tmp_path / "history.db")
    through_ledger(predicted({3: 1.0}), store, digest="d1")
    assert through_ledger(profiled({3: 5.0}, quality="noisy"), store, digest="d1").notes == ()
    assert [e.measured for e in store.entries()] == [None]


def test_what_was_measured_is_no_prediction(tmp_path):
    store = Store(tmp_path / "history.db")
    record = predicted({3: 1.0})
    measured = msgspec.structs.replace(record.points[0], basis="measured", latency=seconds(1.0))
    through_ledger(msgspec.structs.replace(record, points=(measured,)), store, digest="d1")
    assert store.entries() == ()


def test_a_trial_scores_effects_and_both_latencies(tmp_path):
    store = Store(tmp_path / "history.db")
    through_ledger(predicted({4: 2.0}), store, digest="d1")
    speedup = Number(value=2.0, unit="ratio", source="estimated", method="effect", interval=(1.5, 2.5))
    effect = msgspec.structs.replace(predicted({4: 1.0}, technique="bf16", basis="effect"), speedup=speedup, effect_batch_size=4)
    through_ledger(effect, store, digest="d1")
    through_ledger(trial(2.1, 1.4), store, digest="d1")
    found = {(e.technique, e.kind): (e.measured, e.inside) for e in store.entries()}
    assert found == {
        ("none", "interpolated: latency"): (2.1, True),
        ("bf16", "effect: latency"): (1.4, False),
        ("bf16", "effect: speedup"): (pytest.approx(1.5), True),
    }


def test_a_trial_with_options_is_another_technique():
    assert {m.technique for m in measurements_of(trial(2.0, 1.0))} == {"none", "bf16"}
    assert {m.technique for m in measurements_of(trial(2.0, 1.0, "low_rank", options={"ratio": 0.5}))} == {"none", "low_rank(ratio=0.5)"}


def test_a_trial_with_other_threads_or_several_callers_says_nothing_of_the_plain_call():
    for setting in ({"threads": 1}, {"instances": 2}):
        record = trial(2.0, 1.0)
        assert measurements_of(msgspec.structs.replace(record, setting=msgspec.structs.replace(record.setting, **setting))) == []


def test_beyond_the_range_is_another_kind(tmp_path):
    store = Store(tmp_path / "history.db")
    through_ledger(predicted({64: 1.0}, quality="extrapolated"), store, digest="d1")
    assert [e.kind for e in store.entries()] == ["beyond the range: latency"]


def test_predicting_a_point_again_replaces_what_was_not_measured_and_keeps_what_was(tmp_path, profiled):
    store = Store(tmp_path / "history.db")
    for value in (1.0, 1.2):
        through_ledger(predicted({3: value}), store, digest="d1")
    assert [e.value for e in store.entries()] == [1.2]
    through_ledger(profiled({3: 1.0}), store, digest="d1")
    through_ledger(predicted({3: 1.1}), store, digest="d1")
    assert sorted((e.value, e.measured) for e in store.entries() if e.measured) == [(1.2, 1.0)]
    assert len(store.entries()) == 2
    through_ledger(profiled({3: 1.3}), store, digest="d1")
    assert [(e.value, e.measured) for e in store.entries()] == [(1.1, 1.3)]  # one entry a point: repeating a measurement is no new evidence


def test_the_older_history_is_kept_when_the_ledger_comes(tmp_path):
    path = tmp_path / "history.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, verb TEXT NOT NULL, model TEXT NOT NULL, model_digest TEXT NOT NULL, "
        "taken_at TEXT NOT NULL, summary TEXT NOT NULL, record TEXT NOT NULL)"
    )
    row = ("check", "m", "d", "2026-01-01", "old", json.dumps({"record": "check", "subject": "x", "passed": True}))
    connection.execute("INSERT INTO runs (verb, model, model_digest, taken_at, summary, record) VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = Store(path)
    assert store.entries() == ()
    store.predict([entry(1.0)])
    assert [run.summary for run in store.runs()] == ["old"]
    assert store.get(1)[1].subject == "x"
    assert len(store.entries()) == 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


def test_the_ledger_can_be_asked_for_one_model_or_one_environment(tmp_path):
    store = Store(tmp_path / "history.db")
    store.predict([entry(1.0), entry(2.0, model="other", model_digest="d2", environment="catalogue:l4")])
    assert [e.model for e in store.entries(model="other")] == ["other"]
    assert [e.environment for e in store.entries(environment=HERE.id)] == [HERE.id]
    assert len(store.entries()) == 2
    assert len({e.id for e in store.entries()}) == 2


def test_a_ledger_that_cannot_be_read_costs_no_result(tmp_path):
    path = tmp_path / "history.db"
    path.write_text("my thesis" * 100)
    with pytest.raises(StoreError):
        through_ledger(predicted({3: 1.0}), Store(path), digest="d1")
    study = Study(TinyMLP().eval(), features(2), store=path)
    with pytest.warns(UserWarning, match="not in the history"):
        assert study.demand().flops.value > 0


def test_records_that_neither_predict_nor_measure_pass_untouched(tmp_path):
    store = Store(tmp_path / "history.db")
    record = Ledger(store="x", kinds=(), entries=())
    assert through_ledger(record, store, digest="d1") is record
    assert not store.path.exists()


# --- what is shown --------------------------------------------------------------------------


def test_the_running_error_is_what_one_computes_by_hand():
    entries = [entry(1.0, 1.1, batch=1), entry(1.0, 0.8, batch=2), entry(1.0, 1.05, batch=3), entry(1.0, batch=4)]
    (summary,) = summarise(entries)
    assert (summary.open, summary.scored, summary.inside) == (1, 3, 2)
    assert summary.median_error.value == pytest.approx(0.1)  # of 0.1, 1 / 0.8 - 1 = 0.25 and 0.05
    assert summary.p90_error.value == pytest.approx(0.25)
    assert summary.bias.value == pytest.approx(1.05)
    assert summary.coverage.value == pytest.approx(2 / 3)
    (note,) = ledger_notes(entries, ["calibrated roofline: latency"])
    assert "of 3 predictions of this kind (calibrated roofline: latency), 2 inside the band; median error 10 %" in note.text
    assert ledger_notes(entries, ["interpolated: latency"]) == ()


def test_the_verb_shows_what_was_predicted_and_measured(tmp_path, monkeypatch):
    from aimass_lab.frontends.frames import to_frames
    from aimass_lab.frontends.render import render_html, render_text

    monkeypatch.setenv("AIMASS_STORE", str(tmp_path / "own.db"))
    assert ledger().entries == ()
    assert "0 predictions measured" in render_text(ledger())
    Store().settle([entry(1.0, 1.05), entry(1.0, 2.0, batch=2)])
    Store().predict([entry(3.0, batch=3, model="other", model_digest="d9")])
    record = ledger()
    assert from_json(to_json(record), Ledger) == record
    text = render_text(record)
    assert "2 predictions measured, 1 inside their band; 1 not measured yet" in text
    assert "outside" in text
    assert "1.05 s" in render_html(record)
    assert list(to_frames(record)["By kind"]["measured"]) == [2]
    assert [e.model for e in ledger(model="other").entries] == ["other"]


def test_study_keeps_its_predictions_and_scores_them():
    """Memory is never disturbed by other load, so it is scored on any machine."""
    torch.manual_seed(0)
    study = Study(TinyMLP().eval(), features(4))
    demand = study.demand(batch=4)
    study.profile(batch=4, seconds=0.2)
    found = {e.quantity: e for e in study.store.entries() if e.kind == "shapes: memory"}
    assert found["memory"].value == demand.peak_memory_bytes.value
    assert found["memory"].measured == study.results[1].peak_memory_bytes.value
    assert any(note.code == "ledger" for note in study.results[1].notes)
    again = study.demand(batch=4)
    assert any(note.code == "ledger" and "shapes: memory" in note.text for note in again.notes)
    assert study.store.get(study.store.runs()[0].id)[1] == again


# --- what is learnt -------------------------------------------------------------------------


def run_through(pairs, half):
    """Predict and measure one after the other, each corrected by what came before: errors without and with, and coverages, the second from the tenth on."""
    entries, plain, corrected, held, held_plain = [], [], [], [], []
    for i, (value, measured) in enumerate(pairs):
        learnt = learn(entries)
        raw = Number(value=value, unit="s", source="estimated", method="m", interval=(value * math.exp(-half), value * math.exp(half)))
        number = apply_correction(raw, learnt)
        plain.append(abs(math.log(measured / value)))
        corrected.append(abs(math.log(measured / number.value)))
        held.append(number.interval[0] <= measured <= number.interval[1])
        held_plain.append(raw.interval[0] <= measured <= raw.interval[1])
        done = entry(number.value, measured, batch=i + 1, correction=learnt.factor, stretch=learnt.stretch, interval=number.interval)
        entries.insert(0, done)
    return plain, corrected, statistics.fmean(held_plain), statistics.fmean(held[10:])


def test_a_biased_predictor_gets_better_and_its_band_comes_to_hold_nine_tenths():
    draw = random.Random(0)
    pairs = [(value, value * 1.4 * math.exp(draw.gauss(0, 0.08))) for value in (10 ** draw.uniform(-4, 0) for _ in range(60))]
    plain, corrected, covered_plain, covered = run_through(pairs, half=0.2)
    assert statistics.median(plain) > 0.3
    assert statistics.median(corrected[10:]) < 0.1
    assert covered_plain < 0.3
    assert covered > 0.85


def test_an_honest_predictor_is_left_alone():
    draw = random.Random(1)
    pairs = [(1.0, math.exp(draw.gauss(0, 0.1))) for _ in range(60)]
    plain, corrected, _, covered = run_through(pairs, half=1.645 * 0.1)
    assert statistics.fmean(corrected) < 1.05 * statistics.fmean(plain)
    assert 0.85 <= covered <= 0.97


# Seconds of one call as the roofline of this package's rates predicted them before it ran, its band, and the median of 40 calls (one thread of
# an Intel Xeon with AVX-512, torch 2.13, 2026-11-20): one row after the other, as a user of all kinds of models would have met them.
MIXED = (
    ("mlp 256-512-10 b16", 0.0001605, 4.453e-05, 0.0006248, 0.0001231),
    ("transformer 128x2 s32 b4", 0.001591, 0.0007605, 0.005527, 0.001453),
    ("cnn b2", 0.004573, 0.002075, 0.01657, 0.006254),
    ("mlp 1024x4 b32", 0.002842, 0.001634, 0.009315, 0.003669),
    ("depthwise b2", 0.006936, 0.002725, 0.02571, 0.007352),
    ("transformer 256x4 s64 b2", 0.00927, 0.005149, 0.03077, 0.009369),
    ("lstm b8", 0.004683, 0.002743, 0.09991, 0.005277),
    ("cnn b8", 0.01415, 0.007146, 0.0487, 0.02183),
    ("transformer 512x2 s64 b4", 0.03401, 0.01951, 0.1118, 0.02925),
    ("mlp 2048x3 b8", 0.002105, 0.0005634, 0.008399, 0.002339),
    ("gru b4", 0.001821, 0.000584, 0.006379, 0.000316),
    ("transformer 256x4 s128 b8", 0.07361, 0.04128, 0.2442, 0.067),
    ("conv1d b8", 0.002433, 0.001301, 0.00821, 0.00212),
    ("mlp 16-64-64-10 b4", 3.42e-05, 1.12e-05, 0.0001161, 3.058e-05),
)

# The same of a user of convolutions, by rates that were fitted to a family of operators: most of these were predicted too low.
CONVOLUTIONS = (
    ("vgg 32-64-128 b4 64px", 0.004726, 0.002392, 0.0094, 0.007741),
    ("residual b1 112px", 0.001959, 0.000994, 0.00387, 0.003708),
    ("residual b4 112px", 0.006042, 0.003061, 0.01196, 0.008656),
    ("unet b2 64px", 0.00586, 0.002942, 0.01168, 0.003263),
    ("vgg 16-32-64 b8 96px", 0.008439, 0.004264, 0.01689, 0.01541),
    ("residual b16 64px", 0.007254, 0.003676, 0.01437, 0.01073),
    ("depthwise b4 112px", 0.01588, 0.008163, 0.03097, 0.01061),
    ("vgg 64-128-256 b2 64px", 0.006755, 0.003406, 0.01346, 0.009948),
    ("unet b4 96px", 0.02616, 0.01313, 0.05215, 0.01528),
    ("residual b8 96px", 0.007994, 0.00405, 0.01584, 0.01285),
    ("vgg 48-96 b4 128px", 0.0259, 0.01282, 0.05318, 0.04345),
    ("depthwise b8 64px", 0.0108, 0.005546, 0.02107, 0.009219),
)


def in_sequence(rows):
    """What the ledger makes of recorded rows: errors without and with, band widths without and with, how many were inside with."""
    entries, plain, corrected, widths, narrowed, held = [], [], [], [], [], 0
    for i, (_, value, low, high, measured) in enumerate(rows):
        learnt = learn(entries)
        number = apply_correction(Number(value=value, unit="s", source="estimated", method="m", interval=(low, high)), learnt)
        plain.append(abs(math.log(measured / value)))
        corrected.append(abs(math.log(measured / number.value)))
        widths.append(math.log(high / low))
        narrowed.append(math.log(number.interval[1] / number.interval[0]))
        held += number.interval[0] <= measured <= number.interval[1]
        entries.insert(0, entry(number.value, measured, batch=i + 1, correction=learnt.factor, stretch=learnt.stretch, interval=number.interval))
    return plain, corrected, widths, narrowed, held


def test_on_real_models_of_all_kinds_without_a_common_bias_nothing_gets_worse():
    plain, corrected, widths, stretched, held = in_sequence(MIXED)
    assert statistics.fmean(corrected) <= 1.02 * statistics.fmean(plain)
    assert statistics.median(stretched) <= 1.01 * statistics.median(widths)
    assert held >= len(MIXED) - 2


def test_on_real_convolutions_the_error_falls():
    plain, corrected, _, _, held = in_sequence(CONVOLUTIONS)
    assert statistics.fmean(corrected) < statistics.fmean(plain)
    assert statistics.median(corrected[FEWEST_SCORED:]) < 0.8 * statistics.median(plain[FEWEST_SCORED:])
    assert held >= len(CONVOLUTIONS) - 1


# --- limits ---------------------------------------------------------------------------------

ratios = st.lists(st.floats(0.01, 100), min_size=0, max_size=30)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # of a busy machine
@given(ratios, st.floats(0.01, 2.0))
def test_no_correction_goes_beyond_its_limits(errors, half):
    learnt = learn([entry(1.0, r, half=half, batch=i + 1) for i, r in enumerate(errors)])
    assert 1 / MOST_CORRECTION * 0.999 <= learnt.factor <= MOST_CORRECTION * 1.001
    assert LEAST_STRETCH <= learnt.stretch <= MOST_STRETCH
    if len(errors) < FEWEST_SCORED:
        assert learnt == NO_CORRECTION


@given(ratios.filter(lambda r: len(r) >= FEWEST_SCORED), st.floats(0.01, 2.0), st.floats(1e-6, 1e3))
def test_a_corrected_value_lies_in_its_band_and_says_what_was_done(errors, half, value):
    learnt = learn([entry(1.0, r, half=half, batch=i + 1) for i, r in enumerate(errors)])
    raw = Number(value=value, unit="s", source="estimated", method="roofline", interval=(value * math.exp(-half), value * math.exp(half)))
    number = apply_correction(raw, learnt)
    assert number.interval[0] <= number.value <= number.interval[1]
    assert number.value == pytest.approx(value * learnt.factor)
    assert f"from {len(errors)} earlier predictions here" in number.method
    if learnt.factor != 1.0:
        assert f"corrected by ×{learnt.factor:.2f}" in number.method


@given(st.lists(st.floats(0.2, 5), min_size=FEWEST_SCORED, max_size=20))
def test_a_correction_is_made_only_where_leaving_one_out_says_that_it_helps(errors):
    """The rule by hand: the mean error of each prediction after the others' shrunk median."""
    logs = [math.log(r) for r in errors]
    learnt = learn([entry(1.0, r, batch=i + 1) for i, r in enumerate(errors)])

    def shrunk(values):
        return max(-math.log(2), min(math.log(2), statistics.median(values) * len(values) / (len(values) + 3)))

    left_out = statistics.fmean(abs(e - shrunk(logs[:i] + logs[i + 1 :])) for i, e in enumerate(logs))
    helps = left_out < statistics.fmean(map(abs, logs))
    assert learnt.factor == pytest.approx(math.exp(shrunk(logs)) if helps else 1.0)


def test_what_is_learnt_does_not_fade_once_predictions_are_corrected():
    """Errors are those before correction: after it the bias is gone from the values, and must not be gone from the factor."""
    raw = [entry(1.0, 1.4, batch=i + 1) for i in range(10)]
    corrected = [entry(1.4, 1.4, batch=i + 1, correction=1.4) for i in range(10)]
    assert learn(raw).factor == pytest.approx(learn(corrected).factor)


def test_a_wide_band_comes_down_and_a_narrow_one_goes_up():
    exact = [entry(1.0, 1.001, half=1.0, batch=i + 1) for i in range(40)]
    assert learn(exact).stretch == LEAST_STRETCH
    scattered = [entry(1.0, math.exp((-1) ** i * 0.2), half=0.1, batch=i + 1) for i in range(40)]
    assert learn(scattered).stretch == pytest.approx(2.0, rel=0.05)


def test_the_verb_corrects_the_latency_of_a_demand_and_says_so():
    study = Study(TinyMLP().eval(), features(4))
    first = study.demand()
    environment = next(e.environment for e in study.store.entries())
    raw = first.latency
    kind = next(e.kind for e in study.store.entries() if e.quantity == "latency")
    for i in range(6):
        study.store.settle([entry(raw.value, 1.5 * raw.value, batch=100 + i, kind=kind, environment=environment, interval=raw.interval)])
    second = study.demand()
    corrected = [e for e in study.store.entries() if e.kind == kind and e.measured is None]
    assert "from 6 earlier predictions here" in second.latency.method
    assert [e.correction for e in corrected] == [pytest.approx(math.exp(math.log(1.5) * 6 / 9))]
    assert corrected[0].value == pytest.approx(second.latency.value)


def test_scoring_takes_no_other_record():
    assert measurements_of(Record()) == []
    assert score([], []) == []
