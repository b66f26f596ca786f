"""Interpolation against curves whose values are known, regimes against hand-made traces, predictions against real profiles."""

import math
from itertools import pairwise

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aimass_lab import Study, Workload
from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.frontends.widgets.facts.base import FACTS
from aimass_lab.prediction import interpolate
from aimass_lab.prediction.batches import default_batch_sizes, largest_where
from aimass_lab.prediction.by_rates import predict_by_rates
from aimass_lab.prediction.effects import Effect
from aimass_lab.prediction.interpolate import Anchor, Interpolation, pooled_quantile
from aimass_lab.prediction.predict import predict_from_profile, with_effect
from aimass_lab.prediction.products import FEW_ROWS, Product, ProductTimer, products_of
from aimass_lab.prediction.regimes import MMAP_BYTES, find_knees, fresh_bytes, last_level_cache_bytes, mmap_threshold_bytes, page_fault_doubt
from aimass_lab.profiling import profile_model
from aimass_lab.records import BatchPoint, Note, Number, Prediction, derived, from_json, to_json
from aimass_lab.tracing.trace import Row, Trace, trace_call
from tests.models import TinyCNN, TinyMLP, TinyTransformer, features, ids

CPU = torch.device("cpu")


def anchors(values, *, spread=0.01, noisy=()):
    return [Anchor(b, v, v * (1 - spread), v * (1 + spread), noisy=b in noisy) for b, v in values.items()]


ladders = st.dictionaries(st.integers(1, 512), st.floats(1e-6, 10.0), min_size=1, max_size=8)


# --- interpolation --------------------------------------------------------------------------


@given(ladders)
def test_a_curve_passes_through_what_was_measured(values):
    curve = Interpolation(anchors(values), prior=0.05)
    for batch, value in values.items():
        estimate = curve.at(batch)
        assert estimate.value == value
        assert estimate.measured
        assert estimate.inside


@given(ladders, st.integers(1, 4096))
def test_every_value_is_positive_and_in_its_band(values, batch):
    estimate = Interpolation(anchors(values), prior=0.05).at(batch)
    assert 0 < estimate.low <= estimate.value <= estimate.high < math.inf


@given(ladders.filter(lambda values: len(values) > 1), st.floats(0, 1))
def test_between_two_anchors_lies_between_their_values(values, share):
    curve = Interpolation(anchors(values), prior=0.05)
    for a, b in pairwise(sorted(values)):
        middle = round(a + share * (b - a))
        low, high = sorted((values[a], values[b]))
        assert low * (1 - 1e-9) <= curve.at(middle).value <= high * (1 + 1e-9)


@given(ladders, st.integers(1, 6))
def test_beyond_the_range_the_band_only_widens_and_is_never_narrower_than_inside(values, octaves):
    curve = Interpolation(anchors(values), prior=0.05)
    last = max(values)
    widths = [math.log(e.high / e.low) for e in (curve.at(last * 2**k) for k in range(1, octaves + 2))]
    assert all(a <= b + 1e-12 for a, b in pairwise(widths))
    assert widths[0] >= 2 * curve.half_width
    assert not curve.at(last * 2).inside


@given(st.floats(1e-4, 1), st.floats(1e-5, 1), st.integers(1, 2000))
def test_an_affine_ladder_is_met_exactly_everywhere_above_its_smallest_batch(offset, slope, batch):
    curve = Interpolation(anchors({b: offset + slope * b for b in (1, 2, 4, 8, 16, 32)}), prior=0.05)
    assert curve.at(batch).value == pytest.approx(offset + slope * batch, rel=1e-9)
    assert curve.half_width < 0.06


@given(st.lists(st.floats(1e-3, 1.0), min_size=3, max_size=6), st.floats(0.01, 5.0), st.integers(1, 64))
def test_a_known_part_changes_nothing_at_the_anchors_and_never_makes_a_value_negative(values, scale, batch):
    def known(sizes):
        return [scale * (1 + (b % 3)) for b in sizes]

    ladder = {2**i: v for i, v in enumerate(values)}
    curve = Interpolation(anchors(ladder), prior=0.05, known=known)
    assert all(curve.at(b).value == v for b, v in ladder.items())
    assert curve.at(batch).value > 0


