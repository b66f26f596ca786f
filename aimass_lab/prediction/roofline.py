"""Seconds of one operator on a device: a smooth roofline that knows of tiles, waves, split sums, caches and launch floors.

A matrix product is cut into tiles, and the tiles run in waves over the device's multiprocessors; the last wave is rarely full.
The library picks the tile and, for few rows, splits the inner sum: the formula takes every choice and joins the seconds by a
soft minimum. Between arithmetic, memory and cache the times are joined by a p-norm, because they overlap but never perfectly.
All of it is arithmetic on numpy arrays, one entry an operator; the constants are fitted by ``tests/benchmarks/demand/vidur.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Rows and columns of a product that one block of threads computes, as the vendor's libraries have them."""
SPLITS = (1, 2, 4, 8)
"""Blocks that share one inner sum when there are too few tiles to fill the device."""
CACHE_BYTES_PER_CYCLE = 64
"""What one multiprocessor draws from the second-level cache in one clock cycle (NVIDIA A100 whitepaper: 5120 B a clock over 80 slices)."""


@dataclass(frozen=True)
class Rates:
    """What a device could reach: single numbers, or arrays with one entry an operator."""

    flops_per_s: Array | float
    """Dense peak in the operator's precision."""
    bytes_per_s: Array | float
    num_multiprocessors: Array | float
    clock_hz: Array | float
    cache_bytes: Array | float
    """Second-level cache."""


@dataclass(frozen=True)
class MatrixConstants:
    """What matrix products reach of a device's rates; also of convolutions, seen as products."""

    compute: float
    """Share of the arithmetic peak that an endlessly large tile reaches."""
    half_tile: float
    """Tile size ``rows * columns / (rows + columns)`` at which half of that is reached."""
    memory: float
    """Share of the memory rate."""
    smooth: float
    """Exponent of the norm that joins arithmetic, memory and cache; larger is closer to the maximum."""
    tile_s: float
    """Fixed seconds of one tile: first loads and last stores, which nothing hides."""
    floor_s: float
    """Seconds that an empty kernel takes."""
    cache: float
    """Share of `CACHE_BYTES_PER_CYCLE`."""
    split: float
    """Share of the partial sums of a split that reaches memory."""
    choice: float
    """Exponent of the soft minimum over tiles; larger is a library that always picks the best."""
    spread: float
    """Blocks per multiprocessor at and above which the whole memory rate is drawn, inverted."""


@dataclass(frozen=True)
class LightConstants:
    """What operators that move more than they compute reach of a device's rates."""

    memory: float
    """Share of the memory rate."""
    elements_per_cycle: float
    """Elements that one multiprocessor handles in one clock cycle."""
    cache: float
    """Share of `CACHE_BYTES_PER_CYCLE` where the data lie in the cache."""
    smooth: float
    """Exponent of the norm that joins the three."""
    floor_s: float
    """Seconds that an empty kernel takes."""
    window: float
    """Bytes moved at which half of the data come from memory, as a multiple of the cache."""


@dataclass(frozen=True)
class AttentionConstants:
    """What a fused attention kernel reaches of a device's rates."""

    compute: float
    """Share of the arithmetic peak."""
    memory: float
    """Share of the memory rate."""
    smooth: float
    """Exponent of the norm that joins the two."""
    floor_s: float
    """Seconds that an empty kernel takes."""
    spread: float
    """Blocks of 128 queries per multiprocessor at and above which the whole rates are reached, inverted."""


def matrix_seconds(c: MatrixConstants, rates: Rates, batch: Array, m: Array, n: Array, k: Array, bytes_moved: Array) -> Array:
    """Seconds of `batch` products of ``m x k`` by ``k x n`` matrices that move `bytes_moved` bytes at least."""
    per_multiprocessor = rates.flops_per_s / rates.num_multiprocessors
    cache_rate = c.cache * CACHE_BYTES_PER_CYCLE * rates.num_multiprocessors * rates.clock_hz
    width = bytes_moved / np.maximum(1.0, batch * (m * k + n * k + m * n))
    candidates = []
    for rows, columns in TILES:
        size = rows * columns / (rows + columns)
        share = c.compute * size / (size + c.half_tile)
        tiles = batch * np.ceil(m / rows) * np.ceil(n / columns)
        for split in SPLITS:
            blocks = tiles * split
            waves = np.ceil(blocks / rates.num_multiprocessors)
            compute = waves * (2 * rows * columns * k / split / (per_multiprocessor * share) + c.tile_s)
            cache = blocks * (rows + columns) * (k / split) * width / cache_rate
            partial = (split > 1) * c.split * split * batch * m * n * 8  # written and read once more, in 32 bits
            memory = (bytes_moved + partial) / (c.memory * rates.bytes_per_s) / np.minimum(1.0, c.spread * blocks / rates.num_multiprocessors)
            candidates.append(_norm(c.smooth, compute, memory, cache))
    seconds = np.stack(candidates)
    best = seconds.min(axis=0)
    soft = np.mean((seconds / best) ** -c.choice, axis=0) ** (-1 / c.choice)
    return best * soft + c.floor_s


def light_seconds(c: LightConstants, rates: Rates, num_elements: Array, bytes_moved: Array) -> Array:
    """Seconds of operators that touch `num_elements` elements and move `bytes_moved` bytes.

    What fits into the second-level cache was left there by the operator before, so it is read at the cache's rate.
    """
    cycles = rates.num_multiprocessors * rates.clock_hz
    cached = 1 / (1 + (bytes_moved / (c.window * rates.cache_bytes)) ** 4)
    memory = bytes_moved * (1 - cached) / (c.memory * rates.bytes_per_s)
    cache = bytes_moved * cached / (c.cache * CACHE_BYTES_PER_CYCLE * cycles)
    return _norm(c.smooth, memory, cache, num_elements / (c.elements_per_cycle * cycles)) + c.floor_s


def attention_seconds(c: AttentionConstants, rates: Rates, flops: Array, blocks: Array, bytes_moved: Array) -> Array:
    """Seconds of fused attention of `flops` FLOP in `blocks` blocks of 128 queries of one head."""
    filled = np.minimum(1.0, c.spread * blocks / rates.num_multiprocessors)
    compute, memory = flops / (c.compute * rates.flops_per_s), bytes_moved / (c.memory * rates.bytes_per_s)
    return _norm(c.smooth, compute, memory) / filled + c.floor_s


def _norm(exponent: float, *seconds: Array) -> Array:
    # Divided by the largest first: powers of microseconds leave the range of numbers.
    largest = np.maximum.reduce([np.maximum(s, 1e-12) for s in seconds])
    total = sum((s / largest) ** exponent for s in seconds)
    return np.asarray(largest * total ** (1 / exponent), dtype=np.float64)
