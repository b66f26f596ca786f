"""What each operator computes and moves: FLOP formulas, and the operators that compute nothing worth counting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

Kind = Literal["view", "formula", "light", "unknown"]
"""*view*: no bytes move. *formula*: its model FLOPs are known. *light*: element-wise, reductions,
normalisation, pooling and data movement, which are no model FLOPs by definition.
*unknown*: may compute, and nothing here knows how much."""

Family = Literal["gemm", "conv", "attention", "recurrent", "fft", "norm", "reduction", "elementwise", "gather", "copy", "other"]
"""Operators of one family reach a like share of a device's rates, and share its calibration."""

aten = torch.ops.aten


def _names(text: str) -> frozenset[str]:
    """Names written with spaces between them, as a table of this length reads best."""
    return frozenset(text.split())


_VIEW_NAMES = _names(
    "t transpose view detach _unsafe_view split as_strided expand permute select squeeze slice alias unbind unsqueeze "
    "split_with_sizes diagonal unfold lift_fresh lift _reshape_alias view_as_real view_as_complex real imag "
    "chunk narrow movedim swapaxes flatten unflatten expand_as view_as _conj _neg_view"
)

_METADATA_NAMES = _names(
    "prim::device prim::layout aten::sym_size aten::sym_stride aten::sym_numel aten::sym_storage_offset aten::size aten::stride aten::numel "
    "aten::is_contiguous aten::is_non_overlapping_and_dense aten::_local_scalar_dense aten::item aten::is_pinned aten::_has_compatible_shallow_copy_type "
    "profiler::_record_function_enter_new profiler::_record_function_exit aten::_assert_async aten::_assert_scalar"
)

_LIGHT_NAMES = _names(
    "_softmax _log_softmax softmax log_softmax _safe_softmax native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm batch_norm _batch_norm_with_update _fused_rms_norm rms_norm "
    "cudnn_batch_norm_backward embedding _embedding_bag _embedding_bag_forward_only index index_select gather take scatter scatter_add scatter_reduce "
    "index_put _index_put_impl_ _unsafe_index _unsafe_index_put index_add index_copy index_fill masked_fill masked_select masked_scatter "
    "nonzero cat stack clone copy_ copy _to_copy to contiguous repeat repeat_interleave roll flip rot90 tile constant_pad_nd "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle "
    "im2col col2im max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d quantized_max_pool2d max_pool1d max_pool2d "
    "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "grid_sampler_2d grid_sampler_3d affine_grid_generator cumsum cumprod logcumsumexp cummax cummin sort argsort topk kthvalue median unique "
    "_unique2 searchsorted bucketize histc bincount one_hot tril triu tril_indices triu_indices diag diag_embed trace "
    "zeros ones full empty empty_strided empty_like zeros_like ones_like full_like new_zeros new_ones new_full new_empty new_empty_strided "
    "scalar_tensor arange linspace eye range rand randn randint rand_like randn_like randint_like randperm normal uniform bernoulli "
    "multinomial exponential native_dropout dropout fill fill_ zero_ zero set_ resize_ resize_as_ resolve_conj resolve_neg equal allclose "
    "is_same_size var_mean std_mean var std aminmax norm linalg_vector_norm all any argmax argmin logsumexp "
    "glu prelu rrelu_with_noise _thnn_fused_lstm_cell _thnn_fused_gru_cell _pack_padded_sequence _pad_packed_sequence "
    "quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine _fused_moving_avg_obs_fq_helper int_repr _choose_qparams_per_tensor choose_qparams "
    "broadcast_tensors meshgrid where isin complex polar view_copy slice_scatter select_scatter diagonal_scatter"
)

GATHERS = _names("aten::embedding aten::index aten::index_select aten::gather aten::take aten::_unsafe_index")
"""Operators that read only the rows they fetch, not the whole table."""


def packet_of(op: Any) -> Any:
    """The overload packet of an operator; a higher-order operator is its own."""
    return getattr(op, "_overloadpacket", op)


def name_of(op: Any) -> str:
    """``aten::addmm``."""
    packet = packet_of(op)
    return str(getattr(packet, "_qualified_op_name", None) or packet)


@functools.cache
def classify(op: Any) -> Kind:
    """Which of the four kinds the operator is."""
    name = name_of(op)
    namespace, _, short = name.partition("::")
    if name in _METADATA_NAMES or (namespace in ("aten", "prim", "prims") and short in _VIEW_NAMES):
        return "view"
    if packet_of(op) in registry():
        return "formula"
    tags = getattr(op, "tags", ())
    if namespace in ("aten", "prims") and (torch.Tag.pointwise in tags or torch.Tag.reduction in tags):
        return "light"
    plain = short if short in _LIGHT_NAMES else short.rstrip("_")
    if namespace in ("aten", "prims", "quantized", "quantized_decomposed") and plain in _LIGHT_NAMES:
        return "light"
    return "view" if getattr(op, "is_view", False) else "unknown"


