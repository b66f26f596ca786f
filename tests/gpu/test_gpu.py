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


def test_a_trial_on_the_gpu(study):
    result = study.trial("bf16")
    assert result.environment.device.startswith("cuda")
    assert result.fidelity.value > 0.99
