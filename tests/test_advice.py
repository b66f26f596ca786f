"""Advice: each rule speaks where the profile gives it a reason, with a gain that follows from what was measured."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from models import TinyCNN, TinyMLP, features
from torch import nn

from aimass_lab.profiling import profile_model
from aimass_lab.profiling.advice import (
    PAGE_BYTES,
    Situation,
    advise,
    allow_tf32,
    compile_it,
    faster,
    fuse_attention,
    keep_freed_memory,
    leave_training_mode,
    raise_batch,
    set_threads,
    use_bf16,
    use_channels_last,
    without_disproved,
)
from aimass_lab.profiling.bottleneck import Rates, Split, share_compute_bound
from aimass_lab.profiling.evidence import Evidence, gather_evidence
from aimass_lab.profiling.probes import Range, fault_cost, page_faults, product_speedup, ratio_of_two
from aimass_lab.profiling.recorder import Op, Recording, record_call
from aimass_lab.records import BatchPoint, Number
from aimass_lab.tracing.trace import Row, Trace
from aimass_lab.workload import Workload
from tests.proofs import TRIES
from tests.trial_records import trial_record

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def seconds(value, spread=0.0):
    interval = (value - spread, value + spread) if spread else None
    return Number(value=value, unit="s", source="measured", method="given", interval=interval)


def recording(**nanoseconds):
    """A call of 1 µs whose operators take these times."""
    return Recording(call_ns=1000, ops=[Op(f"aten::{name}", "m", -1, ns, ns) for name, ns in nanoseconds.items()])


def situation(**changes):
    base = {
        "model": TinyMLP(), "device": CPU, "dtype": "float32", "batch_size": 1, "latency": seconds(1.0), "ladder": (), "recording": None, "split": None,
        "compute_share": 1.0, "evidence": Evidence(), "compiled": False, "in_training": False,
    }  # fmt: skip
    return Situation(**{**base, **changes})


def point(batch_size, latency_s, spread):
    ends = (batch_size / (latency_s + spread), batch_size / (latency_s - spread))
    rate = Number(value=batch_size / latency_s, unit="item/s", source="measured", method="given", interval=ends)
    latency = seconds(latency_s, spread)
    return BatchPoint(batch_size=batch_size, latency_p50=latency, latency_p95=latency, latency_p99=latency, throughput=rate)


def check_band(gain):
    assert gain.source == "estimated"
    assert gain.interval[0] <= gain.value <= gain.interval[1]
    assert gain.method


def test_without_a_reason_there_is_no_advice():
    assert [a.name for a in advise(situation()) if a.name != "set_threads"] == []


def test_amdahl():
    assert faster(0.5, 2) == pytest.approx(4 / 3)
    assert faster(0.0, 100) == 1
    assert faster(1.0, 3) == pytest.approx(3)


def test_fresh_memory_costs_what_its_pages_cost():
    evidence = Evidence(faults_per_call=100_000, fault_cost_s=Range(4e-6, 3e-6, 5e-6))
    advice = keep_freed_memory(situation(evidence=evidence))
    check_band(advice.gain)
    assert advice.gain.value == pytest.approx(1 / (1 - 0.9 * 0.4))
    assert advice.gain.interval == pytest.approx((1 / (1 - 0.6 * 0.3), 1 / (1 - 1.2 * 0.5)))
    assert "391 MiB" in advice.text
    compile(advice.code, "advice", "exec")
    assert keep_freed_memory(situation(evidence=Evidence(faults_per_call=100_000))) is None, "what a page costs was not measured"


class Wide(nn.Module):
    """Each call takes a block of 64 MiB and frees it."""

    def forward(self, x):
        return (x.expand(2**24) + 1).sum()


def pages_of_a_call():
    model, x = Wide(), torch.ones(1)
    model(x)
    before = page_faults()
    for _ in range(4):
        model(x)
    return (page_faults() - before) / 4


MANY_PAGES = 0.5 * 2**26 / PAGE_BYTES


def test_large_blocks_really_come_back_page_by_page(tmp_path):
    """The advice's premise and its line, on this machine: pages are counted, in a process of its own because the line changes it for good."""
    if page_faults() is None:
        pytest.skip("this system does not count page faults")
    code = keep_freed_memory(situation(evidence=Evidence(faults_per_call=1.0, fault_cost_s=Range(1e-6, 1e-6, 1e-6)))).code
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    lines = ["from tests.test_advice import pages_of_a_call", "before = pages_of_a_call()", code]
    lines += ["print(before, min(pages_of_a_call() for _ in range(5)))"]  # a small block may settle within a large one's place once or twice
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    if before < MANY_PAGES:
        pytest.skip("this system's C library keeps large blocks")
    assert after < 0.05 * before


