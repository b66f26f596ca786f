"""Pruning takes away exactly what it says, and the result computes what the same model with these parts at zero computes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from models import PaddedEncoder, TinyLSTM, TinyTransformer, ids, padded_sequences
from torch import nn
from torch.nn.utils import prune

from aimass_lab.compression._importance import importance
from aimass_lab.compression._torch_attention import WrittenOutAttention
from aimass_lab.compression.base import Context, make_technique, weight_layers
from aimass_lab.errors import InputError, UnsupportedError
from aimass_lab.quiet import mute, unmute
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import Variant, apply_recipe
from aimass_lab.workload import Call, Workload

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for two threads not to wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(width)
        self.second, self.last = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.last(self.second(F.relu(self.norm(self.first(x))))))


def make_cnn(width: int = 32, groups: int = 1) -> nn.Module:
    """Residual blocks with batch norm; 1x8x8 images -> 10 scores."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = nn.Sequential(Residual(width, groups), Residual(width, groups), Residual(width, groups))
    return nn.Sequential(*stem, blocks, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


class TiedHead(nn.Module):
    """Its one linear layer has the weight of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


class ViT(nn.Module):
    """Patches, a class token and positions, torch's encoder; 1x8x8 images -> 10 scores."""

    def __init__(self, width: int = 32, depth: int = 3, norm_first: bool = True) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(1, width, 2, 2), nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder, self.head = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), nn.Linear(width, 10)
        for parameter in self.encoder.parameters():
            nn.init.normal_(parameter, std=0.3)  # copies of one layer are not all the same

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position)[:, 0])


def make_vit(**options: int) -> nn.Module:
    torch.manual_seed(0)
    return ViT(**options).eval()


def images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@functools.cache
def transformers_models() -> dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]]:
    """Small models of transformers with random weights, each with a batch of two."""
    mute()
    try:
        from transformers import (
            BertConfig,
            BertForSequenceClassification,
            GPTNeoXConfig,
            GPTNeoXForCausalLM,
            LlamaConfig,
            LlamaForCausalLM,
            ResNetConfig,
            ResNetForImageClassification,
            ViTConfig,
            ViTForImageClassification,
        )  # fmt: skip
    finally:
        unmute()
    text = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    tokens = {"input_ids": torch.randint(100, (2, 7), generator=torch.Generator().manual_seed(0)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    tokens["attention_mask"][0, 5:] = 0
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    stages = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [3, 2], "num_labels": 5}
    vit = {**text, "image_size": 32, "patch_size": 8, "num_labels": 5}
    return {
        "bert": lambda: (BertForSequenceClassification(BertConfig(**text, num_labels=5)), tokens),
        "llama": lambda: (LlamaForCausalLM(LlamaConfig(**text, num_key_value_heads=2)), {**tokens, "use_cache": False}),
        "neox": lambda: (GPTNeoXForCausalLM(GPTNeoXConfig(**text)), {**tokens, "use_cache": False}),
        "resnet": lambda: (ResNetForImageClassification(ResNetConfig(**stages, layer_type="bottleneck")), pixels),
        "vit": lambda: (ViTForImageClassification(ViTConfig(**vit)), pixels),
    }


def make(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = transformers_models()[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter *= 5  # random weights of transformers are so small that every output is nearly the same
    return model.eval(), inputs


def apply(model: nn.Module, inputs: object, recipe: str, **more: object) -> Variant:
    return apply_recipe(Workload(model, inputs, **more), read_recipe(recipe))


def outputs(model: nn.Module, inputs: object) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, torch.Tensor) else found.logits


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() >= 2}


def num_zeros(model: nn.Module) -> int:
    return sum(int((w == 0).sum()) for w in weights(model).values())


# --- zeros ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.777, 0.9])
def test_global_pruning_zeroes_what_torchs_own_does(sparsity: float) -> None:
    model = make_cnn()
    variant = apply(model, images(), f"unstructured_pruning(sparsity={sparsity})").model
    theirs = copy.deepcopy(model)
    prune.global_unstructured([(m, "weight") for m in weight_layers(theirs).values()], pruning_method=prune.L1Unstructured, amount=sparsity)
    for name, layer in weight_layers(theirs).items():
        assert torch.equal(layer.weight, variant.get_submodule(name).weight), name
    assert num_zeros(variant) == round(sparsity * sum(w.numel() for w in weights(model).values()))


def test_local_pruning_zeroes_what_torchs_own_does() -> None:
    model = make_cnn()
    variant = apply(model, images(), "unstructured_pruning(sparsity=0.7,scope=local)").model
    for name, layer in weight_layers(model).items():
        mine = copy.deepcopy(layer)
        prune.l1_unstructured(mine, "weight", 0.7)
        assert torch.equal(mine.weight, variant.get_submodule(name).weight), name


def test_equal_weights_are_zeroed_to_the_exact_share() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False)).eval()
    nn.init.ones_(model[0].weight)
    assert num_zeros(apply(model, torch.ones(2, 10), "unstructured_pruning(sparsity=0.37)").model) == 37


