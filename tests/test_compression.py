"""What every technique promises, asked of each of them on a few small models, and what some promise besides."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from aimass_lab.compression.base import TECHNIQUES, Technique, changed_options, describe_options, make_technique, weight_layers
from aimass_lab.errors import InputError, MissingPackageError, UnknownNameError
from aimass_lab.workload import Workload, as_call, weight_bytes

CPU = torch.device("cpu")


class Attention(nn.Module):
    """Embedding, an encoder with torch's fused attention, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(ids)).mean(1))


def make_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))


def make_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))


MODELS = {
    "cnn": (make_cnn, lambda n: torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))),
    "mlp": (make_mlp, lambda n: torch.rand(n, 16, generator=torch.Generator().manual_seed(n))),
    "attention": (Attention, lambda n: torch.randint(20, (n, 6), generator=torch.Generator().manual_seed(n))),
}
COMPILED = {"compile"}
# technique -> model -> (layers changed, layers with weights); a pair that is left out is not possible
LAYERS = {
    "none": {"cnn": (0, 3), "mlp": (0, 2), "attention": (0, 6)},
    "bf16": {"cnn": (3, 3), "mlp": (2, 2), "attention": (6, 6)},
    "fp16": {"cnn": (3, 3), "mlp": (2, 2), "attention": (6, 6)},
    "compile": {"cnn": (3, 3), "mlp": (2, 2), "attention": (6, 6)},
    "channels_last": {"cnn": (2, 3)},
    # not the attention's two projections, nor the embedding
    "int8_dynamic": {"cnn": (1, 3), "mlp": (2, 2), "attention": (3, 6)},
    "int8_weight_only": {"cnn": (1, 3), "mlp": (2, 2), "attention": (3, 6)},
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def bits(model: nn.Module) -> dict[str, tuple]:
    return {name: (t.dtype, t.stride(), t.clone()) for name, t in model.state_dict().items()}


def assert_same_bits(before: dict[str, tuple], after: dict[str, tuple]) -> None:
    assert before.keys() == after.keys()
    for name, (dtype, stride, value) in before.items():
        assert (dtype, stride) == after[name][:2]
        assert torch.equal(value, after[name][2])


def possible(kind: bool = True) -> list:
    pairs = [(t, m) for t in TECHNIQUES for m in MODELS if (m in LAYERS[t]) == kind]
    return [pytest.param(t, m, id=f"{t}-{m}") for t, m in pairs if not (t in COMPILED and m == "attention")]


# --- what every member promises -------------------------------------------------------------


def test_this_table_covers_the_whole_family() -> None:
    assert set(LAYERS) == set(TECHNIQUES)


@pytest.mark.parametrize(("technique", "model"), possible())
def test_outputs_stay_close_at_two_batch_sizes_and_the_original_stays_as_it_was(technique: str, model: str) -> None:
    original = make(model)
    before = bits(original)
    variant = make_technique(technique).apply(copy.deepcopy(original))
    for batch_size in (1, 3):
        x = MODELS[model][1](batch_size)
        kept = x.clone()
        with torch.inference_mode():
            expected, got = original(x), variant(x)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert float((got - expected).norm() / expected.norm()) < 0.05
        assert torch.equal(x, kept)
    assert_same_bits(before, bits(original))


@pytest.mark.parametrize(("technique", "model"), possible())
def test_the_same_technique_on_two_copies_gives_the_same(technique: str, model: str) -> None:
    x = MODELS[model][1](2)
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        variant = make_technique(technique).apply(make(model))
        with torch.inference_mode():
            outputs.append(variant(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("technique", "model"), possible())
def test_coverage_is_what_is_really_changed(technique: str, model: str) -> None:
    original, member = make(model), make_technique(technique)
    coverage = member.coverage(original)
    assert (coverage.num_changed, coverage.num_layers) == LAYERS[technique][model]
    assert member.check(original, as_call(MODELS[model][1](2)), CPU) is None
    if technique in COMPILED:
        return  # it changes how layers run and none of their weights
    # given the changed copy, when its weights are laid beside the original's, then those that differ in kind are the ones that were named
    variant = member.apply(copy.deepcopy(original))

    def kinds(layer: nn.Module) -> list:
        return [(type(p), p.dtype, p.stride() if type(p) is nn.Parameter else None) for p in layer.parameters(recurse=False) if p.dim() >= 2]

    changed = [name for name, layer in weight_layers(original).items() if kinds(layer) != kinds(variant.get_submodule(name))]
    if technique == "channels_last":
        changed += [n for n, m in original.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 1]  # one channel: both orders are the same
    assert sorted(set(changed)) == sorted(member.eligible(original))
    shares = [sum(p.numel() for p in original.get_submodule(n).parameters(recurse=False)) for n in weight_layers(original)]
    of_changed = [sum(p.numel() for p in original.get_submodule(n).parameters(recurse=False)) for n in member.eligible(original)]
    assert coverage.weight_share == pytest.approx(sum(of_changed) / sum(shares))


@pytest.mark.parametrize(("technique", "model"), possible(False))
def test_what_is_not_possible_says_why(technique: str, model: str) -> None:
    cause = make_technique(technique).check(make(model), as_call(MODELS[model][1](2)), CPU)
    assert cause == f"0 of {len(weight_layers(make(model)))} layers would be changed: it changes {TECHNIQUES[technique].changes} only"


@pytest.mark.parametrize("technique", [t for t in TECHNIQUES if t not in ("none", "compile")])
def test_a_model_without_weights_has_nothing_to_change(technique: str) -> None:
    cause = make_technique(technique).check(nn.ReLU(), as_call(torch.ones(1, 2)), CPU)
    assert cause is not None
    assert "no layer with weights" in cause


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_option_is_documented_and_survives_a_round_trip(technique: str) -> None:
    member = TECHNIQUES[technique]
    options = describe_options(member)
    assert [o.name for o in options] == [f.name for f in dataclasses.fields(member)]
    assert all(o.text for o in options)
    assert make_technique(technique, {o.name: str(o.default) for o in options}) == make_technique(technique) == member()
    assert changed_options(member()) == {}
    assert member.__doc__


def test_causes_are_sentences() -> None:
    for technique, model in [(t, m) for t in TECHNIQUES for m in LAYERS[t]]:
        for cause in make_technique(technique).causes(make(model), 1, CPU):
            assert len(cause) > 20
            assert cause == cause.strip()


# --- what some promise besides --------------------------------------------------------------


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

    variant = make_technique(technique).apply(Nested().eval())
    out = variant(torch.ones(2, 4), mask=torch.ones(2, dtype=torch.long), scale=2.0)
    assert out["y"].dtype == out["list"][0].dtype == torch.float32
    assert out["mask"].dtype == torch.long
    assert variant.turn.item() == 1 + 1j  # complex numbers have no 16-bit kin, and are not cut to their real part
    assert weight_bytes(variant) < weight_bytes(Nested())


def test_a_cast_keeps_tied_weights_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    variant = make_technique("bf16").apply(model)
    assert variant[1].weight is variant[0].weight
    assert weight_bytes(variant) == 16 * 2


def test_a_cast_to_the_type_that_is_there_is_refused() -> None:
    cause = make_technique("bf16").check(make_mlp().bfloat16(), as_call(torch.ones(1, 16)), CPU)
    assert cause == "all weights of the model are bfloat16 already"


def test_what_is_quantized_already_is_not_changed_again() -> None:
    quantized = make_technique("int8_weight_only").apply(make("mlp"))
    call = as_call(torch.ones(1, 16))
    assert "0 of 2 layers" in (make_technique("int8_dynamic").check(quantized, call, CPU) or "")
    assert "quantized already" in (make_technique("bf16").check(quantized, call, CPU) or "")


@pytest.mark.parametrize("technique", ["int8_weight_only", "int8_dynamic"])
def test_int8_takes_a_quarter_of_the_linear_weights(technique: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(256, 256, bias=False).eval()
    size = weight_bytes(make_technique(technique).apply(nn.Sequential(model)))
    assert 256 * 256 <= size <= 256 * 256 * 1.05  # one byte each, and a scale a row


def test_int8_weights_are_rounded_to_the_nearest_of_their_rows_scale() -> None:
    # given rows of different size, when rounded with one scale a row, then no weight is off by more than half a step of its row
    torch.manual_seed(0)
    layer = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        layer.weight *= torch.logspace(-3, 3, 8)[:, None]
    original = layer.weight.detach().clone()
    rounded = make_technique("int8_weight_only").apply(nn.Sequential(layer).eval())(torch.eye(64)).t().detach()
    step = original.abs().amax(1, keepdim=True) / 127
    assert ((rounded - original).abs() <= 0.51 * step).all()


def test_group_size_leaves_out_layers_that_it_does_not_divide() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 10)).eval()
    member = make_technique("int8_weight_only", {"group_size": "64"})
    assert member.eligible(model) == ("0",)
    member.apply(model)
    assert [type(layer.weight).__name__ for layer in model] == ["Int8Tensor", "Parameter"]
    assert "0 of 2 layers" in (make_technique("int8_weight_only", {"group_size": 7}).check(make_mlp(), as_call(torch.ones(1, 16)), CPU) or "")


def test_compiling_on_top_of_int8_gives_the_same_numbers() -> None:
    x = torch.rand(4, 16)
    model = make("mlp")
    eager = make_technique("int8_dynamic").apply(copy.deepcopy(model))
    member = make_technique("int8_dynamic", {"compile": "yes"})
    assert member.compiles
    from aimass_lab.quiet import quiet

    with torch.inference_mode(), quiet():
        torch.testing.assert_close(member.apply(copy.deepcopy(model))(x), eager(x), rtol=0.02, atol=0.02)


def test_without_a_compiler_compile_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("PATH", "")
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("/nowhere/g++",)}):
        cause = make_technique("compile").check(make_mlp(), as_call(torch.ones(1, 16)), CPU)
    cpp_builder.cpp_compiler_search.cache_clear()
    assert cause is not None
    assert "install g++" in cause


