"""FLOPs of Fourier transforms, distances and dense linear algebra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .kinds import Formula


def fft(x: Any, dim: Sequence[int], *rest: Any, out_val: Any, **options: Any) -> int:
    """``5 N log2 N`` for a complex transform of N points (Van Loan, Computational Frameworks for the FFT, 1.4); half if one side is real."""
    full = max(x.numel(), out_val.numel())
    points = math.prod(max(x.shape[d], out_val.shape[d]) for d in dim)
    share = 1.0 if x.is_complex() and out_val.is_complex() else 0.5
    return round(share * 5 * full * math.log2(points)) if points > 1 else 0


def distances(a: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """`cdist`, `pdist`: subtract, multiply and add for every coordinate of every pair."""
    return 3 * int(out_val.numel()) * int(a.shape[-1])


def distances_backward(grad: Any, a: Any, *rest: Any, **options: Any) -> int:
    """The gradient of one side: subtract, scale and add for every coordinate of every pair."""
    return 3 * int(grad.numel()) * int(a.shape[-1])


def _cube(a: Any) -> float:
    # m·n·min(m, n) of every matrix in the batch: n³ for square ones.
    rows, columns = (int(n) for n in a.shape[-2:])
    return math.prod(a.shape[:-2]) * rows * columns * min(rows, columns)


def cholesky(a: Any, *rest: Any, **options: Any) -> int:
    """``n³/3`` (Golub and Van Loan, Matrix Computations, 4.2)."""
    return round(_cube(a) / 3)


def factorise(a: Any, *rest: Any, **options: Any) -> int:
    """LU of a square matrix, ``2n³/3`` (Golub and Van Loan, 3.2)."""
    return round(2 * _cube(a) / 3)


def solve(a: Any, b: Any, *rest: Any, **options: Any) -> int:
    """LU, and two triangular systems of ``n²`` FLOPs for every right-hand side."""
    return round(2 * _cube(a) / 3) + 2 * int(a.shape[-1]) * int(b.numel())


def invert(a: Any, *rest: Any, **options: Any) -> int:
    """``2n³``: LU, and n right-hand sides."""
    return round(2 * _cube(a))


def triangular(a: Any, b: Any, *rest: Any, **options: Any) -> int:
    """``n²`` FLOPs for every right-hand side."""
    return int(a.shape[-1]) * int(b.numel())


FFT_TABLE: dict[str, Formula] = dict.fromkeys(("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c"), fft)
"""Formula of each Fourier transform."""

TABLE: dict[str, Formula] = {
    "aten::_cdist_forward": distances,
    "aten::_cdist_backward": distances_backward,
    "aten::_euclidean_dist": distances,
    "aten::_pdist_forward": distances,
    "aten::_pdist_backward": distances_backward,
    "aten::linalg_cholesky_ex": cholesky,
    "aten::cholesky": cholesky,
    "aten::linalg_lu_factor_ex": factorise,
    "aten::_linalg_det": factorise,
    "aten::_linalg_slogdet": factorise,
    "aten::_linalg_solve_ex": solve,
    "aten::linalg_inv_ex": invert,
    "aten::linalg_solve_triangular": triangular,
    "aten::triangular_solve": lambda b, a, *rest, **options: triangular(a, b),
}
"""Formula of each other operator."""
