"""An exported program of torch.export (.pt2): its archive is looked through, since torch's loader runs much of what it may hold."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import ServingConfig
from ..errors import BundleError
from ._archive import Archive
from ._torch import TorchRunner, is_operator, require

PLATFORM = "pytorch_exported_program"

MEMBERS = (
    r"archive_format", r"models/model\.json", r"data/weights/weight_\d+", r"data/weights/model_weights_config\.json",
    r"data/constants/tensor_\d+", r"data/constants/model_constants_config\.json", r"data/sample_inputs/model\.pt",
)  # fmt: skip
SYMBOLIC = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv", "CeilDiv", "CleanDiv", "PythonMod", "ModularIndexing",
    "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "FloorToInt", "CeilToInt", "Identity", "Eq", "Ne", "Equality", "Unequality",
    "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan", "And", "Or", "Not", "Where",
})  # fmt: skip
"""Functions in the text of a size; torch evaluates that text as Python."""
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
MAX_DEPTH = 200


def load(path: Path, config: ServingConfig) -> TorchRunner:
    """Look through the archive, and load it.

    Raises:
        BundleError: it holds something that could do more than compute, or torch does not load it.
    """
    check(path)
    torch: Any = require("torch", "exported_program")
    try:
        with path.open("rb") as file:
            module = torch.export.load(file).module()
    except Exception as error:
        raise BundleError(f"{path.name} does not load in torch: {str(error)[:500]}") from None
    return TorchRunner(module, config)


def check(path: Path) -> None:
    """Refuse what torch's loader would run.

    That loader unpickles example inputs, weights and constants that say so; evaluates the text of sizes and of conditions as Python; and finds
    functions by following names from ``torch``, ``math`` and ``operator``, wherever they lead.

    Raises:
        BundleError: with what it is.
    """
    archive = Archive(path, MEMBERS)
    if "data/sample_inputs/model.pt" in archive.members and archive.read("data/sample_inputs/model.pt"):
        raise BundleError(f"{path.name} holds example inputs, which torch unpickles; write it without them")
    for kind in ("weights", "constants"):
        for name, entry in _object(archive, f"data/{kind}/model_{kind}_config.json").get("config", {}).items():
            if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
                raise BundleError(f"{path.name}: {name!r} of the {kind} is a pickle")
            if not str(entry.get("path_name")).startswith(("weight_", "tensor_")):
                raise BundleError(f"{path.name}: {name!r} of the {kind} is no tensor, but {entry.get('path_name')!r}")
    program = _object(archive, "models/model.json")
    if program.get("guards_code"):
        raise BundleError(f"{path.name} holds conditions as Python code, which torch would run: {str(program['guards_code'])[:80]}")
    for key, value in _entries(program, 0):
        if key == "target" and isinstance(value, str) and not is_operator(value):
            raise BundleError(f"{path.name}: its graph calls {value[:80]!r}, which is no operator of torch on tensors")
        if key == "expr_str":
            _check_size(value, path.name)
        if key in ("in_spec", "out_spec"):
            _check_containers(value, path.name)


def _object(archive: Archive, name: str) -> dict[str, Any]:
    try:
        value = json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{archive.path.name}: {name!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{archive.path.name}: {name!r} holds no JSON object")
    return value


def _entries(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    if depth > MAX_DEPTH:
        raise BundleError(f"a graph is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, depth + 1)


def _check_containers(text: Any, file: str) -> None:
    """How tensors are nested: tuples, lists and dicts; torch imports the module of any other kind."""
    try:
        tree = json.loads(text) if isinstance(text, str) else None
        for key, value in _entries(tree, 0):
            if key == "type" and value not in CONTAINERS:
                raise BundleError(f"{file}: its arguments or outputs are a {str(value)[:80]!r}, and may be tuples, lists and dicts")
            if key == "context" and value is not None and not all(isinstance(part, (str, int)) for part in json.loads(value) or []):
                raise BundleError(f"{file}: the structure of its arguments or outputs says {value[:80]!r}, which is more than names")
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"{file}: the structure of its arguments or outputs cannot be read: {error}") from None


def _check_size(text: Any, file: str) -> None:
    """A size is arithmetic: numbers, named symbols, and functions that are known."""
    try:
        tree = ast.parse(str(text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BundleError(f"{file}: the size {str(text)[:80]!r} is no arithmetic") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        plain = isinstance(node, (ast.Expression, ast.Call, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.keyword, ast.expr_context))
        known = isinstance(node, ast.Name) and (node.id in SYMBOLIC if id(node) in called else node.id[:1] in "suz" and node.id[1:].isdigit())
        value = isinstance(node, ast.Constant) and (isinstance(node.value, (bool, int, float)) or str(node.value).isidentifier())
        if not (plain or known or value or isinstance(node, (ast.Compare, ast.cmpop))):
            raise BundleError(f"{file}: the size {str(text)[:80]!r} is no arithmetic")
