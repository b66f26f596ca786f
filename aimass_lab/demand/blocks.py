"""Times small networks of several layers: what passes between operators, and how far their coefficients carry beyond single ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..tracing.rows import Row
from ..tracing.trace import trace_call
from ..workload import Call
from .operators import one_thread, seconds_of

LAYERS, CALLS = 4, 5


@dataclass(frozen=True)
class Block:
    """One small network: what it asks for, and how long it took."""

    name: str
    rows: tuple[Row, ...]
    seconds: float
    tiny: bool
    """Next to nothing to compute: its time is that of getting from one operator to the next."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.first(x)).split(width, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.second(x))))


class _Residual(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.second = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm_2(self.second(F.relu(self.norm_1(self.first(x))))))


def _networks(scale: int) -> Iterator[tuple[str, bool, Callable[[], nn.Module], tuple[int, ...]]]:
    """Name, tiny, how to make one layer, and the input's shape."""
    yield "attention of 8", True, lambda: _Attention(8, 2), (1, 4, 8)
    yield "convolution of 8", True, lambda: _Residual(8, 1), (1, 8, 4, 4)
    yield "attention of 128", False, lambda: _Attention(128, 4), (2 * scale, 32, 128)
    yield "attention of 256", False, lambda: _Attention(256, 4), (2 * scale, 64, 256)
    yield "attention of 512", False, lambda: _Attention(512, 8), (1 * scale, 96, 512)
    yield "convolution of 64", False, lambda: _Residual(64, 1), (1 * scale, 64, 28, 28)
    yield "convolution of 256", False, lambda: _Residual(256, 1), (1 * scale, 256, 7, 7)
    yield "depthwise of 128", False, lambda: _Residual(128, 128), (2 * scale, 128, 28, 28)
    yield "perceptron of 768", False, lambda: nn.Sequential(nn.Linear(768, 768), nn.ReLU()), (16 * scale, 768)
    yield "perceptron of one row", False, lambda: nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()), (1, 1024)


def measure_blocks(device: torch.device, dtype: torch.dtype) -> list[Block]:
    """Time ten networks of four layers each, the median of several calls: a quarter of a second.

    Args:
        device: The attached device.
        dtype: What they compute in.
    """
    made = []
    with one_thread(device), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for name, tiny, layer, shape in _networks(16 if device.type == "cuda" else 1):
            model = nn.Sequential(*(layer() for _ in range(LAYERS))).to(device, dtype).eval()
            x = torch.ones(shape, device=device, dtype=dtype)

            def call(model: Any = model, x: torch.Tensor = x) -> Any:
                return model(x)

            call()
            seconds = statistics.median(seconds_of(call, device, 5 if tiny else 1) for _ in range(CALLS))
            made.append(Block(name, trace_call(model, Call((torch.empty(shape, device="meta", dtype=dtype),))).rows, seconds, tiny))
    return made
