"""Fine-tuning on a real GPU. Nothing here has been measured yet: where there is none, the summary says so."""

import copy
import gc

import pytest
import torch
from torch import nn

from aimass_lab.errors import DoesNotFitError
from aimass_lab.finetuning.loop import fine_tune
from aimass_lab.finetuning.settings import FineTuneSettings
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Workload, as_call

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


def make(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 10)).to("cuda", dtype).eval()


def damaged(model):
    duplicate = copy.deepcopy(model)
    generator = torch.Generator("cuda").manual_seed(1)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter += 0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator, device="cuda", dtype=parameter.dtype)
    return duplicate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_recovers_from_samples_that_lie_on_the_cpu(dtype):
    original = make(dtype)
    student = damaged(original)
    before = [p.clone() for p in original.parameters()]
    random_state = torch.cuda.get_rng_state()
    report = fine_tune(student, original, as_call(torch.randn(512, 64, dtype=dtype)), settings=FineTuneSettings(epochs=10))
    assert report.losses[report.best_epoch] < 0.5 * report.losses[0]
    assert all(p.dtype == dtype and p.is_cuda for p in student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, original.parameters(), strict=True))
    assert torch.equal(torch.cuda.get_rng_state(), random_state)


def test_the_same_seed_gives_the_same():
    original = make()
    students = [damaged(original) for _ in range(2)]
    for student in students:
        fine_tune(student, original, as_call(torch.randn(256, 64, generator=torch.Generator().manual_seed(2))), settings=FineTuneSettings(epochs=3), seed=4)
    for a, b in zip(*(s.parameters() for s in students), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_memory_comes_back():
    original = make()
    samples = as_call(torch.randn(512, 64))
    fine_tune(damaged(original), original, samples, settings=FineTuneSettings(epochs=1))
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        fine_tune(damaged(original), original, samples, settings=FineTuneSettings(epochs=1))
    gc.collect()
    assert torch.cuda.memory_allocated() <= 1.05 * before + 2**20


def test_a_batch_that_does_not_fit_is_told_and_the_gpu_stays_usable():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            if self.training:
                torch.empty(2**45, device=x.device)
            return self.linear(x)

    model = Wide().cuda().eval()
    with pytest.raises(DoesNotFitError):
        fine_tune(model, make(), as_call(torch.randn(128, 64)))
    assert model(torch.randn(2, 64, device="cuda")).shape == (2, 10)


def test_a_recipe_recovers_and_distils():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10))  # on the CPU: its copy is moved
    workload = Workload(make(), torch.randn(8, 64, device="cuda"), train=torch.randn(512, 64), students={"narrow": student})
    recovered = apply_recipe(workload, read_recipe("unstructured_pruning(sparsity=0.5) + recover(epochs=5)"))
    assert (recovered.model[0].weight == 0).float().mean() == pytest.approx(0.5, abs=0.2)
    distilled = apply_recipe(workload, read_recipe("distil(epochs=2)"))
    assert next(distilled.model.parameters()).is_cuda
    assert not next(student.parameters()).is_cuda
