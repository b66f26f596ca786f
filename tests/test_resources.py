"""Resources at a rate: formulas held against hand computation, fits against planted coefficients, the table against its ladder."""

import math

import pytest
import torch
import torch.nn.functional as F
from models import TinyMLP, assert_same, features, snapshot
from torch import nn

from aimass_lab import Study
from aimass_lab.demand import coefficients, operators
from aimass_lab.demand.blocks import Block
from aimass_lab.demand.coefficients import check_on_blocks, fit_coefficients, fit_samples
from aimass_lab.demand.operators import FAR, Sample, family_of_row, measure_operators
from aimass_lab.demand.resources import Measured, estimate_resources, measure_gamma
from aimass_lab.devices import get_device
from aimass_lab.errors import InputError, UnknownNameError, UnsupportedError
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.records import BatchPoint, Number, ResourceDemand, from_json, to_json
from aimass_lab.tracing.trace import trace_call
from aimass_lab.wire import server_codecs
from aimass_lab.workload import Call, Workload

CPU = torch.device("cpu")
BATCH, RATE = 4, 1000.0
FLOPS = 2 * BATCH * (8 * 16 + 16 * 3)
TRAFFIC = 4 * (BATCH * 8 + 8 * 16 + 16 + BATCH * 16 + 2 * BATCH * 16 + BATCH * 16 + 16 * 3 + 3 + BATCH * 3)
LAUNCHES = 3
GIVEN = {"alpha": "2e-9", "beta": 3e-9, "gamma": "5e-9", "epsilon": "1e-5"}


def resources_of(**options):
    workload = Workload(TinyMLP(), features(BATCH))
    return estimate_resources(workload, **{"requests_per_s": RATE, "coefficients": GIVEN, **options})


def forms_of(demand):
    return {form.name: form for form in demand.forms}


def codes(demand):
    return {note.code for note in demand.notes}


def second(value, **more):
    return Number(value=value, unit="s", source="measured", method="clock", **more)


def ladder(*points, **more):
    made = [(b, second(s, interval=(0.9 * s, 1.2 * s), **more)) for b, s in points]
    return [
        BatchPoint(
            batch_size=b, latency_p50=n, latency_p95=n, latency_p99=n, throughput=Number(value=b / n.value, unit="item/s", source="measured", method="m")
        )
        for b, n in made
    ]


def test_an_mlp_by_hand():
    demand = resources_of(device="cpu")
    assert demand.compute_flops_per_s.value == pytest.approx(RATE * FLOPS / BATCH)
    assert demand.memory_bytes_per_s.value == pytest.approx(RATE * TRAFFIC / BATCH)
    assert demand.launches_per_s.value == pytest.approx(RATE * LAUNCHES / BATCH)
    message = demand.network_bytes_per_s.value / RATE
    assert message > 4 * (8 + 3)
    assert demand.memory_capacity_bytes.value == 4 * (8 * 16 + 16 + 16 * 3 + 3 + BATCH * 8 + BATCH * 16 * 2)
    busy = RATE * (2e-9 * FLOPS + 3e-9 * TRAFFIC + 1e-5 * LAUNCHES) / BATCH + 5e-9 * RATE * message
    additive = forms_of(demand)["additive"]
    assert additive.busy_devices.value == pytest.approx(busy)
    assert (additive.busy_devices.unit, demand.gamma.source) == ("core", "user")
    assert additive.replicas.value == math.ceil(busy / (0.7 * torch.get_num_threads()))
    layers = [(2 * BATCH * 8 * 16, 4 * (BATCH * 8 + 8 * 16 + 16 + BATCH * 16)), (0, 8 * BATCH * 16), (2 * BATCH * 16 * 3, 4 * (BATCH * 16 + 51 + BATCH * 3))]
    roofline = sum(max(2e-9 * f, 3e-9 * s) + 1e-5 for f, s in layers) / BATCH + 5e-9 * message
    assert forms_of(demand)["roofline"].time_per_request.value == pytest.approx(roofline)
    assert "W-NOT-FITTED" in codes(demand)


def test_twice_the_rate_keeps_twice_as_many_busy():
    once, twice = resources_of(), resources_of(requests_per_s=2 * RATE)
    assert twice.busy_devices.value == pytest.approx(2 * once.busy_devices.value)
    assert twice.compute_flops_per_s.value == pytest.approx(2 * once.compute_flops_per_s.value)
    assert twice.memory_capacity_bytes.value == once.memory_capacity_bytes.value