def test_a_tied_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).eval()
    model[1].weight = model[0].weight
    variant = apply(model, torch.ones(2, 8), "unstructured_pruning(sparsity=0.25)")
    assert num_zeros(variant.model) == 16
    assert variant.model[1].weight is variant.model[0].weight
    assert all(layer.changed for layer in variant.steps[0].layers)


@pytest.mark.parametrize("criterion", ["magnitude", "activation"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_n_of_m_keeps_the_largest_n_of_every_m_inputs(n: int, m: int, criterion: str) -> None:
    model, x = make_cnn(), images()
    scores = importance(model, Context.of(Workload(model, x)), criterion)  # type: ignore[arg-type]
    variant = apply(model, x, f"n_m_pruning(n={n},m={m},criterion={criterion})")
    for report in variant.steps[0].layers:
        weight = variant.model.get_submodule(report.name).weight.detach()
        assert report.changed == (weight.shape[1] % m == 0)
        if report.changed:
            kept = (weight != 0).movedim(1, -1).reshape(-1, m)
            score = scores[f"{report.name}.weight"].movedim(1, -1).reshape(-1, m)
            assert (kept.sum(1) == n).all()
            assert (score.where(kept, torch.inf).amin(1) >= score.where(~kept, -torch.inf).amax(1)).all()
        else:
            assert report.detail == f"inputs of an output channel, {weight.shape[1]} is not a multiple of {m}"


def test_sparse_kernels_say_what_they_lack_here() -> None:
    with pytest.raises(UnsupportedError, match="needs a GPU with sparse tensor cores, and the model is on cpu"):
        apply(make_cnn(), images(), "n_m_pruning(sparse_kernels=true)")
    with pytest.raises(InputError, match="is for n=2, m=4, not for 1 of 4"):
        make_technique("n_m_pruning", {"n": 1, "sparse_kernels": True})
    assert make_technique("n_m_pruning", {"sparse_kernels": True}).gives == "quantized"
    assert make_technique("n_m_pruning").gives is None


def test_connections_are_cut_as_whole_kernels_and_blocks() -> None:
    model = make_cnn()
    variant = apply(model, images(), "connection_pruning(ratio=0.25,block_size=4)").model
    kernels = variant[3][0].first.weight.flatten(2)
    assert ((kernels == 0).all(2) == (kernels == 0).any(2)).all()
    assert int((kernels == 0).all(2).sum()) == 32 * 32 // 4
    # the same by hand: the quarter of kernels with the smallest mean
    means = model[3][0].first.weight.abs().mean((2, 3))
    assert torch.equal((kernels == 0).all(2), means <= means.flatten().sort().values[32 * 32 // 4 - 1])
    blocks = variant[7].weight.view(8, 4, 32, 4).transpose(1, 2).flatten(2)
    assert int((blocks == 0).all(2).sum()) == int((blocks == 0).any(2).sum()) == 64


def test_linear_layers_without_whole_blocks_are_left_with_the_reason() -> None:
    layers = {layer.name: layer for layer in apply(make_cnn(), images(), "connection_pruning(block_size=4)").steps[0].layers}
    assert layers["9"].detail == "out_features 10 is not a multiple of 4"


@pytest.mark.parametrize("recipe", ["unstructured_pruning(sparsity=0.6)", "n_m_pruning", "connection_pruning"])
def test_training_after_it_keeps_the_zeros(recipe: str) -> None:
    model, context = make_cnn(), Context.of(Workload(make_cnn(), images()))
    step = read_recipe(recipe).steps[0]
    with torch.no_grad():
        make_technique(step.technique, step.options).apply(model, context)
    zeros = {name: w == 0 for name, w in weights(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(images()).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(w == 0, zeros[name]) for name, w in weights(model).items())
    (constraint,) = context.constraints
    constraint(model)
    assert all(torch.equal(w == 0, zeros[name]) for name, w in weights(model).items())
    constraint(nn.Linear(2, 2))  # what a later step replaced is that step's own
    assert "multiply zeros" in make_technique(step.technique, step.options).causes(model, 1, CPU)[0]


# --- what makes a weight important ----------------------------------------------------------


@pytest.mark.parametrize("recipe", ["connection_pruning", "n_m_pruning"])
def test_a_layer_that_has_no_score_says_why(recipe: str) -> None:
    with pytest.raises(UnsupportedError, match="no layer would be changed: head: it shares its weight with a layer before"):
        apply(TiedHead().eval(), ids(), recipe)


def test_gradient_scores_are_the_change_of_the_users_loss() -> None:
    # given a linear model and squared error, when its gradient is written down by hand, then the scores are its product with the weights
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(5, 3)).eval(), torch.randn(16, 5), torch.randn(16, 3)
    context = Context.of(Workload(model, x[:2], train=(x, y), loss=lambda out, target: F.mse_loss(out, target)))
    scores = importance(model, context, "gradient")
    by_hand = 2 / (16 * 3) * (model(x) - y).T @ x
    torch.testing.assert_close(scores["0.weight"], (model[0].weight * by_hand).abs().detach())
    assert context.notes[0].text == "gradients are of the given loss on the given labels, over 16 samples"


def test_activation_scores_are_wandas() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.randn(12, 5)
    scores = importance(model, Context.of(Workload(model, x)), "activation")
    norms = x.square().mean(0).sqrt(), model[:2](x).square().mean(0).sqrt()
    torch.testing.assert_close(scores["0.weight"], (model[0].weight.abs() * norms[0]).detach())
    torch.testing.assert_close(scores["2.weight"], (model[2].weight.abs() * norms[1]).detach())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own, of its fused path
@pytest.mark.parametrize("recipe", ["unstructured_pruning(criterion=activation)", "layer_dropping"])
def test_layers_are_seen_where_torch_would_run_fused_kernels_on_padded_items(recipe: str) -> None:
    model, inputs = PaddedEncoder().eval(), padded_sequences()
    variant = apply(model, inputs, recipe)
    assert any(layer.changed for layer in variant.steps[0].layers)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4)])
def test_activation_scores_of_convolutions_follow_their_input_channels(layer: nn.Module) -> None:
    # given an input where one channel alone is not zero, then exactly the weights that read it have a score
    x = torch.zeros(2, 4, 8, 8)
    x[:, 2] = 3
    model = nn.Sequential(layer).eval()
    score = importance(model, Context.of(Workload(model, x)), "activation")["0.weight"]
    weight = layer.weight.detach().clone().requires_grad_()
    torch.func.functional_call(layer, {"weight": weight}, (torch.randn(2, 4, 8, 8) * (x > 0),)).square().sum().backward()
    torch.testing.assert_close(score, 3 * weight.detach().abs() * (weight.grad != 0))


@pytest.mark.parametrize("criterion", ["gradient", "activation"])
def test_scoring_leaves_the_model_and_the_random_state_alone(criterion: str) -> None:
    model = make_vit().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    importance(model, Context.of(Workload(model, images())), criterion)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_scores_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(UnsupportedError, match="scores of 0.weight are not finite"):
        apply(model, torch.ones(2, 4), "unstructured_pruning")


# --- channels -------------------------------------------------------------------------------


def masked_inputs(model: nn.Module, cut: dict[str, list[int]]) -> nn.Module:
    """A copy in which the layers that read these channels multiply them with zero."""
    masked = copy.deepcopy(model)
    for name, channels in cut.items():
        with torch.no_grad():
            masked.get_submodule(name).weight[:, channels] = 0
    return masked


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "activation"])
def test_without_a_channel_is_the_same_as_with_zeros_where_it_is_read(criterion: str) -> None:
    # given a network without normalisation over channels, then taking channels out and having their readers ignore them is the same
    model, x = make_cnn(16), images()
    variant = apply(model, x, f"channel_pruning(ratio=0.25,criterion={criterion})").model
    stream = lost(model[0].weight, variant[0].weight)
    cut = {f"3.{block}.second": lost(model[3][block].first.weight, _padded(variant[3][block].first.weight, stream, 16)) for block in range(3)}
    cut |= {f"3.{block}.first": stream for block in range(3)}
    cut["7"] = [4 * channel + i for channel in stream for i in range(4)]
    cut["9"] = lost(model[7].weight, _padded(variant[7].weight, cut["7"], 64))
    assert all(len(channels) for channels in cut.values())
    torch.testing.assert_close(outputs(variant, x), outputs(masked_inputs(model, cut), x), rtol=1e-4, atol=1e-5)


