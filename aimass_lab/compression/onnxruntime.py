"""ONNX Runtime: the model exported, and computed by another engine, in 8 or 4 bits if asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import BundleError, InputError, UnsupportedError
from ..options import Positive
from ..records import Note
from ._processor import no_int8_products
from .base import TECHNIQUES, Context, Form, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from ..formats._onnx_module import OnnxModule

CALIBRATION_BATCH = 32
REASONS: dict[Form, str] = {
    "cast": "ONNX Runtime has no kernels for 16-bit models on CPUs; it has its own reduced precision: quantize=dynamic, static or int4",
    "quantized": "torchao's quantised weights do not survive the export with their speed; ONNX Runtime quantises by itself: quantize=dynamic, static or int4",
}
LEFT = {
    "dynamic": "no operator of it became an 8-bit one: quantize=dynamic rounds matrix products, embeddings and recurrent layers",
    "static": "no operator of it became an 8-bit one: ONNX Runtime has none for it, or rounding it would not pay",
    "int4": "no operator of it became a 4-bit one: quantize=int4 rounds the weights of matrix products only",
}
CONVOLUTION = "ONNX Runtime's convolutions are slower with activations rounded at each call than in float32, so they stay; quantize=static rounds them"
DONE = {"dynamic": "int8 weights, activations rounded at each call", "static": "int8 weights and activations", "int4": "int4 weights"}


@TECHNIQUES.register("onnxruntime")
@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(Technique):
    """Export the model and let ONNX Runtime compute it; a bundle serves the very file that was tried."""

    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnxscript")
    changes: ClassVar[str] = "how the whole model is run"
    stage: ClassVar[Stage] = Stage.RUNTIME
    takes: ClassVar[frozenset[Form]] = frozenset({"weights", "graph"})
    gives: ClassVar[Form | None] = "compiled"

    quantize: Literal["none", "dynamic", "static", "int4"] = "none"
    """Rounding by ONNX Runtime's own quantiser: dynamic for transformers, static (calibrated on samples) for convolutions, int4 for weights only."""
    per_channel: bool = True
    """For dynamic and static: one scale for each output channel of a weight instead of one for all of it."""
    reduce_range: bool | None = None
    """For dynamic and static: weights in 7 bits, so that 8-bit products cannot overflow; none: on processors where they could."""
    num_samples: Positive = 128
    """For static: samples that ranges of activations are read off."""
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    """For static: the range of an activation is all that was seen, or what loses the least information, or all but a few outliers."""
    block_size: int = 32
    """For int4: weights that share a scale; 16, 32, 64, 128 or 256."""
    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    """How far ONNX Runtime may rewrite the graph when it loads it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size not in (16, 32, 64, 128, 256):
            raise InputError(f"block_size {self.block_size} is none that ONNX Runtime has", help="16, 32, 64, 128 or 256")

    def why_not_after(self, form: Form) -> str:
        """What ONNX Runtime makes of the other forms."""
        return REASONS.get(form) or super().why_not_after(form)

    def unavailable(self, context: Context) -> str | None:
        """Not without the packages, nor on a GPU that the installed ONNX Runtime cannot use."""
        missing = [package for package in self.requires if importlib.util.find_spec(package) is None]
        if missing:
            return f"it needs the package {missing[0]!r}, which is not installed: pip install {missing[0]}"
        if context.device.type == "cpu":
            return None
        from ..formats._onnxruntime import import_onnxruntime

        if context.device.type == "cuda" and "CUDAExecutionProvider" in import_onnxruntime().get_available_providers():
            return "8-bit and 4-bit forms are made for CPUs: on a GPU, quantize=none" if self.quantize in ("dynamic", "static") else None
        return f"the installed onnxruntime cannot use {context.device}: install onnxruntime-gpu in its place for NVIDIA GPUs, or move the model to the CPU"

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Any model will do, with or without weights; one is quantised once only."""
        from ..formats.base import has_quantised_operators

        if self.quantize != "none" and has_quantised_operators(model):
            return "the model is quantised already: quantize=none runs it as it is"
        if self.quantize != "none" and not weight_layers(model):
            return super().check(model, context)
        return self.unavailable(context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Export the copy, compare the file with it, quantise it if asked for, and return what runs it."""
        from ..formats._onnx_module import export_module
        from ._exported import note_limits

        context.progress(0.1, "exporting to ONNX")
        names = [name for name, _ in context.call.named_tensors(context.original)]
        try:
            module, signature = export_module(model, context.call, names=names, device=context.device, graph_optimization=self.graph_optimization)
        except BundleError as error:
            raise UnsupportedError(f"the export is refused: {error.message}", help=error.help) from error
        note_limits(module, signature, context)
        self._note_calibration(context)
        if self.quantize == "none":
            return module
        context.progress(0.6, f"quantising it ({self.quantize})")
        module.close()
        module.file = self._quantize(module, context)
        self._report(module, model, context)
        _check_finite(module, context)
        return module

    def _quantize(self, module: OnnxModule, context: Context) -> torch.Tensor:
        from . import _onnx

        if self.quantize == "int4":
            return _onnx.quantize_int4(module.file, block_size=self.block_size)
        reduce_range = no_int8_products() is not None if self.reduce_range is None else self.reduce_range
        rounding = _onnx.Rounding(self.per_channel, reduce_range)
        if self.quantize == "dynamic":
            return _onnx.quantize_dynamic(module.file, rounding)
        return _onnx.quantize_static(module.file, rounding, self._feeds(module, context), calibration=self.calibration)

    def _feeds(self, module: OnnxModule, context: Context) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Samples for the calibration, as the runtime takes them."""
        from ..formats.signature import as_numpy

        used = {name for name, _ in module.loaded().feeds}
        module.close()
        for batch in context.batches(self.num_samples, CALIBRATION_BATCH) if module.interface.batched else [context.call]:
            named = zip(module.interface.inputs, batch.tensors(), strict=True)
            yield {spec.name: as_numpy(tensor) for spec, tensor in named if spec.name in used}

    def _note_calibration(self, context: Context) -> None:
        if self.quantize == "static" and context.train is None:
            text = f"activations were calibrated on the {context.samples.batch_size} example inputs, for want of others: give training samples"
            context.notes.append(Note(code="W-CALIBRATED-ON-EXAMPLES", text=text))

    def _report(self, module: OnnxModule, model: nn.Module, context: Context) -> None:
        """Write down which layers were quantised.

        Raises:
            UnsupportedError: none was.
        """
        from ._onnx import quantized_layers

        quantized, named = quantized_layers(module.file)
        for name, layer in weight_layers(model).items():
            place = name
            while place and place not in named:  # a fused function computes its parts, torch's attention its projections
                place = place.rpartition(".")[0]
            if place in quantized:
                context.changed[name] = DONE[self.quantize]
            else:
                context.left[name] = CONVOLUTION if self.quantize == "dynamic" and type(layer).__name__.startswith("Conv") else LEFT[self.quantize]
        if not context.changed:
            raise UnsupportedError(f"quantize={self.quantize} would change nothing: {next(iter(context.left.values()))}")

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """What another engine leaves as it is, and what rounding costs."""
        from ..formats.base import has_quantised_operators

        found = ["ONNX Runtime saves the overhead between operators; large matrix products take it as long as they take torch"]
        if has_quantised_operators(model):
            found.append("the graph rounds in operators of its own, of which ONNX Runtime fuses some; quantize=static on the model as it was fuses them all")
        if self.quantize in ("dynamic", "static") and (lacking := no_int8_products()):
            found.append(lacking)
        if self.quantize == "dynamic":
            if any(type(layer).__name__.startswith("Conv") for layer in weight_layers(model).values()):
                found.append(CONVOLUTION)
            found.append("activations are rounded anew at each call, which costs small layers what 8-bit products save")
        if self.quantize == "int4":
            found.append("4-bit weights are widened at every call: that pays where reading weights binds, not where arithmetic does")
        return tuple(found)


def _check_finite(module: OnnxModule, context: Context) -> None:
    """Refuse a quantised model that gives NaN or infinity where the unquantised export did not."""
    import torch

    from ..formats._interface import named_leaves
    from ..workload import call_model

    for name, tensor in named_leaves(call_model(module, context.call)):
        if not torch.isfinite(tensor).all():
            raise UnsupportedError(f"after quantisation the output {name!r} holds NaN or infinity", help="leave it in float32: quantize=none")