def test_a_known_jump_is_followed_between_the_anchors():
    """The straight line would say 18.2 at batch 12; with a kernel that takes 10 more from batch 10 on it is 23.2."""

    def kernel(sizes):
        return [20.0 if b >= 10 else 10.0 for b in sizes]

    ladder = {8: 3.2 + 10.0, 16: 3.2 + 20.0}
    assert Interpolation(anchors(ladder), prior=0.05).at(12).value == pytest.approx(18.2)
    assert Interpolation(anchors(ladder), prior=0.05, known=kernel).at(12).value == pytest.approx(23.2)


def test_a_known_part_that_explains_more_than_was_measured_is_scaled_down():
    ladder = {8: 10.0, 16: 20.0}
    curve = Interpolation(anchors(ladder), prior=0.05, known=lambda sizes: [40.0 if b == 12 else 20.0 for b in sizes])
    assert curve.at(12).value == pytest.approx(0.45 * 40 + (15 - 0.45 * 20))  # nine tenths of 10 over 20 is the scale


def test_a_ladder_that_goes_down_is_followed_down():
    curve = Interpolation(anchors({1: 1.0, 2: 1.5, 4: 1.2, 8: 2.0}), prior=0.05)
    assert curve.at(3).value == pytest.approx(1.35)
    assert curve.at(6).value == pytest.approx(1.6)


def test_a_kink_widens_the_band_of_the_whole_curve():
    smooth = Interpolation(anchors({1: 1, 2: 2, 4: 4, 8: 8, 16: 16}), prior=0.05)
    kinked = Interpolation(anchors({1: 1, 2: 2, 4: 8, 8: 9, 16: 17}), prior=0.05)
    assert kinked.half_width > 3 * smooth.half_width
    assert kinked.residuals[4] == pytest.approx(math.log(8 / (2 + (9 - 2) / 3)))  # by hand: the line through batches 2 and 8


def test_a_knee_between_the_anchors_or_beyond_them_doubles_the_band():
    ladder = {1: 1, 2: 2, 4: 4, 8: 8}
    plain, kneed = (Interpolation(anchors(ladder, spread=0), prior=0.05, knees=k) for k in ((), (6, 12)))
    assert not kneed.at(3).knee
    for batch in (7, 16):
        assert kneed.at(batch).knee
        assert math.log(kneed.at(batch).high / kneed.at(batch).value) == pytest.approx(2 * math.log(plain.at(batch).high / plain.at(batch).value))


def test_noisy_anchors_are_left_out_where_there_are_quiet_ones():
    curve = Interpolation(anchors({1: 1, 2: 9, 4: 4}, noisy=(2,)), prior=0.05)
    assert curve.left_out == (2,)
    assert curve.at(2).value == pytest.approx(2)
    assert not curve.at(2).noisy
    all_noisy = Interpolation(anchors({1: 1, 2: 2, 4: 4}, noisy=(1, 2, 4)), prior=0.05)
    assert all_noisy.noisy
    assert all_noisy.at(3).noisy
    assert all_noisy.half_width == pytest.approx(2 * Interpolation(anchors({1: 1, 2: 2, 4: 4}), prior=0.05).half_width)


def test_one_anchor_alone_has_a_wide_band():
    estimate = Interpolation(anchors({8: 1.0}), prior=0.05).at(16)
    assert estimate.value == pytest.approx(2.0)
    assert estimate.high / estimate.value >= 1.5


def test_the_measurements_own_spread_is_in_the_band():
    sharp, vague = (Interpolation(anchors({1: 1, 2: 2, 4: 4}, spread=s), prior=0.05) for s in (0.0, 0.5))
    assert vague.at(3).high > 1.4 * sharp.at(3).high


