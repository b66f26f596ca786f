"""A traced training step, held against closed forms and against what the allocator saw of a real one."""

import pytest
import torch
from models import RUNNABLE, BranchingModel, TiedModel, TinyMLP, TinyTransformer, assert_same, features, ids, snapshot
from torch import nn
from traced import Function, randn

from aimass_lab.errors import InputError, ModelError
from aimass_lab.tracing.training import trace_training
from aimass_lab.workload import as_call

# --- training


def real_step(model, call, loss, make):
    """Most bytes the CPU allocator held during a real second step, beyond what was there before it."""
    optimizer = make(list(model.parameters()))

    def step():
        optimizer.zero_grad(set_to_none=True)
        outputs = model(*call.args, **call.kwargs)
        loss(outputs).backward()
        optimizer.step()

    step()
    step()
    optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


STEPS = {
    "transformer": (TinyTransformer, lambda: ids(4, 24)),
    "mlp": (lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), lambda: randn(128, 64)),
    "tied": (TiedModel, lambda: ids(4, 12)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Dropout(0.2), nn.Linear(256, 64)), lambda: randn(128, 64)),
}
OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@pytest.mark.parametrize("foreach", [False, True], ids=["one by one", "all at once"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", STEPS)
def test_the_peak_of_a_step_is_what_the_allocator_saw(name, optimizer, foreach):
    make, inputs = STEPS[name]
    model, call = make(), as_call(inputs())
    step = trace_training(model, call, loss=lambda out: out.square().mean(), optimizer=optimizer, foreach=foreach)
    seen = real_step(model.train(), call, lambda out: out.square().mean(), lambda p: OPTIMIZERS[optimizer](p, lr=1e-3, foreach=foreach))
    assert step.activation_peak_bytes == pytest.approx(seen, rel=0.02)


def test_a_step_of_an_mlp_by_hand():
    model, batch = TinyMLP(), 5
    step = trace_training(model, as_call(features(batch)))
    parameters = 8 * 16 + 16 + 16 * 3 + 3
    assert (step.weight_bytes, step.gradient_bytes, step.trained_parameters) == (4 * parameters, 4 * parameters, parameters)
    assert step.optimizer_state_bytes == 2 * 4 * parameters + 4 * 4  # and a step count for each of the four tensors
    # relu's output, the scores and the loss; the first layer's output is gone.
    assert step.saved_activation_bytes == 4 * batch * (16 + 3) + 4
    assert step.peak_bytes == step.weight_bytes + step.input_bytes + step.activation_peak_bytes + step.optimizer_state_bytes
    assert step.rows[step.peak_row].live_bytes == step.activation_peak_bytes
    phases = [row.phase for row in step.rows]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)
    assert {row.phase for row in step.rows} == {"forward", "backward", "optimizer"}


def test_the_backward_pass_belongs_to_the_modules_it_is_the_gradient_of():
    step = trace_training(TinyTransformer(), as_call(ids()))
    for row in step.rows:
        if row.phase == "backward" and row.op in ("aten::mm", "aten::native_layer_norm_backward", "aten::embedding_dense_backward"):
            assert len(row.scope) > 1, row
    of_module = {}
    for row in step.rows:
        for name in row.scope:
            of_module[name, row.phase] = of_module.get((name, row.phase), 0) + row.flops
    for name in ("blocks.0.qkv", "blocks.1.widen", "blocks.1.project"):
        assert of_module[name, "backward"] == 2 * of_module[name, "forward"]
    lines = {row.source for row in step.rows if row.phase == "backward" and row.op == "aten::mm"}
    assert all("models.py:" in line for line in lines)


@pytest.mark.parametrize(
    "optimizer,state",
    [("none", 0), ("sgd", 0), (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1), ("adamw", 2)],
    ids=["none", "sgd", "momentum", "adamw"],
)
def test_optimizers_keep_what_they_keep(optimizer, state):
    step = trace_training(nn.Linear(64, 64, bias=False), as_call(randn(2, 64)), optimizer=optimizer)
    assert step.optimizer_state_bytes == pytest.approx(state * step.weight_bytes, abs=4)
    assert any(row.phase == "optimizer" for row in step.rows) == (optimizer != "none")


def test_frozen_parameters_get_no_gradient():
    model = TinyMLP()
    model.first.requires_grad_(False)
    step = trace_training(model, as_call(features(5)))
    assert step.trained_parameters == 16 * 3 + 3
    assert step.flops_of("backward") == 2 * 5 * 16 * 3


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_traced_step_leaves_the_model_as_it_was(name):
    make, inputs = RUNNABLE[name]
    model = make().eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = snapshot(model)
    step = trace_training(model, as_call(inputs()))
    assert_same(before, snapshot(model))
    assert step.flops_of("backward") > 0
    assert not step.uncovered


def test_a_step_that_needs_data_is_made_on_copies():
    model, call = BranchingModel(), as_call(features())
    before = snapshot(model)
    step = trace_training(model, call)
    assert_same(before, snapshot(model))
    assert step.ran
    plain = trace_training(TinyMLP(), call)
    assert step.flops == plain.flops
    with pytest.raises(ModelError, match="cannot be followed"):
        trace_training(model, call, may_run=False)


def test_a_step_of_a_model_on_the_meta_device():
    with torch.device("meta"):
        empty = TinyTransformer()
    a, b = trace_training(empty, as_call(ids().to("meta"))), trace_training(TinyTransformer(), as_call(ids()))
    assert a.rows == b.rows
    assert (a.gradient_bytes, a.optimizer_state_bytes, a.saved_activation_bytes) == (b.gradient_bytes, b.optimizer_state_bytes, b.saved_activation_bytes)


def test_a_loss_in_the_outputs_is_used():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    tokens = ids(2, 12)
    step = trace_training(model, as_call({"input_ids": tokens, "labels": tokens}))
    assert "aten::nll_loss_forward" in {row.op for row in step.rows}
    assert not step.uncovered


@pytest.mark.parametrize(
    "model,options,match",
    [
        (TinyMLP(), {"optimizer": "adam2"}, "no optimizer called 'adam2'"),
        (nn.ReLU(), {}, "no parameter to train"),
        (TinyMLP(), {"loss": lambda out: out}, "not a scalar"),
        (TinyMLP(), {"loss": lambda out: 3}, "gives a int"),
        (nn.Sequential(nn.Linear(8, 3), Function(lambda x: x.argmax(-1))), {}, "nothing to train on"),
    ],
)
def test_what_cannot_be_trained(model, options, match):
    with pytest.raises(InputError, match=match):
        trace_training(model, as_call(features()), **options)


class SparseGradients(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(20, 8, sparse=True), nn.Linear(8, 2))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_an_optimizer_that_takes_no_sparse_gradients_is_refused_with_those_that_do():
    model, call = SparseGradients(), as_call(ids())
    with pytest.raises(InputError, match=r"gradient of '0.weight' is sparse, which AdamW does not take\n.*'sgd' does, .*Adagrad and.*SparseAdam"):
        trace_training(model, call)
    for optimizer in ("sgd", lambda parameters: torch.optim.Adagrad(parameters)):
        assert trace_training(model, call, optimizer=optimizer).peak_bytes > 0


def test_a_model_without_parameters_is_not_told_to_train_some():
    with pytest.raises(InputError, match="without parameters can be run only"):
        trace_training(nn.ReLU(), as_call(features()))
