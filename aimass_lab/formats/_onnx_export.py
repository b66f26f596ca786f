"""From a torch module to an ONNX graph: standard operators only, layers named, nothing of the user's machine in it."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..quiet import quiet_export
from ..units import format_bytes
from ..workload import Call, weight_bytes
from ._export import refusal, refuse_scripted, without_stack_traces
from ._onnx_module import SERVABLE
from .signature import Signature

OPSET = 20
"""Version of the standard operators that the file asks for; ONNX Runtime has them since 1.17."""
SIZE_LIMIT_BYTES = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; weights beside it in other files would have to be trusted one by one."""
LAYER_MARK = "/"
"""Between the name of the layer that a node comes from and the rest of the node's name."""
ABSORBING = {"Conv", "ConvTranspose", "Gemm"}
"""Operators that the exporter lets a batch norm vanish into; what it notes down of them is then the batch norm's, and their weight tells the layer."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes down the modules around an operator."""


def export_graph(model: nn.Module, call: Call, signature: Signature) -> Any:
    """Export what `model`, which takes and returns flat tensors, does with `call`.

    Args:
        model: With positional tensors as its arguments, and a dict of tensors as its output; its attribute ``model`` is the module that
            layers are named from.
        call: Example inputs, of two items or more where there is a batch axis.
        signature: Names, and whether the batch size is left open.

    Returns:
        An `onnx_ir.Model`; its nodes are named ``layer/operator``.

    Raises:
        UnsupportedError: the model is too large for one file, or an operator has no counterpart.
    """
    name = type(getattr(model, "model", model)).__name__
    refuse_scripted(model, f"{name} cannot be exported to ONNX")
    size = weight_bytes(model)
    if size > SIZE_LIMIT_BYTES:
        raise UnsupportedError(
            f"the model's weights take {format_bytes(size)}, and a single ONNX file holds at most 2 GiB", help="shrink the model first, for example to int8"
        )
    tensors = tuple(call.tensors())
    shapes = {"tensors": tuple({0: torch.export.Dim("batch", min=1)} for _ in tensors)}
    try:
        with quiet_export(), without_stack_traces():
            program: Any = torch.onnx.export(
                model,
                tensors,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=shapes if signature.batched else None,
                verbose=False,
            )
    except Exception as error:  # the exporter lets through whatever the model or a converter raises
        raise refusal(f"{name} cannot be exported to ONNX", error, help=SERVABLE) from error
    _name_nodes(program.model)
    _strip(program.model)
    return program.model


def _name_nodes(model: Any) -> None:
    """Name each node after the layer that it comes from: quantisers take and leave nodes by name, and profiles show them."""
    for i, node in enumerate(model.graph.all_nodes()):
        node.name = f"{_layer_of(node)}{LAYER_MARK}{node.op_type}_{i}"


def _layer_of(node: Any) -> str:
    """Dotted name of the innermost module around the operator, counted from the exported model's own ``model``."""
    if node.op_type in ABSORBING and (weight := node.inputs[1]) is not None and weight.is_initializer() and len(weight.uses()) == 1:
        layer, dot, _ = str(weight.name).rpartition(".")
        if dot:
            return layer.removeprefix("model").removeprefix(".")
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str)]  # the last one is the operator itself
    return modules[-1].removeprefix("model").removeprefix(".") if modules else ""


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