@functools.cache
def family_of(op: Any) -> Family:
    """Which family the operator belongs to."""
    name = name_of(op)
    short = name.rpartition("::")[2].strip("_")
    for family, words in _FAMILY_WORDS:
        if any(word in short for word in words):
            return family
    tags = getattr(op, "tags", ())
    if torch.Tag.reduction in tags:
        return "reduction"
    return "elementwise" if torch.Tag.pointwise in tags else "other"


# In this order: the first family with a word that the operator's name holds.
_FAMILY_WORDS: tuple[tuple[Family, tuple[str, ...]], ...] = (
    ("attention", ("attention", "multi_head", "flex")),
    ("recurrent", ("rnn", "lstm", "gru")),
    ("fft", ("fft",)),
    ("norm", ("norm", "softmax")),
    ("conv", ("conv",)),
    ("gemm", ("mm", "linear", "bilinear", "einsum", "matmul", "mv", "dot", "transformer_encoder_layer")),
    ("gather", ("embedding", "index", "gather", "scatter", "take")),
    ("reduction", ("pool", "argmax", "argmin", "sort", "topk", "cumsum", "cumprod")),
    ("copy", ("copy", "clone", "cat", "stack", "contiguous", "pad", "repeat", "roll", "flip", "zeros", "ones", "full", "empty", "fill")),
)


@functools.cache
def registry() -> dict[Any, Callable[..., int]]:
    """Formula of each operator packet: torch's own, and those it lacks or gets wrong for inference.

    Every formula takes the operator's arguments and ``out_val``, its result, and returns FLOPs (a multiply-add is 2).
    """
    from torch.utils.flop_counter import flop_registry

    ours: dict[str, Callable[..., int]] = {
        "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
        "aten::_scaled_dot_product_flash_attention": _attention,
        "aten::_scaled_dot_product_efficient_attention": _attention,
        "aten::_scaled_dot_product_cudnn_attention": _attention,
        "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
        "aten::mkldnn_rnn_layer": _mkldnn_rnn_layer,
        "aten::_cudnn_rnn": _cudnn_rnn,
        "aten::_native_multi_head_attention": _native_multi_head_attention,
        "aten::_transformer_encoder_layer_fwd": _transformer_encoder_layer,
        "aten::_grouped_mm": _grouped_mm,
        "aten::_int_mm": _matmul,
        "aten::mv": _matrix_vector,
        "aten::addmv": lambda bias, a, x, **kw: _matrix_vector(a, x),
        "aten::dot": _dot,
        "aten::vdot": _dot,
        "aten::linear": _linear,
        "aten::_weight_int8pack_mm": _packed_weight,
        "aten::_weight_int4pack_mm": _packed_weight,
        "aten::_weight_int4pack_mm_for_cpu": _packed_weight,
        "aten::_dyn_quant_matmul_4bit": _packed_weight,
        "mkldnn::_linear_pointwise": _packed_weight,
        "quantized::linear": _packed_weight,
        "quantized::linear_relu": _packed_weight,
        "quantized::linear_dynamic": _packed_weight,
        "quantized::linear_relu_dynamic": _packed_weight,
        "quantized::linear_dynamic_fp16": _packed_weight,
        "aten::_fft_r2c": _fft,
        "aten::_fft_c2r": _fft,
        "aten::_fft_c2c": _fft,
        "aten::_cdist_forward": lambda a, b, *rest, out_val=None, **kw: 3 * out_val.numel() * int(a.shape[-1]),
    }
    table = dict(flop_registry)
    for name, formula in ours.items():
        namespace, _, short = name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), short, None)
        if packet is not None:
            table[packet] = formula
    return table


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    # Q (.., heads, S_q, d); with grouped queries the keys have fewer heads, and each is used by several.
    # A causal mask does not halve this: the usual convention, and what torch's own counter does.
    *outer, length, width = query.shape
    return 2 * math.prod(outer) * length * key.shape[-2] * (width + value.shape[-1])


def _mkldnn_rnn_layer(x: Any, w_input: Any, w_hidden: Any, *rest: Any, **options: Any) -> int:
    # One layer in one direction: x is (time, batch, features) in either order of the first two.
    return 2 * int(x.shape[0] * x.shape[1]) * int(w_input.numel() + w_hidden.numel())


def _cudnn_rnn(x: Any, weights: Sequence[Any], *rest: Any, **options: Any) -> int:
    # Matrices only: biases are one-dimensional. Packed sequences come as (sum of lengths, features).
    steps = math.prod(x.shape[:-1])
    return 2 * int(steps) * sum(int(w.numel()) for w in weights if w.dim() == 2)


