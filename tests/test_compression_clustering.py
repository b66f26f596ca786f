"""Clustering: against scikit-learn's k-means, by what is on disk, under training, and on real digits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import nn

from aimass_lab.compression._kmeans import MOST_FITTED, assign, cluster
from aimass_lab.compression.base import Context, make_technique
from aimass_lab.errors import InputError
from aimass_lab.recipe import read_recipe
from aimass_lab.storage import load_weights, save_weights, stored_bytes
from aimass_lab.trial.variant import apply_recipe
from aimass_lab.workload import Workload

VALUES = {
    "normal": torch.randn(6000, generator=torch.Generator().manual_seed(0)),
    "heavy tails": torch.from_numpy(np.random.default_rng(0).standard_t(3, 6000)).float(),
    "two scales": torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(1)), 20 * torch.randn(200, generator=torch.Generator().manual_seed(2))]),
}


def inertia(values: torch.Tensor, centres: torch.Tensor) -> float:
    return float((values.double()[:, None] - centres).square().amin(1).sum())


def applied(model: nn.Module, x: torch.Tensor, **options):
    context = Context.of(Workload(model, x))
    with torch.no_grad():
        return make_technique("clustering", options).apply(copy.deepcopy(model), context), context


# --- k-means on a line ------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("num_clusters", [2, 16, 64])
def test_no_worse_than_scikit_learns_k_means(name, num_clusters):
    values = VALUES[name]
    reference = KMeans(num_clusters, n_init=4, random_state=0).fit(values.double().numpy()[:, None]).inertia_
    found = cluster(values, num_clusters)
    assert len(found.centres) == num_clusters
    assert found.inertia == pytest.approx(inertia(values, found.centres), rel=1e-4)
    assert found.inertia < 1.01 * reference


@pytest.mark.parametrize("init", ["linear", "density", "k-means++"])
def test_every_start_ends_where_each_centre_is_the_mean_of_its_numbers(init):
    values = VALUES["normal"]
    centres = cluster(values, 8, init=init).centres
    members = assign(values, centres)
    assert torch.equal(members.long(), (values.double()[:, None] - centres).abs().argmin(1))
    means = torch.stack([values[members == i].double().mean() for i in range(8)])
    torch.testing.assert_close(means, centres, rtol=0, atol=0.02)
    assert inertia(values, centres) < 1.05 * cluster(values, 8).inertia


def test_few_different_numbers_are_their_own_centres():
    values = torch.tensor([3.0, -1.0, 3.0, 0.5])
    assert cluster(values, 16).centres.tolist() == [-1.0, 0.5, 3.0]
    assert cluster(values, 3).inertia == 0
    assert cluster(torch.zeros(5), 4, zero=True).centres.tolist() == [0.0]


def test_a_centre_at_zero_stays_there():
    values = VALUES["normal"].clamp_min(0.3) * (torch.arange(6000) % 3 > 0)
    centres = cluster(values, 5, zero=True).centres
    assert (centres == 0).sum() == 1
    assert set(assign(values, centres)[values == 0].tolist()) == {centres.tolist().index(0.0)}


def test_millions_of_numbers_are_fitted_by_a_share_of_them():
    values = torch.randn(3 * MOST_FITTED, generator=torch.Generator().manual_seed(0))
    centres = cluster(values, 16).centres
    # the distortion of the best 16 levels for a normal distribution: Max, "Quantizing for minimum distortion", 1960, table I
    assert inertia(values[:100_000], centres) / 100_000 == pytest.approx(0.009497, rel=0.03)


# --- layers -----------------------------------------------------------------------------------


def test_sixteen_values_take_four_bits_each_on_disk():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    variant, context = applied(model, torch.randn(2, 256))
    for layer in (variant[0], variant[2]):
        assert len(layer.weight.unique()) == 16
    assert stored_bytes(variant) == pytest.approx(stored_bytes(model) / 8, rel=0.05)
    assert context.changed["0"].startswith("16 values, 4 bits each; 0.")
    assert stored_bytes(applied(model, torch.randn(2, 256), num_clusters=4)[0]) == pytest.approx(stored_bytes(model) / 16, rel=0.1)


def test_rounding_goes_to_the_nearest_value_and_biases_stay():
    model = nn.Linear(64, 64)
    variant, _ = applied(model, torch.randn(2, 64), num_clusters=8)
    codes = variant.weight.unique()
    nearest = (model.weight.detach()[..., None] - codes).abs().amin(-1)
    torch.testing.assert_close((variant.weight - model.weight).detach().abs(), nearest)
    assert torch.equal(variant.bias, model.bias)


def test_pruned_weights_stay_zero_and_only_where_asked():
    model = nn.Linear(64, 64)
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) > 0.6
    with torch.no_grad():
        model.weight.mul_(mask)
    variant, context = applied(model, torch.randn(2, 64))
    assert (variant.weight[~mask] == 0).all()
    assert "one of them zero" in context.changed[""]
    loose, _ = applied(model, torch.randn(2, 64), keep_zeros=False, num_clusters=2)
    assert not (loose.weight == 0).any()


def test_small_broken_and_done_weights_are_left_with_a_reason():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4), nn.Linear(4, 100), nn.Embedding(40, 32))
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    member = make_technique("clustering")
    assert member.eligible(model) == ("0", "3")
    assert member.why_left("1", model[1]) == "128 weights, fewer than 256 (min_size): a codebook would save nothing"
    assert member.why_left("2", model[2]) == "not all of its values are finite"


def test_a_second_time_changes_nothing():
    once, _ = applied(nn.Linear(64, 64), torch.randn(2, 64))
    twice, _ = applied(once, torch.randn(2, 64))
    assert torch.equal(once.weight, twice.weight)


def test_tied_and_recurrent_weights_and_attention_are_shared_too():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64, bias=False)
            self.head.weight = self.embed.weight
            self.lstm, self.attention = nn.LSTM(16, 16, batch_first=True), nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.lstm(self.embed(ids))[0]
            return self.head(self.attention(x, x, x)[0])

    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(12).view(2, 6)
    variant, context = applied(model, ids)
    assert variant.head.weight is variant.embed.weight
    assert context.changed["embed"] == context.changed["head"]
    for weight in (variant.embed.weight, variant.lstm.weight_ih_l0, variant.attention.in_proj_weight, variant.attention.out_proj.weight):
        assert len(weight.unique()) <= 16
    assert variant(ids).shape == (2, 6, 64)


def test_training_moves_the_shared_values_and_keeps_them_shared():
    # by hand: a step of SGD on one value that many weights share moves it by the mean of their gradients (times the rate)
    torch.manual_seed(0)
    model, x = nn.Linear(32, 32), torch.randn(16, 32)
    variant, context = applied(model, x, num_clusters=4)
    before, codes = variant.weight.detach().clone(), variant.weight.unique()
    optimizer = torch.optim.SGD(variant.parameters(), 0.1)
    (variant(x) - model(x).detach()).square().mean().backward()
    gradient = variant.weight.grad.clone()
    optimizer.step()
    assert len(variant.weight.unique()) > 4
    for constraint in context.constraints:
        constraint(variant)
    expected = before.clone()
    for code in codes:
        expected[before == code] = code - 0.1 * gradient[before == code].mean()
    torch.testing.assert_close(variant.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert len(variant.weight.unique()) == 4


def test_training_after_pruning_and_clustering_keeps_both():
    model = nn.Linear(64, 64)
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    with torch.no_grad():
        model.weight.mul_(mask)
    variant, context = applied(model, torch.randn(2, 64))
    with torch.no_grad():
        variant.weight.add_(torch.randn(64, 64) * 0.01)
    context.constraints[0](variant)
    assert (variant.weight[~mask] == 0).all()
    assert len(variant.weight.unique()) <= 16
    # a layer that a later step has replaced is passed over
    context.constraints[0](nn.Linear(3, 3))


def test_in_16_bits_the_values_are_those_of_16_bits():
    model = nn.Linear(64, 64).bfloat16()
    variant, _ = applied(model, torch.randn(2, 64, dtype=torch.bfloat16))
    assert variant.weight.dtype is torch.bfloat16
    assert len(variant.weight.unique()) <= 16


@pytest.mark.parametrize(
    ("options", "text"), [({"num_clusters": 1}, "num_clusters 1 of clustering is not from 2"), ({"num_clusters": 257}, "257"), ({"min_size": 0}, "min_size 0")]
)
def test_options_that_cannot_be_used_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        make_technique("clustering", options)


# --- real data --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workload():
    data = load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(6):
        for rows in torch.randperm(1197).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return Workload(model.eval(), x[:8], train=(x[:1197], y[:1197])), (x[1197:], y[1197:])


def accuracy(model: nn.Module, data) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def test_sixteen_values_keep_the_accuracy_and_the_file_comes_back(workload, tmp_path):
    given, held_out = workload
    variant, fresh = (apply_recipe(given, read_recipe("clustering")).model for _ in range(2))
    assert accuracy(given.model, held_out) > 0.95
    assert accuracy(variant, held_out) >= accuracy(given.model, held_out) - 0.01
    size = save_weights(variant, tmp_path / "w")
    assert size == stored_bytes(variant) < 0.17 * stored_bytes(given.model)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    load_weights(fresh, tmp_path / "w")
    with torch.no_grad():
        assert torch.equal(fresh(held_out[0]), variant(held_out[0]))


def test_training_the_values_wins_back_what_three_of_them_lose(workload):
    given, held_out = workload
    rough = apply_recipe(given, read_recipe("clustering(num_clusters=3)")).model
    trained = apply_recipe(given, read_recipe("clustering(num_clusters=3) + recover(epochs=3)")).model
    assert all(len(p.unique()) <= 3 for p in trained.parameters() if p.dim() >= 2 and p.numel() >= 256)
    assert accuracy(trained, held_out) > accuracy(rough, held_out)
    assert stored_bytes(trained) == pytest.approx(stored_bytes(rough), abs=64)


def test_the_same_seed_gives_the_same_bits_and_the_layers_are_told(workload):
    given, _ = workload
    one, other = (apply_recipe(given, read_recipe("clustering(num_clusters=32)", seed=3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True))
    details = {layer.name: layer.detail for layer in one.steps[0].layers}
    assert details["0"] == "144 weights, fewer than 256 (min_size): a codebook would save nothing"
    assert details["4"].startswith("32 values, 5 bits each; ")
    assert not math.isnan(float(details["4"].split("; ")[1].split()[0]))


def test_pruned_then_clustered_is_smaller_than_either(workload):
    given, held_out = workload
    sizes = {text: stored_bytes(apply_recipe(given, read_recipe(text)).model) for text in ("unstructured_pruning(sparsity=0.5)", "clustering")}
    both = apply_recipe(given, read_recipe("unstructured_pruning(sparsity=0.5) + clustering")).model
    assert stored_bytes(both) < min(sizes.values())
    assert accuracy(both, held_out) > 0.9
