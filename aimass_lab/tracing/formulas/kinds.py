"""Which operators compute nothing worth a formula, and which family each belongs to, by name and by torch's tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

Kind = Literal["view", "formula", "light", "unknown"]
"""*view*: no bytes move. *formula*: its model FLOPs are known. *light*: element-wise, reductions,
normalisation, pooling, losses and data movement, which are no model FLOPs by definition.
*unknown*: may compute, and nothing here knows how much."""

Family = Literal["gemm", "conv", "attention", "recurrent", "fft", "norm", "reduction", "elementwise", "gather", "copy", "other"]
"""Operators of one family reach a like share of a device's rates, and share its calibration."""

FAMILIES: tuple[str, ...] = get_args(Family)

Formula = Callable[..., int]
"""Takes the operator's own arguments and ``out_val=``, its result; returns FLOPs, a multiply-add being 2."""


def _names(text: str) -> frozenset[str]:
    """Names written with spaces between them, as a table of this length reads best."""
    return frozenset(text.split())


_VIEWS = _names(
    "t transpose view detach _unsafe_view split as_strided expand permute select squeeze slice alias unbind unsqueeze "
    "split_with_sizes diagonal unfold lift_fresh lift _reshape_alias view_as_real view_as_complex real imag chunk narrow movedim swapaxes "
    "flatten unflatten expand_as view_as _conj _neg_view broadcast_in_dim collapse_view split_dim _mkldnn_transpose _sparse_coo_tensor_with_dims_and_tensors "
    "_indices _values indices values crow_indices col_indices"
)

METADATA = _names(
    "prim::device prim::layout aten::sym_size aten::sym_stride aten::sym_numel aten::sym_storage_offset aten::size aten::stride aten::numel aten::dim "
    "aten::is_contiguous aten::is_non_overlapping_and_dense aten::_local_scalar_dense aten::item aten::is_pinned aten::_has_compatible_shallow_copy_type "
    "profiler::_record_function_enter_new profiler::_record_function_exit profiler::_record_function_enter aten::_assert_async aten::_assert_scalar "
    "aten::_assert_tensor_metadata aten::_functional_assert_async aten::_functional_assert_scalar aten::_functional_sym_constrain_range "
    "aten::_functional_sym_constrain_range_for_size aten::sym_constrain_range aten::sym_constrain_range_for_size aten::_fused_sdp_choice "
    "aten::_linalg_check_errors aten::_print aten::_nnz aten::_dimI aten::_dimV aten::dense_dim aten::sparse_dim aten::is_coalesced aten::_coalesced_ "
    "aten::is_same_size aten::is_set_to aten::_has_same_storage_numel aten::q_scale aten::q_zero_point aten::q_per_channel_scales "
    "aten::q_per_channel_zero_points aten::q_per_channel_axis aten::qscheme aten::record_stream aten::_use_cudnn_ctc_loss aten::_use_miopen_ctc_loss "
    "aten::_version aten::output_nr aten::is_leaf aten::_cudnn_init_dropout_state aten::_nested_get_offsets aten::_nested_get_lengths "
    "aten::_nested_get_ragged_idx aten::_nested_get_min_seqlen aten::_nested_get_max_seqlen aten::_nested_get_jagged_dummy aten::_nested_tensor_size "
    "aten::_nested_tensor_strides aten::_nested_tensor_storage_offsets"
)