def lost(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Rows of `before` that are not in `after`, whose columns are those of `before` or -0.0 where they are gone."""
    gone = (after[0] == 0).flatten(1).all(1) if after.dim() > 2 else after[0] == 0
    keep = ~gone
    return [row for row in range(len(before)) if not any(torch.equal(before[row][keep], other[keep]) for other in after)]


def _padded(weight: torch.Tensor, gone: list[int], width: int) -> torch.Tensor:
    """`weight` with columns of zeros where columns were taken out."""
    full = torch.zeros(len(weight), width, *weight.shape[2:])
    full[:, [i for i in range(width) if i not in gone]] = weight.detach()
    return full


@pytest.mark.parametrize("recipe", ["channel_pruning", "channel_pruning(scope=global)", "channel_pruning(ratio=0.3,round_to=8)"])
@pytest.mark.parametrize("groups", [1, 4, 32])
def test_channels_shrink_residual_grouped_and_depthwise_convolutions(recipe: str, groups: int) -> None:
    model, x = make_cnn(32, groups), images()
    variant = apply(model, x, recipe).model
    width = variant[0].out_channels
    assert 0 < width < 32
    for block in variant[3]:
        first = block.first
        assert (first.in_channels, block.second.out_channels, block.norm.num_features) == (width, width, first.out_channels)
        assert first.weight.shape == (first.out_channels, first.in_channels // first.groups, 3, 3)
        assert first.groups == (first.out_channels if groups == 32 else groups)
    if "round_to" in recipe:
        assert all(size % 8 == 0 for size in (width, variant[3][0].first.out_channels, variant[7].out_features))
    if recipe == "channel_pruning":
        assert width == 16
        assert sum(p.numel() for p in variant.parameters()) < 0.35 * sum(p.numel() for p in model.parameters())
    assert outputs(variant, x).shape == (6, 10)


def test_the_least_important_channels_go() -> None:
    # given channels whose weights differ by orders of magnitude everywhere, then the small ones are taken out
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    size = torch.tensor([1.0, 1e-3, 1.0, 1e-3, 1.0, 1e-3, 1.0, 1e-3])
    model[0].weight.data, model[2].weight.data = torch.ones(8, 6) * size[:, None], torch.ones(4, 8) * size
    variant = apply(model, torch.rand(4, 6), "channel_pruning").model
    assert torch.equal(variant[0].weight, torch.ones(4, 6))
    assert torch.equal(variant[2].weight, torch.ones(4, 4))


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_vit_of_torchs_own_layers_is_narrowed_with_its_positions(norm_first: bool) -> None:
    variant = apply(make_vit(norm_first=norm_first), images(), "channel_pruning")
    model = variant.model
    assert (model.position.shape, model.token.shape) == ((1, 17, 16), (1, 1, 16))
    assert {m.embed_dim for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {16}
    assert {m.head_dim for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {4}
    assert all(layer.changed for layer in variant.steps[0].layers)


def test_widths_that_are_outputs_stay_and_say_so() -> None:
    variant = apply(TinyTransformer(), ids(), "channel_pruning")
    layers = {layer.name: layer for layer in variant.steps[0].layers}
    assert layers["embed"].detail == "its channels are an output of the model, whose shape stays"
    assert layers["blocks.0.widen"].detail == "64 instead of 128 outputs"


def test_fused_attention_of_ones_own_is_narrowed_with_the_model() -> None:
    # its forward takes the width of a head to be the width of the model over the number of heads
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = TinyTransformer(), nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).mean(1))

    model = apply(Classifier().eval(), ids(), "channel_pruning(ratio=0.4)").model
    block = model.body.blocks[0]
    assert block.qkv.out_features == 3 * block.qkv.in_features == 3 * block.project.in_features == 3 * 20


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.middle, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.embed(x)).relu() + self.embed(x))

    model = apply(Tied().eval(), ids(), "channel_pruning").model
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.shape == (20, 8)


def test_frozen_weights_stay_frozen() -> None:
    model = make_cnn()
    model[0].weight.requires_grad_(False)
    variant = apply(model, images(), "channel_pruning").model
    assert [name for name, p in variant.named_parameters() if not p.requires_grad] == ["0.weight"]


def test_what_cannot_be_narrowed_says_why() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = TinyLSTM(), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    with pytest.raises(UnsupportedError, match="channel_pruning is not possible here: its channels are an output of the model"):
        apply(Recurrent().eval(), torch.rand(2, 5, 8), "channel_pruning")
    with pytest.raises(UnsupportedError, match="ratio 0.99 of the 32 channels of .* leaves none"):
        apply(make_cnn(), images(), "channel_pruning(ratio=0.99)")
    for recipe in ("channel_pruning(ratio=1)", "unstructured_pruning(sparsity=0)", "head_pruning(ratio=-1)", "layer_dropping(ratio=2)"):
        with pytest.raises(InputError, match="is not above 0 and below 1"):
            read_recipe(recipe)


# --- heads ----------------------------------------------------------------------------------


def zero_heads(model: nn.Module, output: str, heads: list[int], head_dim: int) -> None:
    """Have the layer that mixes the heads see zeros for these, by a hook: independent of any weight."""

    def mask(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = args[0].unflatten(-1, (-1, head_dim)).clone()
        x[..., heads, :] = 0
        return (x.flatten(-2),)

    model.get_submodule(output).register_forward_pre_hook(mask)


HEADS = {
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.attention.self.query", 8),
    "vit": ("vit.layers.{}.attention.o_proj", "vit.layers.{}.attention.q_proj", 8),
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.self_attn.q_proj", 8),
    "neox": ("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.attention.query_key_value", 24),
}
"""Model -> the layers that mix heads, those that make queries, and how many rows of these belong to a head."""


@pytest.mark.parametrize(
    ("name", "criterion"),
    [("bert", "magnitude"), ("bert", "gradient"), ("bert", "activation"), ("vit", "activation"), ("llama", "gradient"), ("neox", "magnitude")],
)
def test_without_heads_is_the_same_as_with_their_outputs_at_zero(name: str, criterion: str) -> None:
    model, inputs = make(name)
    output, queries, rows = HEADS[name]
    variant = apply(model, inputs, f"head_pruning(criterion={criterion})")
    masked = copy.deepcopy(model)
    for layer in range(4):
        before, after = model.get_submodule(queries.format(layer)).weight, variant.model.get_submodule(queries.format(layer)).weight
        kept = [i for i, part in enumerate(before.split(rows)) if any(torch.equal(part, other) for other in after.split(rows))]
        assert len(kept) == 2
        zero_heads(masked, output.format(layer), [i for i in range(4) if i not in kept], 8)
    expected = outputs(masked, inputs)
    torch.testing.assert_close(outputs(variant.model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert (expected - outputs(model, inputs)).abs().max() > 1e-2  # heads matter here at all
    if name == "llama":  # two heads share keys and values, and go together
        assert variant.model.model.layers[0].self_attn.k_proj.out_features == 8


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_attention_loses_heads(norm_first: bool) -> None:
    model, x = make_vit(norm_first=norm_first), images()
    variant = apply(model, x, "head_pruning(ratio=0.25)")
    masked = copy.deepcopy(model)
    for layer, changed in zip(masked.encoder.layers, variant.model.encoder.layers, strict=True):
        assert isinstance(changed.self_attn, WrittenOutAttention)
        assert (changed.self_attn.num_heads, changed.self_attn.out_proj.in_features) == (3, 24)
        columns = changed.self_attn.out_proj.weight.split(8, 1)
        gone = [i for i, part in enumerate(layer.self_attn.out_proj.weight.split(8, 1)) if not any(torch.equal(part, c) for c in columns)]
        with torch.no_grad():
            layer.self_attn.out_proj.weight.view(32, 4, 8)[:, gone] = 0
    torch.testing.assert_close(outputs(variant.model, x), outputs(masked, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "boolean", "added", "padding"])
@pytest.mark.parametrize("crossing", [False, True])
def test_attention_written_out_is_torchs(batch_first: bool, mask: str | None, crossing: bool) -> None:
    torch.manual_seed(0)
    source = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    x = torch.randn(5, 5, 16)
    other = torch.randn(5, 5, 16) if crossing else x
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.arange(5).expand(5, 5) >= torch.tensor([[5], [4], [3], [2], [1]])
    given = {"boolean": {"attn_mask": causal}, "added": {"attn_mask": torch.zeros(5, 5).masked_fill(causal, -1e9)}, "padding": {"key_padding_mask": padding}}
    for need_weights in (True, False):
        arguments = {**given.get(mask or "", {}), "need_weights": need_weights}
        expected = source(x, other, other, **arguments)
        got = WrittenOutAttention(source)(x, other, other, **arguments)
        torch.testing.assert_close(got[0], expected[0])
        assert (got[1] is None) == (expected[1] is None)
        if expected[1] is not None:
            torch.testing.assert_close(got[1], expected[1])


def test_attention_that_cannot_lose_heads_says_why() -> None:
    with pytest.raises(UnsupportedError, match="head_pruning is not possible here: the model would not run: .*shape"):
        apply(TinyTransformer().eval(), ids(), "head_pruning")
    with pytest.raises(UnsupportedError, match="0 of 9 layers would be changed"):
        apply(make_cnn(), images(), "head_pruning")

    class Lonely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    with pytest.raises(UnsupportedError, match="it adds keys of its own"):
        apply(Lonely().eval(), torch.rand(2, 3, 8), "head_pruning")


# --- depth ----------------------------------------------------------------------------------


def test_the_blocks_that_do_least_are_left_out() -> None:
    # given a block that gives what it takes, then that one goes, and nothing changes
    model = make_cnn()
    nn.init.zeros_(model[3][1].last.weight)
    nn.init.zeros_(model[3][1].last.bias)
    variant = apply(model, images(), "layer_dropping(count=1)")
    assert [layer.name for layer in variant.steps[0].layers if layer.changed] == ["3.1.first", "3.1.second"]
    torch.testing.assert_close(outputs(variant.model, images()), outputs(model, images()))
    assert variant.steps[0].notes[-1].text == "1 of 3 blocks are left out: 3.1"


@pytest.mark.parametrize(("criterion", "kept"), [("last", [0]), ("first", [2]), ("alternate", [0, 2])])
def test_blocks_are_left_out_by_position(criterion: str, kept: list[int]) -> None:
    model, x = make_vit(), images()
    variant = apply(model, x, f"layer_dropping(count={3 - len(kept)},criterion={criterion})").model
    expected = copy.deepcopy(model)
    expected.encoder.layers = nn.ModuleList(model.encoder.layers[i] for i in kept)
    assert torch.equal(outputs(variant, x), outputs(expected, x))
    assert variant.encoder.num_layers == len(kept)


def test_depth_is_written_into_the_configuration() -> None:
    model, inputs = make("bert")
    assert apply(model, inputs, "layer_dropping(count=3)").model.config.num_hidden_layers == 1
    model, inputs = make("llama")
    variant = apply(model, {name: value for name, value in inputs.items() if name != "use_cache"}, "layer_dropping(count=1,criterion=first)").model
    assert (model.config.num_hidden_layers, variant.config.num_hidden_layers) == (4, 3)
    assert [layer.self_attn.layer_idx for layer in variant.model.layers] == [0, 1, 2]
    model, inputs = make("resnet")
    variant = apply(model, inputs, "layer_dropping(count=3)").model  # in either stage the first block changes the width
    assert (model.config.depths, variant.config.depths) == ([3, 2], [1, 1])
    assert [len(stage.layers) for stage in variant.resnet.encoder.stages] == [1, 1]


def test_depth_that_cannot_shrink_says_why() -> None:
    with pytest.raises(UnsupportedError, match="3 of 3 blocks would leave a list of blocks empty"):
        apply(make_cnn(), images(), "layer_dropping(count=3)")
    with pytest.raises(UnsupportedError, match="ratio 0.1 of 3 blocks is none"):
        apply(make_cnn(), images(), "layer_dropping(ratio=0.1)")
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))).eval()
    with pytest.raises(UnsupportedError, match="no way round its weights"):
        apply(plain, torch.rand(2, 4), "layer_dropping")


class Mixture(nn.Module):
    """Branches in a list, side by side: none of them is a step of a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x * (i + 1)) for i, branch in enumerate(self.branches))  # type: ignore[return-value]


