"""FLOPs of convolutions, forward and backward; padding counts as if it were data, a bias is not counted."""

from __future__ import annotations

from typing import Any

from .kinds import Formula


def _direct(out: Any, weight: Any) -> int:
    # Every element of the result takes one filter: (C_in / groups) · kernel multiply-adds.
    return 2 * int(out.numel()) * int(weight[0].numel())


def _scattered(x: Any, weight: Any) -> int:
    # Every element of the input is spread through one filter: (C_out / groups) · kernel multiply-adds.
    return 2 * int(x.numel()) * int(weight[0].numel())


def convolution(
    x: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool, *rest: Any, out_val: Any, **options: Any
) -> int:
    """1-3 dimensions, grouped, strided, dilated, transposed."""
    return _scattered(x, weight) if transposed else _direct(out_val, weight)


def plain(x: Any, weight: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """Kernels that only convolve forward."""
    return _direct(out_val[0] if isinstance(out_val, (tuple, list)) else out_val, weight)


def transposed(x: Any, weight: Any, *rest: Any, **options: Any) -> int:
    """Kernels that only convolve transposed."""
    return _scattered(x, weight)


def time_batch_channels(x: Any, weight: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """`conv_tbc`, with the weight as (kernel, C_in, C_out)."""
    return 2 * int(out_val.numel()) * int(weight.shape[0]) * int(weight.shape[1])


def backward(grad: Any, x: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool, *rest: Any, **options: Any) -> int:
    """The gradient of the input and that of the weight each take what the forward took, groups or not."""
    output_mask = options.get("output_mask", rest[-1] if rest else (True, True, True))
    forward = _scattered(x, weight) if transposed else _direct(grad, weight)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


def packed(x: Any, weight: Any, *rest: Any, out_val: Any, **options: Any) -> int:
    """Quantised convolutions keep the weight in an object of their own."""
    return _direct(out_val, weight.unpack()[0])


def packed_transposed(x: Any, weight: Any, *rest: Any, **options: Any) -> int:
    """The same, transposed."""
    return _scattered(x, weight.unpack()[0])


TABLE: dict[str, Formula] = {
    **dict.fromkeys(("aten::convolution", "aten::_convolution", "aten::convolution_overrideable"), convolution),
    **dict.fromkeys(("aten::convolution_backward", "aten::convolution_backward_overrideable"), backward),
    **dict.fromkeys(
        (
            "aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu",
            "aten::miopen_convolution", "aten::miopen_convolution_relu", "aten::miopen_convolution_add_relu", "aten::miopen_depthwise_convolution",
            "aten::_slow_conv2d_forward", "aten::slow_conv3d_forward", "aten::slow_conv_dilated2d", "aten::slow_conv_dilated3d",
            "aten::_conv_depthwise2d", "aten::conv_depthwise3d", "aten::_nnpack_spatial_convolution", "mkldnn::_convolution_pointwise",
        ),
        plain,
    ),
    **dict.fromkeys(
        (
            "aten::cudnn_convolution_transpose", "aten::miopen_convolution_transpose", "aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d",
            "mkldnn::_convolution_transpose_pointwise",
        ),
        transposed,
    ),
    "aten::conv_tbc": time_batch_channels,
    **{f"quantized::conv{d}d{end}": packed for d in (1, 2, 3) for end in ("", "_relu", "_dynamic", "_add", "_add_relu")},
    **{f"quantized::conv_transpose{d}d{end}": packed_transposed for d in (1, 2, 3) for end in ("", "_dynamic")},
}  # fmt: skip
"""Formula of each operator."""
