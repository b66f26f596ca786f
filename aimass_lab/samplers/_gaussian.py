"""A Gaussian process over the points of a finite space: what is expected at each from what was found at some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._optuna import is_numeric

Array = np.ndarray

NUM_DRAWS = 80
"""Settings of the kernel that are drawn by lot and weighed by how likely they make what was found."""
NUM_STEPS = 56
"""Of them, changes of the best one so far."""
WIDE = 4.0
"""Positive numbers whose largest is at least so many times their smallest are compared by their ratio."""


@dataclass(frozen=True)
class Columns:
    """Points as numbers: one row a point, one column a feature; words are places in a list."""

    values: Array
    is_word: Array

    def levels(self) -> Array:
        """The same with numbers as low, middle or high: what has to be seen of each column to know it roughly."""
        return np.where(self.is_word, self.values, np.round(2 * self.values))

    def distances(self, rows: Sequence[int], others: Sequence[int] | slice = slice(None)) -> Array:
        """How far apart in each column, from 0 to 1; of shape (columns, rows, others)."""
        left, right = self.values[rows].T[:, :, None], self.values[others].T[:, None, :]
        return np.where(self.is_word[:, None, None], left != right, np.abs(left - right)).astype(float)


def to_columns(features: Sequence[Mapping[str, Any]]) -> Columns:
    """Read features as columns; a number that a point lacks lies in the middle, where it is as far from one as from another."""
    names = list(dict.fromkeys(name for point in features for name in point))
    columns, is_word = [], []
    for name in names:
        found = [point.get(name) for point in features]
        numbers = [value for value in found if value is not None]
        numeric = is_numeric(numbers)
        if len({repr(value) for value in found}) < 2:
            continue  # it tells no point from another
        columns.append(_scaled(found, numbers) if numeric else _places(found))
        is_word.append(not numeric)
    if not columns:
        return Columns(np.zeros((len(features), 1)), np.array([True]))
    return Columns(np.array(columns, dtype=float).T, np.array(is_word))


def _places(found: Sequence[Any]) -> list[int]:
    known: dict[str, int] = {}
    return [known.setdefault(repr(value), len(known)) for value in found]


def _scaled(found: Sequence[Any], numbers: Sequence[float]) -> list[float]:
    low, high = min(numbers), max(numbers)
    wide = low > 0 and high >= WIDE * low
    ends = np.log([low, high]) if wide else np.array([low, high], dtype=float)
    span = float(ends[1] - ends[0]) or 1.0
    return [0.5 if value is None else float((np.log(value) if wide else value) - ends[0]) / span for value in found]


@dataclass(frozen=True)
class _Kernel:
    """Likeness of points: a sum over single columns, and a product over all of them."""

    decay: Array
    """Of each column: how fast likeness falls with distance there."""
    single: float
    """Share of what columns explain one by one."""
    noise: float
    """Variance of what no column explains, in units of the whole."""

    def likeness(self, distances: Array) -> Array:
        """Likeness of points that are `distances` apart, of shape (columns, any, any)."""
        flat = distances.reshape(len(distances), -1)
        apart = (self.decay @ flat).reshape(distances.shape[1:])
        one_by_one = ((1 - np.exp(-self.decay)) / len(distances)) @ flat
        return self.single * (1 - one_by_one.reshape(apart.shape)) + (1 - self.single) * np.exp(-apart)


def _draw(rng: np.random.Generator, num_columns: int, near: _Kernel | None) -> _Kernel:
    if near is None:
        return _Kernel(np.exp(rng.normal(-0.5, 1.5, num_columns)), float(rng.uniform(0.05, 0.95)), float(np.exp(rng.uniform(-9.0, -2.0))))
    step = rng.normal(0.0, 0.7, num_columns) * (rng.random(num_columns) < 0.4)
    single = float(np.clip(near.single + rng.normal(0.0, 0.15), 0.02, 0.98))
    return _Kernel(np.exp(np.clip(np.log(near.decay) + step, -6, 4)), single, float(np.clip(near.noise * np.exp(rng.normal(0.0, 0.7)), 1e-5, 0.5)))


def predict(distances: Array, rows: Sequence[int], found: Array, prior: Array, seed: int) -> tuple[Array, Array]:
    """Expect a value at every point.

    What is learnt is how far `prior` is off: a constant, a slope, and what the kernel makes of the rest. The kernel's settings are drawn by
    lot and the most likely one is kept; there are too few points for more.

    Args:
        distances: Of the rows from all points, as `Columns.distances` has them.
        rows: Places, among all points, of those where something was found.
        found: What, of shape (rows,).
        prior: What was predicted at every point before, of shape (points,); a constant where nothing was.
        seed: Of the lots.

    Returns:
        Mean and standard deviation at every point.
    """
    rows = list(rows)
    residual = found - prior[rows]
    center, scale = float(np.mean(residual)), float(np.std(residual)) or 1e-6
    target = (residual - center) / scale
    slope = (prior - prior[rows].mean()) / (float(np.std(prior[rows])) or 1.0)
    rng = np.random.default_rng(seed)
    inner = np.ascontiguousarray(distances[:, :, rows])
    trend = 0.1 * np.outer(slope[rows], slope[rows])
    best: tuple[float, _Kernel] | None = None
    for number in range(NUM_DRAWS):
        kernel = _draw(rng, len(inner), best[1] if best and number >= NUM_DRAWS - NUM_STEPS else None)
        score = _log_evidence(kernel, kernel.likeness(inner) + trend, target)
        if best is None or score > best[0]:
            best = score, kernel
    assert best is not None
    kernel = best[1]
    factor = np.linalg.cholesky(kernel.likeness(inner) + trend + kernel.noise * np.eye(len(rows)))
    across = kernel.likeness(distances) + 0.1 * np.outer(slope[rows], slope)
    half = np.linalg.solve(factor, across)
    mean = half.T @ np.linalg.solve(factor, target)
    variance = np.maximum(1.0 + 0.1 * slope**2 - np.sum(half**2, axis=0), 1e-9)
    return prior + center + scale * mean, scale * np.sqrt(variance)


def _log_evidence(kernel: _Kernel, likeness: Array, target: Array) -> float:
    """Logarithm of the likelihood of `target` and of what is thought of the kernel's settings beforehand, up to a constant."""
    factor = np.linalg.cholesky(likeness + kernel.noise * np.eye(len(target)))
    half = np.linalg.solve(factor, target)
    expected = float(np.sum((np.log(kernel.decay) + 0.5) ** 2)) / (2 * 1.5**2)
    return -0.5 * float(half @ half) - float(np.log(np.diag(factor)).sum()) - expected
