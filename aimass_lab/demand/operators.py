"""Times small operators of every family on the attached device: what the coefficients of arithmetic and traffic are fitted to."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..timing import timed
from ..tracing.rows import Row
from ..tracing.trace import trace_call
from ..workload import Call

ROUNDS, ROUND_S = 4, 0.004
"""Each configuration is timed in several rounds with the others in between, so that no short disturbance meets all of one."""

REPEAT_S = 2e-4
"""Operators are repeated until a sample takes this long: clocks are no finer."""

TRANSCENDENTAL = frozenset({
    "gelu", "silu", "tanh", "sigmoid", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "sin", "cos", "tan", "erf", "erfc", "softplus",
    "mish", "elu", "celu", "selu", "hardswish", "log_sigmoid", "logit",
})  # fmt: skip
"""Element-wise operators that compute for longer than their values take to move."""

FAR = ", beyond cache"
"""Ending of a family's name for operators that move more bytes than the nearest large cache holds."""

SPLIT_BY_CACHE = ("elementwise",)


@dataclass(frozen=True)
class Sample:
    """One operator configuration: what it asks for, and how long it took."""

    family: str
    flops: float
    bytes_moved: float
    launches: int
    seconds: float


@dataclass(frozen=True)
class _Configuration:
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    num_weights: int = 0
    """Of the last tensors: a model comes back to them after all its others, so they are not in cache."""


class _Rotation:
    """Calls a function with another copy of its weights each time."""

    def __init__(self, function: Callable[..., Any], sets: Sequence[tuple[torch.Tensor, ...]]) -> None:
        self.function, self.sets, self.turn = function, sets, 0

    def __call__(self) -> Any:
        self.turn = (self.turn + 1) % len(self.sets)
        return self.function(*self.sets[self.turn])


@functools.cache
def cache_bytes(device: torch.device) -> int:
    """Level-2 cache: of one core of a processor, of a whole GPU; 1 MiB where it is unknown."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 2**20
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "level").read_text().strip() == "2":
                return int((index / "size").read_text().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return 2**20


def family_of_row(row: Row, cache: int) -> str:
    """Which operators share coefficients with this one; finer than the families of FLOP formulas.

    Args:
        row: The operator.
        cache: As `cache_bytes` gives it.
    """
    short = row.op.rpartition("::")[2]
    if row.family == "gemm" or row.family == "recurrent":
        family = "matrix-vector" if row.family == "gemm" and len(row.shape) > 1 and row.shape[-2] == 1 else "gemm"
    elif row.family == "conv":
        family = _kind_of_convolution(row)
    elif row.family == "norm":
        family = "softmax" if "softmax" in short else "norm"
    elif row.family == "attention":
        family = "attention"
    else:
        family = "transcendental" if row.family == "fft" or short.rstrip("_") in TRANSCENDENTAL else "elementwise"
    return family + FAR if family in SPLIT_BY_CACHE and row.bytes_read + row.bytes_written > cache else family


def _kind_of_convolution(row: Row) -> str:
    """Pointwise, depthwise or any other, as far as its FLOPs and bytes tell."""
    outputs = math.prod(row.shape)
    if not outputs or len(row.shape) < 3:
        return "conv"
    per_output = row.flops / 2 / outputs  # multiply-adds: input channels of a group times kernel size
    element = row.bytes_written / outputs
    inputs = row.bytes_read / element - row.shape[1] * per_output  # what it reads less its weights
    if round(per_output) in (3, 5, 7, 9, 25, 27, 49) and inputs >= 0.99 * outputs:
        return "depthwise conv"
    return "pointwise conv" if per_output * outputs / row.shape[1] <= 1.01 * inputs else "conv"


def measure_operators(device: torch.device, dtype: torch.dtype, *, progress: Callable[[float, str], None] | None = None) -> list[Sample]:
    """Time about ninety operator configurations, one after another in random order: some three seconds.

    On a processor one torch thread is used and its own CPU time counts, so that other processes disturb little;
    the seconds are core-seconds. On a GPU they are the device's. The user's random state is left alone.

    Args:
        device: The attached device.
        dtype: What the operators compute in.
        progress: Called now and then with the share that is done and what comes next.
    """
    known = list(_configurations(16 if device.type == "cuda" else 1))
    cache, generator = cache_bytes(device), torch.Generator().manual_seed(0)
    seconds: list[list[float]] = [[] for _ in known]
    order = list(range(len(known)))
    random.Random(0).shuffle(order)
    made = [tuple(torch.rand(shape, generator=generator).to(device, dtype) for shape in c.shapes) for c in known]
    with one_thread(device), torch.inference_mode():
        for round_number in range(ROUNDS):
            for done, i in enumerate(order):
                seconds[i] += _samples(_rotation(known[i], made[i], cache), device)
                if progress and done % 10 == 0:
                    progress((round_number + done / len(order)) / ROUNDS, "timing operators")
    return [sample for i, c in enumerate(known) for sample in _sample(c, made[i], cache, statistics.median(seconds[i]))]


def _rotation(configuration: _Configuration, tensors: tuple[torch.Tensor, ...], cache: int) -> _Rotation:
    """As many copies of the weights as it takes to push the first out of cache before its turn comes again."""
    split = len(tensors) - configuration.num_weights
    size = sum(t.numel() * t.element_size() for t in tensors[split:])
    copies = min(64, 1 + 2 * cache // size) if size else 1
    return _Rotation(configuration.function, [(*tensors[:split], *(t.clone() for t in tensors[split:])) for _ in range(copies)])


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a processor, let torch compute in the calling thread alone, so that this thread's CPU time is all there is."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _samples(function: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of one call, as often as fits into a round."""
    deadline = time.perf_counter() + ROUND_S
    function()
    once = seconds_of(function, device, 1)
    repeats = max(1, min(200, int(REPEAT_S / max(once, 1e-6))))
    made: list[float] = []
    while not made or time.perf_counter() < deadline:
        made.append(seconds_of(function, device, repeats))
    return made