@pytest.mark.parametrize("bad", [[], [Anchor(1, 0.0, 0.0, 0.0)], [Anchor(1, math.inf, 1, 2)]])
def test_a_curve_without_positive_anchors_is_refused(bad):
    with pytest.raises(ValueError, match="above 0"):
        Interpolation(bad, prior=0.05)


@given(st.lists(st.floats(0, 1), max_size=40), st.floats(0.01, 1))
def test_the_pooled_quantile_is_the_order_statistic_of_conformal_prediction(scores, prior):
    """With n scores, the ceil((n + 1) * 0.9)-th smallest: sorted by hand, the prior left out."""
    if len(scores) >= 9:
        assert pooled_quantile(scores, prior, prior_scores=0) == sorted(scores)[min(len(scores), math.ceil((len(scores) + 1) * 0.9)) - 1]
    assert pooled_quantile([*scores, 2.0, 2.0, 2.0, 2.0, 2.0], prior) >= pooled_quantile(scores, prior)


def test_the_pooled_quantile_covers_nine_tenths_of_what_comes_next():
    """Split-conformal coverage, on a skewed law that the prior knows nothing of."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(2000, 60).exponential_(generator=generator)
    inside = [bool(row[-1] <= pooled_quantile(row[:-1].tolist(), prior=0.5)) for row in drawn]
    assert sum(inside) / len(inside) == pytest.approx(0.9, abs=0.03)


@settings(max_examples=25)
@given(st.integers(1, 10_000))
def test_the_largest_batch_is_found_by_halving(limit):
    assert largest_where(lambda size: size <= limit) == limit
    assert largest_where(lambda size: False) == 0
    assert largest_where(lambda size: True) is None


# --- regimes --------------------------------------------------------------------------------


def trace_of(batch, *, allocated=(), ops=None, weights=0):
    names = ops or ["aten::relu"] * len(allocated)
    rows = tuple(
        Row(op=op, scope=(), kind="light", flops=0, bytes_read=0, bytes_written=0, live_bytes=size, workspace_bytes=0, allocated_bytes=size)
        for op, size in zip(names, allocated, strict=True)
    )
    return Trace(rows=rows, batch_size=batch, weight_bytes=weights, input_bytes=0, outputs=(), ran=False)


def codes(knees):
    return [(knee.batch_size, knee.note.code) for knee in knees]


def test_blocks_that_grow_past_the_threshold_are_a_knee(monkeypatch):
    monkeypatch.setattr("aimass_lab.prediction.regimes.platform.libc_ver", lambda: ("glibc", "2.39"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr("aimass_lab.prediction.regimes.page_fault_seconds_per_byte", lambda: 1e-10)  # measured, it may drown in noise
    monkeypatch.setattr("aimass_lab.prediction.regimes.last_level_cache_bytes", lambda: None)  # a knee of its own, where this machine's cache is so small
    small, large, larger = (trace_of(b, allocated=(b * 2**20, 100)) for b in (16, 40, 80))
    assert mmap_threshold_bytes(CPU) == MMAP_BYTES
    assert [fresh_bytes(t, MMAP_BYTES) for t in (small, large)] == [0, 40 * 2**20]
    assert codes(find_knees([small, large, larger], CPU)) == [(40, "knee:page-faults")]  # from 40 on it is proportional again
    doubts = [page_fault_doubt(t, 0.01, MMAP_BYTES) for t in (small, large)]
    assert doubts[1] > doubts[0] > 0
    assert page_fault_doubt(trace_of(1, allocated=(1000,)), 1e-9, MMAP_BYTES) == 0  # so little is never given back


def test_an_allocator_that_is_not_glibcs_has_no_such_knee(monkeypatch):
    monkeypatch.setattr("aimass_lab.prediction.regimes.last_level_cache_bytes", lambda: None)
    small, large = (trace_of(b, allocated=(b * 2**20,)) for b in (16, 40))
    monkeypatch.setattr("aimass_lab.prediction.regimes.platform.libc_ver", lambda: ("glibc", "2.39"))
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert find_knees([small, large], CPU) == ()
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**40))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**40))
    assert find_knees([small, large], CPU) == ()
    assert page_fault_doubt(large, 1.0, mmap_threshold_bytes(CPU)) == 0
    monkeypatch.setattr("aimass_lab.prediction.regimes.platform.libc_ver", lambda: ("", ""))
    assert mmap_threshold_bytes(CPU) is None
    assert mmap_threshold_bytes(torch.device("cuda")) is None


def test_other_operators_and_a_full_cache_are_knees(monkeypatch):
    first, second = trace_of(1, allocated=(8,), ops=["aten::mv"]), trace_of(2, allocated=(8,), ops=["aten::mm"])
    assert codes(find_knees([first, second], CPU)) == [(2, "knee:operators")]
    monkeypatch.setattr("aimass_lab.prediction.regimes.last_level_cache_bytes", lambda: 1000)
    assert codes(find_knees([trace_of(b, allocated=(b,), weights=500) for b in (10, 400, 600)], CPU)) == [(600, "knee:cache")]


def test_the_last_level_cache_is_what_the_system_says():
    size = last_level_cache_bytes()
    assert size is None or 2**18 <= size <= 2**34


# --- matrix products ------------------------------------------------------------------------


def test_products_of_a_call_are_those_of_its_linear_layers():
    trace = trace_call(TinyMLP().eval(), Workload(TinyMLP(), features(5)).call)
    assert list(products_of(trace).values()) == [Product(5, 8, 16, torch.float32), Product(5, 16, 3, torch.float32)]
    convolutions = trace_call(TinyCNN().eval(), Workload(TinyCNN(), torch.randn(2, 1, 8, 8)).call)
    assert list(products_of(convolutions).values()) == [Product(2, 128, 10, torch.float32)]


def test_only_products_of_few_rows_are_timed_and_each_once(monkeypatch):
    timed = []
    monkeypatch.setattr("aimass_lab.prediction.families.AWAKE", 0.0)
    monkeypatch.setattr("aimass_lab.prediction.products._time", lambda product: timed.append(product) or float(product.rows))
    workload = Workload(TinyMLP().eval(), features(2))
    timer = ProductTimer(CPU)
    traces = tuple(trace_call(workload.model, workload.call, batch_size=b) for b in (2, 3, 4))
    assert timer.seconds(traces) == [4.0, 6.0, 8.0]  # two products a call, as many seconds as rows
    count = len(timed)
    timer.seconds(traces)
    assert len(timed) == count == 12  # six products, twice each
    many = tuple(trace_call(workload.model, workload.call, batch_size=b) for b in (FEW_ROWS, 2 * FEW_ROWS))
    assert timer.seconds(many) == [0.0, 0.0]
    assert ProductTimer(torch.device("cuda")).seconds(traces) == [0.0] * 3


def test_times_that_do_not_settle_are_not_used(monkeypatch):
    seconds = iter([8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr("aimass_lab.prediction.products._time", lambda product: next(seconds))
    workload = Workload(TinyMLP().eval(), features(2))
    assert ProductTimer(CPU).seconds((trace_call(workload.model, workload.call),)) == [0.0]


def test_times_that_are_slow_alike_because_others_have_the_core_are_not_used(monkeypatch):
    monkeypatch.setattr("aimass_lab.prediction.products._time", lambda product: 1.0)
    monkeypatch.setattr("aimass_lab.prediction.families.torch.get_num_threads", lambda: 2)
    workload = Workload(TinyMLP().eval(), features(2))
    trace = trace_call(workload.model, workload.call)
    for awake, expected in ((0.0, 2.0), (2.0, 0.0)):  # less than no time with a core, and less than twice all of it
        monkeypatch.setattr("aimass_lab.prediction.families.AWAKE", awake)
        assert ProductTimer(CPU).seconds((trace,)) == [expected]


def test_timing_products_leaves_the_random_state_alone():
    workload = Workload(TinyMLP().eval(), features(2))
    before = torch.get_rng_state()
    found = ProductTimer(CPU).seconds((trace_call(workload.model, workload.call),))
    assert torch.equal(before, torch.get_rng_state())
    assert len(found) == 1
    assert found[0] >= 0


# --- predictions ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiled():
    torch.manual_seed(0)
    workload = Workload(TinyTransformer().eval(), ids(2))
    return workload, profile_model(workload, ladder=(1, 2, 4, 8, 16), budget_s=0.5)


def with_latencies(profile, latencies, *, noisy=()):
    """The profile with latencies that are known by hand."""
    points = []
    for batch, seconds in latencies.items():
        number = Number(
            value=seconds, unit="s", source="measured", method="given", interval=(0.99 * seconds, 1.01 * seconds), environment=profile.environment.id,
            quality="noisy" if batch in noisy else "ok",
        )  # fmt: skip
        rate = derived(batch / seconds, "item/s", "by hand", [("latency", number)])
        memory = next((p.peak_memory_bytes for p in profile.ladder if p.batch_size == batch), None)
        points.append(BatchPoint(batch_size=batch, latency_p50=number, latency_p95=number, latency_p99=number, throughput=rate, peak_memory_bytes=memory))
    return msgspec.structs.replace(profile, ladder=tuple(points))


def test_what_was_measured_is_given_back_and_the_rest_has_a_band_and_a_basis(profiled):
    workload, profile = profiled
    known = with_latencies(profile, {b: 1.0 + 0.1 * b for b in (1, 2, 4, 8, 16)})
    prediction = predict_from_profile(workload, known, batch_sizes=(12, 4, 64))
    assert [p.batch_size for p in prediction.points] == [4, 12, 64]
    measured, between, beyond = prediction.points
    assert (measured.basis, between.basis, beyond.basis) == ("measured", "interpolated", "extrapolated")
    assert measured.latency == known.ladder[2].latency_p50
    assert between.latency.source == "estimated"
    assert between.latency.quality == "ok"
    assert between.latency.value == pytest.approx(2.2, rel=0.05)  # the curve between them is that of the rates, which other work moves
    assert "interpolated: between the measured batches 8 and 16" in between.latency.method
    assert between.throughput.value == pytest.approx(12 / between.latency.value)
    assert between.throughput.trust == "estimated"
    assert beyond.latency.quality == "extrapolated"
    assert beyond.latency.value == pytest.approx(7.4, rel=0.02)
    assert all(p.latency.interval[0] <= p.latency.value <= p.latency.interval[1] for p in prediction.points)
    assert from_json(to_json(prediction), Prediction) == prediction


def test_memory_between_the_anchors_is_what_a_profile_measures_there(profiled):
    workload, profile = profiled
    predicted = {p.batch_size: p.peak_memory_bytes for p in predict_from_profile(workload, profile, batch_sizes=(6, 12, 32)).points}
    measured = {p.batch_size: p.peak_memory_bytes for p in profile_model(workload, ladder=(6, 12, 32), budget_s=0.3).ladder if p.batch_size in predicted}
    for batch, number in measured.items():
        assert predicted[batch].value == pytest.approx(number.value, rel=0.02)
        assert predicted[batch].interval[0] <= number.value <= predicted[batch].interval[1]


@pytest.mark.parametrize("make", [
    lambda: (nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 8, 1)), torch.rand(4, 3, 40, 40)),
    lambda: (nn.LSTM(64, 64, batch_first=True), torch.rand(4, 16, 64)),
], ids=["depthwise", "lstm"])  # fmt: skip
def test_one_measured_batch_is_enough_for_the_memory_of_all(make):
    model, x = make()
    workload = Workload(model.eval(), x)
    profile = profile_model(workload, ladder=(4,), budget_s=0.2)
    assert [p.batch_size for p in profile.ladder] == [4]
    sizes = (2, 7, 24)
    measured = {p.batch_size: p.peak_memory_bytes.value for p in profile_model(workload, ladder=sizes, budget_s=0.2).ladder}
    for point in predict_from_profile(workload, profile, batch_sizes=sizes).points:
        assert point.peak_memory_bytes.value == pytest.approx(measured[point.batch_size], rel=0.02)
        low, high = point.peak_memory_bytes.interval
        assert low <= measured[point.batch_size] <= high


def test_the_largest_batch_is_the_last_whose_band_fits(profiled):
    workload, profile = profiled
    limit = int(max(p.peak_memory_bytes.value for p in profile.ladder) * 1.5)
    small = msgspec.structs.replace(profile, environment=msgspec.structs.replace(profile.environment, memory_bytes=limit))
    largest = int(predict_from_profile(workload, small, batch_sizes=(2,)).max_batch_size.value)
    fits, too_large = predict_from_profile(workload, small, batch_sizes=(largest, largest + 1)).points
    assert fits.peak_memory_bytes.interval[1] <= limit < too_large.peak_memory_bytes.interval[1]
    assert largest > 16


def test_what_disturbed_measurements_mean_is_said(profiled):
    workload, profile = profiled
    every = (1, 2, 4, 8, 16)
    values = {b: 1.0 + 0.1 * b for b in every}
    one = predict_from_profile(workload, with_latencies(profile, values, noisy=(4,)), batch_sizes=(4,))
    assert one.points[0].basis == "interpolated"
    assert any(note.code == "W-NOISY" and "batch 4 were" in note.text for note in one.notes)
    everything = predict_from_profile(workload, with_latencies(profile, values, noisy=every), batch_sizes=(3, 4))
    assert everything.points[0].latency.quality == "noisy"
    assert everything.points[1].basis == "measured"
    assert any(note.code == "W-NOISY" and "every measured latency" in note.text for note in everything.notes)


def test_a_ladder_that_falls_is_kept_and_said(profiled):
    workload, profile = profiled
    prediction = predict_from_profile(workload, with_latencies(profile, {1: 1.0, 2: 3.0, 4: 2.0, 8: 4.0}), batch_sizes=(2, 4))
    assert [p.latency.value for p in prediction.points] == [3.0, 2.0]
    assert any(note.code == "ladder:non-monotone" and "batch 4" in note.text for note in prediction.notes)


def test_batch_sizes_are_chosen_between_and_beyond_what_was_measured():
    assert default_batch_sizes([1, 2, 4, 8, 16]) == (1, 2, 3, 4, 6, 8, 12, 16, 32)
    assert default_batch_sizes([4]) == (4, 8)


@pytest.mark.parametrize("bad", [(0,), (-1,), (True,), (1.5,)])
def test_batch_sizes_that_are_none_are_refused(profiled, bad):
    workload, profile = profiled
    with pytest.raises(InputError, match="positive integer"):
        predict_from_profile(workload, profile, batch_sizes=bad)


def test_a_device_of_the_catalogue_needs_neither_weights_nor_a_profile():
    with torch.device("meta"):
        model, tokens = TinyTransformer(), torch.zeros(1, 12, dtype=torch.long)
    prediction = predict_by_rates(Workload(model, tokens), device="l4", batch_sizes=(1, 24))
    assert [p.batch_size for p in prediction.points] == [1, 24]
    assert {p.basis for p in prediction.points} <= {"datasheet", "calibrated roofline"}
    assert prediction.environment is None
    assert prediction.points[0].latency.value <= prediction.points[1].latency.value
    assert prediction.points[1].peak_memory_bytes.value <= prediction.memory_limit_bytes.value
    assert prediction.max_batch_size.value > 24


def test_a_batch_that_does_not_fit_is_left_out_and_said():
    with torch.device("meta"):
        model, x = nn.Linear(2**14, 2**14, bias=False), torch.zeros(1, 2**14)
    prediction = predict_by_rates(Workload(model, x), device="l4", batch_sizes=(1, 2**20))
    assert [p.batch_size for p in prediction.points] == [1]
    assert any(note.code == "W-FIT" for note in prediction.notes)
    assert prediction.max_batch_size.value < 2**20


def test_the_verb_profiles_where_nothing_was_measured_and_refuses_unknown_devices():
    study = Study(TinyMLP().eval(), features(4))
    prediction = study.predict(batch=(3,))
    assert [type(r).__name__ for r in study.results] == ["Profile", "Prediction"]
    assert prediction.points[0].basis == "interpolated"
    study.predict(batch=(5,))
    assert [type(r).__name__ for r in study.results] == ["Profile", "Prediction", "Prediction"]
    with pytest.raises(UnknownNameError):
        study.predict(device="no such device")


def test_an_untried_technique_is_the_original_times_its_predicted_effect(profiled, monkeypatch):
    """The ratio is given by hand: 0.5 at batch 2, 0.25 at batch 3, as 8 and 9 tenths to 1.25 times of it."""

    def effect(self, device, *, batch_size=None):
        value = 0.25 if batch_size == 3 else 0.5
        ratio = Number(value=value, unit="ratio", source="estimated", method="predicted effect", interval=(0.8 * value, 1.25 * value))
        size = Number(value=100, unit="B", source="estimated", method="predicted effect", interval=(98, 102))
        return Effect(self.recipe.name, device, batch_size or 2, size, size, ratio, ratio, (Note(code="effect:cause", text="because"),))

    monkeypatch.setattr("aimass_lab.prediction.effects.Effects.at", effect)
    workload, profile = profiled
    plain = predict_from_profile(workload, with_latencies(profile, {b: 1.0 + 0.1 * b for b in (1, 2, 4)}), batch_sizes=(2, 3))
    changed = with_effect(plain, workload, "bf16")
    assert (changed.technique, changed.max_batch_size, changed.effect_batch_size) == ("bf16", None, 2)
    assert [p.basis for p in changed.points] == ["effect", "effect"]
    assert [p.latency.value for p in changed.points] == [pytest.approx(0.6), pytest.approx(plain.points[1].latency.value / 4)]
    assert changed.points[0].latency.interval == (pytest.approx(0.99 * 1.2 * 0.4), pytest.approx(1.01 * 1.2 * 0.625))
    assert "measured latency of the original, times a predicted effect" in changed.points[0].latency.method
    assert changed.points[0].throughput.value == pytest.approx(2 / 0.6)
    assert changed.speedup.value == 2.0
    assert changed.speedup.interval == (pytest.approx(1.6), pytest.approx(2.5))
    assert {"effect:cause", "missing:max_batch_size"} <= {note.code for note in changed.notes}


def test_what_a_trial_made_is_measured_when_it_is_asked_for():
    study = Study(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), features(4))
    assert study.predict(batch=(4,), technique="bf16").points[0].basis == "effect"
    study.trial("bf16", seconds=0.2)
    assert study.predict(batch=(4,), technique="bf16").points[0].basis == "measured"
    told = FACTS["effects"](study)  # what is shown beside the trial is what was said before it
    assert {name: (one["index"], one["points"][0]["basis"]) for name, one in told.items()} == {"bf16": (1, "effect")}
    scored = {e.kind: e for e in study.store.entries() if e.technique == "bf16" and e.measured is not None}
    assert "effect: size" in scored
    assert scored["effect: size"].inside


def test_a_prediction_can_be_shown_drawn_and_tabulated(profiled):
    pytest.importorskip("plotly")
    from aimass_lab.frontends.charts import chart
    from aimass_lab.frontends.frames import to_frames
    from aimass_lab.frontends.render import render_html, render_text

    workload, profile = profiled
    prediction = predict_from_profile(workload, profile)
    assert "interpolated" in render_text(prediction)
    assert "90 % band" in render_html(prediction)
    frame = to_frames(prediction)["By batch size"]
    assert list(frame["batch"]) == [p.batch_size for p in prediction.points]
    figure = chart(prediction)
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert [list(trace.x) for trace in dots] == [[p.batch_size for p in profile.ladder]] * 2


def test_constants_are_what_the_texts_say():
    assert interpolate.LEVEL == 0.9
    assert MMAP_BYTES == 33_554_432  # mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX on 64-bit systems, 4 * 1024 * 1024 * sizeof(long)