_LIGHT = _names(
    # normalisation and softmax
    "_softmax _log_softmax softmax log_softmax _safe_softmax _masked_softmax _nested_tensor_softmax_with_shape native_layer_norm native_group_norm "
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training cudnn_batch_norm "
    "miopen_batch_norm batch_norm _batch_norm_with_update _batch_norm_with_update_functional _batch_norm_no_update batch_norm_stats batch_norm_elemt "
    "batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_update_stats "
    "_fused_rms_norm rms_norm _weight_norm_interface renorm norm native_norm linalg_vector_norm "
    # losses
    "mse_loss nll_loss nll_loss_forward nll_loss2d_forward smooth_l1_loss huber_loss l1_loss binary_cross_entropy binary_cross_entropy_with_logits "
    "multi_margin_loss multilabel_margin_loss_forward multilabel_margin_loss soft_margin_loss _ctc_loss _cudnn_ctc_loss miopen_ctc_loss dist "
    # gathering and scattering
    "embedding _embedding_bag _embedding_bag_forward_only _embedding_bag_per_sample_weights embedding_dense _embedding_bag_dense embedding_renorm "
    "index index_select gather take put scatter scatter_add scatter_reduce index_put _index_put_impl _index_put_impl_ _unsafe_index _unsafe_index_put "
    "_unsafe_masked_index _unsafe_masked_index_put_accumulate index_add index_copy index_fill index_reduce masked_fill masked_select masked_scatter nonzero "
    "nonzero_static segment_reduce isin where searchsorted bucketize unique _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive "
    "embedding_bag_4bit embedding_byte embedding_4bit embedding_bag_byte embedding_bag_2bit "
    # copying and reordering
    "cat _chunk_cat stack _stack clone copy_ copy _copy_from _copy_from_and_resize _to_copy to contiguous _lazy_clone _pin_memory repeat repeat_interleave "
    "roll flip rot90 tile constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im block_diag broadcast_tensors meshgrid view_copy slice_scatter "
    "select_scatter diagonal_scatter as_strided_scatter slice select diagonal unfold unsafe_split unsafe_split_with_sizes resolve_conj resolve_neg complex "
    "polar _resize_output _pack_padded_sequence _pad_packed_sequence to_padded_tensor _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward "
    "_nested_from_padded _nested_tensor_from_mask _nested_tensor_from_tensor_list _nested_view_from_buffer_copy _transform_bias_rescale_qkv "
    "_to_dense _to_sparse _to_sparse_csr _coalesce sparse_mask sparse_coo_tensor to_mkldnn _mkldnn_reshape mkldnn_reorder_conv2d_weight "
    "mkldnn_reorder_conv3d_weight _reorder_linear_weight _reorder_convolution_weight _cudnn_rnn_flatten_weight _convert_weight_to_int4pack "
    "_convert_weight_to_int4pack_for_cpu _dyn_quant_pack_4bit_weight lu_unpack tril triu diag diag_embed view_as_complex_copy "
    # making
    "zeros ones full empty empty_strided empty_permuted empty_like zeros_like ones_like full_like new_zeros new_ones new_full new_empty new_empty_strided "
    "_efficientzerotensor _new_zeros_with_same_feature_meta scalar_tensor arange linspace logspace eye range rand randn randint rand_like randn_like "
    "randint_like randperm random normal normal_functional log_normal cauchy geometric uniform bernoulli poisson binomial multinomial exponential "
    "tril_indices triu_indices one_hot native_dropout dropout _fused_dropout _masked_scale fill fill_ zero_ zero set_ set resize_ resize resize_as_ resize_as "
    "hann_window hamming_window bartlett_window blackman_window kaiser_window fft_fftfreq fft_rfftfreq from_file "
    "_empty_affine_quantized _empty_per_channel_affine_quantized "
    # pooling and interpolation
    "max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d mkldnn_max_pool3d quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d "
    "max_pool1d max_pool2d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa "
    "grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback cudnn_grid_sampler affine_grid_generator cudnn_affine_grid_generator "
    # reductions and sorting
    "cumsum cumprod logcumsumexp _logcumsumexp cummax cummin _cummax_helper _cummin_helper sort argsort topk kthvalue median nanmedian mode histc histogram "
    "bincount trace var_mean std_mean var std aminmax _aminmax all any argmax argmin logsumexp equal allclose _is_all_true _is_any_true is_same_size "
    "linalg_cross _sparse_sum _sparse_softmax _sparse_log_softmax hash_tensor "
    # element-wise without torch's tag
    "glu prelu _prelu_kernel rrelu_with_noise rrelu_with_noise_functional log_sigmoid_forward log_sigmoid hardswish rsub floor_divide _add_relu "
    "_thnn_fused_lstm_cell _thnn_fused_gru_cell _thnn_fused_lstm_cell_backward_impl threshold gelu elu softplus softshrink hardshrink hardsigmoid hardtanh "
    "leaky_relu quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
    "_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine _fake_quantize_per_tensor_affine_cachemask_tensor_qparams "
    "_fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional int_repr _choose_qparams_per_tensor choose_qparams "
    "_make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor _amp_update_scale _amp_foreach_non_finite_check_and_unscale "
    "_standard_gamma _sample_dirichlet _fused_adam _fused_adamw _fused_sgd _fused_adagrad add mul add_relu mul_relu add_scalar mul_scalar relu relu6 sigmoid "
    "clamp celu batch_norm1d batch_norm2d batch_norm3d batch_norm_relu layer_norm group_norm instance_norm cat_relu"
)

