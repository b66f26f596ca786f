"""Predictions for the GPU that is attached, against the time of real calls."""

import pytest
import torch
from torch import nn

from aimass_lab.devices import find_by_driver_name
from aimass_lab.environment import read_environment
from aimass_lab.prediction.attached import attached_gpu, carried_factors
from aimass_lab.prediction.target import find_target, predict_on_device
from aimass_lab.timing import timed
from aimass_lab.tracing.trace import trace_call
from aimass_lab.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

DEVICE = torch.device("cuda:0")


def median_s(function, calls=30):
    with torch.inference_mode():
        for _ in range(5):
            function()
        return sorted(timed(function, DEVICE) for _ in range(calls))[calls // 2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 64, 2048])
def test_the_latency_of_a_real_call_lies_in_the_band(dtype, rows):
    word = getattr(torch, dtype)
    model = nn.Sequential(*(nn.Sequential(nn.LayerNorm(4096), nn.Linear(4096, 4096), nn.GELU()) for _ in range(8))).to(DEVICE, word).eval()
    x = torch.randn(rows, 4096, device=DEVICE, dtype=word)
    workload = Workload(model, x)
    number = predict_on_device(trace_call(model, workload.call), find_target("cuda:0", workload), dtype)
    assert "calibrated roofline of rates measured here" in number.method
    low, high = number.interval
    assert low <= median_s(lambda: model(x)) <= high


def test_the_attached_gpu_is_found_in_the_catalogue_and_its_factors_are_near_one():
    name, memory = torch.cuda.get_device_name(DEVICE), read_environment(DEVICE).memory_bytes
    entry = find_by_driver_name(name, memory)
    gpu, basis, start_s = attached_gpu(DEVICE, "float16")
    assert basis.source == "measured"
    assert 0 < start_s < 1e-3
    if entry is None:
        pytest.skip(f"{name} is not in the catalogue")
    assert gpu.name == entry.name
    assert all(0.6 < factor < 1.7 for factor in gpu.factors)
    factors, words = carried_factors("float16")
    assert factors == pytest.approx(tuple(f**0.25 for f in gpu.factors), rel=0.05)
    assert entry.name in words
