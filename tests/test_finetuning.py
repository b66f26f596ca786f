"""The training loop: losses, steps and schedules against closed forms, and what it promises when something goes wrong."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import DictModel, TinyCNN, TinyMLP, TinyTransformer, assert_same, features, ids, snapshot
from torch import nn

from aimass_lab.errors import DoesNotFitError, InputError, ModelError, UnsupportedError
from aimass_lab.finetuning import loop, teacher
from aimass_lab.finetuning.batches import epoch_batches, hold_out
from aimass_lab.finetuning.best import Best
from aimass_lab.finetuning.hidden import corresponding_places
from aimass_lab.finetuning.loop import fine_tune
from aimass_lab.finetuning.losses import agreement, find_label_loss, soft_divergence, squared_error
from aimass_lab.finetuning.mixup import mix
from aimass_lab.finetuning.optimise import Stepper, learning_rate_at
from aimass_lab.finetuning.settings import FineTuneSettings
from aimass_lab.finetuning.signals import Observed, Signal, find_signals
from aimass_lab.records import INTERRUPTED
from aimass_lab.workload import Call, as_call


@pytest.fixture(autouse=True)
def one_thread():
    """Small models on a busy machine: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(cls=TinyMLP, seed=0, **options):
    torch.manual_seed(seed)
    return cls(**options).eval()


def damaged(model, by=0.3):
    """A copy whose weights were shaken, as a compression would."""
    duplicate = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter += by * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    return duplicate


def plain(**options):
    """Settings under which a step is a step: nothing held out, clipped, warmed up or stopped early."""
    return FineTuneSettings(**{"holdout": 0.0, "gradient_clip": None, "schedule": "constant", "patience": None, "back_off": False, **options})


def codes(report):
    return {note.code for note in report.notes}


# --- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_torch_s_own_at_that_temperature(temperature):
    student, taught = torch.randn(5, 7), torch.randn(5, 7)
    expected = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, 1), F.log_softmax(taught / temperature, 1), reduction="batchmean", log_target=True
    )
    assert float(soft_divergence(student, taught, temperature)) == pytest.approx(float(expected), rel=1e-5)


def test_the_divergence_of_two_classes_by_hand():
    # teacher (0.75, 0.25), student (0.5, 0.5)
    value = soft_divergence(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]), 1.0)
    assert float(value) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_classes_that_the_teacher_masks_are_left_out():
    taught = torch.tensor([[1.0, 2.0, -torch.inf]])
    student = torch.tensor([[0.5, 0.0, 3.0]], requires_grad=True)
    value = soft_divergence(student, taught, 1.0)
    assert float(value.detach()) == pytest.approx(float(soft_divergence(student.detach()[:, :2], taught[:, :2], 1.0)), rel=1e-6)
    value.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 2] == 0


def test_outputs_that_are_probabilities_already_are_not_softened_twice():
    student, taught = torch.randn(4, 6), torch.randn(4, 6)
    from_probabilities = soft_divergence(student.softmax(1), taught.softmax(1), 3.0, "probabilities")
    assert float(from_probabilities) == pytest.approx(float(soft_divergence(student, taught, 3.0)), rel=1e-4)


def test_padding_does_not_count():
    student, taught = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    by_item = [soft_divergence(student[0, :2], taught[0, :2], 2.0), soft_divergence(student[1, :1], taught[1, :1], 2.0)]
    assert float(soft_divergence(student, taught, 2.0, mask=mask)) == pytest.approx(float(sum(by_item)) / 2, rel=1e-5)
    kept = [(student[0, :2] - taught[0, :2]).square().sum(), (student[1, :1] - taught[1, :1]).square().sum()]
    assert float(squared_error(student, taught, 4.0, mask)) == pytest.approx(float(sum(kept)) / 2 / 4, rel=1e-5)


