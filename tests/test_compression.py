"""What every technique promises, asked of each of them on a few small models: a new file in the family is tested by being there."""

from __future__ import annotations

import dataclasses
import functools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aimass_lab.compression.base import TECHNIQUES, Context, Stage, make_technique, weight_layers
from aimass_lab.errors import AimassError, UnsupportedError
from aimass_lab.options import changed_options, describe_options
from aimass_lab.quiet import quiet
from aimass_lab.recipe import read_recipe
from aimass_lab.records import Recipe, Step
from aimass_lab.storage import load_weights, save_weights
from aimass_lab.trial import Variant, apply_recipe
from aimass_lab.workload import Workload, weight_bytes


class Attention(nn.Module):
    """Embedding, an encoder with torch's fused attention, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(ids)).mean(1))


class Residual(nn.Module):
    """A convolution with batch norm, and a way round it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def make_cnn() -> nn.Module:
    blocks = nn.Sequential(Residual(16), Residual(16))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), blocks, head)


def make_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))


def vectors(n: int) -> torch.Tensor:
    return torch.rand(n, 32, generator=torch.Generator().manual_seed(n))


def tokens(n: int) -> torch.Tensor:
    return torch.randint(20, (n, 6), generator=torch.Generator().manual_seed(n))


MODELS = {"cnn": (make_cnn, images, 10), "mlp": (make_mlp, vectors, 10), "attention": (Attention, tokens, 4)}
STUDENTS = {
    "cnn": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
    "mlp": lambda: nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 10)),
    "attention": lambda: nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(48, 4)),
}
PAIRS = [
    (t, m) for t in TECHNIQUES for m in MODELS if not ((TECHNIQUES[t].compiles or t == "aot_inductor") and m != "mlp")
]  # compiling the others takes half a minute each time
every_pair = pytest.mark.parametrize(("technique", "model"), [pytest.param(t, m, id=f"{t}-{m}") for t, m in PAIRS])
every_technique = pytest.mark.parametrize("technique", sorted(TECHNIQUES))


def make_workload(model: str) -> Workload:
    make, inputs, num_classes = MODELS[model]
    torch.manual_seed(0)
    network, student = make(), STUDENTS[model]()
    network.train()
    x = inputs(64)
    labels = torch.randint(num_classes, (64,), generator=torch.Generator().manual_seed(1))
    return Workload(network, inputs(4), train=(x, labels), loss=F.cross_entropy, students={"small": student})


def state_of(workload: Workload) -> list:
    """Everything of the user's model, of the student and of the random generators that a technique could have changed."""
    found: list = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.is_grad_enabled()]
    for network in (workload.model, *workload.students.values()):
        for name, module in network.named_modules():
            found.append((name, type(module), module.training, sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks)))
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            bits = tensor.detach().contiguous().view(torch.uint8).tolist() if tensor.dim() else tensor.item()
            found.append((name, type(tensor), tensor.dtype, tensor.stride(), tensor.requires_grad, tensor.grad is None, bits))
    return found


def attempt(workload: Workload, text: str) -> Variant | str:
    """The variant, or why there is none."""
    try:
        with quiet():
            return apply_recipe(workload, read_recipe(text))
    except UnsupportedError as error:
        return error.message


def text_of(technique: str) -> str:
    """The technique at its defaults; what learns, for two epochs."""
    return f"{technique}(epochs=2)" if TECHNIQUES[technique].learns else technique


@functools.cache
def tried(technique: str, model: str) -> tuple[Workload, list, Variant | str]:
    workload = make_workload(model)
    before = state_of(workload)
    return workload, before, attempt(workload, text_of(technique))


def variant_of(technique: str, model: str) -> tuple[Workload, Variant]:
    workload, _, outcome = tried(technique, model)
    if isinstance(outcome, str):
        pytest.skip(outcome)
    return workload, outcome


def run(variant: Variant, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), quiet():
        return variant.model(x)


@every_pair
def test_the_original_stays_as_it_was_bit_by_bit(technique: str, model: str) -> None:
    workload, before, _ = tried(technique, model)
    assert state_of(workload) == before


@every_technique
def test_it_is_possible_on_one_of_the_models_or_nothing_here_can_run_it(technique: str) -> None:
    outcomes = [tried(t, m)[2] for t, m in PAIRS if t == technique]
    if all(isinstance(outcome, str) for outcome in outcomes):
        lacking = make_technique(technique).unavailable(Context.of(make_workload("mlp")))
        assert lacking is not None, outcomes


@every_pair
def test_what_is_not_possible_is_said_in_a_sentence(technique: str, model: str) -> None:
    _, _, outcome = tried(technique, model)
    if not isinstance(outcome, str):
        pytest.skip("it is possible")
    assert outcome.startswith(f"{technique} is not possible here: ")
    assert len(outcome) > 50


@every_pair
def test_the_copy_runs_at_two_batch_sizes_and_leaves_its_inputs_alone(technique: str, model: str) -> None:
    workload, variant = variant_of(technique, model)
    for batch_size in (1, 3):
        x = MODELS[model][1](batch_size)
        kept = x.clone()
        with torch.inference_mode():
            expected = workload.model.eval()(x)
            workload.model.train()
        got = run(variant, x)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.isfinite(got).all()
        assert torch.equal(x, kept)


@every_pair
def test_the_same_recipe_with_the_same_seed_gives_the_same_bits(technique: str, model: str) -> None:
    workload, variant = variant_of(technique, model)
    torch.manual_seed(99)  # a technique draws from its own seed, whatever state the generator is in
    again = attempt(workload, text_of(technique))
    assert isinstance(again, Variant)
    x = MODELS[model][1](4)
    assert torch.equal(run(again, x), run(variant, x))


