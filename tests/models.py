"""Tiny models with one trait each, shared by the tests."""

import torch
import torch.nn.functional as F
from torch import nn


class TinyMLP(nn.Module):
    """8 features -> 3 scores."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 3)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


class TinyCNN(nn.Module):
    """1x8x8 images -> 10 scores, with batch norm and dropout, which a training mode would show."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, images):
        return self.head(self.dropout(self.features(images).flatten(1)))


class Block(nn.Module):
    """Attention through `F.scaled_dot_product_attention`, then a feed-forward layer."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(batch, length, width)
        x = x + self.project(attended)
        return x + self.narrow(F.gelu(self.widen(x)))


class TinyTransformer(nn.Module):
    """Token ids -> one vector per token."""

    def __init__(self, width=32, heads=4, layers=2, vocabulary=50):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x


class DictModel(nn.Module):
    """Keyword inputs, dict output, as HF models have them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1)
        return {"logits": self.head(x.mean(1)), "hidden": x}


class TiedModel(nn.Module):
    """One weight under two names, and one module that is called three times, within itself once."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.step = Recursive()
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.step(self.step(self.embed(ids)), depth=1))


class Recursive(nn.Module):
    """Calls itself `depth` times."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, depth=0):
        x = self.linear(x)
        return self(x, depth=depth - 1) if depth else x


class RaisingModel(TinyMLP):
    """Raises on every call."""

    def forward(self, x):
        raise ValueError("this model never works")


class NaNModel(TinyMLP):
    """Gives one NaN per item."""

    def forward(self, x):
        scores = super().forward(x)
        return torch.cat([scores[:, :2], scores[:, 2:] * float("nan")], dim=1)


class MutatingModel(TinyMLP):
    """Leaves traces in itself with every call: in buffers, attributes, a list, gradients and the random state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.total = torch.zeros(3)
        self.calls = 0
        self.history = []

    def forward(self, x):
        scores = super().forward(x)
        self.seen += 1
        self.total += scores.detach().sum(0)
        self.calls += 1
        self.history.append(self.calls)
        self.cache = scores
        return scores + torch.rand(3) * 0


class BranchingModel(TinyMLP):
    """Its control flow depends on values, so that shapes alone do not say what it does."""

    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


class TinyLSTM(nn.Module):
    """Sequences of 8 features -> the last state."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class PaddedEncoder(nn.Module):
    """torch's own encoder with a padding mask, which it runs through fused kernels on nested tensors in evaluation."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, x, padded):
        return self.encoder(x, src_key_padding_mask=padded)


def padded_sequences(batch=3, length=6):
    """Vectors of which the second item has two places less than the others, and the mask that says so."""
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[1, -2:] = True
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(7)), mask


def ids(batch=2, length=12, vocabulary=20):
    """Token ids that every vocabulary above holds."""
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def features(batch=2, width=8):
    """Normal features."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(2))


RUNNABLE = {
    "mlp": (TinyMLP, lambda: features()),
    "cnn": (TinyCNN, lambda: torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))),
    "transformer": (TinyTransformer, ids),
    "dict": (DictModel, lambda: {"input_ids": ids(), "attention_mask": torch.ones(2, 12)}),
    "tied": (TiedModel, ids),
    "nan": (NaNModel, lambda: features()),
    "mutating": (MutatingModel, lambda: features()),
    "branching": (BranchingModel, lambda: features()),
    "lstm": (TinyLSTM, lambda: torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(4))),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), lambda: torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(6))),
}
"""Name -> (make the model, make its inputs), for every model here whose forward returns."""


def snapshot(model):
    """Everything about a model and the random generators that a measurement must leave alone."""
    import random

    import numpy as np

    return {
        "tensors": {k: v.clone() for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "attributes": [
            {
                k: v.clone() if isinstance(v, torch.Tensor) else list(v) if isinstance(v, list) else v
                for k, v in vars(m).items()
                if k not in ("_parameters", "_buffers", "_modules")
            }
            for m in model.modules()
        ],
        "ids": [id(p) for p in [*model.parameters(), *model.buffers()]],
        "modes": [m.training for m in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "devices": [p.device for p in model.parameters()],
        "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
        "global_hooks": (dict(torch.nn.modules.module._global_forward_hooks), dict(torch.nn.modules.module._global_forward_pre_hooks)),
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2], torch.get_rng_state()),
        "grad_mode": torch.is_grad_enabled(),
        "fast_path": torch.backends.mha.get_fastpath_enabled(),
    }


def assert_same(a, b, path=""):
    """Compare two snapshots, tensors bit by bit (a NaN is itself)."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8)), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a is b or a == b, path
