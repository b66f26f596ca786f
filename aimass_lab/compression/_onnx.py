"""ONNX Runtime's own quantisers, applied to an exported model."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..formats._onnx_export import LAYER_MARK
from ..formats._onnxruntime import import_onnxruntime
from ..quiet import quiet_export

if TYPE_CHECKING:
    import numpy as np
    import torch

Calibration = Literal["minmax", "entropy", "percentile"]
Feeds = Mapping[str, "np.ndarray[Any, Any]"]
"""Input name -> values."""
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
FEW_BIT_OPERATORS = {"MatMulInteger", "ConvInteger", "MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "GatherBlockQuantized"}
"""Operators whose weights are in eight or fewer bits."""
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Tells ONNX Runtime's quantisers that the exporter has folded constants and batch norms already, which they ask for."""


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded to 8 bits."""

    per_channel: bool
    reduce_range: bool


def quantize_dynamic(file: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Weights of matrix products, recurrent layers and embeddings to int8; activations at each call.

    Convolutions stay: with activations rounded at each call, ONNX Runtime's are slower than in float32.

    Args:
        file: The exported model, uint8[n].
        rounding: Of the weights.
    """
    with _working_folder(file) as source, _quiet():
        import_onnxruntime()
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization import quantize_dynamic as quantize
        from onnxruntime.quantization.registry import IntegerOpsRegistry

        target = source.with_name("quantized.onnx")
        quantize(
            source, target, op_types_to_quantize=[name for name in IntegerOpsRegistry if name != "Conv"], per_channel=rounding.per_channel,
            reduce_range=rounding.reduce_range, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return _read(target)


def quantize_static(file: torch.Tensor, rounding: Rounding, batches: Iterable[Feeds], *, calibration: Calibration) -> torch.Tensor:
    """Weights to int8, activations to uint8 with ranges read off `batches`; written as pairs of rounding and widening that the runtime fuses.

    One batch is looked at after the other, so that no more than the activations of one are held.
    """
    with _working_folder(file) as source, _quiet():
        import_onnxruntime()
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, create_calibrator
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        calibrator = create_calibrator(
            source, [], augmented_model_path=str(source.with_name("augmented.onnx")), calibrate_method=getattr(CalibrationMethod, METHODS[calibration])
        )
        for feeds in batches:
            calibrator.collect_data(_One(feeds))
        ranges = calibrator.compute_data()
        del calibrator
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(source), rounding.per_channel, rounding.reduce_range, QuantType.QInt8, QuantType.QUInt8, ranges, [], [],
            _static_operators(), {},
        )  # fmt: skip
        quantizer.quantize_model()
        return _to_bytes(quantizer.model.model)


def quantize_int4(file: torch.Tensor, *, block_size: int) -> torch.Tensor:
    """Weights of matrix products in 4 bits, `block_size` of them sharing a scale and a zero point; arithmetic in float32."""
    with _working_folder(file) as source, _quiet():
        import onnx

        import_onnxruntime()
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        # accuracy level 4: the runtime may round activations to int8, block by block, for products in integers
        quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=block_size, is_symmetric=False, accuracy_level=4)
        quantizer.process()
        return _to_bytes(quantizer.model.model)


def quantized_layers(file: torch.Tensor) -> tuple[set[str], set[str]]:
    """Names of the layers whose weights `file` holds in fewer bits, and of all layers that an operator of it comes from."""
    import onnx

    model = onnx.load_from_string(file.numpy().tobytes())
    few_bits = {tensor.name for tensor in model.graph.initializer if tensor.data_type in _few_bit_types()}
    few_bits |= {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in few_bits}
    layers, quantized = set(), set()
    for node in model.graph.node:
        if LAYER_MARK not in node.name or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        layer = node.name.partition(LAYER_MARK)[0]
        layers.add(layer)
        if node.op_type in FEW_BIT_OPERATORS or few_bits & set(node.input):
            quantized.add(layer)
    return quantized, layers


def _few_bit_types() -> set[int]:
    import onnx

    return {getattr(onnx.TensorProto, name) for name in ("INT8", "UINT8", "INT4", "UINT4")}


def _static_operators() -> list[str]:
    """All operators that ONNX Runtime can quantise, as its own `quantize_static` takes them."""
    import_onnxruntime()
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


class _One:
    """Hands one batch to a calibrator, which asks until there is none."""

    def __init__(self, feeds: Feeds) -> None:
        self._left = [feeds]

    def get_next(self) -> Feeds | None:
        return self._left.pop() if self._left else None


@contextlib.contextmanager
def _working_folder(file: torch.Tensor) -> Iterator[Path]:
    """A folder with the model in it, for quantisers that work on files."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="aimass-") as folder:
        path = Path(folder) / "model.onnx"
        mark = onnx.ModelProto()
        onnx.helper.set_model_props(mark, dict([PREPARED]))
        with path.open("wb") as target:
            target.write(file.numpy().data)
            target.write(mark.SerializeToString())  # protobuf reads two messages in a row as one with the fields of both
        yield path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantisers' remarks away, and keep importing them from configuring the root logger, which one of them does."""
    root, handler, thread = logging.getLogger(), logging.NullHandler(), threading.get_ident()
    loggers = (root, logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer"))

    def tells_something(record: logging.LogRecord) -> bool:
        return record.thread != thread

    root.addHandler(handler)  # basicConfig does nothing where there is one
    for logger in loggers:
        logger.addFilter(tells_something)
    try:
        with quiet_export():
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(tells_something)
        root.removeHandler(handler)


def _read(path: Path) -> torch.Tensor:
    import onnx

    return _to_bytes(onnx.load(path))


def _to_bytes(model: Any) -> torch.Tensor:
    import torch

    del model.metadata_props[:]
    return torch.frombuffer(bytearray(model.SerializeToString(deterministic=True)), dtype=torch.uint8)