@pytest.mark.parametrize(("share", "replicas"), [(0.5, 4), (1.0, 2), (0.34, 6)])
def test_replicas_are_rounded_up_to_the_utilisation(share, replicas):
    # 2 cores busy on replicas of one core each
    demand = resources_of(device="h100-sxm", utilization=share, coefficients={"epsilon": str(2 / RATE * BATCH / LAUNCHES)})
    assert demand.busy_devices.value == pytest.approx(2)
    assert demand.replicas.value == replicas


def planted(family, alpha, beta, epsilon, count=12):
    work = [(1e6 * 3**k, 1e5 * 2 ** ((7 * k) % 11)) for k in range(count)]
    return [Sample(family, f, s, 1, alpha * f + beta * s + epsilon) for f, s in work]


def test_planted_coefficients_are_found_again_family_by_family():
    samples = planted("gemm", 1e-11, 2e-11, 3e-6) + planted("softmax", 0, 7e-11, 1e-6)
    fit = fit_samples(samples, environment="here", quality="ok", cache=2**20)
    gemm, softmax = fit.families["gemm"], fit.families["softmax"]
    assert [gemm.alpha.value, gemm.beta.value, gemm.epsilon.value] == pytest.approx([1e-11, 2e-11, 3e-6])
    assert [softmax.alpha.value, softmax.beta.value] == pytest.approx([0, 7e-11], abs=1e-16)
    assert gemm.held_out_error.value < 1e-6
    assert fit.family_error.value < 1e-6
    assert fit.all.held_out_error.value > 0.05, "one set for two kinds of operators cannot be right"
    assert gemm.alpha.interval[0] <= gemm.alpha.value <= gemm.alpha.interval[1]


def test_one_spoilt_time_does_not_move_the_fit():
    samples = planted("gemm", 1e-11, 2e-11, 3e-6, count=14)
    spoilt = samples[5]
    samples[5] = Sample(spoilt.family, spoilt.flops, spoilt.bytes_moved, 1, 3 * spoilt.seconds)
    found = fit_samples(samples, environment=None, quality="ok", cache=2**20).families["gemm"]
    assert found.alpha.value == pytest.approx(1e-11, rel=0.02)
    assert found.beta.value == pytest.approx(2e-11, rel=0.02)
    assert found.held_out_error.interval[1] > 0.5, "and the error shows it"


def test_where_work_overlaps_the_roofline_fits_and_the_sum_over_counts():
    work = [(1e8 * (1 + k % 5), 1e6 * (1 + (3 * k) % 7)) for k in range(30)]
    samples = [Sample("gemm", f, s, 1, max(1e-11 * f, 1e-9 * s) + 1e-6) for f, s in work]
    fit = fit_samples(samples, environment=None, quality="ok", cache=2**20)
    assert fit.roofline.held_out_error.value < 0.02 < fit.all.held_out_error.value
    assert fit.roofline.alpha.value == pytest.approx(1e-11, rel=0.05)
    assert fit.roofline.beta.value == pytest.approx(1e-9, rel=0.05)


def test_networks_that_no_fit_saw_say_how_far_it_carries():
    fit = fit_samples(planted("gemm", 1e-11, 2e-11, 3e-6), environment=None, quality="ok", cache=2**20)
    call = Call((torch.empty(8, 8, device="meta"),))
    rows = trace_call(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), call).rows
    alone = fit.by_family_s(rows)
    blocks = [Block("tiny", rows, alone + 2 * 5e-6, True), Block("small", rows, 2 * (alone + 2 * 5e-6), False)]
    checked = check_on_blocks(fit, blocks, between=True)
    assert checked.families["gemm"].epsilon.value == pytest.approx(fit.families["gemm"].epsilon.value + 5e-6)
    assert checked.network_errors["per family"].value == pytest.approx(0.5)
    assert checked.network_errors["per family"].interval == pytest.approx((-0.5, -0.5))
    assert check_on_blocks(fit, blocks, between=False).families == fit.families


