"""Pruning on a GPU: the same weights go as on the processor, and 2 of 4 runs on the sparse tensor cores."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from aimass_lab.errors import UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import Variant, apply_recipe
from aimass_lab.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SPARSE = "n_m_pruning(sparse_kernels=true)"


def make_mlp(width: int = 256) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10)).eval()


def apply(model: nn.Module, x: torch.Tensor, recipe: str) -> Variant:
    return apply_recipe(Workload(model, x), read_recipe(recipe))


@pytest.mark.parametrize("recipe", ["unstructured_pruning", "n_m_pruning", "connection_pruning", "channel_pruning"])
def test_the_same_weights_go_as_on_the_processor(recipe: str) -> None:
    model, x = make_mlp(), torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    here = apply(model, x, recipe).model
    there = apply(copy.deepcopy(model).cuda(), x.cuda(), recipe).model
    for (name, a), (_, b) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert b.device.type == "cuda", name
        torch.testing.assert_close(a, b.cpu())


@pytest.mark.parametrize("criterion", ["gradient", "activation"])
@pytest.mark.parametrize("technique", ["unstructured_pruning", "channel_pruning"])
def test_criteria_on_samples_are_computed_there(technique: str, criterion: str) -> None:
    x = torch.randn(8, 256, device="cuda")
    variant = apply(make_mlp().cuda(), x, f"{technique}(criterion={criterion})")
    with torch.inference_mode():
        assert variant.model(x).shape == (8, 10)


@pytest.mark.parametrize("technique", ["head_pruning", "channel_pruning", "layer_dropping"])
def test_a_transformer_shrinks_there(technique: str) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(16, 64), encoder, nn.Linear(64, 5)).eval().cuda()
    x = torch.randn(2, 7, 16, device="cuda")
    variant = apply(model, x, technique)
    assert variant.size_bytes < sum(p.nbytes for p in model.parameters())
    with torch.inference_mode():
        assert variant.model(x).shape == (2, 7, 5)


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs sparse tensor cores")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_runs_on_the_sparse_tensor_cores(dtype: torch.dtype) -> None:
    model, x = make_mlp().cuda().to(dtype), torch.randn(64, 256, device="cuda", dtype=dtype)
    dense, packed = apply(model, x, "n_m_pruning").model, apply(model, x, SPARSE)
    kinds = [type(layer.weight).__name__ for layer in packed.model if isinstance(layer, nn.Linear)]
    assert kinds[:2] == [kinds[0]] * 2
    assert "SparseSemiStructured" in kinds[0]
    assert "packed for sparse tensor cores" in packed.steps[0].layers[0].detail
    assert "dense: its weight cannot be packed" in packed.steps[0].layers[2].detail  # 10 rows
    with torch.inference_mode():
        torch.testing.assert_close(packed.model(x), dense(x), rtol=2e-2, atol=2e-2)


def test_sparse_kernels_for_other_weights_say_what_is_needed() -> None:
    with pytest.raises(UnsupportedError, match="needs float16 or bfloat16 weights|needs compute capability 8.0"):
        apply(make_mlp().cuda(), torch.randn(4, 256, device="cuda"), SPARSE)