def test_the_error_of_values_is_the_relative_error_squared():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 4))
    scale = float((b**2).sum() / 6)
    value = squared_error(torch.tensor(a), torch.tensor(b), scale)
    assert float(value) == pytest.approx((np.linalg.norm(a - b) / np.linalg.norm(b)) ** 2, rel=1e-5)


def test_agreement_of_scores_and_of_values():
    scores, others = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 9.0]])
    call = as_call(torch.zeros(3, 1))
    assert agreement(Signal("output", "scores", 1.0), scores, others, call) == (2.0, 3)
    expected = sum(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(scores.numpy(), others.numpy(), strict=True))
    assert agreement(Signal("output", "values", 1.0), scores, others, call) == (pytest.approx(expected, rel=1e-6), 3)


def test_labels_suggest_their_loss_or_say_that_they_do_not():
    call, scores = as_call(torch.zeros(4, 8)), torch.randn(4, 3, requires_grad=True)
    classes, values = torch.tensor([0, 2, 1, 1]), torch.randn(4, 3)
    assert find_label_loss(None, scores, classes, call)(scores, classes) == F.cross_entropy(scores, classes)
    assert find_label_loss(None, {"logits": scores}, classes, call)({"logits": scores[:2]}, classes[:2]) == F.cross_entropy(scores[:2], classes[:2])
    assert find_label_loss(None, scores, values, call)(scores, values) == F.mse_loss(scores, values)
    with pytest.raises(InputError, match=r"labels of type int64 and shape \[4, 2\] and outputs 'output' \[4, 3\]"):
        find_label_loss(None, scores, classes.repeat(2).reshape(4, 2), call)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda out, y: F.cross_entropy(out, y.float()[:2]), "the loss raised"),
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), r"a tensor of shape \[32\]"),
        (lambda out, y: 0.5, "a float"),
        (lambda out, y: (out.argmax(1) == y).float().mean(), "without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_used_says_why(loss, words):
    labels = torch.zeros(40, dtype=torch.long)
    with pytest.raises(InputError, match=words):
        fine_tune(make(), make(seed=1), as_call(features(40)), labels, loss, plain())


# --- what outputs are ---------------------------------------------------------------------------


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.function = function

    def forward(self, x, attention_mask=None):
        return self.function(self.linear(x))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x, {"output": "scores"}),
        (lambda x: x.softmax(1), {"output": "probabilities"}),
        (lambda x: F.normalize(x), {"output": "values"}),
        (lambda x: x[:, :1], {"output": "values"}),
        (lambda x: x.reshape(-1, 2, 3), {"output": "values"}),
        (lambda x: {"logits": x.reshape(-1, 2, 3), "hidden": x}, {"logits": "scores"}),
        (lambda x: {"last_hidden_state": x, "pooler_output": x}, {"last_hidden_state": "values"}),
        (lambda x: {"sentence_embedding": x}, {"sentence_embedding": "values"}),
        (lambda x: (x, x[:3].detach() * 0), {"output": "scores"}),  # the second does not follow the number of items
    ],
)
def test_outputs_are_read_by_their_names_and_shapes(function, expected):
    torch.manual_seed(0)
    x = features(5)
    signals = find_signals(Observed(Returns(function)), [as_call(x), as_call(x[:4])], "auto")
    assert {s.name: s.kind for s in signals} == expected
    assert {s.kind for s in find_signals(Observed(Returns(function)), [as_call(x), as_call(x[:4])], "values")} == {"values"}


def test_outputs_without_items_offer_nothing():
    with pytest.raises(ModelError, match="no floating-point tensor with one entry per item"):
        find_signals(Observed(Returns(lambda x: x.sum())), [as_call(features(5))], "auto")
    with pytest.raises(ModelError, match="no value of the model's output 'output' is finite"):
        find_signals(Observed(Returns(lambda x: x * torch.nan)), [as_call(features(5))], "auto")


# --- steps ----------------------------------------------------------------------------------------


