"""The whole model as a graph in 8-bit integers, with ranges of the activations that were read off samples beforehand."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import AimassError, UnsupportedError
from ..fast_path import without_fast_path
from ..options import Positive
from ..outputs import output_tensors
from ..quiet import import_quietly
from ..records import Note
from ..workload import Call, call_model
from ._linear_weights import device_name
from ._processor import no_int8_products
from ._sensitivity import OutputError
from ._ties import tied_layers
from .base import TECHNIQUES, Context, Form, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._static_graph import StaticGraph

BATCH_SIZE = 32
"""Samples per call while ranges are read."""
FEW_SAMPLES = 32
"""Below this, ranges are likely to be too narrow for inputs that were not seen."""
FEW_ITEMS = 8
"""Items below which small layers do not repay the call of an 8-bit kernel."""
PROBED_BATCHES = (1, 3, 8)
"""Numbers of items for which a graph for any number must give what the model gives."""
EXACT = 1e-3
"""Relative difference that an exported graph, not yet rounded, may have: operators may be fused otherwise."""


@TECHNIQUES.register("int8_static")
@dataclass(frozen=True, kw_only=True)
class Int8Static(Technique):
    """Convolutions, linear layers and what lies between them in int8, with fixed ranges; fast once compiled, for x86 processors."""

    requires: ClassVar[tuple[str, ...]] = ("torchao",)
    changes: ClassVar[str] = "convolutions and linear layers (nn.Conv1d, nn.Conv2d, nn.Linear)"
    stage: ClassVar[Stage] = Stage.PRECISION
    gives: ClassVar[Form | None] = "graph"

    num_samples: Positive = 128
    """Samples that the ranges of the activations are read off: training samples where there are some, else the example inputs."""
    ranges: Literal["histogram", "minmax"] = "histogram"
    """histogram: the range with the smallest error, which may cut off rare large values; minmax: all that was seen."""

    def unavailable(self, context: Context) -> str | None:
        """Only on x86 processors."""
        if context.device.type != "cpu":
            return f"its 8-bit kernels are for x86 processors, and the model is on {device_name(context.device)}: int8_dynamic runs there"
        if platform.machine().lower() not in ("x86_64", "amd64", "x86"):
            return f"its 8-bit kernels are for x86 processors, and this is a {platform.machine()}: int8_dynamic runs there"
        return super().unavailable(context)

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Convolutions and linear layers with plain weights; which of them the graph rounds is known once it is made."""
        import torch
        from torch import nn

        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
        layers = weight_layers(model).items()
        return tuple(n for n, layer in layers if isinstance(layer, kinds) and type(layer.weight) in (nn.Parameter, torch.Tensor) and not _in_attention(layer))

    def check(self, model: nn.Module, context: Context) -> str | None:
        """It starts from float32."""
        import torch

        found = super().check(model, context)
        others = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
        if found is None and others:
            return f"it starts from float32, and the model has weights of type {', '.join(sorted(str(d).removeprefix('torch.') for d in others))}"
        return found

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Attention's own projections are hidden from the quantiser."""
        from torch import nn

        if isinstance(layer, nn.MultiheadAttention) or _in_attention(layer):
            return "nn.MultiheadAttention multiplies with this weight itself, which the quantiser does not recognise"
        return super().why_left(name, layer)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Export, read the ranges, round, and try the result.

        Raises:
            UnsupportedError: the model cannot be exported, or its rounded graph gives no finite outputs.
        """
        samples = min(context.samples.batch_size, self.num_samples)
        expected = OutputError.of(model, context, num_samples=samples, batch_size=BATCH_SIZE)
        ties = tied_layers(model)
        variant = self._free_or_fixed(model, context)
        self._report(variant.graph, weight_layers(model), ties, context)
        self._judge(variant, expected, context)
        if samples < FEW_SAMPLES:
            source = "training samples" if context.train else "example inputs"
            text = f"the ranges of the activations were read off {samples} {source} only, and values beyond them are cut off"
            context.notes.append(Note(code="W-FEW-SAMPLES", text=f"{text}: give some hundreds, Study(model, x, train=inputs)"))
        return variant

    def _free_or_fixed(self, model: nn.Module, context: Context) -> StaticGraph:
        """A graph for any number of items; where that is not possible, one for as many as the trial calls with."""
        if any(context.call.is_batched(tensor) for tensor in context.call.tensors()):
            try:
                return self._quantize(model, context, any_batch=True)
            except Exception as error:
                cause = _cause(error)
        else:
            cause = "no input has the batch axis"
        size = context.call.batch_size
        try:
            variant = self._quantize(model, context, any_batch=False)
        except Exception as error:
            raise UnsupportedError(
                f"int8_static cannot export the model: {_cause(error)}",
                help="it needs a graph that does not depend on values (torch.export); int8_dynamic works on the layers one by one and needs none",
            ) from error
        text = f"the graph takes calls of exactly {size} item{'s' * (size != 1)}: for any number, export failed ({cause})"
        context.notes.append(Note(code="W-FIXED-BATCH", text=text))
        return variant

    def _quantize(self, model: nn.Module, context: Context, *, any_batch: bool) -> StaticGraph:
        import torch

        from ..quiet import quiet_export
        from ._static_graph import TRACED_BATCH, StaticGraph, drop_unused_, export_graph, positional_names

        call = (context.call.with_batch(TRACED_BATCH) if any_batch else context.call).for_export()
        names = positional_names(model)
        with quiet_export(), torch.no_grad():
            pt2e = import_quietly("torchao.quantization.pt2e.quantize_pt2e")
            graph = export_graph(model, call, any_batch=any_batch)
            for size in dict.fromkeys((*PROBED_BATCHES, context.call.batch_size)) if any_batch else (call.batch_size,):
                _compare(model, graph, call.with_batch(size))
            for sizes in call.size_ends() if call.dims else ():
                _compare(model, graph, call.with_sizes(sizes))
            prepared = pt2e.prepare_pt2e(graph, self._quantizer(context.device))
            for i, batch in enumerate(self._calibration(context, None if any_batch else call.batch_size)):
                context.progress(min(0.9, (i + 1) * BATCH_SIZE / self.num_samples), "reading the ranges of the activations")
                prepared(*batch.args, **batch.kwargs)
            graph = pt2e.convert_pt2e(prepared)
        drop_unused_(graph)
        for name in ("train", "eval"):
            graph.__dict__.pop(name, None)  # they only refuse to be called, and there is no mode left to change
        return StaticGraph(graph, names, call, any_batch=any_batch)

    def _calibration(self, context: Context, batch_size: int | None) -> list[Call]:
        """Samples in batches, all of `batch_size` items where the graph takes no other."""
        batches = list(context.batches(self.num_samples, batch_size or BATCH_SIZE))
        return batches if batch_size is None else [batch.with_batch(batch_size) for batch in batches]

    def _quantizer(self, device: torch.device) -> Any:
        x86 = import_quietly("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
        reduce_range = import_quietly("torchao.utils").should_reduce_range(device)
        config = x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
        if self.ranges == "minmax":
            observer = import_quietly("torchao.quantization.pt2e.observer").MinMaxObserver.with_args(eps=2**-12)
            activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=observer)
            config = dataclasses.replace(config, input_activation=activation, output_activation=activation)
        return x86.X86InductorQuantizer().set_global(config)

    def _report(self, graph: torch.fx.GraphModule, layers: dict[str, nn.Module], ties: dict[str, tuple[str, ...]], context: Context) -> None:
        """Write down which layers the graph multiplies in 8 bits, and in how many of their calls."""
        calls = _rounded_calls(graph)
        for name, layer in layers.items():
            rounded = calls.get(name, [])
            if any(rounded):
                detail = "int8 weight, one scale a channel; inputs rounded by fixed ranges"
                if not all(rounded):
                    detail += f", in {sum(rounded)} of its {len(rounded)} calls; its full-precision weight stays for the others"
                if name in ties:
                    detail += f"; the weight that it shared with {ties[name][0]!r} stays as it was there"
                context.changed[name] = detail
            elif name not in context.left:
                left = "the quantiser found no 8-bit form of it in the exported graph" if not self.why_left_by_kind(layer) else self.why_left(name, layer)
                context.left[name] = left

    def why_left_by_kind(self, layer: nn.Module) -> bool:
        """Whether a layer is of a kind that is never changed."""
        from torch import nn

        return not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)) or _in_attention(layer)

    def _judge(self, variant: StaticGraph, expected: OutputError, context: Context) -> None:
        import math

        if not context.changed:
            raise UnsupportedError("int8_static found no layer in the exported graph that it has an 8-bit form for")
        if variant.any_batch and not math.isfinite(expected.measure(variant)):
            raise UnsupportedError(
                "the rounded graph gives outputs that are not finite on the samples that its ranges were read off",
                help="look for infinite or NaN values among the samples and in the model's activations",
            )

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Simulated until compiled; layers that stay in float32; no instructions."""
        found = [
            "run eagerly, 8-bit arithmetic is simulated: values are rounded, widened and multiplied in float32, which is slower than without; "
            "add a step compile after it, which makes 8-bit kernels of them"
        ]
        if batch_size < FEW_ITEMS:
            found.append(f"each 8-bit kernel costs tens of microseconds to call, which at batch {batch_size} may be more than it saves on a small layer")
        layers = weight_layers(model)
        floating = len(layers) - len(self.eligible(model))
        if floating:
            found.append(f"{floating} of {len(layers)} layers with weights stay in float32, and values are rounded and widened at their borders")
        return tuple(filter(None, [*found, no_int8_products()]))


