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


def count_copies(monkeypatch):
    copied, clone = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor, **how: (copied.append(tensor), clone(tensor, **how))[1])
    return copied


def test_blocks_within_a_block_copy_nothing_again_and_put_back_all_the_same(monkeypatch):
    model = TinyCNN().train()
    before = snapshot(model)
    writes = (lambda: model.head.weight.data.zero_(), lambda: torch.nn.init.ones_(model.head.bias), lambda: model.features[1].running_mean.fill_(7))
    copied = count_copies(monkeypatch)
    with preserved(model):
        assert len(copied) == len(before["tensors"])
        for write in writes:
            with preserved(model):
                write()
            assert all(torch.equal(value, before["tensors"][name]) for name, value in [*model.named_parameters(), *model.named_buffers()])
        assert len(copied) == len(before["tensors"])
    assert not preserve._held
    assert_same(before, snapshot(model))


def test_a_block_puts_back_what_was_there_when_it_began_also_within_another():
    model = TinyMLP()
    before = snapshot(model)
    with preserved(model), torch.no_grad():
        model.first.weight += 1
        changed = model.first.weight.clone()
        for _ in range(2):
            with preserved(model):
                model.first.weight.zero_()
            assert torch.equal(model.first.weight, changed)
        model.first.weight.data = torch.ones(1)
        with preserved(model):
            model.first.weight.data = torch.zeros(1)
        assert model.first.weight.shape == (1,)
        model.first.weight.data = changed
    assert_same(before, snapshot(model))


def test_where_there_is_no_memory_for_copies_none_is_kept(monkeypatch):
    copied, clone = [], torch.Tensor.clone

    def scarce(tensor, **how):
        copied.append(tensor)
        if len(copied) == 3:
            raise MemoryError
        return clone(tensor, **how)

    monkeypatch.setattr(torch.Tensor, "clone", scarce)
    with pytest.raises(MemoryError), preserved(TinyCNN()):
        pytest.fail("it began without copies")
    assert not preserve._held


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
