"""Trials on a real GPU. Nothing here has been measured yet: where there is none, the summary says so."""

import pytest
import torch
from torch import nn

from aimass_lab import Study
from aimass_lab.errors import DoesNotFitError
from aimass_lab.recipe import read_recipe
from aimass_lab.records import Recipe, Setting
from aimass_lab.trial import TrialSession, run_trial
from aimass_lab.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


@pytest.fixture
def workload():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 8192), nn.GELU(), nn.Linear(8192, 2048)).cuda().eval()
    return Workload(model, torch.randn(256, 2048, device="cuda"))


def test_wall_time_decides_and_there_is_no_processor_time(workload):
    result = run_trial(workload, read_recipe("bf16"))
    assert result.environment.device.startswith("cuda")
    assert result.fidelity.value > 0.99
    (point,) = result.points
    assert (point.clock, point.processor_speedup, point.speedup) == ("wall", None, point.wall_speedup)


def test_sixteen_bits_are_faster_where_matrices_are_large(workload):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bfloat16 units")
    result = run_trial(workload, read_recipe("bf16"), batch_sizes=(256,))
    assert result.verdict == "faster"
    assert result.recommended


def test_an_identical_copy_is_no_different(workload):
    verdicts = [run_trial(workload, Recipe(), budget_s=1.0).verdict for _ in range(10)]
    assert verdicts == ["no gain"] * 10


def test_several_callers_share_the_gpu(workload):
    result = run_trial(workload, Recipe(), instances=4, budget_s=2.0)
    (point,) = result.points
    assert point.throughput_original.value > 0
    assert any(note.code == "one-process" for note in result.notes)


def test_the_memory_of_a_session_comes_back(workload):
    run_trial(workload, Recipe(), budget_s=0.2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with TrialSession(workload) as session:
        for name in ("bf16", "none", "bf16"):
            session.run(Setting(recipe=read_recipe(name)), budget_s=0.2)
    assert torch.cuda.memory_allocated() <= 1.05 * before


def test_a_batch_that_does_not_fit_is_an_error_and_the_memory_comes_back(workload):
    run_trial(workload, Recipe(), budget_s=0.2)
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(DoesNotFitError):
        run_trial(workload, Recipe(), batch_sizes=(2**24,))
    assert torch.cuda.mem_get_info()[0] >= 0.95 * free


def test_a_variant_lies_on_the_gpu_and_gives_its_memory_back(workload):
    study = Study(workload)
    study.trial("bf16", seconds=0.5)
    held = torch.cuda.memory_allocated()
    assert next(study.variant("bf16").parameters()).is_cuda
    assert study.release().names == ()
    assert torch.cuda.memory_allocated() < held
