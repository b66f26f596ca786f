"""Reads one line of code that stands for one call of a verb: ``study.profile(batch=8)`` or ``%aimass profile model --batch 8``."""

from __future__ import annotations

import ast
import inspect
import shlex
from typing import Any

from ..errors import InputError
from ..verbs import Verb
from .arguments import get_verb, parse_arguments

EXAMPLES = "study.profile(batch=8) or %aimass profile model --batch 8"


def read_line(line: str) -> tuple[Verb, dict[str, Any]]:
    """The verb and its arguments.

    Nothing is evaluated but literals, so a line that comes from a browser can do no more than a verb can. Where a verb takes further
    models, their variables are given as names.

    Raises:
        InputError: not such a line, or its arguments do not fit the verb.
        UnknownNameError: no such verb.
    """
    text = line.strip()
    if text.startswith("%aimass "):
        name, *words = shlex.split(text)[1:]
        verb = get_verb(name)
        return verb, parse_arguments(verb, words, model_required=False)[1]
    call, name = _call_in(line)
    verb = get_verb(name)
    models = {parameter.name for parameter in verb.parameters if parameter.names_model}
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {k.arg: (_names if k.arg in models else ast.literal_eval)(k.value) for k in call.keywords if k.arg is not None}
    except ValueError as error:
        raise _no_line(line) from error
    try:
        bound = inspect.signature(verb.function).bind(*([None] if verb.of_study else []), *positional, **named)
    except TypeError as error:
        raise InputError(f"{line!r}: {error}", help=f"%aimass {verb.name}? tells what there is") from error
    return verb, {name: value for name, value in bound.arguments.items() if name != "self"}


def _call_in(line: str) -> tuple[ast.Call, str]:
    """The call, and the name of what is called."""
    try:
        call = ast.parse(line.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _no_line(line) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        raise _no_line(line)
    return call, call.func.attr


def _no_line(line: str) -> InputError:
    return InputError(f"{line!r} is not a line that stands for one verb", help=f"write it as {EXAMPLES}")


def _names(node: ast.expr) -> tuple[str, ...]:
    """The variables in ``(first, second)``, or in ``first``."""
    items = node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node]
    if not all(isinstance(item, ast.Name) for item in items):
        raise ValueError("not variables")
    return tuple(item.id for item in items if isinstance(item, ast.Name))
