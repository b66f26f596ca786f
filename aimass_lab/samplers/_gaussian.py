"""A Gaussian process over the points of a finite space: what is expected at each from what was found at some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._optuna import is_numeric

Array = np.ndarray

USUAL_ALONE, USUAL_DECAY, USUAL_TOGETHER, USUAL_NOISE = -2.5, -0.5, -1.5, -5.0
"""Logarithms of what columns weigh alone, how fast likeness falls with distance, what they weigh together, and the variance of noise, where the
findings, scaled to a variance of 1, say nothing else. Set by hand."""
USUAL_SPREAD = 1.5
"""Standard deviation of these logarithms."""
LIMIT = 4.0
"""None of them goes further than so many standard deviations."""
SLOPE = 0.1
"""Variance of the slope by which the prior may be off."""
MOST_STEPS, MANY_ROWS = 60, 200
"""Of the optimiser; a quarter of them where there are more findings than that."""
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
    """Read features as columns; a number that a point lacks lies in the middle, where it is as far from one as from another.

    Of several features that part the points into the same two, such as a step and its options that never vary, the first makes a column: a
    technique with many options is not further from others for that.
    """
    names = list(dict.fromkeys(name for point in features for name in point))
    columns, is_word = [], []
    partitions: set[tuple[int, ...]] = set()
    for name in names:
        found = [point.get(name) for point in features]
        numbers = [value for value in found if value is not None]
        numeric = is_numeric(numbers)
        if len({repr(value) for value in found}) < 2:
            continue  # it tells no point from another
        halves = tuple(_places(found))
        if max(halves) == 1:
            if halves in partitions:
                continue
            partitions.add(halves)
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


def predict(distances: Array, rows: Sequence[int], found: Array, prior: Array) -> tuple[Array, Array]:
    """Expect a value at every point.

    What is learnt is how far `prior` is off: a constant, a slope, what each column adds by itself, and what columns do together. How much each
    of them matters is what makes the findings most likely, held together by what is usual.

    Args:
        distances: Of the rows from all points, as `Columns.distances` has them.
        rows: Places, among all points, of those where something was found.
        found: What, of shape (rows,).
        prior: What was predicted at every point before, of shape (points,); a constant where nothing was.

    Returns:
        Mean and standard deviation at every point.
    """
    rows = list(rows)
    residual = found - prior[rows]
    center, scale = float(np.mean(residual)), float(np.std(residual)) or 1e-6
    target = (residual - center) / scale
    slope = (prior - prior[rows].mean()) / (float(np.std(prior[rows])) or 1.0)
    inner = np.ascontiguousarray(distances[:, :, rows]).reshape(len(distances), -1)
    trend = SLOPE * np.outer(slope[rows], slope[rows])
    kernel = _fit(inner, trend, target)
    factor = np.linalg.cholesky(kernel.likeness(inner, len(rows)) + trend + kernel.noise * np.eye(len(rows)))
    across = kernel.likeness(distances.reshape(len(distances), -1), len(rows)) + SLOPE * np.outer(slope[rows], slope)
    half = np.linalg.solve(factor, across)
    mean = half.T @ np.linalg.solve(factor, target)
    variance = np.maximum(kernel.total + SLOPE * slope**2 - np.sum(half**2, axis=0), 1e-9)
    return prior + center + scale * mean, scale * np.sqrt(variance)


@dataclass(frozen=True)
class _Kernel:
    """Likeness of points: a sum over single columns, and a product over all of them; logarithms of what they weigh."""

    theta: Array
    """Of each column its weight alone, then of each column its decay within the product; the product's weight; the variance of noise."""

    @property
    def alone(self) -> Array:
        return np.exp(self.theta[: len(self.theta) // 2 - 1])

    @property
    def decay(self) -> Array:
        return np.exp(self.theta[len(self.theta) // 2 - 1 : -2])

    @property
    def together(self) -> float:
        return float(np.exp(self.theta[-2]))

    @property
    def noise(self) -> float:
        return float(np.exp(self.theta[-1]))

    @property
    def total(self) -> float:
        """Likeness of a point to itself."""
        return float(self.alone.sum()) + self.together

    def product(self, flat: Array) -> Array:
        return self.together * np.exp(-(self.decay @ flat))

    def likeness(self, flat: Array, num_rows: int) -> Array:
        """Of shape (rows, any), from distances of shape (columns, rows * any)."""
        return (self.alone.sum() - self.alone @ flat + self.product(flat)).reshape(num_rows, -1)


def _fit(flat: Array, trend: Array, target: Array) -> _Kernel:
    """The kernel that makes `target` most likely, together with what is usual of its weights."""
    from scipy.optimize import minimize

    num_columns, num_rows = len(flat), len(target)
    usual = np.concatenate([np.full(num_columns, USUAL_ALONE), np.full(num_columns, USUAL_DECAY), [USUAL_TOGETHER, USUAL_NOISE]])

    def loss(theta: Array) -> tuple[float, Array]:
        kernel = _Kernel(theta)
        product = kernel.product(flat)
        matrix = kernel.likeness(flat, num_rows) + trend + kernel.noise * np.eye(num_rows)
        factor = np.linalg.cholesky(matrix)
        inverse = np.linalg.inv(matrix)
        solved = inverse @ target
        away = (theta - usual) / USUAL_SPREAD
        value = 0.5 * float(target @ solved) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(away @ away)
        # dL/dk = (K^-1 - a a^T) / 2 with a = K^-1 y (Rasmussen and Williams, "Gaussian Processes for Machine Learning", eq. 5.9)
        slope = 0.5 * (inverse - np.outer(solved, solved)).ravel()
        by_alone = kernel.alone * (slope.sum() - flat @ slope)
        by_decay = -kernel.decay * (flat @ (slope * product))
        by_noise = kernel.noise * slope[:: num_rows + 1].sum()
        return value, np.concatenate([by_alone, by_decay, [slope @ product, by_noise]]) + away / USUAL_SPREAD

    bounds = [(mean - LIMIT * USUAL_SPREAD, mean + LIMIT * USUAL_SPREAD) for mean in usual]
    steps = MOST_STEPS if num_rows <= MANY_ROWS else MOST_STEPS // 4
    return _Kernel(minimize(loss, usual, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps}).x)