_OURS = ("aten", "prims", "quantized", "_quantized", "quantized_decomposed", "mkldnn")
_NO_PRIMS = frozenset({"svd", "fft_r2c", "fft_c2c", "fft_c2r"})
_GATHERS = _names("aten::embedding aten::index aten::index_select aten::gather aten::take aten::_unsafe_index")

_FAMILY_WORDS: tuple[tuple[Family, frozenset[str]], ...] = (
    ("attention", _names("attention multi flex sdp")),
    ("recurrent", _names("rnn lstm gru")),
    ("fft", _names("fft r2c c2r c2c")),
    ("norm", _names("norm softmax layernorm renorm")),
    ("conv", _names("conv convolution")),
    ("gemm", _names("mm linear bmm addmm baddbmm matmul mv dot")),
    ("gather", _names("embedding index gather scatter take put unique searchsorted sampler nonzero bag")),
    ("reduction", _names("pool argmax argmin sort argsort topk cumsum cumprod kthvalue median mode histc bincount loss all any equal dist pool aminmax")),
    (
        "copy",
        _names(
            "copy clone cat stack contiguous pad repeat roll flip zeros ones full empty fill zero tile rot im2col col2im shuffle unshuffle arange eye randn "
            "rand randint normal uniform bernoulli to dense sparse pack padded tril triu diag slice select diagonal unfold split scalar resize set "
            "reorder"
        ),
    ),
)
"""In this order: the first family with a word among those of the operator's name."""


def packet_of(operator: Any) -> Any:
    """The overload packet of an operator; a higher-order operator is its own."""
    return getattr(operator, "_overloadpacket", operator)


def name_of(operator: Any) -> str:
    """``aten::addmm``."""
    packet = packet_of(operator)
    return str(getattr(packet, "_qualified_op_name", None) or packet)


def is_view(operator: Any) -> bool:
    """Whether it only looks at memory that is there."""
    namespace, _, short = name_of(operator).partition("::")
    if namespace in ("aten", "prim", "prims") and short.rstrip("_") in _VIEWS:
        return True
    return bool(getattr(operator, "is_view", False)) and namespace not in ("aten",)


def is_light(operator: Any) -> bool:
    """Whether it is element-wise, a reduction, a normalisation, a loss, an optimizer's update, or moves data."""
    namespace, _, short = name_of(operator).partition("::")
    if namespace not in _OURS:
        return False
    if namespace == "prims":
        return short not in _NO_PRIMS
    short = short.removeprefix("_foreach_") if short.startswith("_foreach_") else short
    plain = short.rstrip("_")
    stem = re.sub(r"(_double)?_backward(_data|_jvp)?$", "", plain)
    return bool({short, plain, stem} & _LIGHT) or bool(_tags(operator, stem) & {"pointwise", "reduction"})


def _tags(operator: Any, stem: str) -> set[str]:
    import torch

    # In-place forms and backward forms lack the tag that the operator itself has.
    twin = getattr(torch.ops.aten, stem, None) if stem.isidentifier() else None
    overloads = [operator, *([getattr(twin, o) for o in twin.overloads()] if twin is not None else [])]
    return {tag.name for overload in overloads for tag in getattr(overload, "tags", ())}


def is_gather(name: str) -> bool:
    """Whether it reads only the rows it fetches, not the whole table."""
    return name in _GATHERS


def family_by_name(operator: Any) -> Family:
    """The family that the words of an operator's name, and torch's tags, put it in."""
    short = name_of(operator).rpartition("::")[2]
    words = {re.sub(r"\d+d?$", "", word) for word in short.split("_")}
    for family, members in _FAMILY_WORDS:
        if words & members:
            return family
    tags = _tags(operator, re.sub(r"_backward$", "", short.rstrip("_")))
    if "reduction" in tags:
        return "reduction"
    return "elementwise" if "pointwise" in tags or is_light(operator) else "other"
