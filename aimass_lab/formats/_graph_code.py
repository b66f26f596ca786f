"""Writes an exported program as Python: a function of weights and inputs, one operator a line."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from ._export import help_about

HEADER = '''"""What {name} computes, as torch.export found it. The weights are in the safetensors file beside this one."""

import math
import operator
import torch
from math import inf, nan
from torch import device

def forward({arguments}):
'''
KINDS = ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")
"""Of inputs of the program that are weights."""


def graph_code(program: Any, name: str) -> tuple[str, dict[str, Any]]:
    """The code, and the weights by name.

    Args:
        program: A `torch.export.ExportedProgram`, whose output is a dict of tensors by name.
        name: Of the model, for the reader.

    Raises:
        UnsupportedError: the program calls something else than torch's operators on tensors, or changes its own weights.
    """
    import torch

    signature = program.graph_signature
    changed = [spec for spec in signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if changed:
        raise UnsupportedError(f"{name} changes {changed[0].target!r} as it computes, which a server of many requests must not", help="serve it as onnx")
    _check_operators(program.graph_module.graph, name)
    stored = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind.name in KINDS}
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    if len(stored) + len(inputs) != len(signature.input_specs):
        raise UnsupportedError(f"{name} takes objects that are no tensors as weights", help="serve it as onnx")
    weights = {target: program.state_dict.get(target, program.constants.get(target)) for target in stored.values()}
    used = {node.name for node in program.graph_module.graph.nodes if node.op == "placeholder" and node.users}
    lines = [f"    {argument} = weights[{target!r}]" for argument, target in stored.items() if argument in used]
    lines += _body(program.graph_module, _output_names(program))
    code = HEADER.format(name=name, arguments=", ".join(["weights", *inputs])) + "\n".join(lines) + "\n"
    owned = {target: torch.Tensor.detach(tensor).clone().contiguous() for target, tensor in weights.items()}  # the file refuses tensors that share memory
    return code, owned


def _check_operators(graph: Any, name: str) -> None:
    import torch

    for node in graph.nodes:
        computed = node.op == "call_function" and (isinstance(node.target, torch._ops.OpOverload) or node.target.__module__ in ("_operator", "math", "torch"))
        foreign = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims")
        if node.op not in ("placeholder", "output") and (not computed or foreign):
            raise UnsupportedError(f"{name} calls {node.target}, which is none of torch's own operators on tensors", help=help_about(str(node.target)))


def _body(module: Any, names: list[str]) -> list[str]:
    """The lines between the first and the last one of torch's own rendering, which ends with the tuple of outputs."""
    source: str = module.graph.python_code("self").src
    lines = [line for line in source.splitlines() if line.startswith("    ") and line.strip()]
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    returned = ", ".join(f"{name!r}: {node.name}" for name, node in zip(names, output.args[0], strict=True))
    return [*(line for line in lines if not line.lstrip().startswith("return ")), f"    return {{{returned}}}"]


def _output_names(program: Any) -> list[str]:
    """Keys of the dict that the program returns, in the order of its outputs."""
    from torch.utils import _pytree

    structure = program.call_spec.out_spec
    names: dict[str, int] = _pytree.tree_unflatten(range(structure.num_leaves), structure)
    return sorted(names, key=lambda name: names[name])
