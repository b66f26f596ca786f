"""TorchScript (.pt): its code and its pickles are looked through before torch reads them."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import Any

from ..config import ServingConfig
from ..errors import BundleError
from ._archive import Archive, check_pickle
from ._torch import WITH_FILES, TorchRunner, require

PLATFORM = "pytorch_libtorch"

MEMBERS = (r"data\.pkl", r"data/\d+", r"constants\.pkl", r"constants/\d+", r"code/__torch__/[A-Za-z0-9_/]+\.py", r"code/__torch__\.py")
GLOBALS = (
    r"__torch__(\.\w+)+", r"torch\.(Float|Double|Half|BFloat16|Byte|Char|Short|Int|Long|Bool)Storage", r"torch\._utils\._rebuild_tensor_v2",
    r"collections\.OrderedDict", r"torch\.jit\._pickle\.(build_(int|tensor|double|bool)list|restore_type_tag)", r"torch\.device",
)  # fmt: skip
FUNCTIONS = frozenset({
    "annotate", "getattr", "int", "float", "bool", "str", "len", "list", "tuple", "dict", "range", "uninitialized", "unchecked_cast", "isinstance", "max",
    "min",    "abs", "round", "sum", "List", "Dict", "Optional", "Tuple",
})  # fmt: skip
"""What the code may call by a bare name."""
BEYOND = WITH_FILES | {"rpc_async", "rpc_sync", "rpc_remote", "PythonOp", "Print", "fork", "awaitable"}
"""Names that reach beyond tensors, wherever they stand: TorchScript finds operators as methods of any value."""
NAMESPACES = ("aten", "prim")
ALLOWED = (
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AnnAssign, ast.Return, ast.Expr, ast.If, ast.For, ast.While, ast.Pass,
    ast.Break, ast.Continue, ast.IfExp, ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.Subscript, ast.Slice, ast.Starred, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


def load(path: Path, config: ServingConfig) -> TorchRunner:
    """Look through the archive, and load it.

    Raises:
        BundleError: it holds something that could do more than compute, or torch does not load it.
    """
    check(path)
    torch: Any = require("torch", "torchscript")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise BundleError(f"{path.name} does not load in torch: {str(error)[:500]}") from None
    return TorchRunner(module, config)


def check(path: Path) -> None:
    """Refuse pickles that build anything but tensors, and code that reaches beyond them.

    Raises:
        BundleError: with what it is.
    """
    archive = Archive(path, MEMBERS)
    for name in archive.members:
        if name.endswith(".pkl"):
            check_pickle(archive.read(name), GLOBALS, f"{path.name}: {name}")
        elif name.endswith(".py"):
            _check_code(archive.read(name), f"{path.name}: {name}")


def _check_code(source: bytes, where: str) -> None:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise BundleError(f"{where} is not TorchScript: {error}") from None
    for node in nodes:
        found = _beyond(node)
        if found is not None:
            raise BundleError(f"{where}, line {getattr(node, 'lineno', '?')}: {found[:80]!r} is more than computing with tensors, and is not loaded")


def _beyond(node: ast.AST) -> str | None:
    """What reaches beyond tensors in this node; None: nothing."""
    if not isinstance(node, ALLOWED):
        return type(node).__name__
    if isinstance(node, ast.Attribute):
        names = ast.unparse(node).split(".")
        if node.attr in BEYOND or (names[0] == "ops" and len(names) > 1 and names[1] not in NAMESPACES):
            return ".".join(names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in FUNCTIONS:
        return node.func.id
    return None
