"""Weights as safetensors, and beside them the graph as Python that can be read: calls of torch's operators and nothing else, which is checked."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from ..config import ServingConfig
from ..errors import BundleError
from ._torch import TorchRunner, is_operator, require

PLATFORM = "pytorch_safetensors"

MAX_CODE_BYTES = 2**26
IMPORTS = ("import math", "import operator", "import torch", "from math import inf, nan", "from torch import device")
PLAIN = (
    ast.Tuple, ast.List, ast.Dict, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Subscript, ast.Slice, ast.operator, ast.unaryop, ast.cmpop,
    ast.expr_context, ast.keyword,
)  # fmt: skip
"""What an expression may consist of, besides names, calls of operators, and attributes of torch that are constants."""


def load(path: Path, config: ServingConfig) -> TorchRunner:
    """Check the code, read the weights, and put them together.

    Raises:
        BundleError: the code is more than calls of operators, or one of the files cannot be read.
    """
    source = read_code(path.with_suffix(".py"))
    for package in ("torch", "safetensors"):
        require(package, "safetensors")
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception as error:  # of a Rust library, without a common base class
        raise BundleError(f"{path.name} is not a safetensors file: {error}") from None
    names: dict[str, Any] = {}
    exec(compile(source, path.with_suffix(".py").name, "exec"), names)
    forward = names["forward"]
    return TorchRunner(lambda *inputs: forward(weights, *inputs), config)


def read_code(path: Path) -> str:
    """The code, once it is known to be calls of operators and nothing else.

    Raises:
        BundleError: with the line that is something else.
    """
    try:
        if path.stat().st_size > MAX_CODE_BYTES:
            raise BundleError(f"{path.name} is larger than the code of a model can be")
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise BundleError(f"{path.name} cannot be read as the code of a model: {error}") from None
    forwards = 0
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            forwards += 1
            _check_function(statement, path.name)
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)) and ast.unparse(statement) not in IMPORTS:
            raise _refusal(path.name, statement)
    if forwards != 1:
        raise BundleError(f"{path.name} must define one function, and defines {forwards}")
    return source


def _check_function(function: ast.FunctionDef, file: str) -> None:
    """One function ``forward`` of plain arguments, that assigns and returns."""
    arguments = function.args
    odd = (*function.decorator_list, *arguments.defaults, *arguments.kw_defaults, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg, function.returns)
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if function.name != "forward" or any(odd) or any(argument.annotation for argument in arguments.args) or names[:1] != ["weights"]:
        raise _refusal(file, function)
    for statement in function.body:
        if isinstance(statement, ast.Assign):
            if not all(isinstance(target, ast.Name) and not target.id.startswith("__") for target in statement.targets):
                raise _refusal(file, statement)
            _check_expression(statement.value, file, statement)
        elif isinstance(statement, ast.Return) and statement.value is not None:
            _check_expression(statement.value, file, statement)
        else:
            raise _refusal(file, statement)


def _check_expression(node: ast.AST, file: str, statement: ast.stmt) -> None:
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called != "device" and not is_operator(called):
            raise _refusal(file, statement)
        parts: list[ast.AST] = [*node.args, *node.keywords]
    elif isinstance(node, ast.Attribute):
        if not isinstance(node.value, ast.Name) or node.value.id != "torch" or not node.attr.replace("_", "").isalnum() or node.attr.startswith("_"):
            raise _refusal(file, statement)
        parts = []
    elif isinstance(node, ast.Name):
        if node.id.startswith("__"):
            raise _refusal(file, statement)
        parts = []
    elif isinstance(node, PLAIN):
        parts = list(ast.iter_child_nodes(node))
    else:
        raise _refusal(file, statement)
    for part in parts:
        _check_expression(part, file, statement)


def _refusal(file: str, statement: ast.stmt) -> BundleError:
    text = ast.unparse(statement)
    return BundleError(f"{file}, line {statement.lineno}: {text[:120]!r} is more than calls of torch's operators, and is not run")
