"""What is tried on which model, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CASTS = ("none", "channels_last", "bf16", "fp16", "compile", "compile(freezing=true)", "bf16 + compile", "aot_inductor", "onnxruntime")
QUANTIZED = (
    "int8_weight_only", "int8_weight_only + compile", "int8_dynamic", "int8_dynamic + compile", "int4_weight_only", "fp8", "fp8(activations=dynamic)",
    "int8_static", "int8_static + compile", "mixed_precision", "onnxruntime(quantize=dynamic)", "onnxruntime(quantize=static)", "onnxruntime(quantize=int4)",
)  # fmt: skip
SMALLER = (
    "unstructured_pruning", "unstructured_pruning(sparsity=0.8)", "unstructured_pruning(sparsity=0.8,scope=local)", "n_m_pruning", "connection_pruning",
    "channel_pruning", "head_pruning", "layer_dropping(count=1)", "low_rank", "low_rank(activation_aware=false)", "clustering",
)  # fmt: skip
EVERY = (*CASTS, *QUANTIZED, *SMALLER)
RECOVERED = (
    "unstructured_pruning(sparsity=0.9) + recover", "n_m_pruning + recover", "connection_pruning + recover", "channel_pruning + recover",
    "channel_pruning(scope=global) + recover", "channel_pruning(criterion=activation) + recover", "layer_dropping(count=1) + recover", "low_rank + recover",
    "low_rank(ratio=0.25) + recover", "clustering + recover", "distil",
)  # fmt: skip
COMPOSED_CNN = (
    "channel_pruning + recover + onnxruntime", "channel_pruning + recover + onnxruntime(quantize=static)", "distil + onnxruntime(quantize=static)",
    "channel_pruning(ratio=0.3) + recover + onnxruntime(quantize=static)", "channel_pruning + recover + int8_static + compile",
    "low_rank + recover + onnxruntime(quantize=static)", "channel_pruning + recover + clustering",
)  # fmt: skip
COMPOSED_VIT = (
    "low_rank + onnxruntime", "low_rank + onnxruntime(quantize=dynamic)", "low_rank(ratio=0.3) + onnxruntime(quantize=dynamic)",
    "low_rank(ratio=0.25) + recover + onnxruntime(quantize=dynamic)", "channel_pruning(ratio=0.3) + recover + onnxruntime(quantize=dynamic)",
    "distil + onnxruntime(quantize=dynamic)", "low_rank + int8_dynamic + compile", "head_pruning + recover", "low_rank + clustering",
)  # fmt: skip
SLOWLY = "recover(epochs=3,learning_rate=5e-5)"
"""A large pretrained model wants small steps, and few of them suffice."""
VARIED = ("compile(freezing=true)", "fp8(activations=dynamic)", "low_rank(activation_aware=false)")
ONCE = tuple(text for text in EVERY if " + " not in text and "sparsity=" not in text and text not in VARIED)
"""For models whose cells take minutes: each technique, and each way of a runtime, once. Its other options are tried on the small models."""
RECIPES: dict[str, tuple[str, ...]] = {
    "digits_cnn": (*EVERY, *RECOVERED, *COMPOSED_CNN),
    "digits_vit": (*EVERY, *RECOVERED, *COMPOSED_VIT),
    "minilm": (
        *EVERY, f"low_rank + {SLOWLY}", f"layer_dropping(count=1) + {SLOWLY}", "low_rank(ratio=0.75) + onnxruntime(quantize=dynamic)",
        f"low_rank + {SLOWLY} + onnxruntime(quantize=dynamic)",
    ),
    "bert_base": (*ONCE, "low_rank + onnxruntime(quantize=dynamic)"),
    "resnet50": (*ONCE, "channel_pruning + onnxruntime(quantize=static)"),
    "decoder_1b": (
        "none", "compile", "int8_weight_only", "int8_weight_only + compile", "int8_dynamic + compile", "int4_weight_only", "int4_weight_only + compile", "fp8",
        "fp8(activations=dynamic) + compile", "n_m_pruning(sparse_kernels=true)", "low_rank(ratio=0.5)", "layer_dropping(count=2)", "head_pruning",
        "channel_pruning", "clustering", "unstructured_pruning", "mixed_precision",
    ),
}  # fmt: skip

VERDICTS: dict[str, tuple[str, ...]] = {
    "digits_cnn": (
        "none", "channels_last", "bf16", "compile", "onnxruntime", "onnxruntime(quantize=dynamic)", "onnxruntime(quantize=static)", "int8_dynamic",
        "unstructured_pruning", "clustering", "low_rank", "channel_pruning", "layer_dropping(count=1)",
    ),
    "digits_vit": (
        "none", "bf16", "int8_weight_only", "int8_dynamic", "onnxruntime", "onnxruntime(quantize=dynamic)", "unstructured_pruning", "clustering",
        "low_rank", "head_pruning", "layer_dropping(count=1)", "int8_dynamic + compile",
    ),
    "minilm": ("none", "bf16", "int8_weight_only", "int8_dynamic", "low_rank", "onnxruntime(quantize=dynamic)"),
    "bert_base": ("bf16", "int8_weight_only"),
}  # fmt: skip
"""Where the product's verdict is held against a long measurement: some that are clear, some that change nothing."""

