"""What a bundle can carry: every technique's result written as ONNX, and compared in the runtime that will serve it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aimass_lab.compression.base import TECHNIQUES
from aimass_lab.errors import UnsupportedError
from aimass_lab.formats import FORMATS
from aimass_lab.formats.signature import relative_error
from aimass_lab.outputs import output_tensors
from aimass_lab.quiet import quiet
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Workload

REFUSED = {
    "bf16": "ONNX Runtime cannot run",
    "int8_dynamic": "_int_mm",
    "mixed_precision": "_int_mm",
    "int4_weight_only": "_weight_int4pack_mm_for_cpu",
    "compile": "run by torch.compile",
}
"""Technique -> why ONNX cannot carry its result; all others must be carried."""
NOT_HERE = {"fp8"}
"""Techniques that this machine may lack the kernels for."""
SLOW = {"aot_inductor"}
"""Compiled for ten seconds; that a package is refused is tested with the runtimes."""
MORE = ("onnxruntime(quantize=static)", "onnxruntime(quantize=dynamic)", "channel_pruning(ratio=0.5) + low_rank + onnxruntime(quantize=static)")


SHORT = {"recover": "recover(epochs=1)", "distil": "distil(epochs=1)"}


class Blocks(nn.Module):
    """Attention blocks, for what changes heads or leaves blocks out."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(8, 32)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(3))
        self.head = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.widen(x.squeeze(1))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def make_model(recipe: str) -> nn.Module:
    if recipe in ("head_pruning", "layer_dropping"):
        return Blocks()
    body = (nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(256, 64), nn.Linear(64, 16))


@pytest.mark.parametrize("recipe", [*(name for name in TECHNIQUES if name not in SLOW), *MORE])
def test_whatever_a_bundle_can_carry_is_the_same_in_its_own_runtime(recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, student = torch.randn(32, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    workload = Workload(make_model(recipe), x[:4], train=(x, torch.randint(16, (32,))), loss=F.cross_entropy, students={"small": student})
    with quiet():
        try:
            variant = apply_recipe(workload, read_recipe(SHORT.get(recipe, recipe)))
        except UnsupportedError as error:
            if recipe not in NOT_HERE:
                raise
            pytest.skip(error.message)
        export = partial(FORMATS["onnx"]().export, variant.model, workload.call, tmp_path / "model.onnx", max_batch_size=8)
        if recipe in REFUSED:
            with pytest.raises(UnsupportedError, match=REFUSED[recipe]):
                export()
            return
        file = export()
    assert file.batched
    for size in (1, 5):
        got = FORMATS["onnx"]().load_and_run(file.path, {file.inputs[0].name: x[:size].numpy()})
        with torch.inference_mode():
            ((_, expected),) = output_tensors(variant.model(x[:size]))
        assert relative_error(expected.numpy(), got["output"]) < 1e-2
    if "onnxruntime" in recipe:
        assert file.path.read_bytes() == variant.model.file.numpy().tobytes()
