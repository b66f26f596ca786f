"""Low rank: against singular values by hand, principal components of scikit-learn, a brute-force search, and real digits."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from aimass_lab.compression._activations import second_moments
from aimass_lab.compression._factors import LowRankConv2d, LowRankLinear, find_directions, make_pair, side_of
from aimass_lab.compression._ranks import Spectrum, ranks_by_energy, ranks_by_error, ranks_uniform
from aimass_lab.compression.base import Context, linear_layers, make_technique
from aimass_lab.errors import InputError, UnsupportedError
from aimass_lab.recipe import read_recipe
from aimass_lab.storage import stored_bytes
from aimass_lab.trial.variant import apply_recipe
from aimass_lab.workload import Workload


def seeded(make, seed: int = 0):
    torch.manual_seed(seed)
    return make().eval()


def context_of(model: nn.Module, x, **kwargs) -> Context:
    return Context.of(Workload(model, x, **kwargs))


def applied(model: nn.Module, x, **options):
    context = context_of(model, x)
    with torch.no_grad():
        return make_technique("low_rank", options).apply(copy.deepcopy(model), context), context


def correlated(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Rows that vary much in a few directions, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    return torch.randn(rows, width, generator=generator) @ mix.T + torch.randn(width, generator=generator)


# --- one layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("rank", [1, 5, 24])
def test_without_samples_the_error_is_that_of_the_singular_values_left_out(shape, rank):
    layer = seeded(lambda: nn.Linear(shape[1], shape[0]).requires_grad_(False))
    directions = find_directions(layer, None)
    pair = make_pair(layer, directions, rank)
    dropped = torch.linalg.svdvals(layer.weight.double())[rank:]
    assert float((pair.weight - layer.weight).detach().double().norm()) == pytest.approx(float(dropped.norm()), abs=2e-5)
    assert sum(directions.energies[rank:]) == pytest.approx(float(dropped.square().sum()), abs=1e-9)
    x = torch.randn(3, 7, shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pair(x), F.linear(x, pair.weight, layer.bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_with_samples_no_product_of_that_rank_loses_less_of_the_output(shape, bias, monkeypatch):
    monkeypatch.setattr("aimass_lab.compression._factors.DAMPING", 1e-10)
    # the closed form by another way: the best rank-r approximation of the outputs themselves, by SVD of the matrix of all outputs
    layer = seeded(lambda: nn.Linear(shape[1], shape[0], bias=bias)).double()
    x = correlated(500, shape[1]).double()
    context = context_of(layer, x)
    moments = second_moments(layer, context, {"": side_of(layer)}, num_samples=500)[""]
    assert moments.num_rows == 500
    with torch.no_grad():
        outputs = x @ layer.weight.T
        centred = outputs - outputs.mean(0) if bias else outputs
        for rank in (1, 4, 9):
            pair, plain = make_pair(layer, find_directions(layer, moments), rank), make_pair(layer, find_directions(layer, None), rank)
            error = float((pair(x) - layer(x)).square().sum())
            least = float(torch.linalg.svdvals(centred)[rank:].square().sum())
            assert error == pytest.approx(least, rel=1e-5)  # the basis is in double precision here
            assert error < 0.95 * float((plain(x) - layer(x)).square().sum())


def test_the_outputs_are_projected_on_their_principal_components():
    layer = seeded(lambda: nn.Linear(64, 10))
    x = correlated(800, 64)
    moments = second_moments(layer, context_of(layer, x), {"": "output"}, num_samples=800)[""]
    pair = make_pair(layer, find_directions(layer, moments), 4)
    with torch.no_grad():
        outputs = layer(x).numpy()
        pca = PCA(4).fit(outputs)
        expected = pca.inverse_transform(pca.transform(outputs))
        assert np.linalg.norm(pair(x).numpy() - expected) < 0.02 * np.linalg.norm(outputs - outputs.mean(0))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1}, {"stride": 2, "padding": (0, 2)}, {"padding": "same", "dilation": 2}, {"padding": 2, "padding_mode": "circular"}, {"kernel_size": 1},
        {"kernel_size": (1, 3), "bias": False},
    ],
)  # fmt: skip
def test_a_convolution_becomes_its_kernel_into_fewer_channels_and_one_pixel_back(options):
    options = {"kernel_size": 3} | options
    layer = seeded(lambda: nn.Conv2d(6, 20, **options).requires_grad_(False))
    directions = find_directions(layer, None)
    full = make_pair(layer, directions, len(directions.energies))
    x = torch.randn(2, 6, 9, 10, generator=torch.Generator().manual_seed(1))
    assert isinstance(full, LowRankConv2d)
    torch.testing.assert_close(full(x), layer(x), rtol=1e-4, atol=1e-5)
    pair = make_pair(layer, directions, 4)
    dropped = torch.linalg.svdvals(layer.weight.flatten(1).double())[4:]
    assert float((pair.weight - layer.weight).detach().double().norm()) == pytest.approx(float(dropped.norm()), rel=1e-4)
    assert [tuple(p.shape) for p in (pair.down.weight, pair.up.weight)] == [(4, 6, *layer.kernel_size), (20, 4, 1, 1)]


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"padding": "same", "dilation": 2}, {"padding": 1, "padding_mode": "reflect"}])
def test_moments_of_a_convolution_are_those_of_the_patches_it_reads(options):
    layer = seeded(lambda: nn.Conv2d(3, 5, 3, **options))
    x = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(1)) + 0.5
    inputs = second_moments(layer, context_of(layer, x), {"": "input"})[""]
    outputs = second_moments(layer, context_of(layer, x), {"": "output"})[""]
    # what follows for the outputs from the inputs, and what the layer really gives
    weight = layer.weight.detach().flatten(1).double()
    with torch.no_grad():
        rows = (layer(x) - layer.bias[:, None, None]).movedim(1, -1).reshape(-1, 5).double()
    assert inputs.num_rows == outputs.num_rows == len(rows)
    torch.testing.assert_close(weight @ inputs.second @ weight.T, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.second, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.covariance, torch.from_numpy(np.cov(rows.numpy().T, bias=True)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight @ inputs.mean, rows.mean(0), rtol=1e-4, atol=1e-5)


def test_a_product_shows_the_shape_of_the_layer_to_those_who_read_it():
    linear = make_pair(nn.Linear(20, 30), find_directions(nn.Linear(20, 30), None), 3)
    assert isinstance(linear, LowRankLinear)
    assert (linear.in_features, linear.out_features, tuple(linear.weight.shape), linear.weight.dtype) == (20, 30, (30, 20), torch.float32)
    assert linear.bias is linear.up.bias
    frozen = nn.Linear(20, 30, bias=False).bfloat16().requires_grad_(False)
    pair = make_pair(frozen, find_directions(frozen, None), 3)
    assert pair.bias is None
    assert {(p.dtype, p.requires_grad) for p in pair.parameters()} == {(torch.bfloat16, False)}


def test_of_a_wide_picture_only_some_pixels_are_taken():
    layer = seeded(lambda: nn.Conv2d(1, 2, 3))
    moments = second_moments(layer, context_of(layer, torch.randn(4, 1, 130, 130)), {"": "input"})[""]
    assert moments.num_rows < 4 * 128 * 128
    assert torch.diagonal(moments.second).mean() == pytest.approx(1, abs=0.1)


# --- ranks ------------------------------------------------------------------------------------


def test_energy_gives_the_smallest_rank_that_keeps_it():
    spectra = {"a": Spectrum(10_000, 200, (50.0, 30.0, 15.0, 4.0, 1.0)), "flat": Spectrum(100, 20, (1.0,) * 10)}
    assert ranks_by_energy(spectra, 0.8) == {"a": 2, "flat": None}  # 8 of 10 would be needed, and 4 is the most that saves
    assert ranks_by_energy(spectra, 0.96)["a"] == 4
    assert ranks_by_energy({"a": Spectrum(10_000, 200, spectra["a"].energies, round_to=4)}, 0.5) == {"a": 4}


def test_uniform_gives_each_layer_the_same_share():
    spectra = {"a": Spectrum(64 * 64, 128, (1.0,) * 64), "b": Spectrum(64 * 256, 320, (1.0,) * 64)}
    assert ranks_uniform(spectra, 0.5) == {"a": 16, "b": 25}
    assert ranks_uniform({"b": Spectrum(64 * 256, 320, (1.0,) * 64, round_to=8)}, 0.5) == {"b": 24}
    assert ranks_uniform({"thin": Spectrum(40, 14, (1.0,) * 4)}, 0.2) == {"thin": None}


def test_a_budget_is_spread_as_well_as_by_trying_every_combination():
    generator = np.random.default_rng(0)
    for _ in range(20):
        spectra = {}
        for name in "abc":
            outputs, inputs = generator.integers(6, 12, 2)
            energies = tuple(sorted(generator.exponential(1, min(outputs, inputs)) ** 3, reverse=True))
            spectra[name] = Spectrum(int(outputs * inputs), int(outputs + inputs), energies)
        worth = dict(zip("abc", generator.exponential(1, 3), strict=True))

        def cost(name: str, rank: int | None, spectra=spectra) -> int:
            return spectra[name].num_weights if rank is None else rank * spectra[name].per_rank

        def loss(ranks: dict, spectra=spectra, worth=worth) -> float:
            return sum(worth[n] * spectra[n].tails[r] for n, r in ranks.items() if r is not None)

        total = sum(s.num_weights for s in spectra.values())
        chosen = ranks_by_error(spectra, 0.6, worth)
        assert chosen is not None
        used = sum(cost(n, r) for n, r in chosen.items())
        assert used <= 0.6 * total
        every = [dict(zip("abc", combination, strict=True)) for combination in itertools.product(*([*s.ranks, None] for s in spectra.values()))]
        # greedy on the hulls is the best there is for what it uses
        best = min(loss(ranks) for ranks in every if sum(cost(n, r) for n, r in ranks.items()) <= 0.6 * total)
        largest_step = max(s.per_rank for s in spectra.values())
        within = min(loss(ranks) for ranks in every if sum(cost(n, r) for n, r in ranks.items()) <= used - largest_step)
        assert best <= loss(chosen) <= within + 1e-9 or math.isclose(loss(chosen), best)


# --- whole models -----------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 10))


@pytest.mark.parametrize("ranks", ["uniform", "energy", "sensitivity"])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_the_share_of_parameters_is_kept_to(ranks, ratio):
    model, x = seeded(mlp), correlated(200, 48)
    variant, context = applied(model, x, ratio=ratio, ranks=ranks, min_share=0)
    kept = sum(p.numel() for p in variant.parameters() if p.dim() == 2)
    whole = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert ratio * 0.85 * whole <= kept <= ratio * whole
    assert set(context.changed) | set(context.left) == {"0", "2", "4"}
    for batch_size in (1, 3):
        assert variant(x[:batch_size]).shape == (batch_size, 10)


def test_layers_are_told_with_rank_share_and_loss():
    model, x = seeded(mlp), correlated(200, 48)
    _, context = applied(model, x, ranks="uniform")
    assert context.changed["0"].startswith("rank 16 of 48, 50 % of the parameters, ")
    assert "of its output over 200 rows lost" in context.changed["0"]
    _, context = applied(model, x, ranks="uniform", min_share=0.2)
    assert context.left["4"] == "its 640 weights are few beside the 4,608 of a middling layer (min_share 0.2)"


def test_too_few_samples_fall_back_to_the_weights_and_say_so():
    model = seeded(mlp)
    variant, context = applied(model, torch.randn(4, 48), ranks="uniform", min_share=0)
    plain, _ = applied(model, torch.randn(4, 48), ranks="uniform", min_share=0, activation_aware=False)
    assert next(note.text for note in context.notes if note.code == "low-rank:plain").startswith("3 of 3 layers are factored by their weights alone")
    assert all(torch.equal(a, b) for a, b in zip(variant.parameters(), plain.parameters(), strict=True))
    assert "of its weight lost" in context.changed["0"]


def test_inputs_that_are_not_finite_do_not_spoil_the_weights():
    x = torch.randn(100, 48)
    x[3, 5] = float("nan")
    variant, context = applied(seeded(mlp), x)
    assert all(p.isfinite().all() for p in variant.parameters())
    assert any(note.code == "low-rank:plain" for note in context.notes)


class Odd(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Zoo(nn.Module):
    """Layers that must be left, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(32, 32)
        self.embed = nn.Embedding(30, 32)
        self.tied = nn.Linear(32, 30, bias=False)
        self.tied.weight = self.embed.weight
        self.odd = Odd(32, 32)
        self.hooked = nn.Linear(32, 32)
        self.hooked.register_forward_hook(lambda module, args, output: output + 1)
        self.broken = nn.Linear(32, 32)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.narrow = nn.Linear(32, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.good(self.embed(ids))
        x = self.attention(x, x, x)[0]
        x = self.normed(self.hooked(self.odd(x))) + self.narrow(x)
        x = self.grouped(x.unflatten(1, (8, -1)).flatten(2)[..., None]).flatten(2).view_as(x)
        return self.tied(x)


def test_every_layer_that_is_left_has_its_reason():
    model = seeded(Zoo)
    with torch.no_grad():
        model.broken.weight[0, 0] = float("inf")
    ids = torch.randint(30, (16, 8), generator=torch.Generator().manual_seed(0))
    variant, context = applied(model, ids, min_share=0)
    assert list(context.changed) == ["good"]
    reasons = {
        "tied": "shares a weight with 'embed'", "odd": "a Odd computes in a way of its own", "hooked": "hooks", "broken": "not finite", "grouped": "4 groups",
        "attention.out_proj": "fused kernel", "narrow": "even rank 1", "attention": "a MultiheadAttention", "embed": "a Embedding",
    }  # fmt: skip
    for name, reason in reasons.items():
        assert reason in context.left[name], name
    assert variant.tied.weight is variant.embed.weight
    with torch.no_grad():
        assert (variant(ids) - model(ids)).norm() / model(ids).norm() < 0.5


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, of its fused path
def test_torchs_transformer_runs_the_products_and_not_a_fused_kernel():
    def make() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), 2)

    model, x = seeded(make), correlated(40 * 8, 16).view(40, 8, 16)
    mask = torch.arange(8) >= torch.randint(3, 9, (40, 1), generator=torch.Generator().manual_seed(0))
    inputs = {"src": x, "src_key_padding_mask": mask}
    variant, context = applied(model, inputs, ratio=0.6)
    assert torch.backends.mha.get_fastpath_enabled()
    assert {"layers.0.linear1", "layers.1.linear2"} & set(context.changed)
    calls = []
    name = next(iter(context.changed))
    variant.get_submodule(name).register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        expected, got = model(**inputs), variant(**inputs)
    assert calls
    assert ((got - expected)[~mask].norm() / expected[~mask].norm()) < 0.3
    assert not any("fused" in reason for name, reason in context.left.items() if "linear" in name)


