"""Traces and readings on a real GPU: the plugin's sums against torch's, NVML's account against CUDA's."""

import os

import pytest
import torch
from torch import nn

from aimass_lab import Study
from aimass_lab.profiling.traces import read_trace
from aimass_lab.readings import EnergyMeter, take_readings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


@pytest.fixture
def study():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda().half().eval()
    return Study(model, torch.randn(64, 1024, device="cuda", dtype=torch.float16))


def test_kernels_operators_and_modules_of_a_trace(study, tmp_path):
    summary = study.trace(path=str(tmp_path), calls=3)
    assert summary.num_steps == 3
    assert summary.kernels
    total = sum(kernel.total.value for kernel in summary.kernels)
    assert sum(o.device_self.value for o in summary.operators) == pytest.approx(total, rel=0.01)
    assert summary.modules[0].device_total.value == pytest.approx(total, rel=0.01)
    linear = next(o for o in summary.operators if o.name == "aten::linear")
    assert linear.calls == 6
    assert linear.device_total.value > 0
    step = summary.step
    parts = (step.kernel, step.memcpy, step.memset, step.runtime, step.data_loader, step.cpu, step.other)
    assert sum(part.value for part in parts) == pytest.approx(step.total.value, rel=1e-6)
    assert {m.device for m in summary.memory} >= {"GPU0"}
    assert summary.gpus[0].utilization.value > 0


def test_device_times_are_those_of_torchs_own_table(study, tmp_path):
    x = study.workload.call.args[0]
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode(), torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            study.model(x)
        torch.cuda.synchronize()
    path = tmp_path / "plain.json"
    profiler.export_chrome_trace(str(path))
    theirs = {event.key: event for event in profiler.key_averages()}
    for operator in read_trace(path).operators:
        assert operator.device_self.value == pytest.approx(theirs[operator.name].self_device_time_total / 1e6, rel=0.01, abs=1e-6)


def test_readings_agree_with_cuda():
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    free, total = torch.cuda.mem_get_info()
    readings = take_readings(0.5)
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    gpu = next(gpu for gpu in readings.gpus if gpu.uuid.endswith(uuid))
    assert gpu.memory_total_bytes.value == pytest.approx(total, rel=0.02)
    assert gpu.memory_used_bytes.value == pytest.approx(total - free, rel=0.1, abs=2**29)
    assert all(process.memory_bytes.value >= held.numel() for process in gpu.processes if process.pid == os.getpid() and process.memory_bytes)


def test_energy_of_a_busy_second():
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    with EnergyMeter("cuda:0") as meter:
        start, calls = torch.cuda.Event(enable_timing=True), 0
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        while True:
            for _ in range(50):
                x @ x
            calls += 50
            end.record()
            end.synchronize()
            if start.elapsed_time(end) > 1000:
                break
    if meter.joules is None:
        assert meter.note.text
        pytest.skip(meter.note.text)
    assert 10 < meter.joules / meter.elapsed_s < 2000, "watts of a board at work"
    assert meter.per_call(calls).value == pytest.approx(meter.joules / calls)