def test_a_profile_counts_the_pages_and_advises_to_keep_them():
    if page_faults() is None or fault_cost() is None:
        pytest.skip("this system does not count page faults")
    if pages_of_a_call() < MANY_PAGES:
        pytest.skip("this process's allocator keeps large blocks")
    for _ in range(TRIES):  # a machine that stands still while one of two figures is taken makes the other look small
        profile = profile_model(Workload(Wide(), torch.ones(1)), budget_s=0.3, ladder=[])
        advice = {a.name: a for a in profile.advice}.get("keep_freed_memory")
        if advice is not None:
            break
    else:
        pytest.fail(f"not advised at {profile.latency_p50}")
    assert advice.gain.value > 1.05
    check_band(advice.gain)
    assert float(advice.gain.method.split()[0]) > MANY_PAGES


def test_products_in_bf16_gain_what_their_share_allows():
    s = situation(recording=recording(addmm=800, gelu=100), evidence=Evidence(bf16_speedup=Range(4.0, 3.0, 5.0)))
    advice = use_bf16(s)
    check_band(advice.gain)
    assert advice.gain.value == pytest.approx(faster(0.8, 3.25))
    assert advice.gain.interval == pytest.approx((faster(0.8, 2.0), faster(0.8, 5.0)))
    assert advice.technique == "bf16"
    bound_by_memory = use_bf16(dataclasses.replace(s, compute_share=0.0))
    assert bound_by_memory.gain.interval[1] == pytest.approx(faster(0.8, 2.0)), "half the bytes: at most twice as fast"
    assert use_bf16(dataclasses.replace(s, evidence=Evidence(bf16_speedup=Range(0.4, 0.3, 0.5)))) is None, "slower here: no advice"


def test_tf32_is_about_matrix_products_only():
    advice = allow_tf32(situation(recording=recording(addmm=500, convolution=400), evidence=Evidence(tf32_speedup=Range(2.0, 2.0, 2.0))))
    assert advice.gain.value == pytest.approx(faster(0.5, 1.75))
    assert "tf32" in advice.code


def test_attention_written_out_is_noticed():
    ops = [Op(name, "attn", -1, ns, ns) for name, ns in [("aten::bmm", 200), ("aten::_softmax", 300), ("aten::bmm", 200)]]
    advice = fuse_attention(situation(recording=Recording(call_ns=1000, ops=ops)))
    assert advice.gain.interval == pytest.approx((1.0, 1 / (1 - 0.27)))
    assert "written out" in advice.text
    assert fuse_attention(situation(recording=recording(bmm=500, _softmax=100))) is None, "one product alone is no attention"


def test_the_plain_path_of_torch_s_attention_is_noticed():
    class Masked(nn.Module):
        def forward(self, q):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return nn.functional.scaled_dot_product_attention(q, q, q)

    model, q = Masked(), torch.randn(2, 4, 256, 16)
    with torch.inference_mode():
        seen = record_call(lambda: model(q), CPU, model)
    advice = fuse_attention(situation(recording=seen))
    assert "plain path" in advice.text
    check_band(advice.gain)


