"""Latency on devices that nothing was measured on: the roofline, its constants and bands, and the effect of techniques."""

import dataclasses
import importlib.util
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from aimass_lab.devices import get_device
from aimass_lab.errors import UnknownNameError, UnsupportedError
from aimass_lab.prediction import families, processor
from aimass_lab.prediction.bands import Band, launches
from aimass_lab.prediction.calibration import Gpu, UnknownRateError, gpu_of, load_calibrations, price_rows
from aimass_lab.prediction.effects import Effects
from aimass_lab.prediction.roofline import LightConstants, MatrixConstants, Rates, attention_seconds, light_seconds, matrix_seconds
from aimass_lab.prediction.target import estimate_latency, find_target, predict_on_device
from aimass_lab.profiling import bottleneck
from aimass_lab.recipe import read_recipe
from aimass_lab.records import Number
from aimass_lab.tracing.trace import Row, trace_call
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Workload, weight_bytes
from tests.models import TinyCNN, TinyMLP, TinyTransformer, assert_same, snapshot

BENCHMARK = Path(__file__).parent / "benchmarks" / "demand" / "vidur.py"


@pytest.fixture(autouse=True)
def no_user_catalogue(monkeypatch, tmp_path):
    monkeypatch.delenv("AIMASS_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def a(*values):
    return np.array(values, dtype=float)


A100 = Rates(312e12, 2039e9, 108, 1.41e9, 40e6)
IDEAL = MatrixConstants(1, 1e-9, 1, 60, 1e-15, 1e-15, 1e6, 1e-9, 200, 1e9)


# --- the formula


def test_an_ideal_device_takes_exactly_its_peak_where_the_tiles_fill_one_wave():
    m, n, k = 128, 128 * 108, 8192
    moved = 2.0 * (m * k + n * k + m * n)
    seconds = matrix_seconds(IDEAL, A100, a(1), a(m), a(n), a(k), a(0 * moved))
    # 24 candidates share the soft minimum, which is at most their number to the power 1/200 above the best
    assert 2 * m * n * k / 312e12 == pytest.approx(seconds[0], rel=0.02)


def test_one_tile_too_many_starts_another_wave_of_a_split_sum():
    """109 tiles of 64x64 on 108 multiprocessors: cut into eight, the sums fill eight waves and start a ninth."""
    full, over = (matrix_seconds(IDEAL, A100, a(1), a(64), a(64 * tiles), a(64), a(0)) for tiles in (108, 109))
    assert over[0] == pytest.approx(9 / 8 * full[0], rel=0.02)


def test_no_product_is_faster_than_arithmetic_or_traffic_allow():
    rng = random.Random(0)
    m, n, k = (a(*(2 ** rng.uniform(0, 14) // 1 for _ in range(300))) for _ in range(3))
    moved = 2 * (m * k + n * k + m * n)
    seconds = matrix_seconds(IDEAL, A100, np.ones(300), m, n, k, moved)
    least = np.maximum(2 * m * n * k / 312e12, moved / 2039e9)
    assert np.all(seconds >= least * 0.97)  # the soft minimum's slack


def test_a_batch_of_products_is_so_many_tiles_more():
    one, many = (matrix_seconds(IDEAL, A100, a(b), a(128), a(128), a(64), a(0)) for b in (108, 1080))
    assert many[0] == pytest.approx(10 * one[0], rel=0.02)


def test_light_operators_by_hand():
    c = LightConstants(memory=0.8, elements_per_cycle=1e9, cache=0.5, smooth=50, floor_s=3e-6, window=1)
    large, small = light_seconds(c, A100, a(1, 1), a(4e9, 1e6))
    assert large == pytest.approx(4e9 / (0.8 * 2039e9) + 3e-6, rel=0.02)  # far beyond the cache
    assert small == pytest.approx(1e6 / (0.5 * 64 * 108 * 1.41e9) + 3e-6, rel=0.02)  # within it
    issue = light_seconds(dataclasses.replace(c, elements_per_cycle=2.0), A100, a(1e9), a(4e9))
    assert issue[0] == pytest.approx(1e9 / (2 * 108 * 1.41e9) + 3e-6, rel=0.02)


def test_attention_is_never_faster_than_the_peak():
    c = load_calibrations()["attention"].constants
    flops, moved = a(1e9, 1e12, 1e14), a(1e6, 1e8, 1e9)
    assert np.all(attention_seconds(c, A100, flops, a(4, 400, 40000), moved) > np.maximum(flops / 312e12, moved / 2039e9))


# --- the constants that ship


def test_every_constant_is_a_share_or_a_time_that_can_be():
    for name, calibration in load_calibrations().items():
        constants = dataclasses.asdict(calibration.constants)
        assert all(math.isfinite(v) and v > 0 for v in constants.values()), name
        assert constants["memory"] <= 1
        assert constants.get("compute", 1) <= (2.25 if name == "conv32" else 1)  # Winograd's saves so much
        assert constants["floor_s"] <= 5e-5
        assert constants["smooth"] >= 1
        assert 0.1 < calibration.half_width < 1
        assert len(calibration.devices) >= 3
        assert set(calibration.own) == set(calibration.devices)


def row(family, *, flops=0, moved=0, shape=(), dtype="float16", op="aten::mm"):
    return Row(op, ("",), "formula", flops, moved // 2, moved - moved // 2, 0, 0, family=family, dtype=dtype, shape=shape)


def product(m, n, k):
    return row("gemm", flops=2 * m * n * k, moved=2 * (m * k + n * k + m * n), shape=(m, n))


# Kernel times of Llama-2-7B's operators in float16, microseconds: medians published in microsoft/vidur at 7d47513 (MIT).
PUBLISHED = [
    ("a100-80", product(4096, 4096, 11008), 1604),
    ("a40", product(4096, 4096, 11008), 3371),
    ("h100-sxm", product(4096, 4096, 11008), 438),
    ("a100-80", product(32, 12288, 4096), 66),
    ("a40", product(32, 12288, 4096), 206),
    ("h100-sxm", product(32, 12288, 4096), 38),
    ("a100-80", row("elementwise", moved=3 * 2 * 4096 * 4096, shape=(4096, 4096)), 55),
    ("a40", row("elementwise", moved=3 * 2 * 4096 * 4096, shape=(4096, 4096)), 172),
    ("h100-sxm", row("elementwise", moved=3 * 2 * 4096 * 4096, shape=(4096, 4096)), 31),
    ("a100-80", row("norm", moved=2 * 2 * 4096 * 4096, shape=(4096, 4096)), 104),
    ("h100-sxm", row("norm", moved=2 * 2 * 4096 * 4096, shape=(4096, 4096)), 66),
]


@pytest.mark.parametrize(("device", "operator", "microseconds"), PUBLISHED)
def test_published_times_lie_in_the_band(device, operator, microseconds):
    low, high = (end[0] * 1e6 for end in (lambda p: (p.low, p.high))(price_rows([operator], gpu_of(get_device(device)), "float16")))
    assert low <= microseconds <= high


def test_a_layer_is_ahead_of_the_datasheet_on_published_times():
    """The three operators of the A40 above: the sum is within 10 %, the datasheet's is 25 % too low."""
    mine = [(o, t) for d, o, t in PUBLISHED if d == "a40"]
    expected = sum(t for _, t in mine) * 1e-6
    priced = price_rows([o for o, _ in mine], gpu_of(get_device("a40")), "float16")
    assert priced.total[0] == pytest.approx(expected, rel=0.1)
    peak = sum(max(o.flops / 149.7e12, (o.bytes_read + o.bytes_written) / 696e9) for o, _ in mine)
    assert peak < 0.75 * expected


# --- rows


H100 = gpu_of(get_device("h100-sxm"))


def test_what_was_not_among_the_measurements_has_a_wider_band_and_says_so():
    def width(some, gpu=H100):
        priced = price_rows([some], gpu, "float16")
        return float(priced.high[0] / priced.seconds[0]), priced.doubts

    plain, none = width(product(512, 4096, 4096))
    assert none == ()
    convolution, why = width(row("conv", flops=10**10, moved=10**7, shape=(8, 64, 56, 56)))
    assert convolution > plain
    assert "convolutions" in why[0]
    recurrent, why = width(row("recurrent", flops=10**9, moved=10**7, shape=(64, 8, 512)))
    assert recurrent > convolution
    assert "recurrent" in why[0]
    unseen, _ = width(product(512, 4096, 4096), gpu_of(get_device("rtx-4090")))
    assert unseen > plain


def test_steps_of_a_recurrent_layer_wait_for_one_another():
    def seconds(steps):
        return price_rows([row("recurrent", flops=steps * 10**7, moved=steps * 10**5, shape=(steps, 8, 512))], H100, "float16").total[0]

    assert seconds(64) == pytest.approx(64 * seconds(1), rel=1e-6)


def test_tf32_is_used_only_where_torch_may_use_it():
    some = row("gemm", flops=2 * 4096**3, moved=3 * 4 * 4096**2, shape=(4096, 4096), dtype="float32")
    plain = price_rows([some], H100, "float32").total[0]
    allowed = price_rows([some], dataclasses.replace(H100, tf32_products=True), "float32").total[0]
    assert plain > 2 * 4096**3 / 67e12
    assert 2 * 4096**3 / 494.5e12 < allowed < plain / 3


def test_a_causal_mask_may_halve_attention():
    some = row("attention", flops=4 * 32 * 4096**2 * 128, moved=10**8, shape=(1, 32, 4096, 128))
    priced = price_rows([some], H100, "float16")
    assert priced.seconds[0] / priced.low[0] > 1.9 * priced.high[0] / priced.seconds[0]


def test_a_precision_without_a_rate_is_not_guessed():
    with pytest.raises(UnknownRateError, match="bfloat16"):
        price_rows([row("gemm", flops=10**9, moved=10**6, shape=(64, 64), dtype="bfloat16")], gpu_of(get_device("t4")), "bfloat16")


def test_the_slower_a_device_was_seen_the_longer_its_operators_take():
    some = [product(2048, 4096, 4096), row("elementwise", moved=10**9, shape=(10**8,))]
    slow = dataclasses.replace(H100, factors=(1.25, 1.5))
    before, after = price_rows(some, H100, "float16").seconds, price_rows(some, slow, "float16").seconds
    assert 1.1 < after[0] / before[0] < 1.3
    assert after[1] / before[1] == pytest.approx(1.5, rel=0.02)


# --- calls


def latency(model, x, device):
    workload = Workload(model, x)
    return predict_on_device(trace_call(model, workload.call), find_target(device, workload), workload.info().dtype)


def wide_layer(dtype):
    return nn.Linear(8192, 8192, bias=False, device="meta", dtype=dtype), torch.empty(8192, 8192, device="meta", dtype=dtype)


@pytest.mark.parametrize(
    ("device", "basis"),
    [
        ("h100-sxm", "calibrated roofline (fitted on it and on other devices) of h100-sxm, not measured here"),
        ("a30", "calibrated roofline (fitted on a100-80"),
        ("mi300x", "datasheet roofline of mi300x, not measured here"),
        ("gaudi-3", "datasheet roofline of gaudi-3"),
        ("NVIDIA H200", "calibrated roofline"),
    ],
)
def test_the_basis_is_named(device, basis):
    number = latency(*wide_layer(torch.bfloat16), device)
    assert number.source == "estimated"
    assert number.method.startswith(basis)
    assert number.interval[0] < number.value < number.interval[1]
    calibrated = "calibrated" in basis
    assert ("90 % band" in number.interval_kind) == calibrated
    ratio = number.interval[1] / number.value
    assert ratio < 1.5 if calibrated else ratio > 1.5


def test_a_faster_device_is_faster():
    times = [latency(*wide_layer(torch.bfloat16), device).value for device in ("l4", "a40", "a100-80", "h100-sxm", "b200")]
    assert times == sorted(times, reverse=True)


def test_a_call_of_many_small_operators_takes_the_time_of_starting_them():
    model = nn.Sequential(*(nn.ReLU() for _ in range(500)))
    number = latency(model, torch.ones(2, 4), "h100-sxm")
    assert (number.value, *number.interval) == pytest.approx((500 * 8e-6, 500 * 4e-6, 500 * 20e-6), rel=0.5)


def test_an_unknown_rate_is_said_and_not_guessed():
    workload = Workload(TinyMLP().to(torch.bfloat16), torch.zeros(2, 8, dtype=torch.bfloat16))
    trace, target = trace_call(workload.model, workload.call), find_target("v100-pcie", workload)
    number, notes = estimate_latency(trace, target, "bfloat16")
    assert number is None
    assert [note.code for note in notes] == ["missing:latency"]
    with pytest.raises(UnsupportedError, match="bfloat16 rate of v100-pcie is unknown"):
        predict_on_device(trace, target, "bfloat16")


def test_a_users_own_processor_has_a_wide_band(tmp_path, monkeypatch):
    mine = tmp_path / "mine.toml"
    mine.write_text('[box]\nkind = "cpu"\nnum_cores = 16\nclock_hz = 2.4e9\nisa = "avx512"\nmemory_bytes_per_s = 2e11\n')
    monkeypatch.setenv("AIMASS_DEVICES", str(mine))
    number = latency(*wide_layer(torch.float32), "box")
    at_peak = 2 * 8192**3 / (16 * 2.4e9 * 64)
    assert at_peak < number.interval[0] < number.value < number.interval[1] < 10 * at_peak


# --- the processor here


def test_rates_between_probes_lie_on_a_straight_line_of_logarithms():
    rates = [(1.0, 10.0), (100.0, 1000.0)]
    assert [processor._between(rates, size) for size in (0.5, 10, 200)] == pytest.approx([10, 100, 1000])


def test_probes_leave_the_random_state_alone_and_are_made_once(monkeypatch):
    state = torch.get_rng_state()
    monkeypatch.setattr(families, "_known", {})
    monkeypatch.setattr(families, "MOST_TRIES", 1)
    kinds = ["gemm", "elementwise", "recurrent"]
    first = [families.family_rate(kind, torch.float32) for kind in kinds]
    assert torch.equal(torch.get_rng_state(), state)
    assert [families.family_rate(kind, torch.float32) for kind in kinds] == first
    assert all(best >= usual > 0 for rates in first for (_, best), (_, usual) in zip(rates.best, rates.usual, strict=True))


STARVED = """
import json, os, subprocess, sys, time
import torch
from aimass_lab.prediction.families import family_rate

model, sizes = torch.nn.Linear(768, 768), (1, 8, 32)

def alone(x):  # one thread in its own time, which no other process can stretch
    begin = time.thread_time()
    model(x)
    return time.thread_time() - begin

torch.set_num_threads(1)
with torch.inference_mode():
    alone_s = {size: min(alone(torch.zeros(size, 768)) for _ in range(300)) for size in sizes}
torch.set_num_threads(2)
model(torch.zeros(512, 768))  # which starts the threads
core = {min(os.sched_getaffinity(0))}
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    for task in (*map(int, os.listdir("/proc/self/task")), other.pid):
        os.sched_setaffinity(task, core)
    rate = family_rate("gemm", torch.float32)
finally:
    other.kill()
    other.wait()
best, usual = dict(rate.best), dict(rate.usual)
over = [2 * size * 768 * 768 / best[size] / alone_s[size] for size in sizes]
print(json.dumps([over, max(best[size] / usual[size] for size in sizes), rate.disturbed]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs to choose the cores of threads")
def test_two_threads_on_one_core_that_others_hold_give_no_absurd_rate():
    """Every call of both takes some slices of the scheduler, a hundred times the product itself, and no best of several is any better."""
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=300, check=True)
    over, spread, disturbed = json.loads(done.stdout)
    assert all(1 / 10 < each < 10 for each in over)  # a core that is shared has cold caches, too; threads that wait take a hundred times as long
    assert spread > 10  # at some size: a product of one row may be one thread's alone, which waits for nobody
    assert "core" in disturbed


@pytest.fixture
def plain_processor(monkeypatch):
    """A processor of 1 GFLOP/s and 1 GB/s that starts an operator in 1 microsecond."""
    rate = type("Rate", (), {"value": 1e9, "environment": None, "quality": "ok"})
    start = type("Start", (), {"value": 1e-6})
    monkeypatch.setattr(processor, "family_rate", lambda kind, dtype: families.FamilyRate([(1.0, 1e9)], [(1.0, 1e9)]))
    monkeypatch.setattr(processor, "measure_rates", lambda *_: type("Rates", (), {"memory_bytes_per_s": rate, "overhead": start, "flops_per_s": rate}))


def test_latency_here_is_the_sum_of_its_families(plain_processor):
    x, model = torch.zeros(4, 8), TinyMLP()
    trace = trace_call(model, Workload(model, x).call)
    band, _ = processor.price_on_processor(trace, torch.device("cpu"), "float32")
    products = 2 * 4 * (8 * 16 + 16 * 3) / 1e9
    relu = 2 * 4 * 16 * 4 / 1e9
    assert band.value == pytest.approx(processor.BEYOND_PROBES * (products + relu) + 1e-6 * len(trace.rows))
    assert band.low < band.value < band.high


def test_rates_that_others_disturbed_are_called_noisy_with_their_spread_in_the_band(monkeypatch):
    def measured(value, unit):
        return Number(value=value, unit=unit, source="measured", method="given")

    def predicted(usual, disturbed=""):
        monkeypatch.setattr(processor, "family_rate", lambda kind, dtype: families.FamilyRate([(1.0, 1e9)], [(1.0, usual)], disturbed))
        return estimate_latency(trace, target, "float32")

    rates = bottleneck.Rates(flops_per_s=measured(1e9, "FLOP/s"), memory_bytes_per_s=measured(1e9, "B/s"), overhead=measured(1e-6, "s"))
    monkeypatch.setattr(processor, "measure_rates", lambda device, dtype: rates)
    workload = Workload(TinyMLP(), torch.zeros(4, 8))
    trace, target = trace_call(workload.model, workload.call), find_target("cpu", workload)
    quiet, said = predicted(usual=1e9)
    noisy, warned = predicted(usual=1e7, disturbed="the probes had a core for 3 % of their time")
    assert (quiet.quality, said) == ("ok", ())
    assert (noisy.quality, [note.code for note in warned]) == ("noisy", ["W-NOISY"])
    assert (noisy.value, noisy.interval[0]) == (quiet.value, quiet.interval[0])
    assert noisy.interval[1] > 10 * quiet.interval[1]


# --- bands


def test_bands_add_up_and_never_cross():
    both = Band(2, 1, 4) + Band(3, 2, 5)
    assert both == Band(5, 3, 9)
    assert Band(2, 1, 4).at_least(launches(1, (3, 0.5, 3.5))) == Band(3, 1, 4)
    assert Band(2, 1, 4).times(Band(0.5, 0.25, 1)) == Band(1, 0.25, 4)
    with pytest.raises(ValueError, match="outside"):
        Band(1, 2, 3)


# --- techniques that were not applied


@pytest.mark.parametrize("technique", ["bf16", "fp16", "int8_dynamic", "int8_weight_only"])
def test_predicted_weights_are_those_of_the_applied_technique(technique):
    model = TinyTransformer(width=64).eval()
    workload = Workload(model, torch.zeros(2, 6, dtype=torch.long))
    effect = Effects(workload, technique).at("h100-sxm")
    applied = apply_recipe(workload, read_recipe(technique)).model
    low, high = effect.weight_bytes.interval
    assert low <= weight_bytes(applied) <= high
    assert effect.weight_bytes.value == pytest.approx(weight_bytes(applied), rel=0.01)


@pytest.mark.parametrize(
    ("technique", "model", "inputs"),
    [
        ("channel_pruning(ratio=0.5)", TinyCNN, torch.zeros(4, 1, 8, 8)),
        ("channel_pruning(ratio=0.5,criterion=activation) + int8_dynamic", TinyCNN, torch.zeros(4, 1, 8, 8)),
        ("channel_pruning(ratio=0.4,scope=global)", TinyCNN, torch.zeros(4, 1, 8, 8)),
        ("head_pruning(ratio=0.5)", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2), torch.zeros(2, 6, 32)),
        ("layer_dropping(ratio=0.5)", lambda: TinyTransformer(width=64, layers=4), torch.zeros(2, 6, dtype=torch.long)),
        ("low_rank(ratio=0.5,ranks=uniform)", lambda: TinyTransformer(width=64), torch.zeros(2, 6, dtype=torch.long)),
    ],
)
def test_steps_that_change_shapes_are_predicted_of_the_very_shapes_that_they_leave(technique, model, inputs):
    """And of the operators that are left: what is priced is what the applied technique's model would be."""
    torch.manual_seed(0)
    workload = Workload(model().eval(), inputs)
    before = snapshot(workload.model)
    effect = Effects(workload, technique).at("h100-sxm")
    assert_same(before, snapshot(workload.model))
    applied = apply_recipe(workload, read_recipe(technique))
    assert effect.weight_bytes.value < weight_bytes(workload.model)
    assert effect.weight_bytes.value == pytest.approx(weight_bytes(applied.model), rel=0.03)
    if "int8" not in technique:
        left = predict_on_device(trace_call(applied.model, workload.call), find_target("h100-sxm", workload), "float32")
        assert effect.latency.value == pytest.approx(left.value, rel=0.03)
    low, high = effect.latency_ratio.interval
    assert low < effect.latency_ratio.value < high


class Residual(nn.Module):
    """A block that can be left out."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(256, 256)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


def test_half_of_the_blocks_take_half_of_the_time_and_what_leaves_shapes_takes_the_same():
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Residual() for _ in range(8))).eval()
    workload = Workload(blocks, torch.randn(64, 256), train=torch.randn(8, 256))
    assert Effects(workload, "layer_dropping(ratio=0.5) + recover").at("h100-sxm").latency_ratio.value == pytest.approx(0.5, rel=0.02)
    for technique in ("unstructured_pruning", "n_m_pruning", "connection_pruning", "clustering", "recover"):
        effect = Effects(workload, technique).at("h100-sxm")
        assert effect.latency_ratio.value == 1.0, technique
        assert effect.weight_bytes.value == weight_bytes(blocks), technique


@pytest.mark.parametrize(
    ("technique", "words"),
    [
        ("int4_weight_only", "which layers int4_weight_only changes, and by which kernels they run then, shows when it is applied"),
        ("aot_inductor", "aot_inductor leaves the model to another runtime"),
        ("low_rank(energy=0.9)", "what low_rank(energy=0.9) makes of Sequential is not known before it is applied"),
        ("layer_dropping", "shows on its weights, and the model is on the meta device"),
    ],
)
def test_an_effect_that_is_not_predicted_says_why(technique, words):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    workload = Workload(model.to("meta"), torch.empty(4, 64, device="meta")) if "meta" in words else Workload(model, torch.zeros(4, 64))
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        Effects(workload, technique).at("h100-sxm")


def big(device="meta"):
    return nn.Sequential(*(nn.Linear(4096, 4096, device=device) for _ in range(4)))


def test_what_sixteen_bits_do_on_tensor_cores():
    """float32 without TF32 runs at 67 TFLOP/s and bfloat16 at 989: between twice and fifteen times as fast."""
    effect = Effects(Workload(big(), torch.empty(4096, 4096, device="meta")), "bfloat16").at("h100-sxm")
    assert 1 / 15 < effect.latency_ratio.value < 0.5
    assert effect.latency_ratio.source == effect.latency.source == "estimated"
    assert "predicted effect of bf16" in effect.latency.method
    assert effect.latency.interval[0] < effect.latency.value < effect.latency.interval[1]
    assert effect.weight_bytes.value == 2 * sum(p.numel() for p in big().parameters())


def test_eight_bit_weights_cost_widening_in_eager_mode():
    effect = Effects(Workload(big(), torch.empty(16, 4096, device="meta")), "int8_weight_only").at("a100-80")
    assert effect.latency_ratio.value > 1
    assert effect.weight_bytes.value < 0.26 * weight_bytes(big())
    assert effect.peak_memory_bytes.value > effect.weight_bytes.value + 4096 * 4096 * 4  # the matrix that is widened


def test_compiling_joins_light_operators():
    model = nn.Sequential(nn.Linear(64, 64), *(nn.GELU() for _ in range(20)))
    effect = Effects(Workload(model, torch.zeros(8, 64)), "compile").at("h100-sxm")
    assert effect.latency_ratio.value < 0.3
    assert effect.weight_bytes.value == weight_bytes(model)


def test_what_runs_the_operators_comes_on_top_of_their_precision():
    workload = Workload(nn.Sequential(nn.Linear(64, 64), *(nn.GELU() for _ in range(20))), torch.zeros(8, 64))
    both, bf16, compiled = (Effects(workload, recipe).at("h100-sxm") for recipe in ("bf16 + compile", "bf16", "compile"))
    assert both.technique == "bf16 + compile"
    assert both.latency_ratio.value < min(bf16.latency_ratio.value, compiled.latency_ratio.value)
    assert both.weight_bytes == bf16.weight_bytes
    assert both.latency_ratio.interval[1] / both.latency_ratio.value > compiled.latency_ratio.interval[1] / compiled.latency_ratio.value


def test_two_precisions_one_upon_the_other_are_not_guessed():
    workload = Workload(TinyMLP(), torch.zeros(2, 8))
    with pytest.raises(UnsupportedError, match="bf16 and int8_dynamic one upon the other"):
        Effects(workload, "bf16 + int8_dynamic").at("l4")


def test_no_technique_changes_nothing():
    effect = Effects(Workload(TinyMLP(), torch.zeros(2, 8)), "none").at("l4")
    assert effect.latency_ratio.value == 1
    assert effect.latency_ratio.interval == (1, 1)


def test_a_technique_that_would_change_nothing_is_refused():
    with pytest.raises(UnsupportedError, match="would change nothing"):
        Effects(Workload(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(1, 1, 8, 8)), "int8_dynamic").at("l4")
    with pytest.raises(UnsupportedError, match="all weights of the model are bfloat16 already"):
        Effects(Workload(TinyMLP().bfloat16(), torch.zeros(2, 8, dtype=torch.bfloat16)), "bf16").at("l4")
    with pytest.raises(UnknownNameError, match="int9"):
        Effects(Workload(TinyMLP(), torch.zeros(2, 8)), "int9").at("l4")


def test_a_processor_without_the_instructions_says_so(monkeypatch, plain_processor):
    from aimass_lab.prediction import effects

    monkeypatch.setattr(effects, "_processor_flags", lambda: frozenset({"avx2"}))
    slow = Effects(Workload(TinyMLP(), torch.zeros(2, 8)), "bf16").at("cpu")
    assert any(note.code == "effect:slow-kernels" for note in slow.notes)
    monkeypatch.setattr(effects, "_processor_flags", lambda: frozenset({"avx512_bf16"}))
    fast = Effects(Workload(TinyMLP(), torch.zeros(2, 8)), "bf16").at("cpu")
    assert not any(note.code == "effect:slow-kernels" for note in fast.notes)

    def width(effect):
        return effect.latency_ratio.interval[1] / effect.latency_ratio.value

    assert width(slow) == pytest.approx(width(fast) * math.exp(0.4))


# --- the fit


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("scipy")
    spec = importlib.util.spec_from_file_location("vidur_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        del sys.modules[spec.name]


def made_up(seconds, devices=("a100-80", "a40", "h100-sxm"), count=150):
    """Light operators whose times follow a formula that is known."""
    rng = np.random.default_rng(0)
    parts = []
    for device in devices:
        gpu = gpu_of(get_device(device))
        moved = 10 ** rng.uniform(4, 9, count)
        frame = pd.DataFrame({"bytes": moved, "elements": moved / 2, "seconds": seconds(gpu, moved)})
        frame = frame.assign(device=device, chip=device, source="vidur", model="m", tp=1, family="norm", op="x", weight=1.0, flops=0.0)
        frame = frame.assign(batch=1.0, m=1.0, n=1.0, k=1.0, tokens=np.arange(count), flops_per_s=1.0, bytes_per_s=gpu.bytes_per_s)
        parts.append(frame.assign(num_multiprocessors=gpu.num_multiprocessors, clock_hz=gpu.clock_hz, cache_bytes=gpu.cache_bytes))
    return pd.concat(parts, ignore_index=True)


TRUTH = LightConstants(memory=0.85, elements_per_cycle=6.0, cache=0.5, smooth=3.0, floor_s=4e-6, window=1.0)


def by_truth(gpu, moved):
    return light_seconds(TRUTH, gpu.rates(1.0), moved / 2, moved)


def test_the_fit_finds_constants_that_are_known(benchmark):
    fitted = benchmark.fit("norm", made_up(by_truth), 0.01)
    assert fitted.constants.memory == pytest.approx(TRUTH.memory, rel=0.05)
    assert fitted.constants.elements_per_cycle == pytest.approx(TRUTH.elements_per_cycle, rel=0.1)
    assert fitted.constants.floor_s == pytest.approx(TRUTH.floor_s, rel=0.05)


def test_a_held_out_device_is_predicted_without_a_look_at_it(benchmark):
    """Times of the held-out device ten times too long change its score, and nothing of what was fitted."""
    honest, spoilt = made_up(by_truth), made_up(by_truth)
    spoilt.loc[spoilt.chip == "h100-sxm", "seconds"] *= 10
    first, second = (benchmark.hold_out("norm", x, x, ["h100-sxm"], 0.3)["h100-sxm"] for x in (honest, spoilt))
    assert first.abs().max() < 0.1
    assert np.allclose((first - second).to_numpy(), math.log(10), atol=1e-9)


def test_a_band_is_the_quantile_of_held_out_scores_wider_for_few_devices(benchmark):
    spread = pd.Series(np.linspace(-0.1, 0.1, 1001))
    assert benchmark.half_width({"one": spread, "two": spread}) == pytest.approx(1.5 * 0.09, rel=0.01)
    assert benchmark.half_width({str(i): spread for i in range(10)}) == pytest.approx(1.1 * 0.09, rel=0.01)
    assert benchmark.worst_width({"one": spread, "two": 2 * spread}) == pytest.approx(0.18, rel=0.01)


def test_a_gpu_is_described_by_the_catalogue_or_not_at_all():
    assert isinstance(gpu_of(get_device("l4")), Gpu)
    assert gpu_of(get_device("mi300x")) is None
    assert gpu_of(get_device("gaudi-3")) is None
    assert gpu_of(get_device("cpu")) is None
