"""From a torch module to an ONNX graph: standard operators only, layers named, nothing of the user's machine in it."""

from __future__ import annotations

import ast
import functools
import logging
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import UnsupportedError
from ..quiet import quiet_export
from ..units import format_bytes
from ..workload import Call, weight_bytes
from ._export import INSTEAD, bottom, dynamic_shapes, help_about, refusal, refuse_scripted, without_collections, without_stack_traces
from ._onnx_module import IN_TORCH
from .signature import Signature

logger = logging.getLogger(__name__)

OPSET = 20
"""Version of the standard operators that the file asks for; ONNX Runtime has them since 1.17."""
SIZE_LIMIT_BYTES = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; weights beside it in other files would have to be trusted one by one."""
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
"""How the exporter says which operator it has no translation for."""
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
        signature: Names, and which sizes are left open.

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
    shared = {spec.name for spec in signature.inputs} & {spec.name for spec in signature.outputs}
    if shared:
        raise UnsupportedError(
            f"{name} cannot be exported to ONNX: {min(shared)!r} is the name of an input and of an output, and in an ONNX file no two values share one",
            help="return it under another name, or bundle another format: safetensors takes the model as it is",
        )
    try:
        with quiet_export(), without_stack_traces(), without_collections():
            graph, surprise = _translate(model, call, signature)
            _tidy(graph, [spec.name for spec in signature.outputs])
    except Exception as error:  # the exporter lets through whatever the model or a converter raises
        raise refusal(f"{name} cannot be exported to ONNX", error, help=_help_about(bottom(error), model)) from error
    if surprise is not None:  # told only here, where nothing is kept quiet
        logger.warning("%s was exported to ONNX the longer way, because the shorter one failed as it should not", name, exc_info=surprise)
    _name_nodes(graph)
    _strip(graph)
    return graph


def _help_about(error: BaseException, model: nn.Module) -> str | None:
    """What to do where an operator has no translation; None where it is something else that the exporter does not take."""
    missing = _MISSING.search(str(error))
    if missing is None:
        return None
    ours = any(is_traceable_wrapper_subclass(parameter) for parameter in model.parameters())  # torchao's, which also call operators of torch's
    return INSTEAD["torchao"] if ours else help_about(missing[1]) or IN_TORCH


def _translate(model: nn.Module, call: Call, signature: Signature) -> tuple[Any, Exception | None]:
    """As `torch.onnx.export` does it, in half the time where every operator of the program has a translation as it stands.

    It lets any program be taken apart into operators that it knows, which traces all of it twice again.

    Returns:
        The graph, and what kept it from being made the shorter way where that was neither the model nor an operator of it.
    """
    tensors = tuple(call.tensors())
    shapes = dynamic_shapes(signature)
    how: dict[str, Any] = {"input_names": [spec.name for spec in signature.inputs], "output_names": [spec.name for spec in signature.outputs]}
    how |= {"dynamo": True, "opset_version": OPSET, "optimize": False, "verbose": False}
    surprise = None
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):  # which always has to be taken apart
        program = _program(model, tensors, shapes)
        if program is not None:
            try:
                return cast(Any, torch.onnx.export(_AsItStands.of(program), **how)).model, None
            except Exception as error:  # the longer way gets over it, or says what is the matter
                surprise = None if isinstance(bottom(error), (UnsupportedError, torch.onnx.OnnxExporterError)) else error
    return cast(Any, torch.onnx.export(model, tensors, dynamic_shapes=shapes, **how)).model, surprise


def _program(model: nn.Module, tensors: tuple[torch.Tensor, ...], shapes: Any) -> torch.export.ExportedProgram | None:
    """The model as a program; None where it raises as it is traced, of which the longer way has a second kind."""
    try:
        return torch.export.export(model, tensors, dynamic_shapes=shapes)
    except Exception:
        return None


class _AsItStands(torch.export.ExportedProgram):
    """A program that gives itself where it is asked to take itself apart, as long as nothing in it has to be."""

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> _AsItStands:
        """The same program.

        Raises:
            UnsupportedError: something in it has to be taken apart: what changes its input or calls a graph of its own.
        """
        for node in _calls(program):
            _respell(node)
            if not isinstance(node.target, types.BuiltinFunctionType | torch._ops.OpOverload):  # built in are those that count sizes and take tuples apart
                raise UnsupportedError(f"{node.target} has to be taken apart")
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                raise UnsupportedError(f"{node.target} has to be taken apart")
        return cls(
            program.graph_module, program.graph, program.graph_signature, program.state_dict, program.range_constraints, program.module_call_graph,
            program.example_inputs, program.constants, verifiers=[program.verifier],
        )  # fmt: skip

    def run_decompositions(
        self, decomp_table: Mapping[Any, Callable[..., Any]] | None = None, decompose_custom_triton_ops: bool = False
    ) -> torch.export.ExportedProgram:
        """The program itself.

        Raises:
            UnsupportedError: an operator has to be taken apart.
        """
        if decomp_table is None or any(node.target in decomp_table for node in _calls(self)):
            raise UnsupportedError("an operator has to be taken apart")
        return self


def _calls(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """Every call of a function in it, those of inner graphs included."""
    modules = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [node for module in modules for node in module.graph.nodes if node.op == "call_function"]


def _respell(node: torch.fx.Node) -> None:
    """Put what has a translation in the place of what is the same and has none."""
    aten = torch.ops.aten
    if getattr(node.target, "overloadpacket", None) is aten.to:
        node.args, node.kwargs, node.target = node.args[:1], {"dtype": node.meta["val"].dtype}, aten._to_copy.default
    same = {aten.__and__.Tensor: aten.bitwise_and.Tensor, aten.__or__.Tensor: aten.bitwise_or.Tensor, aten.__xor__.Tensor: aten.bitwise_xor.Tensor}
    node.target = same.get(node.target, node.target)  # type: ignore[call-overload]


def _tidy(graph: Any, outputs: Sequence[str]) -> None:
    """Fold constants and batch norms, which quantisers do not, and remove what nobody uses or what is there twice.

    onnxscript's own `optimize` also looks for what can be written simpler, by rules of which one compares each node with all others. Runtimes do the same
    as they load the file: a BERT-base that went through it had 532 nodes in place of 540, and was neither loaded nor run faster.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    optimizer.inline(graph)
    optimizer.fold_constants(graph)
    if any(node.op_type == "BatchNormalization" for node in graph.graph.all_nodes()):
        norms = [rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule, rules.fuse_batchnorm_into_gemm_rule]
        rewriter.rewrite(graph, norms)
    for tidying in (
        common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass(), common.OutputFixPass(),
    ):  # fmt: skip
        tidying(graph)
    for value, name in zip(graph.graph.outputs, outputs, strict=True):  # a tensor that is returned twice has the last of its names until then
        value.name = name
    common.NameFixPass()(graph)


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
    around, _, _ = node.metadata_props.get(SCOPES, "[]").rpartition(", ")  # the last one is the operator itself
    return _innermost(around)


@functools.lru_cache(maxsize=1024)
def _innermost(scopes: str) -> str:
    """The last of a list of names, as it is written in Python without its end; reading it takes a while, and many operators share it."""
    try:
        modules = [scope for scope in ast.literal_eval(f"{scopes}]") if isinstance(scope, str)]
    except (SyntaxError, ValueError):
        return ""
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
