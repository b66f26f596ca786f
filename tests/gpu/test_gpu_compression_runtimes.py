"""Runtimes on a real GPU. Nothing here has been measured yet: where there is none, the summary says so."""

import importlib.util

import pytest
import torch
from torch import nn

from aimass_lab.errors import InputError
from aimass_lab.quiet import quiet
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


def has_cuda_provider():
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def workload():
    torch.manual_seed(0)
    return Workload(nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 64)).cuda().eval(), torch.randn(8, 256, device="cuda"))


def run(model, x):
    with torch.inference_mode(), quiet():
        return model(x)


RECIPES = [
    "compile",
    "compile(mode=reduce-overhead)",
    "compile(mode=max-autotune-no-cudagraphs)",
    "compile(freezing=true)",
    "aot_inductor",
    "bf16 + aot_inductor",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_compiled_forms_compute_what_the_model_computes(workload, recipe):
    model = apply_recipe(workload, read_recipe(recipe)).model
    for size in (1, 3, 8):
        x = torch.randn(size, 256, device="cuda")
        expected, got = run(workload.model, x), run(model, x)
        assert got.device == expected.device
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_outputs_of_cuda_graphs_outlive_the_next_call(workload):
    model = apply_recipe(workload, read_recipe("compile(mode=reduce-overhead)")).model
    one, two = torch.randn(8, 256, device="cuda"), torch.randn(8, 256, device="cuda")
    for _ in range(3):  # recorded at the second call
        first = run(model, one)
    kept = first.clone()
    run(model, two)
    assert torch.equal(first, kept)


@pytest.mark.skipif(not has_cuda_provider(), reason="onnxruntime-gpu is not installed: not measured here")
def test_onnx_runtime_keeps_inputs_and_outputs_on_the_gpu(workload):
    model = apply_recipe(workload, read_recipe("onnxruntime")).model
    for size in (1, 8):
        x = torch.randn(size, 256, device="cuda")
        got = run(model, x * 2)  # made in torch's stream just before
        assert got.is_cuda
        torch.testing.assert_close(got, run(workload.model, x * 2), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError):
        run(model, torch.randn(8, 256))


@pytest.mark.skipif(has_cuda_provider(), reason="onnxruntime-gpu is installed")
def test_without_the_gpu_package_onnx_runtime_says_what_to_install(workload):
    with pytest.raises(Exception, match="onnxruntime-gpu"):
        apply_recipe(workload, read_recipe("onnxruntime"))


def test_the_memory_of_a_released_copy_comes_back(workload):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for recipe in ("compile(freezing=true)", "compile(mode=reduce-overhead)"):
        variant = apply_recipe(workload, read_recipe(recipe))
        run(variant.model, workload.call.args[0])
        variant.release()
        del variant
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 2**20
