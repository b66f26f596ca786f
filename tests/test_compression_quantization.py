"""Quantisation against arithmetic by hand, and on models that were trained on real digits."""

from __future__ import annotations

import copy
import io
import itertools
import math
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from models import DictModel, TiedModel, TinyLSTM, TinyMLP, TinyTransformer, assert_same, ids, snapshot
from torch import nn
from torch.nn import functional as F

from aimass_lab.compression import _processor
from aimass_lab.compression._mixture import Choice, largest_passing, order_increments
from aimass_lab.compression._sensitivity import OutputError, layer_sensitivity
from aimass_lab.compression._ties import tied_layers
from aimass_lab.compression.base import TECHNIQUES, Context, make_technique
from aimass_lab.errors import InputError, UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe
from aimass_lab.trial.variant import Variant
from aimass_lab.workload import Workload, weight_bytes

CPU = torch.device("cpu")
FORMS = ["int8_dynamic", "int8_weight_only", "int4_weight_only(group_size=32)", "fp8", "int8_static", "mixed_precision"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are not worth a second thread, which on a busy machine waits for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def variant_of(model: nn.Module, inputs: object, recipe: str, **given: object) -> Variant:
    return apply_recipe(Workload(model, inputs, **given), read_recipe(recipe))


def refusal(model: nn.Module, inputs: object, recipe: str) -> str:
    with pytest.raises(UnsupportedError) as caught:
        variant_of(model, inputs, recipe)
    return str(caught.value)


def details(variant: Variant) -> dict[str, tuple[bool, str]]:
    return {layer.name: (layer.changed, layer.detail) for layer in variant.steps[-1].layers}


def notes(variant: Variant) -> dict[str, str]:
    return {note.code: note.text for note in variant.steps[-1].notes}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


# --- models trained on digits ---------------------------------------------------------------


class Attention(nn.Module):
    """Patches of 8 x 8 images, attention, scores."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.position = nn.Parameter(torch.zeros(1, 16, 32))
        self.qkv, self.project = nn.Linear(32, 96), nn.Linear(32, 32)
        self.widen, self.narrow = nn.Linear(32, 128), nn.Linear(128, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(F.layer_norm(x, [32])).chunk(3, -1)
        x = x + self.project(F.scaled_dot_product_attention(q, k, v))
        x = x + self.narrow(F.gelu(self.widen(F.layer_norm(x, [32]))))
        return self.head(F.layer_norm(x, [32]).mean(1))


def make_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16, torch.tensor(data.target)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


@pytest.fixture(scope="module")
def trained(digits) -> dict[str, nn.Module]:
    x, y = digits[:2]
    models = {}
    for name, make, epochs, rate in (("cnn", make_cnn, 4, 3e-3), ("vit", Attention, 50, 3e-3)):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        models[name] = model.eval()
    return models


@pytest.fixture(scope="module")
def applied(trained, digits):
    """Recipe on a trained model -> the variant, made once."""
    made: dict[tuple[str, str], Variant] = {}

    def get(name: str, recipe: str) -> Variant:
        if (name, recipe) not in made:
            made[name, recipe] = variant_of(trained[name], digits[0][:4], recipe, train=digits[0])
        return made[name, recipe]

    return get


def accuracy(model: nn.Module, digits: tuple) -> float:
    with torch.inference_mode():
        return float((model(digits[2]).argmax(1) == digits[3]).float().mean())


@pytest.mark.parametrize("recipe", FORMS)
@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_accuracy_on_digits_stays_and_so_does_the_original(trained, applied, digits, name: str, recipe: str) -> None:
    model = trained[name]
    before = snapshot(model)
    variant = applied(name, recipe)
    assert_same(before, snapshot(model))
    original = accuracy(model, digits)
    assert original > 0.85  # it learnt something
    assert accuracy(variant.model, digits) >= original - (0.02 if "int4" in recipe else 0.01)
    assert variant.size_bytes < weight_bytes(model)
    with torch.inference_mode():
        for size in (1, 5):
            assert relative(variant.model(digits[2][:size]), model(digits[2][:size])) < (0.2 if "int4" in recipe else 0.05)


@pytest.mark.parametrize("recipe", FORMS)
def test_the_same_recipe_gives_the_same_bits_and_takes_another_copys_state(trained, applied, digits, recipe: str) -> None:
    x = digits[2][:5]
    a, b = applied("vit", recipe), variant_of(trained["vit"], digits[0][:4], recipe, train=digits[0])
    with torch.inference_mode():
        expected = a.model(x)
        assert torch.equal(expected, b.model(x))
        assert torch.equal(expected, copy.deepcopy(a.model)(x))
    if recipe not in ("int8_static", "mixed_precision"):  # ranges are part of a graph's code, and formats depend on what is measured
        other = copy.deepcopy(trained["vit"])
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1.1)
        b = variant_of(other, digits[0][:4], recipe)
        with torch.inference_mode():
            assert not torch.equal(expected, b.model(x))
    file = io.BytesIO()
    torch.save(a.model.state_dict(), file)
    file.seek(0)
    b.model.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        assert torch.equal(expected, b.model(x))


def forms(module: nn.Module) -> list[tuple[str, type, torch.dtype]]:
    """What the module's own weights are kept as."""
    return [(name, type(p), p.dtype) for name, p in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


@pytest.mark.parametrize("recipe", FORMS)
def test_every_layer_is_told_of(trained, applied, recipe: str) -> None:
    variant = applied("vit", recipe)
    told = details(variant)
    assert set(told) == {"", "patch", "qkv", "project", "widen", "narrow", "head"}  # "" holds the positions
    assert not told[""][0]
    if recipe == "mixed_precision":  # which goes by the error of each layer, and so by what the model learnt: what it tells is what it did
        kept = {name for name, module in variant.model.named_modules() if name in told and forms(module) == forms(trained["vit"].get_submodule(name))}
        assert {name for name, (changed, _) in told.items() if not changed} == kept
    else:
        assert told["patch"][0] == (recipe == "int8_static")
    assert told["qkv"][0]
    assert all(len(text) > 10 for _, text in told.values())


@pytest.mark.parametrize("recipe", FORMS)
def test_a_second_time_is_refused(trained, digits, recipe: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot follow"):
        variant_of(trained["cnn"], digits[0][:4], f"{recipe} + {recipe}")


# --- weights of linear layers ---------------------------------------------------------------


def rounded_weight(layer: nn.Linear, recipe: str) -> torch.Tensor:
    variant = variant_of(nn.Sequential(layer), torch.zeros(1, layer.in_features), recipe)
    with torch.inference_mode():
        return variant.model(torch.eye(layer.in_features)).t()


def uneven(out_features: int = 16) -> nn.Linear:
    """Rows of very different size."""
    torch.manual_seed(0)
    layer = nn.Linear(64, out_features, bias=False)
    with torch.no_grad():
        layer.weight *= torch.logspace(-3, 3, out_features)[:, None]
    return layer


def test_int8_weights_are_the_nearest_of_their_rows_scale() -> None:
    layer = uneven()
    step = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    assert ((rounded_weight(layer, "int8_weight_only") - layer.weight).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("packing", ["cpu", "bytes"])
def test_int4_weights_are_the_nearest_of_their_groups_sixteen_values(group_size: int, packing: str) -> None:
    layer = uneven()
    groups = layer.weight.detach().reshape(16, -1, group_size)
    # sixteen values over the range, or, one value a byte, symmetrically about zero
    widest = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True) if packing == "cpu" else 2 * groups.abs().amax(-1, keepdim=True)
    error = (rounded_weight(layer, f"int4_weight_only(group_size={group_size},packing={packing})") - layer.weight).reshape(groups.shape).abs()
    assert (error <= widest / 15 * 0.51).all()
    assert (error.amax(-1, keepdim=True) >= widest / 15 * 0.2).all()  # they really are as coarse


def test_fp8_weights_keep_three_binary_digits() -> None:
    layer = uneven()
    got, weight = rounded_weight(layer, "fp8"), layer.weight.detach()
    smallest_normal = weight.abs().amax(1, keepdim=True) / 448 * 2**-6
    normal = weight.abs() >= smallest_normal
    assert ((got - weight).abs()[normal] <= weight.abs()[normal] * 2**-4 * 1.001).all()
    assert normal.float().mean() > 0.9


def reduced_range() -> bool:
    """Whether the processor sums two products of 8-bit integers in 16 bits, where seven bits are all that fit."""
    from torchao.utils import should_reduce_range

    return should_reduce_range(CPU)


def test_int8_dynamic_is_the_product_of_rounded_inputs_and_weights() -> None:
    layer, x = uneven(), torch.randn(5, 64) * torch.logspace(-2, 2, 5)[:, None]
    got = variant_of(nn.Sequential(layer), x, "int8_dynamic").model(x).detach()

    half = 64 if reduced_range() else 128  # of the range of the integers

    def rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = np.abs(values).max(1, keepdims=True) / (half - 0.5)
        return np.clip(np.rint(values / scale), -half, half - 1), scale

    (a, a_scale), (b, b_scale) = rounded(x.double().numpy()), rounded(layer.weight.detach().double().numpy())
    expected = torch.from_numpy(a @ b.T * a_scale * b_scale.T).float()
    reference = x @ layer.weight.detach().t()
    assert relative(got, expected) < 1e-3  # a value that lies half way may fall either way
    assert relative(got, expected) < relative(got, reference) / 3


@pytest.mark.parametrize(("recipe", "bits"), [("int8_dynamic", 8), ("int8_weight_only", 8), ("fp8", 8), ("int4_weight_only(group_size=128)", 4)])
def test_bytes_are_as_few_as_the_bits_say(recipe: str, bits: int) -> None:
    size = variant_of(nn.Sequential(nn.Linear(1024, 1024, bias=False)), torch.zeros(1, 1024), recipe).size_bytes
    assert 1024 * 1024 * bits / 8 <= size <= 1024 * 1024 * bits / 8 * 1.13  # and scales


def test_four_bits_in_a_byte_each_say_that_they_save_nothing_more() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    member = make_technique("int4_weight_only", {"packing": "bytes"})
    assert variant_of(model, torch.zeros(1, 64), "int4_weight_only(packing=bytes)").size_bytes >= 64 * 64
    assert "simulated" in member.causes(model, 1, CPU)[0]


def test_layers_that_do_not_fit_say_what_does_not() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 50), nn.Linear(50, 10))
    told = details(variant_of(model, torch.zeros(1, 64), "int4_weight_only"))
    assert told["0"] == (True, "int4 weight in groups of 64, packed for the CPU's kernel")
    assert told["1"] == (False, "out_features 50 is not a multiple of 16, by which the CPU's kernel packs them")
    assert told["2"] == (False, "in_features 50 is not a multiple of group_size 64")
    assert "0 of 1 layers would be changed: 2: in_features 50 is not a multiple of group_size 64" in refusal(model[2:], torch.zeros(1, 50), "int4_weight_only")
    assert "the model: in_features 50" in refusal(model[2], torch.zeros(1, 50), "int8_weight_only(group_size=32)")
    assert "type float64" in refusal(model.double(), torch.zeros(1, 64).double(), "int8_dynamic")


def test_attention_s_own_weights_are_left_and_say_so() -> None:
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    for recipe in FORMS:
        told = details(variant_of(model, torch.randn(2, 6, 32), recipe))
        assert told["linear1"][0]
        assert [told[n][0] for n in ("self_attn", "self_attn.out_proj")] == [False, False]


@pytest.mark.parametrize("recipe", ["int8_dynamic", "int8_weight_only", "int4_weight_only", "fp8"])
def test_layers_that_share_a_weight_go_on_sharing_it(recipe: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    model[2].weight = model[0].weight
    assert tied_layers(model) == {"0": ("2",), "2": ("0",)}
    variant = variant_of(model, torch.randn(2, 64), recipe)
    assert variant.model[0].weight is variant.model[2].weight
    assert variant.size_bytes < 64 * 64 * 1.2


@pytest.mark.parametrize("recipe", ["int8_dynamic", "int8_weight_only", "fp8", "mixed_precision"])
def test_a_weight_shared_with_an_embedding_is_not_cut_apart(recipe: str) -> None:
    variant = variant_of(TiedModel(), ids(), recipe)
    assert variant.model.head.weight is variant.model.embed.weight
    assert "cut apart" in details(variant)["head"][1]
    assert details(variant)["step.linear"][0]


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("int4_weight_only(group_size=48)", "group_size 48 is not one of 32, 64, 128, 256"),
        ("int4_weight_only(packing=mslk,scales=hqq)", "scales=hqq is not possible with packing=mslk"),
        ("int8_weight_only(group_size=0)", "group_size 0"),
        ("int8_static(num_samples=0)", "num_samples 0"),
        ("mixed_precision(max_relative_error=0.1,size_ratio=0.5)", "are both given"),
        ("mixed_precision(size_ratio=1.5)", "size_ratio 1.5 of mixed_precision is not above 0 and below 1"),
        ("mixed_precision(max_relative_error=0)", "max_relative_error 0.0"),
        ("mixed_precision(formats=bf16/int3)", "names int3"),
        ("mixed_precision(num_samples=0)", "num_samples 0"),
    ],
)
def test_options_that_cannot_be_used_say_so(recipe: str, text: str) -> None:
    with pytest.raises(InputError, match=text.replace("(", r"\(")):
        read_recipe(recipe)


