"""The volume that a set of points dominates, and how much of it a further point is expected to add."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

Array = np.ndarray


def front_of(values: Array) -> Array:
    """The rows that no other row beats, each once: at least as large everywhere and larger somewhere."""
    unique = np.unique(values, axis=0)
    at_least: Array = np.all(unique[None, :, :] >= unique[:, None, :], axis=2)
    np.fill_diagonal(at_least, False)
    return unique[~np.any(at_least, axis=1)]


def hypervolume(values: Array, reference: Array) -> float:
    """Volume between `reference` and the points, each value made large.

    Args:
        values: Of shape (points, objectives).
        reference: The corner that everything is measured from, of shape (objectives,).
    """
    values = values[(values > reference).all(axis=1)]
    if not len(values):
        return 0.0
    edges, free = _cells(front_of(values), reference)
    lengths = [np.diff(e) for e in edges]
    volumes = reduce(np.multiply.outer, [length[:-1] for length in (np.append(x, 0.0) for x in lengths)])
    return float((volumes * ~free[tuple(slice(0, -1) for _ in edges)]).sum())


def _cells(front: Array, reference: Array) -> tuple[list[Array], Array]:
    """Cut the space above `reference` at every value of the front.

    Returns:
        The edges along each objective, and for each cell whether nothing dominates it. The last cell along an objective has no upper end.
    """
    edges = [np.unique(np.append(column, low)) for column, low in zip(front.T, reference, strict=True)]
    free = np.ones([len(e) for e in edges], dtype=bool)
    for point in front:
        free[tuple(slice(0, int(np.searchsorted(e, x))) for e, x in zip(edges, point, strict=True))] = False
    return edges, free


def expected_improvement(mean: Array, deviation: Array, front: Array, reference: Array) -> Array:
    """Expected growth of the hypervolume, exactly, where the objectives are independent and normal.

    Within a cell that nothing dominates, a point y adds the product over objectives of ``min(y, upper) - lower``, where positive; its
    expectation is the product of the single ones (Emmerich and others, "Hypervolume-based expected improvement", CEC 2011).

    Args:
        mean: Of shape (points, objectives).
        deviation: Of the same shape, positive.
        front: What was found and is not beaten, of shape (any, objectives).
        reference: The corner that everything is measured from.

    Returns:
        Of shape (points,).
    """
    edges, free = _cells(front[(front > reference).all(axis=1)], reference)
    total = free.astype(float)
    for axis, lower in enumerate(edges):
        above = np.stack([_expected_above(mean[:, axis], deviation[:, axis], edge) for edge in lower], axis=1)
        within = above - np.append(above[:, 1:], np.zeros((len(above), 1)), axis=1)
        total = np.tensordot(within, total, axes=(1, 0)) if axis == 0 else np.einsum("nk,nk...->n...", within, total)
    return np.maximum(total, 0.0)


def _expected_above(mean: Array, deviation: Array, edge: float) -> Array:
    """Expectation of ``max(0, y - edge)`` for normal y."""
    z = (mean - edge) / deviation
    return (mean - edge) * normal_cdf(z) + deviation * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def normal_cdf(z: Array) -> Array:
    """Share of a standard normal distribution below `z`."""
    from scipy.special import ndtr

    return ndtr(z)