FIRST = (("bert_base", "int8_dynamic", 15.0), ("digits_cnn", "bf16", 3.0), ("digits_vit", "int8_dynamic", 3.0))
"""Model, recipe, and the seconds in which the first verdict is to be there, compiling excluded."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One line of what is to be reached."""

    text: str
    model: str
    recipe: str
    holds: Callable[[dict[str, Any]], bool]


def drop(cell: dict[str, Any]) -> float:
    """Points of accuracy lost on all held-out images."""
    return 100 * cell["truth"]["metric"]["drop"]


def ratio(cell: dict[str, Any], at: int) -> float:
    """Speed-up at the first or the second batch size."""
    return cell["points"][at]["ratio"][0]


def within(points: float) -> Callable[[dict[str, Any]], bool]:
    return lambda cell: drop(cell) <= points + 1e-9


def fast(first: float, second: float, points: float | None) -> Callable[[dict[str, Any]], bool]:
    return lambda cell: ratio(cell, 0) >= first and ratio(cell, 1) >= second and (points is None or drop(cell) <= points + 1e-9)


def small(times: float, points: float) -> Callable[[dict[str, Any]], bool]:
    return lambda cell: cell["stored_original"] / cell["stored"] >= times and drop(cell) <= points + 1e-9


def _accurate(model: str) -> list[Goal]:
    int8 = ["int8_weight_only", "int8_dynamic", "int8_static", "onnxruntime(quantize=dynamic)", "onnxruntime(quantize=static)"]
    texts = dict.fromkeys(int8, "int8, ≤ 1 point lost")
    texts |= {"channel_pruning + recover": "50 % of the channels, ≤ 1 point", "low_rank + recover": "low rank 2×, ≤ 1 point"}
    texts |= {"clustering": "16 clusters, ≤ 1 point"}
    return [Goal(text=text, model=model, recipe=recipe, holds=within(1)) for recipe, text in texts.items()]


CNN_FAST = ("channel_pruning + recover + onnxruntime(quantize=static)", "distil + onnxruntime(quantize=static)")
CNN_SMALL = ("clustering", "channel_pruning + recover + clustering")
VIT_SMALL = ("clustering", "low_rank + clustering")
VIT_FAST = ("low_rank + onnxruntime(quantize=dynamic)", "low_rank(ratio=0.3) + onnxruntime(quantize=dynamic)")
GOALS = (
    *_accurate("digits_cnn"),
    *_accurate("digits_vit"),
    *(Goal(text="≥ 8× at batch 1, ≥ 11× at 32, ≤ 0.5 point", model="digits_cnn", recipe=r, holds=fast(8, 11, 0.5)) for r in CNN_FAST),
    *(Goal(text="≥ 3.4× at batch 1, ≥ 2.9× at 32, none lost", model="digits_vit", recipe=r, holds=fast(3.4, 2.9, 0)) for r in VIT_FAST),
    *(Goal(text="int8 ≥ 5×", model="resnet50", recipe=r, holds=fast(5, 0, None)) for r in ("onnxruntime(quantize=static)", "int8_static + compile")),
    *(Goal(text="4× smaller on disk, ≤ 0.5 point", model="digits_cnn", recipe=r, holds=small(4, 0.5)) for r in CNN_SMALL),
    *(Goal(text="4× smaller on disk, ≤ 0.5 point", model="digits_vit", recipe=r, holds=small(4, 0.5)) for r in VIT_SMALL),
)