def test_one_step_of_sgd_is_the_closed_form():
    # given a linear model and its mean squared error, whose gradient is 2/(n·m) (XWᵀ + b - Y)ᵀ X
    torch.manual_seed(0)
    model, x, y = nn.Linear(8, 3), features(20), torch.randn(20, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    # when it makes one step
    report = fine_tune(model, None, as_call(x), y, None, plain(epochs=1, batch_size=20, optimizer="sgd", learning_rate=0.1, weight_decay=0.01))
    # then the weights are those of the formula, decay included
    residual = x @ weight.T + bias - y
    gradient = 2 / residual.numel() * residual.T @ x
    assert torch.allclose(model.weight, weight - 0.1 * (gradient + 0.01 * weight), atol=1e-6)
    assert torch.allclose(model.bias, bias - 0.1 * (2 / residual.numel() * residual.sum(0) + 0.01 * bias), atol=1e-6)
    assert report.losses[0] == pytest.approx(float(residual.square().mean()), rel=1e-5)
    assert report.train_losses == (pytest.approx(report.losses[0], rel=1e-5),)


def test_the_gradient_is_clipped_to_its_norm():
    torch.manual_seed(0)
    model, x, y = nn.Linear(8, 3), features(20), 100 * torch.randn(20, 3)
    before = copy.deepcopy(model)
    fine_tune(model, None, as_call(x), y, None, plain(epochs=1, batch_size=20, optimizer="sgd", learning_rate=0.1, gradient_clip=2.0))
    moved = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in zip(model.parameters(), before.parameters(), strict=True)))
    assert moved == pytest.approx(0.1 * 2.0, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulating_two_halves_is_one_batch(optimizer):
    original = make()
    trained = []
    for options in ({"batch_size": 32}, {"batch_size": 16, "gradient_accumulation": 2}):
        student = damaged(original)
        # 80 samples: the last step of an epoch has 16 of them
        fine_tune(student, original, as_call(features(80)), settings=plain(epochs=3, optimizer=optimizer, **options), seed=3)
        trained.append(student)
    for a, b in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_learning_rate_rises_and_falls_as_a_cosine():
    settings = FineTuneSettings(learning_rate=0.4, warmup=0.2)
    rates = [learning_rate_at(step, 10, settings) for step in range(10)]
    expected = [0.2, 0.4, *(0.4 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8))]
    assert rates == pytest.approx(expected)
    assert learning_rate_at(7, 10, FineTuneSettings(learning_rate=0.4, schedule="constant")) == 0.4