def test_a_fused_attention_needs_no_advice():
    class Fused(nn.Module):
        def forward(self, q):
            return nn.functional.scaled_dot_product_attention(q, q, q)

    model, q = Fused(), torch.randn(2, 4, 64, 16)
    with torch.inference_mode():
        seen = record_call(lambda: model(q), CPU, model)
    assert fuse_attention(situation(recording=seen)) is None


def test_the_batch_where_throughput_levels_off():
    ladder = (point(1, 0.010, 0.001), point(4, 0.022, 0.001), point(8, 0.038, 0.001), point(16, 0.080, 0.001))
    advice = raise_batch(situation(ladder=ladder))
    assert "batches of 4 " not in advice.text
    assert "batches of 8 " in advice.text
    assert advice.gain.value == pytest.approx((8 / 0.038) / 100)
    assert advice.gain.interval == pytest.approx((8 / 0.039 * 0.009, 8 / 0.037 * 0.011))
    assert raise_batch(situation(ladder=ladder, batch_size=8)) is None
    busy = tuple(msgspec.structs.replace(p, throughput=msgspec.structs.replace(p.throughput, quality="noisy")) for p in ladder)
    assert raise_batch(situation(ladder=busy)) is None


def test_overhead_is_what_compiling_takes_away(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/" + name)
    s = situation(split=Split(compute_s=0.3, memory_s=0.1, overhead_s=0.5))
    assert compile_it(s).gain.interval == pytest.approx((1.0, 1 / (1 - 0.45)))
    assert compile_it(dataclasses.replace(s, compiled=True)) is None
    assert compile_it(dataclasses.replace(s, split=Split(0.9, 0.05, 0.05))) is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compile_it(s) is None, "no compiler here"


def test_channels_last_is_measured_on_the_slowest_convolution():
    s = situation(recording=recording(convolution=900), evidence=Evidence(channels_last=("body.0", Range(2.0, 1.8, 2.2))))
    advice = use_channels_last(s)
    assert "body.0" in advice.text
    assert advice.gain.interval[0] == 1.0, "the other convolutions may gain nothing"
    assert use_channels_last(dataclasses.replace(s, evidence=Evidence(channels_last=("body.0", Range(1.1, 0.9, 1.3))))) is None


@pytest.mark.parametrize(("threads", "cores", "code"), [(16, 4, "torch.set_num_threads(4)"), (1, 8, "torch.set_num_threads(8)"), (4, 4, None), (3, 4, None)])
def test_threads_and_cores(monkeypatch, threads, cores, code):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("aimass_lab.profiling.advice.usable_cores", lambda: float(cores))
    advice = set_threads(situation())
    assert (advice and advice.code) == code
    if advice:
        check_band(advice.gain)


def test_training_mode_is_about_correctness():
    advice = leave_training_mode(situation(in_training=True))
    assert advice.gain is None
    assert advice.code == "model.eval()"


def test_the_largest_gain_comes_first_and_small_ones_not_at_all(monkeypatch):
    monkeypatch.setattr("aimass_lab.profiling.advice.set_threads", lambda s: None)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("aimass_lab.profiling.advice.usable_cores", lambda: 2.0)
    ladder = (point(1, 0.010, 0.001), point(2, 0.0198, 0.001))
    evidence = Evidence(faults_per_call=100_000, fault_cost_s=Range(4e-6, 3e-6, 5e-6), bf16_speedup=Range(4.0, 3.0, 5.0))
    s = situation(ladder=ladder, evidence=evidence, recording=recording(addmm=800), in_training=True)
    assert [a.name for a in advise(s)] == ["use_bf16", "keep_freed_memory", "evaluate"]


def test_what_a_trial_disproved_is_not_advised_again():
    profile = profile_model(Workload(TinyMLP(), features()), budget_s=0.1, ladder=[])
    s = situation(recording=recording(addmm=800), evidence=Evidence(bf16_speedup=Range(4.0, 3.0, 5.0)))
    profile = msgspec.structs.replace(profile, advice=(use_bf16(s), leave_training_mode(situation(in_training=True))))

    def trial(verdict, model=profile.model):
        return trial_record(model, profile.environment, verdict=verdict)

    def names(*trials):
        return [a.name for a in without_disproved(profile, trials).advice]

    assert names() == names(trial("faster")) == names(trial("slower"), trial("faster")) == names(trial("mixed")) == ["use_bf16", "evaluate"]
    assert names(trial("cannot tell")) == names(trial("faster"), trial("cannot tell")) == ["use_bf16", "evaluate"]
    assert names(trial("slower"), trial("cannot tell")) == ["evaluate"]  # what could tell counts
    assert names(trial("no gain")) == names(trial("faster"), trial("not equivalent")) == ["evaluate"]
    assert names(trial("slower", model=msgspec.structs.replace(profile.model, digest="another"))) == ["use_bf16", "evaluate"]


# --- evidence and probes


def test_evidence_is_gathered_only_where_there_is_a_reason(monkeypatch):
    looks = []
    monkeypatch.setattr("aimass_lab.profiling.evidence.product_speedup", lambda *a, **k: looks.append("bf16"))
    monkeypatch.setattr("aimass_lab.profiling.evidence.fault_cost", lambda: looks.append("faults"))
    monkeypatch.setattr("aimass_lab.profiling.evidence.channels_last_speedup", lambda *a: looks.append("layout"))
    model = TinyMLP()
    gather_evidence(model, CPU, torch.float32, recording(gelu=900), 3.0)
    assert looks == []
    gather_evidence(model, CPU, torch.bfloat16, recording(addmm=900), 3.0)
    assert looks == [], "it is in bfloat16 already"
    gather_evidence(model, CPU, torch.float32, recording(addmm=900), 10_000.0)
    assert looks == ["faults", "bf16"]
    gather_evidence(model, CPU, torch.float32, None, None)
    assert looks == ["faults", "bf16"]


def test_the_slowest_convolution_is_probed_without_being_touched():
    model, images = TinyCNN().eval(), torch.randn(4, 1, 8, 8)
    with torch.inference_mode():
        seen = record_call(lambda: model(images), CPU, model)
    before = model.features[0].weight.clone()
    seen.ops = [Op("aten::convolution", "features.0", -1, seen.call_ns, seen.call_ns)]
    evidence = gather_evidence(model, CPU, torch.float64, seen, None)
    name, speedup = evidence.channels_last
    assert name == "features.0"
    assert 0 < speedup.low <= speedup.value <= speedup.high
    assert torch.equal(model.features[0].weight, before)
    assert model.features[0].weight.is_contiguous()


def test_two_functions_are_compared_in_turns(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("aimass_lab.timing.time.perf_counter", lambda: now[0])

    def passes(t):
        now[0] += t

    found = ratio_of_two(lambda: passes(0.03), lambda: passes(0.01), CPU)
    assert found.value == pytest.approx(3)
    assert found.low == pytest.approx(3)
    assert found.high == pytest.approx(3)


def test_probes_measure_something():
    assert product_speedup(CPU, torch.bfloat16).low > 0
    cost = fault_cost()
    assert cost is None or 0 <= cost.low <= cost.value <= cost.high < 1e-3


def test_the_random_state_is_left_alone_by_probes():
    before = torch.get_rng_state()
    product_speedup.cache_clear()
    product_speedup(CPU, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)


def test_share_of_products_that_arithmetic_binds():
    def rate(value, unit):
        return Number(value=value, unit=unit, source="measured", method="given")

    rows = tuple(Row("aten::mm", (), "formula", f, b, 0, 0, 0) for f, b in [(100, 1), (10, 30), (0, 1000)])
    trace = Trace(rows, 1, 0, 0, (), False)
    assert share_compute_bound(trace, Rates(rate(1, "FLOP/s"), rate(1, "B/s"), rate(1, "s"))) == pytest.approx(100 / 130)
