"""Whatever is done to a model inside `preserved`, it comes out as it went in."""

import random

import numpy as np
import pytest
import torch
from models import RUNNABLE, MutatingModel, TinyCNN, TinyMLP, assert_same, features, snapshot

from aimass_lab import preserve
from aimass_lab.errors import ModelError
from aimass_lab.preserve import preserved


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("training", [False, True])
def test_a_call_leaves_no_trace(name, training):
    make, inputs = RUNNABLE[name]
    model = make().train(training)
    call = inputs()
    before = snapshot(model)
    with preserved(model):
        assert not any(m.training for m in model.modules())
        model(**call) if isinstance(call, dict) else model(call)
    assert_same(before, snapshot(model))


def test_vandalism_is_undone():
    model = TinyCNN().train()
    before = snapshot(model)
    with preserved(model, evaluate=False):
        model(torch.randn(2, 1, 8, 8)).sum().backward()
        model.head.weight.data.zero_()
        with torch.no_grad():
            model.head.bias += 1
        model.features[1].running_mean.fill_(7)
        model.head.register_forward_hook(lambda *a: None)
        model.extra = 5
        model.register_buffer("late", torch.ones(1))
        model.features[0].weight = torch.nn.Parameter(torch.zeros(8, 1, 3, 3))
        del model.dropout
        model.head.in_features = 0
        torch.set_grad_enabled(False)
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert_same(before, snapshot(model))


def test_mixed_modes_come_back_one_by_one():
    model = TinyCNN().train()
    model.features[1].eval()
    before = [m.training for m in model.modules()]
    with preserved(model):
        pass
    assert [m.training for m in model.modules()] == before


def test_a_model_that_overrides_train_is_not_asked():
    class Stubborn(TinyMLP):
        def train(self, mode=True):
            raise RuntimeError("never call this")

    with preserved(Stubborn()):
        pass


def test_an_error_inside_is_passed_on_and_the_model_put_back():
    model = MutatingModel()
    before = snapshot(model)
    with pytest.raises(KeyError), preserved(model):
        raise KeyError(model(features()))
    assert_same(before, snapshot(model))


def test_a_large_model_that_writes_its_own_weights_is_reported(monkeypatch):
    monkeypatch.setattr(preserve, "COPY_LIMIT_BYTES", 10)
    model = TinyMLP()
    with pytest.raises(ModelError, match=r"first\.weight"), preserved(model), torch.no_grad():
        model.first.weight += 1


def test_weights_made_under_inference_mode():
    with torch.inference_mode():
        model = TinyMLP()
    before = snapshot(model)
    with preserved(model), torch.inference_mode():
        model.first.weight += 1
    assert_same(before, snapshot(model))


def test_without_values_weights_are_not_copied_and_the_rest_comes_back():
    model = TinyCNN().train()
    with preserved(model, values=False):
        assert not model.training
        model.calls = 3
    assert model.training
    assert not hasattr(model, "calls")