def test_constraints_hold_after_every_step():
    original = make()
    student = damaged(original)
    mask = torch.rand(student.first.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    seen = []

    def keep_zeros(model):
        seen.append(float((model.first.weight.detach() * ~mask).abs().sum()))
        model.first.weight.mul_(mask)

    with torch.no_grad():
        student.first.weight.mul_(mask)
    report = fine_tune(student, original, as_call(features(64)), settings=plain(epochs=4, weight_decay=0.1), constraints=[keep_zeros])
    assert len(seen) == 4 * 2
    assert max(seen) > 0  # the steps did move them
    assert report.best_epoch > 0
    assert torch.equal(student.first.weight == 0, ~mask)


def test_steps_too_small_for_16_bits_add_up():
    # given a weight of 1 in bfloat16, whose neighbours are 1/128 away, and steps of 1e-4
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.ones(32, 1, dtype=torch.bfloat16)
    settings = plain(epochs=200, batch_size=32, optimizer="sgd", momentum=0.0, learning_rate=1e-4)
    # when the loss is the weight itself
    fine_tune(model, None, as_call(x), torch.zeros(32), lambda out, y: out.float().mean(), settings)
    # then 200 of them were made: 0.98, where rounding each would have left 1
    assert float(model.weight.detach()) == pytest.approx(0.98, abs=1 / 256)
    assert model.weight.dtype == torch.bfloat16


def test_float16_gradients_that_overflow_cost_a_step_and_not_the_training():
    model = nn.Linear(2, 1, bias=False).half()
    stepper = Stepper(model, list(model.parameters()), FineTuneSettings(optimizer="sgd"), 10, ())
    before, scale = model.weight.detach().clone(), stepper._scale
    stepper.backward((model.weight * 60000).float().sum())
    assert stepper.step()
    assert torch.equal(model.weight, before)
    assert stepper._scale == scale / 2
    stepper.backward(model.weight.float().sum())
    assert stepper.step()
    assert not torch.equal(model.weight, before)


# --- mixup ----------------------------------------------------------------------------------------


def test_mixed_samples_and_their_targets_by_hand():
    x, y = features(6), torch.tensor([0, 1, 2, 2, 1, 0])
    mixed = mix(Call((x,), {"scale": 2.0}), 0.4, torch.Generator().manual_seed(0), random.Random(5))
    share = random.Random(5).betavariate(0.4, 0.4)
    partners = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert mixed.share == share
    assert torch.allclose(mixed.call.args[0], share * x + (1 - share) * x[partners])
    assert mixed.call.kwargs == {"scale": 2.0}
    # cross-entropy is linear in the target: mixing losses is mixing one-hot targets
    scores, onehot = torch.randn(6, 3), F.one_hot(y, 3).float()
    assert float(mixed.loss(F.cross_entropy, scores, y)) == pytest.approx(
        float(F.cross_entropy(scores, share * onehot + (1 - share) * onehot[partners])), rel=1e-5
    )


def test_shares_follow_the_beta_distribution():
    from scipy import stats

    lot, generator = random.Random(0), torch.Generator().manual_seed(0)
    shares = [mix(as_call(torch.zeros(2, 1)), 0.4, generator, lot).share for _ in range(500)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_token_ids_are_not_mixed():
    model = make(DictModel)
    with pytest.raises(InputError, match="holds int64, as token ids do"):
        fine_tune(model, copy.deepcopy(model), as_call({"input_ids": ids(40)}), settings=FineTuneSettings(mixup=0.2))


def test_training_with_mixup_shows_the_teacher_the_mixed_samples():
    original = make()
    report = fine_tune(damaged(original), original, as_call(features(120)), settings=FineTuneSettings(mixup=0.3, epochs=5))
    assert report.losses[report.best_epoch] < report.losses[0]
    assert "teacher:not-kept" in codes(report)


# --- when to stop -----------------------------------------------------------------------------------


def test_the_epoch_of_the_smallest_held_out_loss_is_kept():
    # given labels that are noise, which can be learnt by heart and no better
    torch.manual_seed(0)
    model, x, y = TinyMLP(), torch.randn(120, 8), torch.randint(3, (120,))
    report = fine_tune(model, None, as_call(x), y, None, FineTuneSettings(epochs=60, learning_rate=0.03, holdout=0.25, patience=6))
    # then it stops after `patience` epochs without a smaller loss, and the model is that of the smallest
    assert report.stopped == "no improvement"
    assert report.best_epoch == int(np.argmin(report.losses))
    assert len(report.losses) - 1 == report.best_epoch + 6
    assert report.train_losses[-1] < report.train_losses[0]
    _, held_out = hold_out(120, 0.25, 0)
    assert report.num_held_out == len(held_out) == 30
    with torch.no_grad():
        assert float(F.cross_entropy(model(x[held_out]), y[held_out])) == pytest.approx(min(report.losses), rel=1e-5)


def test_held_out_samples_are_not_trained_with():
    seen = []

    class Watching(TinyMLP):
        def forward(self, x):
            if self.training:
                seen.extend(x[:, 0].tolist())
            return super().forward(x)

    x = features(100)
    fine_tune(make(Watching), make(seed=1), as_call(x), settings=FineTuneSettings(epochs=2))
    rows, held_out = hold_out(100, 0.1, 0)
    assert sorted(seen) == sorted(2 * x[rows, 0].tolist())
    assert not set(seen) & set(x[held_out, 0].tolist())


def test_nothing_is_changed_where_nothing_gets_better():
    original = make()
    student = copy.deepcopy(original)
    report = fine_tune(student, original, as_call(features(100)), settings=FineTuneSettings(epochs=3))
    assert report.best_epoch == 0
    assert report.losses[0] == 0
    assert report.agreements[0] == 1
    assert "W-NO-IMPROVEMENT" in codes(report)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), original.parameters(), strict=True))


