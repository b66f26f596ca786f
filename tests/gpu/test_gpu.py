"""The same promises on a real GPU. Nothing here has been measured yet: where there is none, the summary says so."""

import pytest
import torch
from torch import nn

from aimass_lab import Study
from aimass_lab.errors import DoesNotFitError, InputError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


@pytest.fixture
def study():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda().half()
    return Study(model, torch.randn(64, 1024, device="cuda", dtype=torch.float16))


def test_a_profile_on_the_gpu_agrees_with_the_drivers_account(study):
    before = [p.clone() for p in study.model.parameters()]
    profile = study.profile()
    assert profile.environment.device.startswith("cuda")
    assert profile.latency_p50.value > 0
    assert profile.peak_memory_bytes.value >= profile.weight_bytes.value
    assert profile.peak_memory_bytes.value <= torch.cuda.get_device_properties(0).total_memory
    assert all(torch.equal(a, b) for a, b in zip(before, study.model.parameters(), strict=True))


def test_kernels_are_charged_to_operators_and_modules(study):
    profile = study.profile()
    assert profile.kernels
    assert sum(k.device_time.value for k in profile.kernels) == pytest.approx(sum(o.device_time.value for o in profile.operators), rel=0.05)
    gemm = max(profile.operators, key=lambda o: o.device_time.value)
    assert gemm.family == "gemm"
    assert gemm.module in ("0", "2")
    assert 0 < profile.device_busy.value <= 1.1
    assert {k.module for k in profile.kernels} <= {"", "0", "1", "2"}


def test_kernel_times_agree_with_torch_s_own_table(study):
    profile = study.profile()
    x = study.workload.call.args[0]
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as reference:
        study.model(x)
        torch.cuda.synchronize()
    total_s = sum(e.self_device_time_total for e in reference.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA) / 1e6
    assert sum(k.device_time.value for k in profile.kernels) == pytest.approx(total_s, rel=0.3)


def test_the_memory_ledger_adds_up_to_the_driver_s_figure(study):
    profile = study.profile()
    free, total = torch.cuda.mem_get_info()
    assert sum(part.bytes.value for part in profile.memory) == profile.memory_total.value
    assert profile.memory_total.value == pytest.approx(total - free, rel=0.1)
    parts = {part.name: part.bytes.value for part in profile.memory}
    assert parts["weights"] == profile.weight_bytes.value
    assert parts["allocator slack"] >= 0
    assert profile.timeline.peak.value <= profile.memory_total.value


def test_the_driver_s_version_is_its_own(study):
    environment = study.profile().environment
    assert environment.cuda == torch.version.cuda
    assert environment.driver is None or environment.driver.split(".")[0].isdigit()
    assert environment.driver != f"CUDA {torch.version.cuda}"


def test_tf32_left_off_is_advised_with_what_it_brings_here():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no TF32 on this GPU")
    model = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096)).cuda()
    before = torch.backends.cuda.matmul.fp32_precision
    profile = Study(model, torch.randn(2048, 4096, device="cuda")).profile()
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert {"allow_tf32", "use_bf16"} <= {a.name for a in profile.advice}


def test_demand_predicts_the_peak_that_torch_reports(study):
    demand = study.demand()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    with torch.inference_mode():
        study.model(study.workload.call.args[0])
    measured = torch.cuda.max_memory_allocated() - start
    low, high = demand.peak_memory_bytes.interval
    assert low - demand.weight_bytes.value <= measured * 1.05
    assert measured <= high


def test_too_much_is_refused_and_memory_comes_back_when_forced(study):
    with pytest.raises(DoesNotFitError):
        study.profile(batch=2**34)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(DoesNotFitError):
        study.profile(batch=2**24, force=True)
    assert torch.cuda.mem_get_info()[0] >= 0.95 * free
    assert study.model(study.workload.call.args[0]).shape == (64, 1024)


def test_inputs_on_the_cpu_are_named(study):
    with pytest.raises(InputError, match=r"the model is on cuda:0 and the input 'input' is on cpu"):
        Study(study.model, torch.randn(1, 1024))


def test_the_replayed_allocator_agrees_with_the_real_one(study):
    """The bars: requested 2 %, reserved 5 %, what the driver shows within its band and never more than 3 % above the estimate."""
    demand = study.demand()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        study.model(study.workload.call.args[0])
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    parts = {part.name: part.bytes.value for part in demand.memory}
    requested = sum(value for name, value in parts.items() if name not in ("allocator slack", "CUDA context"))
    assert requested == pytest.approx(stats["requested_bytes.all.peak"], rel=0.02)
    assert demand.allocated_bytes.value == pytest.approx(stats["allocated_bytes.all.peak"], rel=0.02)
    assert demand.reserved_bytes.value == pytest.approx(stats["reserved_bytes.all.peak"], rel=0.05)
    free, total = torch.cuda.mem_get_info()
    low, high = demand.driver_bytes.interval
    assert low <= total - free
    assert total - free <= 1.03 * high