@every_pair
def test_the_report_names_every_layer_and_those_left_are_as_they_were(technique: str, model: str) -> None:
    workload, variant = variant_of(technique, model)
    (report,) = variant.steps
    originals = weight_layers(workload.model)
    assert [layer.name for layer in report.layers] == list(originals)
    assert report.num_changed_layers.value == sum(layer.changed for layer in report.layers) > 0
    assert 0 < report.weight_share.value <= 1
    modules = dict(variant.model.named_modules())
    for layer in report.layers:
        assert len(layer.detail) > 3, layer
        if not layer.changed and layer.name in modules:
            for name, parameter in originals[layer.name].named_parameters(recurse=False):
                assert torch.equal(getattr(modules[layer.name], name), parameter), layer


@every_pair
def test_a_layer_that_is_said_to_be_changed_is_changed(technique: str, model: str) -> None:
    workload, variant = variant_of(technique, model)
    if TECHNIQUES[technique].stage in (Stage.RUNTIME, Stage.LAYOUT):
        pytest.skip("it changes how layers run, not what they hold")
    modules = dict(variant.model.named_modules())
    for layer in variant.steps[0].layers:
        if layer.changed and layer.name in modules:
            old, new = workload.model.get_submodule(layer.name), modules[layer.name]
            before, after = dict(old.named_parameters(recurse=False)), dict(new.named_parameters(recurse=False))
            same = before.keys() == after.keys() and all(_same(p, after[n]) for n, p in before.items())
            assert not same or any(not _same(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=False)), layer


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape) and torch.equal(a, b)


@every_pair
def test_its_weights_are_saved_and_loaded_into_another_copy(technique: str, model: str, tmp_path: Path) -> None:
    workload, variant = variant_of(technique, model)
    if technique == "aot_inductor":
        pytest.skip("two compilations need not give packages of equal length; a package is stored as a whole")
    other = attempt(workload, text_of(technique))
    assert isinstance(other, Variant)
    for tensor in [*other.model.parameters(), *other.model.buffers()]:
        if type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_floating_point():
            tensor.data = torch.zeros_like(tensor)
    save_weights(variant.model, tmp_path / "weights")
    load_weights(other.model, tmp_path / "weights")
    x = MODELS[model][1](4)
    assert torch.equal(run(other, x), run(variant, x))


@every_pair
def test_a_second_time_is_refused_or_harmless(technique: str, model: str) -> None:
    workload, _ = variant_of(technique, model)
    if TECHNIQUES[technique].learns:
        pytest.skip("learning twice is learning longer")
    outcome = attempt(workload, f"{technique} + {technique}")
    if isinstance(outcome, str):
        assert technique in outcome
    else:
        assert run(outcome, MODELS[model][1](2)).shape == (2, MODELS[model][2])


@every_pair
def test_a_released_copy_holds_no_weights(technique: str, model: str) -> None:
    workload, _ = variant_of(technique, model)
    outcome = attempt(workload, text_of(technique))
    assert isinstance(outcome, Variant)
    outcome.release()
    assert weight_bytes(outcome.model) == 0


@every_technique
def test_a_failure_in_the_middle_leaves_the_original_as_it_was(technique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make_workload("cnn")
    before = state_of(workload)
    own = TECHNIQUES[technique].apply

    def fails(self, copy: nn.Module, context: Context) -> nn.Module:
        own(self, copy, context)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(TECHNIQUES[technique], "apply", fails)
    with pytest.raises(AimassError), quiet():
        apply_recipe(workload, read_recipe(text_of(technique)))
    assert state_of(workload) == before


@every_technique
def test_a_model_without_weights_has_nothing_to_change(technique: str) -> None:
    if TECHNIQUES[technique].stage is Stage.RUNTIME or TECHNIQUES[technique].learns:
        pytest.skip("a runtime runs any model; learning is refused for want of samples first")
    outcome = attempt(Workload(nn.ReLU(), torch.ones(1, 2)), technique)
    assert isinstance(outcome, str)
    assert "no layer with weights" in outcome or "not possible here" in outcome


@every_technique
def test_every_option_is_documented_and_survives_a_round_trip(technique: str) -> None:
    member = TECHNIQUES[technique]
    options = describe_options(member)
    assert [o.name for o in options] == [f.name for f in dataclasses.fields(member)]
    assert all(o.text for o in options), [o.name for o in options if not o.text]
    assert make_technique(technique, {o.name: str(o.default) for o in options}) == make_technique(technique) == member()
    assert changed_options(member()) == {}
    assert member.__doc__


@every_pair
def test_causes_are_sentences(technique: str, model: str) -> None:
    for cause in make_technique(technique).causes(make_workload(model).model, 1, torch.device("cpu")):
        assert len(cause) > 20
        assert cause == cause.strip()


def test_listing_techniques_loads_no_torch_and_importing_torchao_stays_quiet() -> None:
    code = (
        "import sys, warnings; from aimass_lab.compression.base import TECHNIQUES; from aimass_lab.options import describe_options;"
        "[describe_options(TECHNIQUES[n]) for n in TECHNIQUES]; assert 'torch' not in sys.modules, 'torch';"
        "from torch import nn, ones; from aimass_lab.workload import Workload; from aimass_lab.recipe import read_recipe;"
        "from aimass_lab.trial import apply_recipe;"
        "apply_recipe(Workload(nn.Sequential(nn.Linear(8, 8)), ones(1, 8)), read_recipe('int8_dynamic')); assert 'torchao' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_a_step_gives_the_same_whether_a_recipe_or_a_record_asks_for_it() -> None:
    step = Step(technique="unstructured_pruning", options={"sparsity": "0.75"})
    assert read_recipe("unstructured_pruning(sparsity=0.75)") == read_recipe(Recipe(steps=(step,)))