def test_a_learning_rate_that_brings_nothing_is_lowered():
    # given a copy that lost little, and steps much too large for it
    original = make()
    outcomes = {}
    for back_off in (True, False):
        student = damaged(original, 0.02)
        outcomes[back_off] = fine_tune(
            student, original, as_call(features(200)), settings=FineTuneSettings(learning_rate=0.3, back_off=back_off, patience=None)
        )
    assert outcomes[False].best_epoch == 0
    assert outcomes[True].best_epoch > 0
    assert min(outcomes[True].losses) < outcomes[True].losses[0]
    (note,) = [n for n in outcomes[True].notes if n.code == "W-LEARNING-RATE"]
    assert note.text.startswith("learning_rate=0.3 stopped bringing anything and was lowered to 0.0")
    (note,) = [n for n in outcomes[False].notes if n.code == "W-NO-IMPROVEMENT"]
    assert note.text.endswith("tried: learning_rate=0.3")


def test_a_loss_that_is_not_finite_stops_it_with_the_best_kept():
    torch.manual_seed(0)
    model, x, y = nn.Linear(8, 3), features(64), torch.randn(64, 3)
    report = fine_tune(model, None, as_call(x), y, None, plain(optimizer="sgd", learning_rate=1e30, epochs=5))
    assert report.stopped == "not finite"
    (note,) = [n for n in report.notes if n.code == "W-NAN"]
    assert "learning_rate=1e+30 is too high" in note.text
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert report.losses[report.best_epoch] == min(report.losses[: report.best_epoch + 1])


def test_a_model_that_is_broken_before_is_not_trained():
    model = make()
    with torch.no_grad():
        model.first.weight[0] = torch.nan
    with pytest.raises(UnsupportedError, match="not finite before training"):
        fine_tune(model, make(), as_call(features(50)))


def test_an_interrupt_keeps_the_best_so_far():
    def interrupt(share, text):
        if text.startswith("epoch 3 "):
            raise KeyboardInterrupt

    original = make()
    student = damaged(original)
    report = fine_tune(student, original, as_call(features(100)), settings=FineTuneSettings(), progress=interrupt)
    assert report.stopped == "interrupted"
    assert INTERRUPTED in codes(report)
    assert len(report.losses) == 4
    assert report.losses[report.best_epoch] == min(report.losses) < report.losses[0]
    again = damaged(original)
    fine_tune(again, original, as_call(features(100)), settings=FineTuneSettings(), progress=interrupt)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_an_interrupt_while_the_best_is_copied_loses_neither():
    model = nn.Linear(2, 2)
    best = Best(model, model.parameters())
    best.offer(0, 1.0)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.bias.fill_(6.0)
    best._kept[1] = None  # copying the second raises, as an interrupt would
    with pytest.raises(AttributeError):
        best.offer(1, 0.5)
    best.restore()
    assert (best.epoch, best.loss) == (1, 0.5)
    assert (model.weight == 5).all()
    assert (model.bias == 6).all()


def test_it_stops_when_its_time_is_up():
    original = make()
    report = fine_tune(damaged(original), original, as_call(features(100)), settings=FineTuneSettings(max_seconds=1e-9))
    assert report.stopped == "out of time"
    assert (len(report.train_losses), len(report.losses)) == (1, 2)


