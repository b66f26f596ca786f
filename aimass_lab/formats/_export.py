"""From a torch module to an exported program that takes flat tensors, and archives without what only its makers need."""

from __future__ import annotations

import contextlib
import copy
import gc
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dynamic_shapes import BATCH
from ..errors import UnsupportedError, first_line
from ..quiet import import_quietly, quiet_export
from ..workload import Call
from .signature import Signature

if TYPE_CHECKING:
    from torch import nn

_CULPRIT = re.compile(r"following call raised this error:.*line (\d+), in (\w+)\n\s*([^\n]+)", re.DOTALL)
"""Where torch.export says what could not be decided: line, function, and the line itself."""


INSTEAD = {
    "torchao": "leave that step out: int8_weight_only is written as onnx and as safetensors, and onnxruntime(quantize=dynamic) has 8-bit arithmetic of its own",
    "transformers": "let the model compute its experts by torch's own operators: model.set_experts_implementation('batched_mm')",
}
"""What to do about operators that are a library's own, by the library."""


@contextlib.contextmanager
def without_stack_traces() -> Iterator[None]:
    """Let torch take none as it traces: they cost a tenth of an export, and no file may hold one, since they are paths and source lines of the user's."""
    import torch.fx.config

    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let Python look for no garbage: an export makes millions of objects that live until its end, and every look goes through all of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def export_program(model: nn.Module, call: Call, signature: Signature) -> Any:
    """Export what `model` does with `call` as a `torch.export.ExportedProgram`, without traces of this machine.

    Its inputs are the tensors of `call` in their order, its output a dict of tensors by name.

    Args:
        model: What to export.
        call: Example inputs, of two items or more where there is a batch axis.
        signature: Which sizes are left open.

    Raises:
        UnsupportedError: `torch.export` does not take the model, or the program would change its own weights.
    """
    import torch

    from ._interface import Flat

    refuse_scripted(model, f"torch.export does not take {type(model).__name__}")
    shapes = dynamic_shapes(signature)
    try:
        with quiet_export(), without_stack_traces(), without_collections():
            program = torch.export.export(Flat(model, call), tuple(call.tensors()), dynamic_shapes=shapes)
    except Exception as error:  # the exporter lets through whatever the model or a converter raises
        raise refusal(f"torch.export does not take {type(model).__name__}", error) from error
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):  # paths and source lines of the user's machine
                node.meta.pop(key, None)
    return program


def dynamic_shapes(signature: Signature) -> Any:
    """Which sizes of a `Flat` model's inputs are left open, as `torch.export.export` takes it."""
    from torch.export import Dim

    axes: dict[str, dict[int, Any]] = {spec.name: {} for spec in signature.inputs}
    if signature.batched:
        batch = Dim(BATCH, min=1)
        for open_axes in axes.values():
            open_axes[0] = batch
    for dimension in signature.dimensions:
        dim = Dim(dimension.name, min=dimension.min, max=dimension.max)
        for name, axis in dimension.axes:
            axes[name][axis] = dim
    return {"tensors": tuple(axes.values())} if any(axes.values()) else None


def without_subclasses(model: nn.Module) -> nn.Module:
    """The same model with torchao's tensors taken apart, as the exporter wants them; a copy where there are some."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not any(is_traceable_wrapper_subclass(parameter) for parameter in model.parameters()):
        return model
    import_quietly("torchao")
    return import_quietly("torchao.utils").unwrap_tensor_subclass(copy.deepcopy(model))


def refusal(what: str, error: BaseException, *, help: str | None = None) -> UnsupportedError:
    """Say why an exporter does not take a model.

    Args:
        what: Who does not take which model.
        error: What the exporter raised.
        help: What to do, where the model itself does not decide by values, which no graph can follow.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    lowest = bottom(error)
    if not isinstance(lowest, GuardOnDataDependentSymNode):
        return UnsupportedError(f"{what}: {first_line(lowest)}", help=help)
    line = _CULPRIT.search(str(lowest))
    where = f", at line {line[1]} of {line[2]}: {line[3]}" if line else ""
    return decides_by_values(what, where)


def help_about(operator: str) -> str | None:
    """What to do about an operator that torch does not have; None for one of torch's own.

    Args:
        operator: As torch writes it: the library, a dot, and the name there.
    """
    library, dot, _ = operator.partition(".")
    if dot and library in ("aten", "prims"):
        return None
    return INSTEAD.get(library, f"let the model compute what {operator} computes by torch's own operators")


def refuse_scripted(model: nn.Module, what: str) -> None:
    """Refuse what torch.export cannot read.

    Raises:
        UnsupportedError: the model is TorchScript already.
    """
    import torch

    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UnsupportedError(f"{what}: it is a TorchScript module, of which only the graph is left", help="give the nn.Module that it was made from")


def decides_by_values(what: str, where: str = "") -> UnsupportedError:
    """Say that a graph has one way through, and the model has several."""
    text = "torch.where computes both sides and chooses between their values, torch.cond keeps a branch; or wrap the part without the decision"
    return UnsupportedError(f"{what}: its forward decides by the values in a tensor{where}", help=text)


def cause_of(error: BaseException) -> str:
    """The first line of what lies at the bottom: it names the operator or the line of the model."""
    return first_line(bottom(error))


def bottom(error: BaseException) -> BaseException:
    """What caused all the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def repack(source: Path, target: Path, keep: Callable[[str], bool]) -> None:
    """Copy an archive with those of its members whose names `keep` lets pass; torch stores them uncompressed, and so does this."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as after:
        for name in filter(keep, before.namelist()):
            with before.open(name) as member, after.open(zipfile.ZipInfo(name), "w", force_zip64=True) as copied:
                while chunk := member.read(2**20):
                    copied.write(chunk)
