"""Quantisation on a real GPU, each kernel where the GPU has it. Nothing here has been measured yet: where there is none, the summary says so."""

import pytest
import torch
from torch import nn

from aimass_lab.errors import UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Workload, weight_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


def make(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 2048), nn.GELU(), nn.Linear(2048, 1024), nn.Linear(1024, 24)).cuda().to(dtype).eval()
    return model, torch.randn(64, 1024, device="cuda", dtype=dtype)


def relative(got, expected):
    return float((got.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("recipe", "limit"),
    [
        ("int8_dynamic", 0.05),
        ("int8_weight_only", 0.03),
        ("int4_weight_only(group_size=128)", 0.3),
        ("int4_weight_only(group_size=128,scales=hqq)", 0.3),
        ("fp8", 0.1),
        ("fp8(activations=dynamic)", 0.1),
        ("mixed_precision(formats=int8_dynamic,max_relative_error=0.05)", 0.05),
    ],
)
def test_outputs_stay_close_at_several_batch_sizes_or_the_refusal_says_why(recipe, limit, dtype):
    model, x = make(dtype)
    before = [p.clone() for p in model.parameters()]
    needed = (8, 9) if "activations=dynamic" in recipe else (8, 0) if "int4" in recipe else (0, 0)
    if torch.cuda.get_device_capability() < needed:
        with pytest.raises(UnsupportedError, match="compute capability"):
            apply_recipe(Workload(model, x), read_recipe(recipe))
        return
    variant = apply_recipe(Workload(model, x), read_recipe(recipe))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert variant.size_bytes < weight_bytes(model)
    with torch.inference_mode():
        for size in (1, 17, 64):
            got = variant.model(x[:size])
            assert got.dtype == dtype
            assert relative(got, model(x[:size])) < limit


def test_four_bits_are_packed_for_tensor_cores_and_padding_is_told():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the 4-bit kernel needs compute capability 8.0")
    model = nn.Sequential(nn.Linear(768, 256)).cuda().bfloat16()
    variant = apply_recipe(Workload(model, torch.randn(2, 768, device="cuda", dtype=torch.bfloat16)), read_recipe("int4_weight_only"))
    assert "packed for tensor cores" in variant.steps[0].layers[0].detail
    assert "768 inputs padded to 1024" in variant.steps[0].layers[0].detail


def test_static_int8_is_refused_before_anything_is_copied():
    model, x = make(torch.float32)
    held = torch.cuda.memory_allocated()
    with pytest.raises(UnsupportedError, match="8-bit kernels are for x86 processors"):
        apply_recipe(Workload(model, x), read_recipe("int8_static"))
    assert torch.cuda.memory_allocated() == held