# --- what it leaves behind ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    original = make(TinyCNN)
    x = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def trained(seed):
        student = damaged(original, 1.0)
        torch.manual_seed(random.randrange(10**6))
        report = fine_tune(student, original, as_call(x), settings=FineTuneSettings(epochs=5, mixup=0.2), seed=seed)  # dropout, batch norm, mixup
        assert report.best_epoch > 0
        return student.state_dict(), report.losses

    (first, losses), (second, again), (other, _) = trained(1), trained(1), trained(2)
    assert losses == again
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_teacher_samples_and_generators_stay_and_the_student_holds_no_trace():
    original, student = make(TinyCNN).train(), damaged(make(TinyCNN))
    student.head.bias.requires_grad_(False)
    x, y = torch.rand(60, 1, 8, 8), torch.randint(10, (60,))
    kept, before = x.clone(), snapshot(original)
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in student.modules()]
    with torch.no_grad():
        fine_tune(student, original, as_call(x), y, None, FineTuneSettings(epochs=2, hidden_weight=1.0))
        assert not torch.is_grad_enabled()
    assert_same(before, snapshot(original))
    assert torch.equal(x, kept)
    assert not any(m.training for m in student.modules())
    assert all(p.grad is None for p in student.parameters())
    assert [n for n, p in student.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in student.modules()] == hooks


def test_a_failure_in_the_middle_leaves_no_trace_either():
    class Fails(TinyMLP):
        def forward(self, x):
            if self.training:
                raise ValueError("only in training")
            return super().forward(x)

    original, student = make(), make(Fails, seed=1)
    before = snapshot(original)
    with pytest.raises(ModelError, match="only in training"):
        fine_tune(student, original, as_call(features(50)))
    assert_same(before, snapshot(original))
    assert not student.training
    assert all(p.requires_grad and p.grad is None for p in student.parameters())


def test_frozen_parameters_stay():
    original = make()
    student = damaged(original)
    before = copy.deepcopy(student)
    fine_tune(student, original, as_call(features(100)), settings=FineTuneSettings(epochs=2), frozen={"first.weight"})
    assert torch.equal(student.first.weight, before.first.weight)
    assert not torch.equal(student.second.weight, before.second.weight)
    with pytest.raises(UnsupportedError, match="no floating-point parameter to train"):
        fine_tune(student, original, as_call(features(100)), frozen=[n for n, _ in student.named_parameters()])


def test_parameters_frozen_in_the_model_train_unless_told_otherwise():
    original = make().requires_grad_(False)
    student = damaged(original)
    before = copy.deepcopy(student)
    fine_tune(student, original, as_call(features(100)), settings=FineTuneSettings(epochs=2))
    assert not torch.equal(student.first.weight, before.first.weight)
    assert not any(p.requires_grad for p in student.parameters())


# --- batch norm and batches -----------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x):
        return self.second(F.relu(self.norm(self.first(x))))


def test_every_sample_is_seen_once_and_a_last_one_is_not_left_alone():
    rows = torch.arange(100, 165)
    batches = epoch_batches(rows, 16, torch.Generator().manual_seed(0))
    assert [len(b) for b in batches] == [16, 16, 16, 17]
    assert torch.equal(torch.cat(batches).sort().values, rows)
    assert [len(b) for b in epoch_batches(rows[:1], 16, torch.Generator())] == [1]


@pytest.mark.parametrize("num_samples", [33, 65])
def test_batch_norm_learns_statistics_and_survives_a_last_batch_of_one(num_samples):
    original = make(Normed).train()
    for _ in range(100):
        original(features(num_samples) + 3)
    original.eval()
    student = damaged(original)
    before = student.norm.running_mean.clone()
    report = fine_tune(student, original, as_call(features(num_samples) + 3), settings=plain(epochs=8))
    assert report.best_epoch > 0
    assert not torch.equal(student.norm.running_mean, before)


def test_batch_norm_keeps_its_statistics_where_batches_hold_one_item_or_where_it_is_frozen():
    original = make(Normed)
    for options, frozen in (({"batch_size": 1}, ()), ({}, ("norm.weight", "norm.bias"))):
        student = damaged(original)
        before = student.norm.running_mean.clone()
        report = fine_tune(student, original, as_call(features(40)), settings=plain(epochs=3, **options), frozen=frozen)
        assert report.best_epoch > 0
        assert torch.equal(student.norm.running_mean, before)
        assert ("W-BATCH-NORM" in codes(report)) == (not frozen)