def seconds_of(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of one of `repeats` calls: CPU seconds of this thread, or the GPU's."""
    if device.type == "cuda":
        return timed(lambda: [function() for _ in range(repeats)], device) / repeats
    start = time.thread_time()
    for _ in range(repeats):
        function()
    return (time.thread_time() - start) / repeats


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def _sample(configuration: _Configuration, tensors: Sequence[torch.Tensor], cache: int, seconds: float) -> Iterator[Sample]:
    rows = trace_call(_Call(configuration.function), Call(tuple(t.to("meta") for t in tensors))).rows
    largest = max(rows, key=lambda row: (row.flops, row.bytes_read + row.bytes_written))
    yield Sample(
        family=family_of_row(largest, cache),
        flops=sum(row.flops for row in rows),
        bytes_moved=sum(row.bytes_read + row.bytes_written for row in rows),
        launches=len(rows),
        seconds=seconds,
    )


def _configurations(scale: int) -> Iterator[_Configuration]:
    """Shapes as models have them; `scale` multiplies rows and images, for devices that need more work to be busy."""
    for m, k, n in _GEMM:
        yield _Configuration(F.linear, ((m * scale, k), (n, k)), 1)
    for k, n in _MATRIX_VECTOR:
        yield _Configuration(F.linear, ((1, k), (n, k)), 1)
    for c, o, size, kernel, groups in _CONV:
        convolve = functools.partial(F.conv2d, padding=kernel // 2, groups=groups)
        yield _Configuration(convolve, ((scale, c, size, size), (o, c // groups, kernel, kernel)), 1)
    for b, h, keys, queries, d in _ATTENTION:
        yield _Configuration(F.scaled_dot_product_attention, ((b * scale, h, queries, d), (b * scale, h, keys, d), (b * scale, h, keys, d)))
    for exponent in _ELEMENTS:
        vector = (2**exponent * scale,)
        yield from (_Configuration(torch.add, (vector, vector)), _Configuration(F.relu, (vector,)))
    for exponent in _ELEMENTS[1::2]:
        yield from (_Configuration(function, ((2**exponent * scale,),)) for function in (F.gelu, F.silu, torch.tanh))
    for height, width in _ROWS:
        yield _Configuration(functools.partial(F.softmax, dim=-1), ((height * scale, width),))
        yield _Configuration(_layer_norm, ((height * scale, width), (width,), (width,)), 2)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


# rows, inputs, outputs
_GEMM = (
    (2, 256, 256), (4, 256, 512), (8, 256, 512), (16, 384, 384), (32, 256, 512), (64, 256, 256), (128, 384, 384), (8, 768, 768), (16, 512, 2048),
    (32, 768, 768), (32, 1024, 2048), (64, 768, 768), (128, 768, 768), (128, 512, 2048), (256, 768, 768), (256, 512, 1024),
)  # fmt: skip
# inputs, outputs; from 512 KiB to 16 MiB of weights
_MATRIX_VECTOR = ((128, 128), (256, 256), (256, 512), (512, 512), (512, 768), (768, 1024), (1024, 1024), (768, 3072), (1024, 2048), (2048, 2048), (1024, 4096))
# channels in and out, height and width, kernel, groups: general ones, pointwise ones, depthwise ones
_CONV = (
    (3, 32, 64, 3, 1), (16, 32, 56, 3, 1), (32, 32, 28, 3, 1), (64, 64, 28, 3, 1), (128, 128, 14, 3, 1), (256, 256, 7, 3, 1), (128, 128, 14, 3, 4),
    (64, 64, 14, 3, 1), (3, 64, 64, 7, 1), (32, 64, 28, 3, 1), (128, 64, 14, 5, 1),
    (64, 128, 28, 1, 1), (256, 256, 14, 1, 1), (256, 64, 28, 1, 1), (64, 64, 56, 1, 1), (128, 512, 14, 1, 1), (512, 128, 14, 1, 1), (32, 96, 28, 1, 1),
    (32, 32, 56, 3, 32), (128, 128, 28, 3, 128), (64, 64, 56, 3, 64), (256, 256, 14, 3, 256), (512, 512, 14, 3, 512), (96, 96, 28, 5, 96),
    (384, 384, 14, 5, 384), (512, 512, 7, 3, 512),
)  # fmt: skip
# batch, heads, keys, queries, width of a head
_ATTENTION = (
    (1, 12, 128, 128, 64), (1, 4, 64, 64, 64), (2, 8, 256, 256, 64), (1, 4, 384, 384, 64), (4, 4, 128, 128, 32), (8, 12, 64, 64, 64), (4, 12, 512, 1, 64),
    (8, 8, 256, 1, 64), (1, 8, 512, 1, 128), (1, 8, 384, 384, 32), (1, 12, 197, 197, 64),
)  # fmt: skip
# powers of two
_ELEMENTS = (10, 13, 15, 16, 17, 18, 19, 20, 21)
# rows, width
_ROWS = ((1, 768), (32, 128), (128, 768), (512, 128), (512, 256), (256, 512), (64, 1000), (768, 256), (256, 1024), (1024, 512))
