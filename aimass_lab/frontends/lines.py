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

    Nothing is evaluated but literals, so a line that comes from a browser can do no more than a verb can.

    Raises:
        InputError: not such a line, or its arguments do not fit the verb.
        UnknownNameError: no such verb.
    """
    text = line.strip()
    if text.startswith("%aimass "):
        name, *words = shlex.split(text)[1:]
        verb = get_verb(name)
        return verb, parse_arguments(verb, words, model_required=False)[1]
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            raise ValueError("not a call of a verb")
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{line!r} is not a line that stands for one verb", help=f"write it as {EXAMPLES}") from error
    verb = get_verb(call.func.attr)
    try:
        bound = inspect.signature(verb.function).bind(*([None] if verb.of_study else []), *positional, **named)
    except TypeError as error:
        raise InputError(f"{line!r}: {error}", help=f"%aimass {verb.name}? tells what there is") from error
    return verb, {name: value for name, value in bound.arguments.items() if name != "self"}
