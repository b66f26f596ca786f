"""Recovery and distillation as steps of a recipe: real digits, real accuracy, and what they say when they cannot."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from models import DictModel, ids
from torch import nn

from aimass_lab.compression.base import TECHNIQUES, Context, make_technique
from aimass_lab.errors import InputError, ModelError, UnsupportedError
from aimass_lab.options import describe_options
from aimass_lab.recipe import read_recipe
from aimass_lab.records import INTERRUPTED
from aimass_lab.trial import apply_recipe
from aimass_lab.workload import Call, Workload, call_model


@pytest.fixture(autouse=True)
def one_thread():
    """Small models on a busy machine: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- digits: 1,197 images to learn from, 600 to be judged on -------------------------------------


class DigitsCNN(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(8 * width, 10)

    def forward(self, images):
        return self.head(self.features(images))


class DigitsViT(nn.Module):
    def __init__(self, width=32, depth=2):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        x = self.embed(F.unfold(images, 2, stride=2).transpose(1, 2)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[rows[:1197]], labels[rows[:1197]], images[rows[1197:]], labels[rows[1197:]]


def accuracy(model):
    _, _, images, labels = digits()
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


@functools.cache
def trained(kind):
    """A network trained on the digits by torch's own means."""
    images, labels, _, _ = digits()
    epochs = {"cnn": 5, "vit": 12}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {"cnn": DigitsCNN, "vit": DigitsViT}[kind]()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * 19)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def judged(kind, *, labelled=True, **options):
    images, labels, held_out, _ = digits()
    train = (images, labels) if labelled else images
    return Workload(trained(kind), held_out[:4], train=train, loss=F.cross_entropy, **options)


def notes_of(variant, technique):
    (report,) = [r for r in variant.steps if r.step.technique == technique]
    return [note.text for note in report.notes]


@pytest.mark.parametrize("labelled", [True, False])
def test_half_the_channels_of_a_cnn_are_recovered(labelled):
    workload = judged("cnn", labelled=labelled)
    before, cut = accuracy(workload.model), accuracy(apply_recipe(workload, read_recipe("channel_pruning(ratio=0.5)")).model)
    variant = apply_recipe(workload, read_recipe("channel_pruning(ratio=0.5) + recover"))
    assert before > 97
    assert cut < before - 3
    assert accuracy(variant.model) >= before - 1
    told = notes_of(variant, "recover")
    assert told[0] == f"learnt from the original's class scores 'output'{' and labels' if labelled else ''}"
    assert " epochs of 1077 samples in " in told[1]
    assert "on 120 held-out samples" in told[2]
    assert "agreement with the original" in told[3]
    assert all(layer.detail == "trained" for layer in variant.steps[1].layers)


def test_half_the_weights_of_a_vit_are_recovered():
    workload = judged("vit", labelled=False)
    before = accuracy(workload.model)
    variant = apply_recipe(workload, read_recipe("low_rank(ratio=0.5) + recover(epochs=8, batch_size=64)"))
    assert before > 90
    assert accuracy(variant.model) >= before - 1


def test_zeros_stay_zero_and_what_is_left_makes_up_for_them():
    workload = judged("cnn")
    pruned = apply_recipe(workload, read_recipe("unstructured_pruning(sparsity=0.8)"))
    recovered = apply_recipe(workload, read_recipe("unstructured_pruning(sparsity=0.8) + recover(epochs=6, weight_decay=0.01)"))
    for (name, a), b in zip(pruned.model.named_parameters(), recovered.model.parameters(), strict=True):
        if a.dim() >= 2:
            assert torch.equal(a == 0, b == 0), name
            assert not torch.equal(a, b), name
    assert accuracy(recovered.model) >= accuracy(workload.model) - 1 > accuracy(pruned.model)


def test_a_student_learns_from_the_model_without_any_label():
    torch.manual_seed(0)
    student = DigitsCNN(8)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    workload = judged("cnn", labelled=False, students={"narrow": student})
    variant = apply_recipe(workload, read_recipe("distil(epochs=30)"))
    assert accuracy(student.eval()) < 30
    assert accuracy(variant.model) >= accuracy(workload.model) - 2
    assert isinstance(variant.model, DigitsCNN)
    student.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    (report,) = variant.steps
    assert [layer.detail for layer in report.layers] == ["replaced by the student 'narrow'"] * 3
    assert report.weight_share.value == pytest.approx(1)
    original = sum(p.numel() for p in workload.model.parameters())
    assert notes_of(variant, "distil")[0].startswith("the student 'narrow' has 1,")
    assert f"% of the original's {original:,}" in notes_of(variant, "distil")[0]


# --- small and quick ---------------------------------------------------------------------------------


def small(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    return Workload(model, x[:2], **{"train": x, **options})


def narrow(outputs=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, outputs))


@pytest.mark.parametrize("technique", ["recover", "distil"])
def test_without_samples_it_is_refused(technique):
    workload = small(train=None, students={"narrow": narrow()})
    with pytest.raises(UnsupportedError, match="there is nothing to learn from: give training samples"):
        apply_recipe(workload, read_recipe(technique))


@pytest.mark.parametrize(
    ("recipe", "students", "words"),
    [
        ("distil", (), "none was given"),
        ("distil", ("a", "b"), "there are several students, a, b: say which, distil(student=a)"),
        ("distil(student=c)", ("a", "b"), "there is no student 'c'; there are: a, b"),
    ],
)
def test_the_student_must_be_one_that_was_given(recipe, students, words):
    workload = small(students={name: narrow() for name in students})
    with pytest.raises(UnsupportedError) as caught:
        apply_recipe(workload, read_recipe(recipe))
    assert words in caught.value.message


def test_the_student_that_is_named_is_trained():
    workload = small(students={"a": narrow(), "b": nn.Linear(8, 3)})
    assert isinstance(apply_recipe(workload, read_recipe("distil(student=b, epochs=1)")).model, nn.Linear)


def test_a_student_with_other_outputs_is_told_with_both_shapes():
    with pytest.raises(UnsupportedError, match=r"\[32, 3\] and the network to be trained \[32, 5\]"):
        apply_recipe(small(students={"wide": narrow(5)}), read_recipe("distil"))


def test_a_student_that_cannot_be_copied_or_run_says_so():
    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("holds a lock")

    with pytest.raises(ModelError, match="the student 'locked' cannot be copied: holds a lock"):
        apply_recipe(small(students={"locked": Locked(8, 3)}), read_recipe("distil"))
    with pytest.raises(ModelError, match="Linear raised RuntimeError"):
        apply_recipe(small(students={"other": nn.Linear(9, 3)}), read_recipe("distil"))


@pytest.mark.parametrize("technique", ["recover", "distil"])
def test_mixing_token_ids_is_refused_before_anything_is_copied(technique):
    class Uncopied(DictModel):
        def __deepcopy__(self, memo):
            raise AssertionError

    workload = Workload(Uncopied(), {"input_ids": ids()}, train={"input_ids": ids(40)}, students={"small": DictModel()})
    with pytest.raises(UnsupportedError, match="mixup adds inputs up, and one of them holds int64"):
        apply_recipe(workload, read_recipe(f"{technique}(mixup=0.2)"))


def test_a_copy_that_lost_nothing_is_left_and_that_is_said():
    variant = apply_recipe(small(), read_recipe("recover(epochs=2)"))
    (report,) = variant.steps
    assert report.num_changed_layers.value == 0
    assert {layer.detail for layer in report.layers} == {"no epoch of training was better than before it"}
    assert any(text.endswith("nothing was changed; tried: learning_rate=0.001") for text in notes_of(variant, "recover"))


def test_frozen_layers_stay_unless_an_earlier_step_changed_them():
    workload = small()
    workload.model[0].requires_grad_(False)
    workload.train = (workload.train[0], torch.arange(120) % 3)  # labels that the model does not know, so that there is something to learn
    expectations = {
        "unstructured_pruning(sparsity=0.5) + recover(epochs=3, train_all=false)": (True, True),
        "recover(epochs=3, train_all=false)": (False, True),
    }
    for recipe, expected in expectations.items():
        variant = apply_recipe(workload, read_recipe(recipe.replace("epochs=3", "epochs=3, learning_rate=0.01, distillation_weight=0, holdout=0")))
        layers = variant.steps[-1].layers
        assert tuple(layer.changed for layer in layers) == expected, [layer.detail for layer in layers]
        bias = torch.equal(variant.model[0].bias, workload.model[0].bias)
        assert bias  # frozen and as it was: of no step's doing
        assert not any(p.requires_grad for p in variant.model[0].parameters())
    assert layers[0].detail == "frozen in the model, and train_all=false"


def test_an_interrupt_leaves_a_variant_with_the_best_so_far():
    workload = small(train=(small().train[0], torch.arange(120) % 3))

    def interrupt(share, text):
        if text.startswith("recover: epoch 2 of 20"):
            raise KeyboardInterrupt

    variant = apply_recipe(workload, read_recipe("recover(learning_rate=0.01)"), progress=interrupt)
    assert INTERRUPTED in {note.code for note in variant.steps[0].notes}
    assert any("2 epochs of 108 samples" in text for text in notes_of(variant, "recover"))


@pytest.mark.parametrize("technique", ["recover", "distil"])
def test_every_setting_is_an_option(technique):
    names = {option.name for option in describe_options(TECHNIQUES[technique])}
    assert {
        "epochs",
        "learning_rate",
        "batch_size",
        "optimizer",
        "weight_decay",
        "schedule",
        "temperature",
        "distillation_weight",
        "hidden_weight",
        "mixup",
    } < names
    assert {"gradient_accumulation", "gradient_clip", "patience", "holdout", "max_seconds", "train_all"} < names
    assert make_technique(technique, {"learning_rate": "3e-4", "gradient_clip": "none", "optimizer": "sgd"}).gradient_clip is None
    with pytest.raises(InputError, match="learning_rate -1.0 of .* is not above 0"):
        make_technique(technique, {"learning_rate": "-1"})


def test_what_earlier_steps_asked_for_does_not_bind_a_student():
    workload = small(students={"narrow": narrow()})
    context = Context.of(workload)
    context.constraints.append(lambda model: model.get_submodule("nowhere"))
    with torch.no_grad():
        student = make_technique("distil", {"epochs": 1}).apply(workload.model, context)
    assert call_model(student, Call((torch.zeros(1, 8),))).shape == (1, 3)
    assert context.constraints == []
