"""The models of the evaluation in tests/benchmarks/demand: their FLOPs, held against a hand count that knows no dispatcher."""

import sys
from pathlib import Path

import pytest
import torch

from aimass_lab import Workload, estimate_demand, read_recipe
from aimass_lab.trial import apply_recipe

sys.path.insert(0, str(Path(__file__).parent / "benchmarks" / "demand"))
import zoo

NEEDS_DATA = {"GPT-2", "Whisper-tiny", "Mixtral-style MoE, bf16", "Early exit"}
"""Their forward reads values, so that the hand count, which calls them, needs some."""


@pytest.mark.parametrize("entry", zoo.ZOO, ids=lambda entry: entry.name)
def test_flops_are_those_of_the_hand_count_and_nothing_is_left_out(entry):
    # given a model without weights where its layers' shapes can be had without
    real = entry.technique is not None or entry.name in NEEDS_DATA
    with torch.device("cpu" if real else "meta"):
        model = entry.make().eval()
    inputs = zoo.move(entry.inputs(2), lambda t: t if real else t.to("meta"))
    if not entry.technique and next(model.parameters()).dtype == torch.bfloat16:
        inputs = zoo.move(inputs, lambda t: t.bfloat16() if t.is_floating_point() else t)
    expected = zoo.hand_count(entry, model, 2)
    if entry.technique:
        model = apply_recipe(Workload(model, inputs), read_recipe(entry.technique)).model
        if entry.technique == "bf16":
            inputs = zoo.move(inputs, lambda t: t.bfloat16() if t.is_floating_point() else t)

    # when
    demand = estimate_demand(Workload(model, inputs), batch_size=2)

    # then
    assert demand.flops.value == pytest.approx(expected, rel=1e-3)
    assert [operator.name for operator in demand.operators if not operator.has_formula] == []
    assert demand.coverage.value == 1