class _Run(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


FAMILIES = {
    "gemm": (F.linear, (8, 16), (32, 16)),
    "matrix-vector": (F.linear, (1, 16), (32, 16)),
    "conv": (lambda x, w: F.conv2d(x, w, padding=1), (1, 3, 16, 16), (8, 3, 3, 3)),
    "pointwise conv": (F.conv2d, (2, 16, 8, 8), (64, 16, 1, 1)),
    "depthwise conv": (lambda x, w: F.conv2d(x, w, padding=1, groups=32), (1, 32, 16, 16), (32, 1, 3, 3)),
    "attention": (F.scaled_dot_product_attention, (1, 2, 16, 8), (1, 2, 16, 8), (1, 2, 16, 8)),
    "softmax": (lambda x: F.softmax(x, -1), (4, 16)),
    "norm": (lambda x: F.layer_norm(x, (16,)), (4, 16)),
    "elementwise": (F.relu, (4, 16)),
    "transcendental": (F.gelu, (4, 16)),
    "elementwise" + FAR: (torch.add, (2**19,), (2**19,)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_find_their_family(family):
    function, *shapes = FAMILIES[family]
    rows = trace_call(_Run(function), Call(tuple(torch.empty(s, device="meta") for s in shapes))).rows
    assert {family_of_row(row, 2**20) for row in rows} == {family}


@pytest.fixture(scope="module")
def fit():
    return fit_coefficients(CPU, torch.float32)


def test_operators_measured_here_give_coefficients_with_their_held_out_error(fit):
    assert {"gemm", "conv", "attention", "elementwise", "norm"} <= set(fit.families)
    for coefficient in (fit.all, *fit.families.values()):
        assert min(coefficient.alpha.value, coefficient.beta.value, coefficient.epsilon.value) >= 0
        assert coefficient.alpha.source == "measured"
        assert coefficient.held_out_error.value >= 0
        assert coefficient.alpha.n >= 4
    assert set(fit.network_errors) == {"additive", "roofline", "per family"}
    assert fit_coefficients(CPU, torch.float32) is fit, "measured once per process"


def test_a_measurement_that_is_interrupted_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(coefficients, "_known", {})
    monkeypatch.setattr(operators, "ROUND_S", 1e-4)
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def interrupt(share, text):
        if share > 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_coefficients(CPU, torch.float32, progress=interrupt)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not coefficients._known


def test_other_dtypes_are_measured_too(monkeypatch):
    monkeypatch.setattr(operators, "ROUND_S", 1e-5)
    monkeypatch.setattr(operators, "ROUNDS", 1)
    samples = measure_operators(CPU, torch.bfloat16)
    assert all(sample.seconds > 0 and sample.bytes_moved > 0 for sample in samples)


def test_every_form_stands_side_by_side_with_its_error(fit):
    demand = resources_of(coefficients=None)
    forms = forms_of(demand)
    assert set(forms) == {"additive", "per family", "roofline"}
    assert demand.chosen == min(forms, key=lambda name: forms[name].network_error.value)
    assert forms["per family"].held_out_error == fit.family_error
    assert forms["roofline"].network_error == fit.network_errors["roofline"]
    assert forms["additive"].held_out_error == fit.all.held_out_error
    low, high = forms["per family"].time_per_request.interval
    assert low < forms["per family"].time_per_request.value < high
    assert demand.coefficients[0] == fit.all
    assert "missing:table" in codes(demand)


def test_the_measured_table_goes_before_every_formula(fit):
    demand = resources_of(coefficients=None, measured=Measured(ladder((1, 0.002), (BATCH, 0.004)), threads=2))
    table = forms_of(demand)["table"]
    assert demand.chosen == "table"
    assert table.time_per_request.value == pytest.approx(0.004 * 2 / BATCH)
    assert demand.busy_devices.value == pytest.approx(RATE * 0.004 * 2 / BATCH)
    assert demand.busy_devices.interval == pytest.approx((RATE * 0.0036 * 2 / BATCH, RATE * 0.0048 * 2 / BATCH))
    assert demand.replicas.value == math.ceil(2 / (0.7 * 2))
    assert demand.replica_width.value == 2
    assert "measured" in demand.difference
    assert "missing:table" not in codes(demand)


def test_a_table_measured_on_a_busy_machine_is_shown_and_not_chosen(fit):
    demand = resources_of(coefficients=None, measured=Measured(ladder((BATCH, 0.004), quality="noisy"), threads=2))
    assert "table" in forms_of(demand)
    assert demand.chosen != "table"
    assert "W-NOISY-TABLE" in codes(demand)
    assert "other work kept the machine busy" in demand.difference


def test_a_batch_that_was_not_measured_has_no_table(fit):
    demand = resources_of(coefficients=None, measured=Measured(ladder((1, 0.002)), threads=2))
    assert "table" not in forms_of(demand)
    assert any("batch 4 is not on the measured ladder" in note.text for note in demand.notes)


def test_a_device_of_the_catalogue_has_coefficients_from_its_datasheet():
    demand, entry = resources_of(device="l4", coefficients=None), get_device("l4")
    assert demand.coefficients[0].alpha.value == 1 / entry.flops_per_s["float32"].value
    assert demand.coefficients[0].beta.value == 1 / entry.memory_bytes_per_s.value
    assert demand.coefficients[0].alpha.source == "datasheet"
    assert demand.coefficients[0].epsilon.source == "assumed"
    assert demand.busy_devices.weakest_source == "assumed"
    assert demand.busy_devices.unit == "device"
    assert {form.held_out_error for form in demand.forms} == {None}


def test_gamma_is_the_time_of_the_codec_that_serves(fit):
    workload = Workload(TinyMLP(), features(BATCH))
    gamma = measure_gamma(workload, trace_call(workload.model, workload.call), server_codecs)
    assert (gamma.unit, gamma.weakest_source) == ("s/B", "measured")
    assert gamma.interval[0] <= gamma.value <= gamma.interval[1]
    here = resources_of(coefficients=None, codecs=server_codecs)
    message = here.network_bytes_per_s.value / RATE
    without = resources_of(coefficients=None)
    added = forms_of(here)["per family"].time_per_request.value - forms_of(without)["per family"].time_per_request.value
    assert added == pytest.approx(here.gamma.value * message)
    assert "missing:gamma" in codes(without)


def test_beside_an_accelerator_the_codec_is_not_the_devices_work():
    with_gamma, without = (resources_of(device="l4", coefficients=None, codecs=codecs) for codecs in (server_codecs, None))
    assert with_gamma.gamma is not None
    assert with_gamma.busy_devices.value == without.busy_devices.value
    assert "gamma-host" in codes(with_gamma)


def test_no_codec_is_no_gamma():
    assert resources_of(device="l4", coefficients=None, codecs=lambda *message: {"binary": "no such tensors"}).gamma is None


@pytest.mark.parametrize(("jobs", "replicas_busy"), [(1, 1.0), (7, 2.0), (64, 5.5)])
def test_both_readings_of_the_schedule_by_hand(jobs, replicas_busy):
    seconds_of_launch = replicas_busy / RATE * BATCH / LAUNCHES
    demand = resources_of(device="l4", utilization=1.0, jobs=jobs, coefficients={"epsilon": seconds_of_launch})
    replicas, call_s = demand.replicas.value, seconds_of_launch * LAUNCHES
    assert demand.schedule_overhead.value == pytest.approx(demand.decision_time.value * jobs / replicas)
    free = [0.0] * replicas  # list scheduling, one call after another on whoever is free first
    for _ in range(math.ceil(jobs / BATCH)):
        first = min(range(replicas), key=lambda r: free[r])
        free[first] += call_s
    assert demand.makespan.value == pytest.approx(max(free))
    low, high = demand.makespan.interval
    assert low <= demand.makespan.value * (1 + 1e-9)
    assert demand.makespan.value <= high * (1 + 1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_s": 0.0}, {"requests_per_s": math.nan}, {"utilization": 0.0}, {"utilization": 1.2}, {"batch_size": 0}, {"jobs": -1},
        {"coefficients": {"delta": "1"}}, {"coefficients": {"alpha": "fast"}}, {"coefficients": {"alpha": "-1"}}, {"coefficients": {"beta": "inf"}},
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        resources_of(**wrong)


def test_devices_that_are_not_there_or_not_known_are_said_so():
    with pytest.raises(UnknownNameError):
        resources_of(device="abacus")
    workload = Workload(TinyMLP().to(torch.float64), features(BATCH).double())
    with pytest.raises(UnsupportedError, match="float64 rate of l4 is unknown"):
        estimate_resources(workload, requests_per_s=1.0, device="l4")


def test_the_model_is_left_alone(fit):
    model = TinyMLP().train()
    before = snapshot(model)
    estimate_resources(Workload(model, features(BATCH)), requests_per_s=RATE, codecs=server_codecs)
    assert_same(before, snapshot(model))


def test_the_verb_the_record_and_its_pages(fit, tmp_path):
    study = Study(TinyMLP(), features(BATCH), store=tmp_path / "h.db")
    before = study.resources(rate="600/min", utilization=0.5)
    assert before.requests_per_s.value == 10
    assert before.chosen != "table"
    study.profile(seconds=0.3)
    after = study.resources(rate=RATE)
    assert "table" in forms_of(after)
    assert after.difference
    assert from_json(to_json(after), ResourceDemand) == after
    assert "γ" in render_text(after)
    assert "held-out error" in render_html(after)
    assert "table" not in forms_of(study.resources(rate=RATE, device="l4"))
