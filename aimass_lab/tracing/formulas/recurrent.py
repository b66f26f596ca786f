"""FLOPs of recurrent layers that run as one kernel; gates' element-wise arithmetic is not counted."""

from __future__ import annotations

import math
from typing import Any

from .kinds import Formula


def layer(x: Any, w_input: Any, w_hidden: Any, *rest: Any, **options: Any) -> int:
    """One layer in one direction: x is (time, batch, features) in either order of the first two."""
    return 2 * int(x.shape[0] * x.shape[1]) * int(w_input.numel() + w_hidden.numel())


def layer_backward(x: Any, w_input: Any, w_hidden: Any, *rest: Any, **options: Any) -> int:
    """Gradients of data and of weights each take what the forward took."""
    return 2 * layer(x, w_input, w_hidden)


def stack(x: Any, weights: Any, *rest: Any, **options: Any) -> int:
    """All layers, directions and projections: every matrix meets every step once. Packed sequences are (sum of lengths, features)."""
    steps = math.prod(x.shape[:-1])
    # Biases are one-dimensional.
    return 2 * int(steps) * sum(int(w.numel()) for w in weights if w.dim() == 2)


def stack_backward(x: Any, weights: Any, *rest: Any, **options: Any) -> int:
    """Gradients of the data always, those of the weights where they are asked for."""
    output_mask = options.get("output_mask", rest[-1] if rest else (True,) * 4)
    return stack(x, weights) * (1 + bool(output_mask[-1]))


def _quantised(gates: int) -> Any:
    def formula(x: Any, *rest: Any, **options: Any) -> int:
        # (x, hidden, params, has_biases, layers, dropout, train, bidirectional, ...); packed: the batch sizes come second.
        hidden, layers, bidirectional = (rest[0], rest[3], rest[6]) if not _is_packed(rest) else (rest[1], rest[4], rest[7])
        state = hidden[0] if isinstance(hidden, (list, tuple)) else hidden
        width, directions, steps = int(state.shape[-1]), 2 if bidirectional else 1, int(math.prod(x.shape[:-1]))
        inputs = [int(x.shape[-1])] + [width * directions] * (layers - 1)
        return sum(2 * steps * directions * gates * width * (n + width) for n in inputs)

    return formula


def _is_packed(rest: tuple[Any, ...]) -> bool:
    return hasattr(rest[0], "dim") and rest[0].dim() == 1


def cell(x: Any, hidden: Any, w_input: Any, w_hidden: Any, *rest: Any, **options: Any) -> int:
    """One step of a quantised cell, with packed weights."""
    state = hidden[0] if isinstance(hidden, (list, tuple)) else hidden
    return 2 * int(x.shape[0]) * int(w_input.unpack()[0].numel()) + 2 * int(state.shape[0]) * int(w_hidden.unpack()[0].numel())


TABLE: dict[str, Formula] = {
    "aten::mkldnn_rnn_layer": layer,
    "aten::mkldnn_rnn_layer_backward": layer_backward,
    "aten::_cudnn_rnn": stack,
    "aten::_cudnn_rnn_backward": stack_backward,
    "aten::miopen_rnn": stack,
    "aten::miopen_rnn_backward": stack_backward,
    "aten::quantized_lstm": _quantised(4),
    "aten::quantized_gru": _quantised(3),
    **{f"quantized::quantized_{name}_cell_dynamic": cell for name in ("lstm", "gru", "rnn_relu", "rnn_tanh")},
}
"""Formula of each operator."""