def test_a_module_that_stands_in_two_places_is_replaced_in_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(32, 32)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    variant, _ = applied(seeded(Twice), correlated(100, 32))
    assert isinstance(variant.a, LowRankLinear)
    assert variant.a is variant.b


def test_a_lone_layer_and_a_second_time():
    layer, x = seeded(lambda: nn.Linear(64, 64)), correlated(200, 64)
    once, _ = applied(layer, x)
    assert isinstance(once, LowRankLinear)
    twice, _ = applied(once, x)
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())
    assert set(linear_layers(once)) == {"down", "up"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 0.5, "energy": 0.9}, "both a ratio and an energy"),
        ({"ratio": 1.0}, "ratio 1.0 of low_rank is not above 0 and below 1"),
        ({"energy": 0.0}, "energy 0.0 of low_rank is not above 0 and below 1"),
        ({"energy": 0.5, "ranks": "uniform"}, "goes with a ratio"),
        ({"round_to": 0}, "round_to 0"),
        ({"num_samples": 0}, "num_samples 0"),
        ({"min_share": 1.0}, "min_share 1.0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        make_technique("low_rank", options)


def test_what_would_change_nothing_is_refused():
    with pytest.raises(UnsupportedError, match="leave every layer as it is: no rank up to"):
        applied(seeded(mlp), torch.randn(200, 48), energy=0.9999)
    with pytest.raises(UnsupportedError, match=r"the smallest ranks keep .* more than the ratio 0.01"):
        applied(seeded(mlp), torch.randn(200, 48), ratio=0.01)
    with pytest.raises(UnsupportedError, match="keeps .* of its parameters"):
        applied(seeded(mlp), torch.randn(200, 48), ratio=0.01, ranks="uniform")


# --- real data --------------------------------------------------------------------------------


class TokenViT(nn.Module):
    """Digits as 16 patches, two blocks of attention."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.place).mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.norms[1](x))))


def make_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[:1197], y[:1197]), (x[1197:], y[1197:])


def trained(make, data, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = make(), data
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * 19)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64)[:19]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module", params=["cnn", "vit"])
def real(request, digits):
    train, held_out = digits
    model = trained(make_cnn, train, 8) if request.param == "cnn" else trained(TokenViT, train, 16)
    return Workload(model, held_out[0][:8], train=train, name=request.param), held_out


def accuracy(model: nn.Module, data) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def relative_error(workload: Workload, variant: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        expected = workload.model(x)
        return float((variant(x) - expected).norm() / expected.norm())


def test_half_the_parameters_keep_the_accuracy_without_any_training(real):
    workload, held_out = real
    before = {k: v.clone() for k, v in workload.model.state_dict().items()}
    variant = apply_recipe(workload, read_recipe("low_rank"))
    assert accuracy(workload.model, held_out) > 0.94
    assert accuracy(variant.model, held_out) >= accuracy(workload.model, held_out) - 0.011
    assert stored_bytes(variant.model) < 0.56 * stored_bytes(workload.model)
    assert all(torch.equal(before[k], v) for k, v in workload.model.state_dict().items())
    report = variant.steps[0]
    assert all(len(layer.detail) > 10 for layer in report.layers)
    assert report.num_changed_layers.value == sum(layer.changed for layer in report.layers) > 0


def test_samples_tell_more_than_weights_and_the_model_more_than_the_layer(real):
    workload, held_out = real

    def error(text: str) -> float:
        return relative_error(workload, apply_recipe(workload, read_recipe(text)).model, held_out[0])

    aware, plain = error("low_rank(ratio=0.4)"), error("low_rank(ratio=0.4,activation_aware=false)")
    assert aware < 0.7 * plain
    assert error("low_rank(ratio=0.4,ranks=sensitivity)") < 1.1 * aware


def test_energy_close_to_one_is_close_to_the_original(real):
    workload, held_out = real
    errors = [relative_error(workload, apply_recipe(workload, read_recipe(f"low_rank(energy={e})")).model, held_out[0]) for e in (0.8, 0.9, 0.98)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.25


def test_the_same_seed_gives_the_same_bits_and_recovery_trains_the_factors(real):
    workload, held_out = real
    one, other = (apply_recipe(workload, read_recipe("low_rank(ratio=0.35)")).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    recovered = apply_recipe(workload, read_recipe("low_rank(ratio=0.35) + recover(epochs=3)")).model
    assert [p.shape for p in recovered.parameters()] == [p.shape for p in one.parameters()]
    assert accuracy(recovered, held_out) >= accuracy(workload.model, held_out) - 0.011


def test_transformers_modules_take_products():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=100, attn_implementation="sdpa"
    )
    model = seeded(lambda: transformers.BertModel(config))
    ids = torch.randint(100, (24, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    variant = apply_recipe(Workload(model, inputs), read_recipe("low_rank(ratio=0.7)"))
    assert variant.steps[0].num_changed_layers.value >= 6
    for batch_size in (1, 5):
        with torch.no_grad():
            expected = model(**{k: v[:batch_size] for k, v in inputs.items()}).last_hidden_state
            got = variant.model(**{k: v[:batch_size] for k, v in inputs.items()}).last_hidden_state
        assert float((got - expected).norm() / expected.norm()) < 0.5
