"""FLOPs of matrix products, dense, quantised and sparse; a multiply-add is 2, a bias is not counted."""

from __future__ import annotations

import math
from typing import Any

from .kinds import Formula


def product(a: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """``a @ b`` in any number of dimensions: each element of the result takes as many multiply-adds as `a` has columns."""
    return _sum_of_products(a, out_val)


def added_product(_bias: Any, a: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """``bias + a @ b``: `addmm`, `addmv`, `baddbmm` and their in-place forms."""
    return _sum_of_products(a, out_val)


def _sum_of_products(a: Any, out: Any) -> int:
    if a.is_sparse or not _is_strided(a):  # only the values that are there meet a row of the other matrix
        return 2 * int(a._nnz()) * int(out.shape[-1])
    return 2 * int(out.numel()) * int(a.shape[-1])


def _is_strided(tensor: Any) -> bool:
    return str(tensor.layout) == "torch.strided"


def added_products(_bias: Any, a: Any, b: Any, **options: Any) -> int:
    """`addbmm`: the products of a batch, summed into one matrix."""
    return 2 * int(a.numel()) * int(b.shape[-1])


def inner(a: Any, *rest: Any, **options: Any) -> int:
    """The inner product of two vectors."""
    return 2 * int(a.numel())


def outer(_bias: Any, a: Any, b: Any, **options: Any) -> int:
    """`addr`, a product over one column."""
    return 2 * int(a.numel()) * int(b.numel())


def linear(x: Any, weight: Any, *rest: Any, **options: Any) -> int:
    """``x @ weight.T`` with the weight ``(out, in)``."""
    return 2 * int(math.prod(x.shape[:-1])) * int(weight.numel())


def grouped_product(a: Any, b: Any, *rest: Any, **options: Any) -> int:
    """`_grouped_mm`: every row of a ragged (2-D) operand meets exactly one group of the other."""
    return 2 * int(math.prod(a.shape)) * int(b.shape[-1])


def packed_weight(x: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """A linear layer whose weight has the kernel's own layout: the width of the input and the result say enough."""
    return 2 * int(out_val.numel()) * int(x.shape[-1])


def dense_second(_compressed: Any, b: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """A 2:4-sparse matrix times a dense one, counted as if dense: what the result means, not what the kernel skips."""
    return 2 * int(out_val.numel()) * int(b.shape[-2])


def trilinear(i1: Any, i2: Any, i3: Any, expand1: Any, expand2: Any, expand3: Any, sumdim: Any, *rest: Any, **options: Any) -> int:
    """`torch.bilinear` and its gradients: the first two operands contracted, then the third.

    With x (N, I), weight (O, I, J) and y (N, J) that is ``2·N·O·I·J + 2·N·O·J``.
    """
    shapes = [_expanded(t, axes) for t, axes in ((i1, expand1), (i2, expand2), (i3, expand3))]
    summed = set(sumdim)
    first = second = 1
    for axis, sizes in enumerate(zip(*shapes, strict=True)):
        pair, third = max(sizes[:2]), sizes[2]
        first *= pair
        # An axis that the third operand lacks is summed in the first contraction already.
        second *= third if axis in summed and third == 1 else max(pair, third)
    return 2 * int(first) + 2 * int(second)


def _expanded(tensor: Any, axes: Any) -> list[int]:
    shape = [int(n) for n in tensor.shape]
    for axis in axes:
        shape.insert(axis, 1)
    return shape


TABLE: dict[str, Formula] = {
    "aten::mm": product,
    "aten::bmm": product,
    "aten::matmul": product,
    "aten::mv": product,
    "aten::addmm": added_product,
    "aten::_addmm_activation": added_product,
    "aten::baddbmm": added_product,
    "aten::addmv": added_product,
    "aten::_sparse_addmm": added_product,
    "aten::addbmm": added_products,
    "aten::addr": outer,
    "aten::dot": inner,
    "aten::vdot": inner,
    "aten::linear": linear,
    "aten::mkldnn_linear": packed_weight,
    "aten::_trilinear": trilinear,
    "aten::_int_mm": product,
    "aten::_scaled_mm": product,
    "aten::_scaled_mm_v2": product,
    "aten::_grouped_mm": grouped_product,
    "aten::_scaled_grouped_mm": grouped_product,
    "aten::_scaled_grouped_mm_v2": grouped_product,
    "aten::_weight_int8pack_mm": packed_weight,
    "aten::_weight_int4pack_mm": packed_weight,
    "aten::_weight_int4pack_mm_for_cpu": packed_weight,
    "aten::_weight_int4pack_mm_with_scales_and_zeros": packed_weight,
    "aten::_dyn_quant_matmul_4bit": packed_weight,
    "aten::_mixed_dtypes_linear": packed_weight,
    "aten::_sparse_semi_structured_linear": packed_weight,
    "aten::_cslt_sparse_mm": dense_second,
    "mkl::_mkl_linear": packed_weight,
    "mkldnn::_linear_pointwise": packed_weight,
    "quantized::linear": packed_weight,
    "quantized::linear_relu": packed_weight,
    "quantized::linear_leaky_relu": packed_weight,
    "quantized::linear_tanh": packed_weight,
    "quantized::linear_dynamic": packed_weight,
    "quantized::linear_relu_dynamic": packed_weight,
    "quantized::linear_dynamic_fp16": packed_weight,
    "quantized::linear_relu_dynamic_fp16": packed_weight,
    "quantized::matmul": product,
}
"""Formula of each operator."""