def _multi_head(batch: int, length: int, width: int) -> int:
    projections = 2 * batch * length * width * 4 * width
    return projections + 4 * batch * length * length * width


def _native_multi_head_attention(query: Any, key: Any, value: Any, embed_dim: int, *rest: Any, **options: Any) -> int:
    batch, length = query.shape[0], query.shape[1]
    return _multi_head(batch, length, embed_dim)


def _transformer_encoder_layer(src: Any, embed_dim: int, *rest: Any, **options: Any) -> int:
    batch, length = src.shape[0], src.shape[1]
    matrices = [w for w in rest if isinstance(w, torch.Tensor) and w.dim() == 2]
    # qkv (3d x d) and output projection (d x d) are within the attention; the two of the feed-forward block follow.
    feed_forward = sum(2 * batch * length * int(w.numel()) for w in matrices[2:4])
    return _multi_head(batch, length, embed_dim) + feed_forward


def _grouped_mm(a: Any, b: Any, *rest: Any, **options: Any) -> int:
    # Every row of a ragged (2-D) operand meets exactly one group of the other.
    if a.dim() == 2 and b.dim() == 2:
        return 2 * int(a.shape[0] * a.shape[1] * b.shape[1])
    return 2 * int(math.prod(a.shape)) * int(b.shape[-1])


def _matmul(a: Any, b: Any, *rest: Any, **options: Any) -> int:
    return 2 * int(math.prod(a.shape)) * int(b.shape[-1])


def _matrix_vector(a: Any, x: Any, **options: Any) -> int:
    return 2 * int(a.numel())


def _dot(a: Any, b: Any, **options: Any) -> int:
    return 2 * int(a.numel())


def _linear(x: Any, weight: Any, *rest: Any, **options: Any) -> int:
    return 2 * int(math.prod(x.shape[:-1])) * int(weight.numel())


def _packed_weight(x: Any, *rest: Any, out_val: Any = None, **options: Any) -> int:
    # The weight's layout is the kernel's own; the width of the input and the result say enough.
    return 2 * int(out_val.numel()) * int(x.shape[-1])


def _fft(x: Any, dim: Sequence[int], *rest: Any, out_val: Any = None, **options: Any) -> int:
    # 5 N log2 N for a complex transform of N points (Van Loan, Computational Frameworks for the FFT, 1.4); half if one side is real.
    full = max(x.numel(), out_val.numel())
    points = math.prod(max(x.shape[d], out_val.shape[d]) for d in dim)
    share = 1.0 if x.is_complex() and out_val.is_complex() else 0.5
    return round(share * 5 * full * math.log2(max(2, points)))


def tensor_bytes(tensor: Any) -> int:
    """Bytes of memory the elements occupy; a dimension expanded from size 1 counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride != 0:
            count *= int(size)
    return count * int(tensor.element_size())


def workspace_bound(op: Any, args: tuple[Any, ...], bytes_read: int, bytes_written: int) -> int:
    """Upper bound of what the operator takes for itself while it runs, beyond its result.

    Convolutions copy input, weights and result into the kernel's own layout, and the plain ones unfold
    their input (im2col); recurrent layers repack their weights and keep every gate; matrix products and
    attention need little.
    """
    name = name_of(op)
    if "conv" in name.rpartition("::")[2]:
        return _convolution_workspace(args, bytes_read, bytes_written)
    if "rnn" in name:
        return 3 * (bytes_read + bytes_written)
    if classify(op) in ("formula", "unknown"):
        return (bytes_read + bytes_written) // 8
    return 0


CHANNEL_BLOCK = 16
"""Kernels lay channels out in blocks of up to this many, the last one padded."""


def _convolution_workspace(args: tuple[Any, ...], bytes_read: int, bytes_written: int) -> int:
    tensors = [a for a in args[:2] if isinstance(a, torch.Tensor) and a.dim() > 2]
    if len(tensors) < 2:
        return 2 * (bytes_read + bytes_written)
    x, weight = tensors
    outputs = max(1, int(weight.shape[0]))
    copies = (
        tensor_bytes(x) * _padding(int(x.shape[1]))
        + tensor_bytes(weight) * _padding(int(weight.shape[0])) * _padding(int(weight.shape[1]))
        + bytes_written * _padding(outputs)
    )
    # The plain 3-D kernel unfolds its input: one patch for every value of one output channel.
    unfolded = bytes_written * (int(weight.numel()) // outputs) // outputs if weight.dim() == 5 else 0
    return int(copies) + unfolded


def _padding(channels: int) -> float:
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK / max(1, channels)
