"""Casts to 16 bits keep a model's interface, its ties and its complex numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aimass_lab.errors import UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Call, Workload, weight_bytes


def cast(model: nn.Module, technique: str, inputs: object) -> nn.Module:
    return apply_recipe(Workload(model, inputs), read_recipe(technique)).model


@pytest.mark.parametrize(("technique", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_casts_keep_the_interface(technique: str, dtype: torch.dtype) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("turn", torch.tensor([1 + 1j]))

        def forward(self, x: torch.Tensor, *, mask: torch.Tensor, scale: float) -> dict:
            assert self.linear.weight.dtype == x.dtype == dtype
            return {"y": self.linear(x) * scale, "mask": mask, "list": [x + 1]}

    call = Call((torch.ones(2, 4),), {"mask": torch.ones(2, dtype=torch.long), "scale": 2.0})
    variant = cast(Nested().eval(), technique, call)
    out = variant(*call.args, **call.kwargs)
    assert out["y"].dtype == out["list"][0].dtype == torch.float32
    assert out["mask"].dtype == torch.long
    assert variant.turn.item() == 1 + 1j  # complex numbers have no 16-bit kin, and are not cut to their real part
    assert weight_bytes(variant) < weight_bytes(Nested())


def test_a_cast_keeps_tied_weights_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    variant = cast(model, "bf16", torch.ones(1, 4))
    assert variant[1].weight is variant[0].weight
    assert weight_bytes(variant) == 16 * 2


def test_a_cast_to_the_type_that_is_there_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="all weights of the model are bfloat16 already"):
        cast(nn.Linear(4, 4).bfloat16(), "bf16", torch.ones(1, 4, dtype=torch.bfloat16))


def test_what_is_quantized_already_is_not_changed_again() -> None:
    quantized = cast(nn.Sequential(nn.Linear(16, 16)), "int8_weight_only", torch.ones(1, 16))
    for technique, words in (("int8_dynamic", "0 of 1 layers|no layer with weights"), ("bf16", "quantized or scripted already|no layer with weights")):
        with pytest.raises(UnsupportedError, match=words):
            cast(quantized, technique, torch.ones(1, 16))