def test_few_samples_are_said_to_be_few():
    original = make()
    report = fine_tune(damaged(original), original, as_call(features(3)), settings=FineTuneSettings(epochs=2))
    assert report.num_held_out == 0
    assert {"W-FEW-SAMPLES", "W-NO-HOLDOUT"} <= codes(report)
    assert "the 3 samples trained with" in report.sentences()[2]


# --- inputs and outputs of all kinds --------------------------------------------------------------------


def test_keyword_inputs_and_outputs_by_name():
    original = make(DictModel)
    call = as_call({"input_ids": ids(90), "attention_mask": torch.ones(90, 12)})
    labels = torch.randint(4, (90,), generator=torch.Generator().manual_seed(0))
    report = fine_tune(damaged(original), original, call, labels, lambda out, y: F.cross_entropy(out["logits"], y), FineTuneSettings(epochs=6))
    assert report.agreement_kind == "agreement"
    assert min(report.losses) < report.losses[0]


def test_a_transformer_s_last_hidden_state_is_matched_where_there_is_no_padding():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16
    )
    torch.manual_seed(0)
    original = transformers.BertModel(config).eval()
    mask = torch.ones(64, 8, dtype=torch.long)
    mask[::2, 5:] = 0
    report = fine_tune(
        damaged(original, 0.1), original, as_call({"input_ids": ids(64, 8), "attention_mask": mask}), settings=FineTuneSettings(epochs=4, hidden_weight=0.5)
    )
    assert report.agreement_kind == "cosine"
    assert report.agreements[report.best_epoch] > report.agreements[0]
    (note,) = [n for n in report.notes if n.code == "hidden"]
    assert note.text == "hidden states are matched at 3 of 3 places"


def test_sequences_that_count_their_items_along_the_second_axis():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6)

        def forward(self, x):
            return self.lstm(x)[0]

    original = make(Recurrent)
    report = fine_tune(damaged(original), original, Call((torch.randn(5, 80, 4),), batch_axis=1), settings=FineTuneSettings(epochs=5))
    assert report.num_train + report.num_held_out == 80
    assert report.losses[report.best_epoch] < report.losses[0]


def test_outputs_of_another_shape_are_told_with_both_shapes():
    class Wide(TinyMLP):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(16, 5)

    with pytest.raises(UnsupportedError, match=r"of the original has the shape \[32, 3\] and the network to be trained \[32, 5\]"):
        fine_tune(make(Wide), make(), as_call(features(50)))
    with pytest.raises(UnsupportedError, match="the original returns 'logits', and the network to be trained 'output'"):
        fine_tune(make(lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten())), make(DictModel), as_call(ids(50)))


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(InputError, match="neither a teacher nor a label"):
        fine_tune(make(), None, as_call(features(50)))


def test_labels_that_suggest_no_loss_are_left_out_and_that_is_said():
    original = make()
    report = fine_tune(damaged(original), original, as_call(features(50)), torch.randint(3, (50, 2)), settings=FineTuneSettings(epochs=2))
    (note,) = [n for n in report.notes if n.code == "W-LABELS"]
    assert "give loss=f(outputs, labels)" in note.text
    assert report.sources == "the original's class scores 'output'"
    assert report.best_epoch > 0