def _in_attention(layer: nn.Module) -> bool:
    from torch import nn

    return isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _rounded_calls(graph: torch.fx.GraphModule) -> dict[str, list[bool]]:
    """Layer -> for each of its products in the graph whether it is one of 8-bit values."""
    import torch

    aten = torch.ops.aten
    products = {aten.linear.default, aten.conv1d.default, aten.conv2d.default}
    found: dict[str, list[bool]] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in products:
            continue
        weight = node.args[1]
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        name = str(weight.target).rpartition(".")[0] if weight.op == "get_attr" else str(stack[-1][0]) if stack else ""
        found.setdefault(name, []).append("dequantize" in str(weight.target))
    return found


def _compare(model: nn.Module, graph: nn.Module, call: Call) -> None:
    """Refuse an exported graph that does not give what the model gives for this number of items.

    Raises:
        UnsupportedError: it gives something else.
    """
    import torch

    with without_fast_path():  # a graph has the layers themselves
        expected, got = output_tensors(call_model(model, call)), output_tensors(call_model(graph, call))
    same = [(name, t.shape, t.dtype) for name, t in expected] == [(name, t.shape, t.dtype) for name, t in got]
    for (_, a), (_, b) in zip(expected, got, strict=False):
        if not same:
            break
        scale = float(a.abs().nan_to_num(0, 0, 0).max()) if a.is_floating_point() and a.numel() else 0.0
        same = torch.allclose(a, b, rtol=EXACT, atol=EXACT * scale, equal_nan=True)
    if not same:
        raise UnsupportedError(f"the exported graph gives something else than the model for {call.batch_size} item{'s' * (call.batch_size != 1)}")


def _cause(error: BaseException) -> str:
    """The first line that says something."""
    text = error.message if isinstance(error, AimassError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