# --- what a device or a processor lacks -----------------------------------------------------


def context_on(device: str) -> Context:
    model = nn.Linear(64, 64)
    return (
        Context.of(Workload(model, torch.zeros(1, 64))) if device == "cpu" else Context(model, Workload(model, torch.zeros(1, 64)).call, torch.device(device))
    )


@pytest.mark.parametrize(
    ("technique", "options", "capability", "text"),
    [
        ("int4_weight_only", {}, (7, 5), "needs compute capability 8.0, and Some GPU has 7.5"),
        ("int4_weight_only", {}, (8, 0), None),
        ("int4_weight_only", {"packing": "mslk"}, (8, 0), "needs compute capability 9.0"),
        ("int4_weight_only", {"packing": "mslk"}, (9, 0), "needs the package 'mslk', which is not installed"),
        ("int4_weight_only", {"packing": "cpu"}, (9, 0), "packing=cpu is for CPUs"),
        ("int4_weight_only", {"packing": "bytes"}, (7, 5), None),
        ("fp8", {}, (8, 0), None),
        ("fp8", {"activations": "dynamic"}, (8, 6), "and Some GPU has 8.6"),
        ("fp8", {"activations": "dynamic"}, (8, 9), None),
        ("int8_static", {}, (9, 0), "for x86 processors, and the model is on Some GPU"),
        ("mixed_precision", {"formats": "bf16/fp8"}, (9, 0), None),
    ],
)
def test_what_a_gpu_lacks_is_said_before_anything_is_copied(monkeypatch, technique: str, options: dict, capability: tuple, text: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    lacking = make_technique(technique, options).unavailable(context_on("cuda:0"))
    assert lacking == text or (text is not None and lacking is not None and text in lacking)


@pytest.mark.parametrize(
    ("technique", "options", "text"),
    [
        ("fp8", {"activations": "dynamic"}, "the model is on a CPU; activations=none runs there"),
        ("int4_weight_only", {"packing": "tiles"}, "packing=tiles is for GPUs, and the model is on a CPU"),
        ("int4_weight_only", {"group_size": 256}, "takes groups of 32, 64, 128 weights, not 256"),
        ("mixed_precision", {"formats": "int8_dynamic/int4_weight_only"}, None),
    ],
)
def test_what_a_cpu_lacks_is_said_before_anything_is_copied(technique: str, options: dict, text: str | None) -> None:
    lacking = make_technique(technique, options).unavailable(context_on("cpu"))
    assert lacking == text or (text is not None and lacking is not None and text in lacking)


def test_static_int8_is_for_x86(monkeypatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "this is a aarch64" in str(make_technique("int8_static").unavailable(context_on("cpu")))


def test_a_processor_without_8_bit_products_is_a_cause(monkeypatch) -> None:
    for flags, found in ((frozenset({"avx2"}), True), (frozenset({"avx2", "avx512_vnni"}), False), (None, False)):
        monkeypatch.setattr(_processor, "processor_flags", lambda flags=flags: flags)
        for name in ("int8_dynamic", "int8_static"):
            causes = make_technique(name).causes(nn.Sequential(nn.Linear(1024, 1024)), 1, CPU)
            assert any("no 8-bit dot products" in cause for cause in causes) == found


def test_causes_on_a_gpu_name_what_its_kernels_do_not_take() -> None:
    model = nn.Sequential(nn.Linear(1024, 1023), nn.Linear(1023, 1024))
    causes = " ".join(make_technique("int8_dynamic").causes(model, 4, torch.device("cuda")))
    assert "2 of 2 linear layers ('0' first) are not multiples of 8" in causes
    assert "at batch 4" in causes
    assert "padded to a multiple of 1024" in " ".join(TECHNIQUES["int4_weight_only"]().causes(nn.Sequential(nn.Linear(768, 64)), 1, torch.device("cuda")))


@pytest.mark.parametrize("recipe", [*FORMS, "fp8(activations=dynamic)", "int4_weight_only(packing=tiles)"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_causes_are_sentences(trained, recipe: str, device: str) -> None:
    step = read_recipe(recipe).steps[0]
    for model in trained.values():
        causes = make_technique(step.technique, step.options).causes(model, 32, torch.device(device))
        assert causes
        assert all(len(cause) > 30 and cause == cause.strip() and not cause.endswith(".") for cause in causes)


# --- static int8 ----------------------------------------------------------------------------


def test_static_int8_is_integer_arithmetic_with_the_range_of_the_samples() -> None:
    torch.manual_seed(0)
    layer, samples, x = nn.Linear(32, 8), torch.randn(64, 32), torch.randn(5, 32) * 2  # some of it beyond the range
    got = variant_of(nn.Sequential(layer), samples, "int8_static(ranges=minmax)").model(x).detach()

    low, high, largest = float(samples.min()), float(samples.max()), 127 if reduced_range() else 255
    scale = (high - low) / largest
    zero = round(-low / scale)
    a = np.clip(np.rint(x.double().numpy() / scale) + zero, 0, largest) - zero
    weight = layer.weight.detach().double().numpy()
    w_scale = np.abs(weight).max(1, keepdims=True) / 127.5
    b = np.clip(np.rint(weight / w_scale), -128, 127)
    expected = torch.from_numpy(a @ b.T * scale * w_scale.T + layer.bias.detach().double().numpy()).float()
    assert relative(got, expected) < 1e-3
    assert relative(got, expected) < relative(got, layer(x).detach()) / 10


def test_static_int8_keeps_no_float_weight_of_what_it_rounds(trained, applied) -> None:
    model, variant = trained["cnn"], applied("cnn", "int8_static")
    large = [t for t in [*variant.model.parameters(), *variant.model.buffers()] if t.dim() >= 2]
    assert {t.dtype for t in large} == {torch.int8}
    assert variant.size_bytes < 0.3 * weight_bytes(model)
    assert "W-FEW-SAMPLES" not in notes(variant)


def test_static_int8_says_when_samples_are_few() -> None:
    text = notes(variant_of(TinyMLP(), torch.randn(2, 8), "int8_static"))["W-FEW-SAMPLES"]
    assert "read off 2 example inputs only" in text
    assert "train=inputs" in text


def test_static_int8_keeps_containers_and_takes_arguments_by_name_and_by_position() -> None:
    torch.manual_seed(0)
    model, call = DictModel().eval(), {"input_ids": ids(4), "attention_mask": torch.ones(4, 12)}
    graph = variant_of(model, call, "int8_static").model
    with torch.inference_mode():
        expected = model(**call)
        for got in (graph(**call), graph(call["input_ids"], call["attention_mask"]), graph(call["input_ids"], attention_mask=call["attention_mask"])):
            assert list(got) == ["logits", "hidden"]
            assert relative(got["logits"], expected["logits"]) < 0.05
        assert graph(**{k: v[:1] for k, v in call.items()})["logits"].shape == (1, 4)
    with pytest.raises(InputError, match="made for calls with input_ids, attention_mask, and is called with input_ids"):
        graph(call["input_ids"])
    with pytest.raises(InputError, match=r"shape \[any, 12\], and is called with \[4, 5\]"):
        graph(ids(4, 5), torch.ones(4, 5))
    assert graph.train() is graph
    assert not graph.training


def test_static_int8_holds_to_constants_it_was_made_with() -> None:
    class Scaled(TinyMLP):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return super().forward(x) * scale

    graph = variant_of(Scaled(), (torch.randn(40, 8), 2.0), "int8_static").model
    assert graph(torch.randn(3, 8), scale=2.0).shape == (3, 3)
    with pytest.raises(InputError, match=r"made for 2\.0 where it is called with 3\.0"):
        graph(torch.randn(3, 8), 3.0)


def test_static_int8_of_a_model_that_counts_its_items_takes_that_many_only() -> None:
    class Counting(TinyMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (2 if x.shape[0] > 3 else 1)

    model, x = Counting().eval(), torch.randn(40, 8)
    variant = variant_of(model, x, "int8_static(ranges=minmax)")
    assert "calls of exactly 40 items" in notes(variant)["W-FIXED-BATCH"]
    assert relative(variant.model(x).detach(), model(x).detach()) < 0.05
    with pytest.raises(InputError, match=r"shape \[40, 8\], and is called with \[2, 8\]"):
        variant.model(x[:2])


def test_static_int8_of_a_model_that_treats_even_numbers_otherwise_takes_one_number_only() -> None:
    class Even(TinyMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (2 if x.shape[0] % 2 == 0 else 1)

    model, x = Even().eval(), torch.randn(40, 8)
    variant = variant_of(model, x, "int8_static(ranges=minmax)")
    assert "calls of exactly 40 items" in notes(variant)["W-FIXED-BATCH"]
    assert relative(variant.model(x).detach(), model(x).detach()) < 0.05


def test_static_int8_says_which_calls_of_a_layer_stay_as_they_were() -> None:
    told = details(variant_of(TiedModel(), ids(40), "int8_static"))
    assert "in 1 of its 3 calls" in told["step.linear"][1]
    assert "the weight that it shared with 'embed' stays as it was there" in told["head"][1]


def test_static_int8_leaves_out_a_layer_whose_output_nobody_reads() -> None:
    class Pooled(TinyMLP):
        """As an encoder whose pooler is computed beside the states that its user takes."""

        def __init__(self) -> None:
            super().__init__()
            self.pooler, self.activation = nn.Linear(8, 8), nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.activation(self.pooler(x))
            return super().forward(x)

    model, x = Pooled().eval(), torch.randn(40, 8)
    variant = variant_of(model, x, "int8_static(ranges=minmax)")
    assert relative(variant.model(x).detach(), model(x).detach()) < 0.05
    assert not details(variant)["pooler"][0]


def test_static_int8_refuses_what_it_cannot_do() -> None:
    class Branching(TinyMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x

    text = refusal(Branching(), torch.ones(2, 8), "int8_static")
    assert "cannot export the model" in text
    assert "int8_dynamic works on the layers one by one" in text
    assert "0 of 1 layers" in refusal(TinyLSTM(), torch.randn(2, 5, 8), "int8_static")
    assert "weights of type bfloat16" in refusal(TinyMLP().bfloat16(), torch.randn(2, 8).bfloat16(), "int8_static")


def test_static_int8_becomes_8_bit_kernels_when_compiled_with_frozen_weights(applied, digits) -> None:
    from torch._inductor import config

    from aimass_lab.compression._torch_compile import why_not_compile
    from aimass_lab.quiet import quiet

    if why_not_compile(CPU):
        pytest.skip("no C++ compiler")
    graph, x = applied("cnn", "int8_static").model, digits[2][:8]
    with quiet(), warnings.catch_warnings(), torch.inference_mode(), config.patch(freezing=True):
        warnings.simplefilter("ignore")
        compiled = torch.compile(graph, dynamic=False)
        compiled(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            got = compiled(x)
        assert relative(got, graph(x)) < 1e-3
    kernels = {event.key for event in profile.key_averages()}
    assert {"onednn::qconv_pointwise", "onednn::qlinear_pointwise"} <= kernels


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["weight", "spectral", "as hooks"]
)
def test_weights_that_are_computed_at_each_call_are_left_and_named(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16)
    normed = nn.Sequential(norm(nn.Linear(16, 16)), nn.ReLU())
    said = refusal(normed, x, "int8_dynamic")
    assert "layers that compute their weight anew at each call have none to change" in said
    assert said.endswith(": '0'")
    both = nn.Sequential(norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4)).eval()
    variant = variant_of(both, x, "int8_dynamic")
    assert {name for name, (done, _) in details(variant).items() if done} == {"2"}
    with torch.no_grad():
        assert relative(variant.model(x), both(x)) < 0.1


def test_a_small_bert_keeps_its_output_class_in_every_form() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, vocab_size=200)
    model = transformers.BertForSequenceClassification(config).eval()
    words = torch.randint(200, (4, 16))
    call = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    with torch.inference_mode():
        expected = model(**call)
        for recipe in FORMS:
            variant = variant_of(model, call, recipe)
            for size in (1, 4):
                got = variant.model(**{k: v[:size] for k, v in call.items()})
                assert type(got) is type(expected)
                assert relative(got.logits, expected.logits[:size]) < (0.4 if "int4" in recipe else 0.1)
            changed = {name for name, (done, _) in details(variant).items() if done}
            assert len([n for n in changed if n.startswith("bert.encoder")]) == 6


# --- sensitivity and mixed precision --------------------------------------------------------


def test_sensitivity_is_the_relative_change_of_the_outputs_and_leaves_the_model_alone() -> None:
    # given two layers without bias, when one is scaled by 1 + e, then so are the outputs, and differ by e
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    context = Context.of(Workload(model, torch.randn(100, 8)))
    before = snapshot(model)

    def scaled(by: float):
        def change(layer: nn.Module) -> None:
            with torch.no_grad():
                layer.weight.mul_(1 + by)

        return change

    found = layer_sensitivity(model, context, {"0": scaled(0.1), "1": scaled(0.02), "": lambda whole: nn.Sequential(whole, nn.Identity())})
    assert found == {"0": pytest.approx(0.1, rel=1e-4), "1": pytest.approx(0.02, rel=1e-4), "": 0.0}
    assert_same(before, snapshot(model))


def test_a_layer_in_two_places_is_changed_in_both_and_lost_values_count_as_infinite() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    model.forward = lambda x: model["b"](model["a"](x))
    context = Context.of(Workload(model, torch.ones(2, 4)))
    seen = layer_sensitivity(model, context, {"a": lambda _: nn.Identity()})["a"]
    expected = layer(layer(torch.ones(2, 4))).detach()
    assert seen == pytest.approx(float((torch.ones(2, 4) - expected).norm() / expected.norm()), rel=1e-5)
    assert model["a"] is model["b"] is layer

    class Infinite(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 0

    assert layer_sensitivity(model, context, {"a": lambda _: Infinite()})["a"] == math.inf
    shorter = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    context = Context.of(Workload(shorter, torch.ones(2, 4)))
    assert layer_sensitivity(shorter, context, {"1": lambda _: nn.Linear(4, 2)})["1"] == math.inf


def test_outputs_that_are_not_finite_in_the_original_do_not_count() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, torch.full_like(x, -math.inf)], 1)

    error = OutputError.of(Masked(), Context.of(Workload(Masked(), torch.ones(3, 2))), num_samples=3)
    assert error.num_samples == 3
    assert error.measure(Masked()) == 0.0
    assert error.measure(nn.Sequential(nn.Hardtanh(0, 0.5), Masked())) == pytest.approx(0.5)


def test_each_prefix_of_the_increments_is_the_best_choice_for_its_bytes() -> None:
    draw = random.Random(0)
    for _ in range(50):
        groups = {
            layer: [Choice(layer=layer, format=str(i), error=draw.random(), saved_bytes=draw.randint(1, 20)) for i in range(draw.randint(1, 3))]
            for layer in "abcd"
        }
        steps = order_increments(choice for group in groups.values() for choice in group)
        for count in range(len(steps) + 1):
            taken = {step.choice.layer: step.choice for step in steps[:count]}
            saved, squared = sum(c.saved_bytes for c in taken.values()), sum(c.error**2 for c in taken.values())
            assert saved == sum(step.saved_bytes for step in steps[:count])
            for other in itertools.product(*([None, *group] for group in groups.values())):
                chosen = [c for c in other if c]
                if sum(c.saved_bytes for c in chosen) >= saved:
                    assert sum(c.error**2 for c in chosen) >= squared - 1e-12


def test_halving_finds_the_largest_number_that_passes() -> None:
    for count in range(9):
        for limit in range(count + 1):
            assert largest_passing(count, lambda n, limit=limit: n <= limit) == limit


def test_choices_that_do_not_run_or_save_nothing_are_never_taken() -> None:
    choices = [Choice(layer="a", format="x", error=math.inf, saved_bytes=9), Choice(layer="b", format="x", error=0.0, saved_bytes=0)]
    assert order_increments(choices) == []


@pytest.mark.parametrize("limit", [0.003, 0.05])
def test_mixed_precision_holds_the_error_on_its_samples(trained, digits, limit: float) -> None:
    model, x = trained["vit"], digits[0][:16]
    variant = variant_of(model, x, f"mixed_precision(max_relative_error={limit},formats=bf16/int8_dynamic/int4_weight_only)")
    with torch.inference_mode():
        assert 0 < relative(variant.model(x), model(x)) <= limit * 1.001
    told = details(variant)
    assert all("alone it changes the outputs by" in told[name][1] for name in ("patch", "qkv", "head"))
    assert "samples differ by" in notes(variant)["mixed_precision"]


def test_mixed_precision_takes_more_error_for_fewer_bytes(trained, digits) -> None:
    model, x = trained["vit"], digits[0][:16]
    errors, sizes = [], []
    for ratio in (0.7, 0.35):
        variant = variant_of(model, x, f"mixed_precision(size_ratio={ratio})")
        assert variant.size_bytes <= ratio * weight_bytes(model)
        sizes.append(variant.size_bytes)
        with torch.inference_mode():
            errors.append(relative(variant.model(x), model(x)))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert "cannot be reached" in refusal(model, x, "mixed_precision(size_ratio=0.1)")
    assert "leaves every layer as it is" in refusal(model, x, "mixed_precision(max_relative_error=1e-9)")


def test_mixed_precision_survives_a_fused_kernel_that_reads_weights_behind_a_layers_back() -> None:
    # given torch's fused encoder layer, which in evaluation takes the weights themselves, when a layer alone cannot be cast, then it is left
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval(), torch.randn(4, 6, 32)
    variant = variant_of(model, x, "mixed_precision(formats=bf16/int8_dynamic,max_relative_error=0.1)")
    with torch.inference_mode():
        assert 0 < relative(variant.model(x), model(x)) < 0.1


def test_embeddings_are_cast_and_tokens_stay_integers() -> None:
    torch.manual_seed(0)
    model = TinyTransformer().eval()
    variant = variant_of(model, ids(4, vocabulary=50), "mixed_precision(formats=bf16)")
    assert details(variant)["embed"][1].startswith("bf16; ")
    assert variant.model(ids(4, vocabulary=50)).dtype == torch.float32


@pytest.mark.parametrize("technique", ["int8_dynamic", "int8_weight_only", "fp8"])
def test_a_layer_with_one_input_is_left_with_the_reason(technique: str) -> None:
    """As low rank leaves one where a single direction suffices; torchao's own code raises on it."""
    variant = apply_recipe(Workload(nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 8)), torch.rand(4, 8)), read_recipe(technique))
    assert [(layer.name, layer.changed) for layer in variant.steps[0].layers] == [("0", True), ("1", False)]
    assert "it has one input" in variant.steps[0].layers[1].detail
    assert variant.model(torch.rand(2, 8)).shape == (2, 8)


class Transposed(nn.Module):
    """A linear layer of a kind of its own, which torchao does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        return x @ self.weight


@pytest.mark.parametrize(("model", "x"), [(Transposed(), torch.randn(3, 16)), (nn.LSTM(8, 16, batch_first=True), torch.randn(3, 5, 8))])
def test_weights_that_are_no_linear_layers_are_sent_to_the_recipe_that_takes_them(model: nn.Module, x: torch.Tensor) -> None:
    workload = Workload(model.eval(), x)
    with pytest.raises(UnsupportedError, match=r"it changes linear layers \(nn.Linear\) only; onnxruntime\(quantize=dynamic\) rounds"):
        apply_recipe(workload, read_recipe("int8_dynamic"))
    rounded = apply_recipe(workload, read_recipe("onnxruntime(quantize=dynamic)"))
    assert rounded.steps[0].layers[0].changed


def test_a_model_of_convolutions_is_sent_nowhere() -> None:
    with pytest.raises(UnsupportedError, match=r"only$"):
        apply_recipe(Workload(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)), read_recipe("int8_dynamic"))
