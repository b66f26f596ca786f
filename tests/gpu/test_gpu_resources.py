"""Sequence and resource demand on a real GPU. Nothing here has been measured yet: where there is none, the summary says so."""

import pytest
import torch
from torch import nn

from aimass_lab import Study
from aimass_lab.demand.coefficients import fit_coefficients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: not measured here")]


def test_coefficients_of_a_gpu_are_fitted_on_the_gpu():
    threads = torch.get_num_threads()
    fit = fit_coefficients(torch.device("cuda:0"), torch.float16)
    assert fit.all.alpha.value > 0
    assert fit.family_error.value < 1
    assert fit.all.epsilon.value < 1e-3
    assert torch.get_num_threads() == threads


def test_busy_devices_by_formula_and_by_table_are_of_one_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).cuda().half()
    study = Study(model, torch.randn(64, 1024, device="cuda", dtype=torch.float16))
    study.profile()
    demand = study.resources(rate=1000)
    forms = {form.name: form.busy_devices for form in demand.forms}
    assert {number.unit for number in forms.values()} == {"device"}
    assert 0.2 < forms["per family"].value / forms["table"].value < 5


def test_a_generation_on_the_gpu_holds_the_cache_that_was_predicted():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = (
        LlamaForCausalLM(LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8, vocab_size=1000)).cuda().half().eval()
    )
    prompt = torch.randint(3, 1000, (2, 64), device="cuda")
    demand = Study(model, {"input_ids": prompt}).sequence(new=16)
    with torch.no_grad():
        outputs = model.generate(prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False, return_dict_in_generate=True)
    held = sum(t.nbytes for layer in outputs.past_key_values.layers for t in (layer.keys, layer.values))
    assert demand.cache_bytes_end.value == held
    assert torch.cuda.max_memory_allocated() <= demand.peak_memory_bytes.interval[1]
