"""Something that torch computes, behind the arrays of the server; and which of torch's operators a stored graph may name."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import ServingConfig
from ..errors import BundleError

if TYPE_CHECKING:
    from types import ModuleType

Function = Callable[..., Mapping[str, Any]]

OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.([a-z_0-9]+)\.[A-Za-z_0-9]+", re.IGNORECASE)
WITH_FILES = frozenset({"from_file", "save", "load", "_print", "print", "to_file"})
"""Operators that reach beyond tensors."""
ARITHMETIC = frozenset({
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "getitem",
    "ceil", "floor", "sqrt", "trunc", "sym_max", "sym_min", "sym_not", "sym_int", "sym_float", "sym_ite", "sym_sum", "lshift", "rshift",
})  # fmt: skip
"""What Python itself computes in a stored graph: sizes."""


class TorchRunner:
    """Calls `function` with tensors that share the arrays' memory.

    Args:
        function: Takes the inputs by position, gives the outputs by name.
        config: Their order, and how many threads there are.
    """

    def __init__(self, function: Function, config: ServingConfig) -> None:
        import torch

        torch.set_num_threads(config.threads_per_worker)
        self._torch, self._function = torch, function
        self._outputs = [spec.name for spec in config.outputs]

    def run(self, inputs: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Compute all outputs."""
        with self._torch.inference_mode():
            outputs = self._function(*(self._torch.from_numpy(np.require(array, requirements=["C", "A", "W"])) for array in inputs))
        return [outputs[name].numpy() for name in self._outputs]


def require(package: str, format: str) -> ModuleType:
    """Import a package that not every bundle needs.

    Raises:
        BundleError: it is not installed here.
    """
    if importlib.util.find_spec(package) is None:
        raise BundleError(f"the format {format} needs the package {package}, which is not installed here: pip install -r requirements.txt of its bundle")
    return importlib.import_module(package)


def is_operator(name: str) -> bool:
    """Whether a dotted name is that of an operator that computes tensors from tensors, or sizes from sizes."""
    found = OPERATOR.fullmatch(name)
    if found:
        return found[2].lower() not in WITH_FILES and (not found[2].startswith("__") or found[2].endswith("__"))
    module, _, function = name.rpartition(".")
    return module in ("operator", "_operator", "math", "torch") and function in ARITHMETIC
