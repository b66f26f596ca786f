"""The two spaces that are measured point by point, so that searches can be replayed on them: a digits CNN and a digits ViT.

The models are those of the evaluation of compression: trained on scikit-learn's digits, judged on images that they never saw.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))

CALLS: dict[str, Sequence[int]] = {"batch_size": (1, 4, 16, 64), "threads": (1, 2), "instances": (1, 2)}
CORES = 2
"""Settings that need more are left out."""

SPACES: dict[str, dict[str, Sequence[Any]]] = {
    "digits_cnn": {
        "recipe": (
            "none",
            "channel_pruning(ratio=0.3) + recover(epochs=4)",
            "channel_pruning(ratio=0.5) + recover(epochs=4)",
            "channel_pruning(ratio=0.7) + recover(epochs=4)",
            "low_rank(ratio=0.5)",
            "low_rank(ratio=0.25) + recover(epochs=4)",
        ),
        "dtype": ("float32", "bfloat16"),
        "runtime": ("eager", "channels_last", "onnxruntime", "onnxruntime(quantize=static)", "onnxruntime(quantize=dynamic)", "int8_static + compile"),
        **CALLS,
    },
    "digits_vit": {
        "recipe": (
            "none",
            "low_rank(ratio=0.5)",
            "low_rank(ratio=0.25)",
            "layer_dropping(ratio=0.25) + recover(epochs=4)",
            "layer_dropping(ratio=0.5) + recover(epochs=4)",
            "head_pruning(ratio=0.5) + recover(epochs=4)",
        ),
        "dtype": ("float32", "bfloat16"),
        "runtime": ("eager", "int8_dynamic", "onnxruntime", "onnxruntime(quantize=static)", "onnxruntime(quantize=dynamic)"),
        **CALLS,
    },
}
"""What runs a recipe may begin with a step of its own: quantisation and the runtime that makes it fast belong together."""