# --- options --------------------------------------------------------------------------------


def test_options_are_read_by_their_type() -> None:
    assert make_technique("compile", {"mode": "max-autotune", "dynamic": "true"}) == TECHNIQUES["compile"](mode="max-autotune", dynamic=True)
    assert changed_options(make_technique("int8_weight_only", {"group_size": "32", "compile": "off"})) == {"group_size": 32}
    assert make_technique("int8_weight_only", {"group_size": "none"}) == make_technique("int8_weight_only")


@pytest.mark.parametrize(
    ("technique", "options", "text"),
    [
        ("bf16", {"mode": "x"}, "bf16 has no options"),
        ("compile", {"modus": "x"}, "options of compile: mode, dynamic"),
        ("compile", {"mode": "fast"}, "'fast', not default or reduce-overhead or max-autotune"),
        ("compile", {"dynamic": "perhaps"}, "'perhaps', not true or false"),
        ("int8_weight_only", {"group_size": "many"}, "'many', not an integer or none"),
        ("int8_weight_only", {"group_size": "2.5"}, "'2.5', not an integer or none"),
        ("int8_weight_only", {"group_size": True}, "True, not an integer or none"),
        ("int8_weight_only", {"group_size": "-8"}, "group_size -8"),
    ],
)
def test_options_that_cannot_be_used_say_what_can(technique: str, options: dict, text: str) -> None:
    with pytest.raises(InputError) as caught:
        make_technique(technique, options)
    assert text in str(caught.value)


def test_an_unknown_technique_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'int8_dynamic'.*bf16"):
        make_technique("int8_dynamc")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wishful(Technique):
        """Needs what nobody has."""

        requires = ("no-such-package-here",)

    monkeypatch.setitem(TECHNIQUES._load(), "wishful", Wishful)
    with pytest.raises(MissingPackageError, match="pip install no-such-package-here"):
        make_technique("wishful")


def test_listing_techniques_loads_no_torch_and_importing_torchao_stays_quiet() -> None:
    code = (
        "import sys, warnings; from aimass_lab.compression.base import TECHNIQUES, describe_options, make_technique;"
        "[describe_options(TECHNIQUES[n]) for n in TECHNIQUES]; assert 'torch' not in sys.modules, 'torch';"
        "from torch import nn; make_technique('int8_dynamic').apply(nn.Sequential(nn.Linear(8, 8)));"
        "assert 'torchao' in sys.modules"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "")


def test_a_technique_works_on_what_a_workload_holds() -> None:
    workload = Workload(make("attention").train(), MODELS["attention"][1](2))
    assert make_technique("int8_dynamic").check(workload.model, workload.call, workload.torch_device) is None
    assert workload.model.training
