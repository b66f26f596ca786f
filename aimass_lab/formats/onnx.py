"""ONNX: one protobuf file with graph and weights, run by ONNX Runtime; reading it unpickles nothing and runs no code."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UnsupportedError
from ..units import format_bytes
from ..workload import Call, weight_bytes
from .base import FORMATS, Arrays, Format, Runner
from .signature import Signature, run, with_tensors

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

OPSET = 20
"""Version of the standard operators that the file asks for; ONNX Runtime has them since 1.17."""
SIZE_LIMIT_BYTES = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; weights beside it in other files would have to be trusted one by one."""
SERVABLE = (
    "bundle the model itself in float32 (technique 'none'), or a copy that ONNX can express: ONNX Runtime has no bfloat16 kernels for the CPU, "
    "and dynamic int8 of torchao has no operator in ONNX"
)


@FORMATS.register("onnx")
class Onnx(Format):
    """Export through `torch.export`, single file, standard operators only."""

    name: ClassVar[str] = "onnx"
    file_name: ClassVar[str] = "model.onnx"
    runtime: ClassVar[str] = "ONNX Runtime"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        size = weight_bytes(model)
        if size > SIZE_LIMIT_BYTES:
            raise UnsupportedError(
                f"the model's weights take {format_bytes(size)}, and a single ONNX file holds at most 2 GiB",
                help="shrink the model first, for example to int8",
            )
        program = _export(model, call, signature)
        _strip(program.model)
        program.save(path, external_data=False)

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Load the file into ONNX Runtime on the CPU.

        Raises:
            UnsupportedError: ONNX Runtime has no kernel for an operator or a dtype of the file.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # waiting threads that spin would take the cores from whoever is measured beside
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base class
            raise UnsupportedError(f"ONNX Runtime cannot run the exported model: {_first_line(error)}", help=SERVABLE) from error
        names = [output.name for output in session.get_outputs()]
        wanted = {node.name for node in session.get_inputs()}

        def runner(inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
            # an input that the graph does not use is not among its inputs
            results = session.run(names, {name: array for name, array in inputs.items() if name in wanted})
            return dict(zip(names, results, strict=True))

        return runner


def _export(model: nn.Module, call: Call, signature: Signature) -> Any:
    """Export a wrapper with flat tensors in and out, whatever containers the model itself has."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.training = False

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(tensor for _, tensor in run(self.model, with_tensors(call, tensors)))

    tensors = tuple(call.tensors())
    shapes = {"tensors": tuple({0: torch.export.Dim("batch", min=1)} if signature.batched else None for _ in tensors)}
    try:
        with _quiet():
            return torch.onnx.export(
                Flat(),
                tensors,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=shapes if signature.batched else None,
                verbose=False,
            )
    except Exception as error:  # the exporter lets through whatever the model or a converter raises
        raise UnsupportedError(f"{type(model).__name__} cannot be exported to ONNX: {_cause(error)}", help=SERVABLE) from error


def _cause(error: BaseException) -> str:
    """The first line of what lies at the bottom: it names the operator or the line of the model."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks to its own developers from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: Any) -> None:
    """Remove what the exporter noted down for debugging: stack traces hold paths and source lines of the user's machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None
    model.metadata_props.clear()