def test_outputs_that_do_not_fit_are_computed_anew_with_the_same_result(monkeypatch):
    original = make()
    results = []
    for limit in (2**29, 0):
        monkeypatch.setattr(teacher, "CACHE_BYTES", limit)
        student = damaged(original)
        report = fine_tune(student, original, as_call(features(100)), settings=FineTuneSettings(epochs=3))
        results.append(student)
        assert ("teacher:not-kept" in codes(report)) == (limit == 0)
    for a, b in zip(*(s.parameters() for s in results), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_teacher_runs_once_per_sample_where_its_outputs_are_kept():
    class Counting(TinyMLP):
        items = 0

        def forward(self, x):
            type(self).items += len(x)
            return super().forward(x)

    original = make(Counting)
    student = make()
    fine_tune(student, original, as_call(features(100)), settings=FineTuneSettings(epochs=5, patience=None))
    probes = 32 + 31 + 32 + 32
    assert Counting.items == 100 + probes


# --- hidden states ----------------------------------------------------------------------------------------


def test_a_shallower_student_is_matched_at_the_same_depth():
    teacher_model, student = make(TinyTransformer, layers=6), make(TinyTransformer, layers=2, seed=1)
    theirs, ours = corresponding_places(teacher_model, student, as_call(ids()))
    assert list(theirs._blocks.values()) == [teacher_model.blocks[2], teacher_model.blocks[5]]
    assert list(ours._blocks.values()) == list(student.blocks)
    assert (theirs._last, ours._last) == (teacher_model.blocks[5].narrow, student.blocks[1].narrow)


def test_matching_hidden_states_brings_them_closer():
    original = make(TinyTransformer)
    call = as_call(ids(120))

    def hidden_error(weight):
        student = damaged(original)
        fine_tune(student, original, call, settings=FineTuneSettings(epochs=4, hidden_weight=weight, learning_rate=3e-3))
        with torch.no_grad():
            return float((student.blocks[0](student.embed(ids(120))) - original.blocks[0](original.embed(ids(120)))).norm())

    assert hidden_error(10.0) < 0.8 * hidden_error(0.0)


def test_hidden_states_of_other_shapes_are_named():
    class Narrow(TinyMLP):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 3)

    report = fine_tune(make(Narrow), make(), as_call(features(50)), settings=FineTuneSettings(epochs=1, hidden_weight=1.0))
    (note,) = [n for n in report.notes if n.code == "hidden"]
    assert note.text == "hidden states are matched at 0 of 1 places; shapes do not fit at the others: before the last layer [16] and [4]"


# --- memory, progress, settings ---------------------------------------------------------------------------


def test_memory_that_training_takes_is_counted_and_asked_for(monkeypatch):
    original = make()
    num_bytes = 4 * sum(p.numel() for p in original.parameters())
    report = fine_tune(damaged(original), original, as_call(features(100)), settings=FineTuneSettings(epochs=1))
    assert report.num_bytes == (1 + 2 + 1) * num_bytes + 100 * 3 * 4  # gradients, two of AdamW, the best epoch; the teacher's outputs
    monkeypatch.setattr("aimass_lab.profiling.memory.free_bytes", lambda device: 100)
    with pytest.raises(DoesNotFitError, match="100 B are free on cpu"):
        fine_tune(damaged(original), original, as_call(features(100)))


def test_a_batch_that_does_not_fit_says_what_to_do(monkeypatch):
    def refuse(self, loss):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(Stepper, "backward", refuse)
    with pytest.raises(DoesNotFitError, match="gradient_accumulation makes up for it"):
        fine_tune(make(seed=1), make(), as_call(features(100)))


def test_progress_tells_epoch_loss_and_agreement(monkeypatch):
    monkeypatch.setattr(loop, "TELL_EVERY_S", 0.0)
    told = []
    original = make()
    fine_tune(damaged(original), original, as_call(features(100)), settings=FineTuneSettings(epochs=2), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert told[-1][1].startswith("epoch 2 of 2, loss ")
    assert "held-out agreement" in told[-1][1]


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("learning_rate", math.inf), ("temperature", -1.0), ("holdout", 1.0), ("warmup", 1.0),
     ("distillation_weight", 1.5), ("mixup", -0.1), ("gradient_clip", 0.0), ("patience", 0), ("max_seconds", 0.0), ("gradient_accumulation", 0)],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} {value} of a fine-tuning is not"):
        FineTuneSettings(**{option: value})
