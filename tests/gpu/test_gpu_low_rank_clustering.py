"""Low rank, clustering and packed storage of a model on a GPU: as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aimass_lab.recipe import read_recipe
from aimass_lab.storage import load_weights, save_weights, stored_bytes
from aimass_lab.trial.variant import apply_recipe
from aimass_lab.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


def make(device: str) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 64), nn.Linear(64, 64))
    x = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Workload(model.eval().to(device), x[:4].to(device), train=x.to(device))


@pytest.mark.parametrize("recipe", ["low_rank", "low_rank(ranks=sensitivity)", "low_rank(energy=0.9)", "clustering", "low_rank + clustering"])
def test_on_the_gpu_the_result_is_that_of_the_cpu(recipe):
    on_cpu, on_gpu = (apply_recipe(make(device), read_recipe(recipe)).model for device in ("cpu", "cuda"))
    assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}
    x = make("cpu").call.args[0]
    with torch.no_grad():
        expected, got = on_cpu(x), on_gpu(x.cuda()).cpu()
    assert float((got - expected).norm() / expected.norm()) < 0.02
    assert stored_bytes(on_gpu) == pytest.approx(stored_bytes(on_cpu), rel=0.02)


def test_weights_packed_on_the_gpu_come_back_there_and_on_the_cpu(tmp_path):
    on_gpu = apply_recipe(make("cuda"), read_recipe("unstructured_pruning(sparsity=0.7) + clustering")).model
    assert save_weights(on_gpu, tmp_path / "w") == stored_bytes(on_gpu)
    for device in ("cuda", "cpu"):
        fresh = make(device).model
        load_weights(fresh, tmp_path / "w")
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(fresh.parameters(), on_gpu.parameters(), strict=True))