def test_branches_are_not_blocks() -> None:
    with pytest.raises(UnsupportedError, match="it is no step of a chain"):
        apply(Mixture().eval(), torch.rand(2, 3, 8), "layer_dropping")


# --- all of them ----------------------------------------------------------------------------

SHRINKING = [
    *(("channel_pruning(ratio=0.4)", model) for model in ("cnn", "digits vit", "bert", "resnet", "vit")),
    *(("head_pruning", model) for model in ("digits vit", "bert")),
    *(("layer_dropping", model) for model in ("cnn", "bert", "resnet")),
    ("layer_dropping(ratio=0.3) + channel_pruning(ratio=0.25) + head_pruning(ratio=0.25)", "bert"),
    ("head_pruning(ratio=0.25) + channel_pruning(ratio=0.25)", "digits vit"),
]


@pytest.mark.parametrize(("recipe", "name"), SHRINKING)
def test_the_smaller_model_is_copied_exported_and_run_at_two_batch_sizes(recipe: str, name: str) -> None:
    model, inputs = {"cnn": (make_cnn(), {"input": images(2)}), "digits vit": (make_vit(), {"images": images(2)})}.get(name) or make(name)
    variant = apply(model, inputs, recipe).model
    assert sum(p.numel() for p in variant.parameters()) < sum(p.numel() for p in model.parameters())
    expected = outputs(variant, inputs)
    assert expected.shape == outputs(model, inputs).shape
    one = Call(kwargs=inputs).with_batch(1)
    torch.testing.assert_close(outputs(copy.deepcopy(variant), dict(one.kwargs)), expected[:1], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        exported = torch.export.export(variant, (), kwargs=inputs, strict=False).module()
    torch.testing.assert_close(outputs(exported, inputs), expected, rtol=1e-4, atol=1e-4)


def test_half_the_channels_of_a_trained_network_are_enough_after_some_training() -> None:
    # given a network trained on real digits, when half its channels go and it is trained again, then it is within a point of what it was
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    learnt, held_out = order[:1197], order[1197:]

    def train(model: nn.Module, num_epochs: int) -> float:
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_epochs * 19)
        model.train()
        for _ in range(num_epochs):
            for part in learnt[torch.randperm(1197)].split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
                schedule.step()
        return accuracy(model.eval())

    def accuracy(model: nn.Module) -> float:
        return float((outputs(model, x[held_out]).argmax(1) == y[held_out]).float().mean())

    model = make_cnn(24)
    original = train(model, 5)
    variant = apply(model, x[held_out][:4], "channel_pruning", train=(x[learnt], y[learnt]), loss=F.cross_entropy).model
    assert sum(p.numel() for p in variant.parameters()) < 0.3 * sum(p.numel() for p in model.parameters())
    assert original > 0.97
    assert train(variant, 4) > original - 0.01


class Transposed(nn.Module):
    """A linear layer of a kind of its own, whose weight lies the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, over rows."""
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class TransposedAttention(nn.Module):
    """Attention from one such layer, whose keys and values go behind those of a cache that is still empty."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mixed, self.out = nn.Linear(8, 8), Transposed(8, 24), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two heads of four."""
        q, k, v = (part.view(*x.shape[:2], 2, 4).transpose(1, 2) for part in self.mixed(self.enter(x)).split(8, dim=2))
        k, v = (torch.cat([torch.tensor([]), part], dim=-2) for part in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 8))


def test_a_layer_whose_channels_are_not_known_is_named() -> None:
    with pytest.raises(UnsupportedError, match="'mixed' is a Transposed, and how its weight stands to its channels is not known\nhelp: .*kinds: 1;"):
        apply_recipe(Workload(TransposedAttention(), torch.randn(3, 5, 8)), read_recipe("channel_pruning(ratio=0.25)"))
