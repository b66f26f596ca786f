"""Fields of a dataclass as options: listed with their help for a form, and read from text.

A member of a family is a frozen dataclass; its fields are its options, and the string under each is its help.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import re
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from .errors import InputError
from .records import OptionValue

_CALL = re.compile(r"(?P<name>[A-Za-z_][\w-]*)\s*(?:\((?P<options>[^()]*)\))?")
_QUOTED = re.compile(r"""(?P<quote>['"])(?P<text>.*)(?P=quote)""")


Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
"""A part that is neither nothing nor all."""
Positive = Annotated[int, msgspec.Meta(ge=1)]
"""A number of things, at least one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One field, as a form shows it."""

    name: str
    kind: str
    """``"bool"``, ``"int"``, ``"float"``, ``"str"`` or ``"choice"``."""
    default: OptionValue
    choices: tuple[OptionValue, ...]
    """The values there are, for a choice."""
    optional: bool
    """Whether None is a value."""
    bounds: msgspec.Meta
    """Where a number may lie, as the field's type says: ``Annotated[float, msgspec.Meta(gt=0, lt=1)]``."""
    text: str
    """The field's own documentation."""


@functools.cache
def describe_options(member: type[Any]) -> tuple[Option, ...]:
    """List the options of a dataclass in the order of its fields."""
    texts = _field_texts(member)
    hints = get_type_hints(member, include_extras=True)
    options = []
    for field in dataclasses.fields(member):
        kind, optional, choices, bounds = _read_type(hints[field.name])
        default = cast(OptionValue, field.default)  # every option has one
        text = texts.get(field.name, "")
        options.append(Option(name=field.name, kind=kind, default=default, choices=choices, optional=optional, bounds=bounds, text=text))
    return tuple(options)


def read_call(text: str, *, what: str, help: str) -> tuple[str, dict[str, str]]:
    """Take a member's name and its options apart: ``"low_rank(ratio=0.5)"``; a value may be in quotes, as in Python.

    Args:
        text: One name, with or without options in brackets.
        what: What the error says of another form: "is no step of a recipe".
        help: What the error says to do.

    Raises:
        InputError: the text has another form.
    """
    match = _CALL.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text.strip()!r} {what}", help=help)
    options = {}
    for part in filter(None, (piece.strip() for piece in (match["options"] or "").split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} in {text.strip()!r} is no option", help="options are written name=value, with commas between them")
        quoted = _QUOTED.fullmatch(value := value.strip())
        options[name.strip()] = quoted["text"] if quoted else value
    return match["name"], options


def write_call(name: str, options: Mapping[str, OptionValue]) -> str:
    """The text that `read_call` takes apart again: ``"low_rank(ratio=0.5)"``."""
    written = ", ".join(f"{key}={_written(value)}" for key, value in options.items())
    return f"{name}({written})" if written else name


def _written(value: OptionValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def read_options(member: type[Any], name: str, options: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Read values by the types of the fields they are for; ``"none"`` is None where a field allows it.

    Args:
        member: A dataclass.
        name: What to call it in messages.
        options: Field -> value, or the value's text.

    Raises:
        InputError: there is no such option, or a value that it cannot have.
    """
    known = {option.name: option for option in describe_options(member)}  # type: ignore[arg-type]  # classes are hashable
    values = {}
    for key, value in options.items():
        if key not in known:
            there_are = f"options of {name}: {', '.join(known)}" if known else f"{name} has no options"
            raise InputError(f"{name} has no option {key!r}", help=there_are)
        values[key] = _read_value(name, known[key], value)
    return values


def check_bounds(member: Any, owner: Callable[[], str]) -> None:
    """Hold the numbers of an instance against the bounds that their types say.

    Args:
        member: An instance of a dataclass.
        owner: What to call it in the message.

    Raises:
        InputError: a number lies elsewhere.
    """
    for name, bounds in _bounds_of(type(member)).items():  # type: ignore[arg-type]  # classes are hashable
        value = getattr(member, name)
        if value is not None and not _within(value, bounds):
            raise InputError(f"{name} {value!r} of {owner()} is not {describe_bounds(bounds)}")


def describe_bounds(bounds: msgspec.Meta) -> str:
    """In words: ``above 0 and below 1``, ``from 2 to 256``, ``at least 1``."""
    if bounds.ge is not None and bounds.le is not None:
        return f"from {bounds.ge:g} to {bounds.le:g}"
    sides = (("at least", bounds.ge), ("above", bounds.gt), ("at most", bounds.le), ("below", bounds.lt))
    return " and ".join(f"{word} {end:g}" for word, end in sides if end is not None)


@functools.cache
def _bounds_of(member: type[Any]) -> dict[str, msgspec.Meta]:
    hints = get_type_hints(member, include_extras=True)
    read = {field.name: _read_type(hints[field.name])[3] for field in dataclasses.fields(member)}
    return {name: bounds for name, bounds in read.items() if bounds != msgspec.Meta()}


def _within(value: Any, bounds: msgspec.Meta) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    low = (bounds.ge is None or value >= bounds.ge) and (bounds.gt is None or value > bounds.gt)
    return low and (bounds.le is None or value <= bounds.le) and (bounds.lt is None or value < bounds.lt)


def changed_options(member: Any) -> dict[str, OptionValue]:
    """The options of an instance that differ from their defaults; infinity as text, which JSON can hold."""
    values = {f.name: getattr(member, f.name) for f in dataclasses.fields(member) if getattr(member, f.name) != f.default}
    return {name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in values.items()}


def _read_type(hint: Any) -> tuple[str, bool, tuple[OptionValue, ...], msgspec.Meta]:
    optional, bounds = False, msgspec.Meta()
    if get_origin(hint) in (Union, types.UnionType):
        members = [arg for arg in get_args(hint) if arg is not type(None)]
        optional = len(members) < len(get_args(hint))
        (hint,) = members
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    if get_origin(hint) is Literal:
        return "choice", optional, get_args(hint), bounds
    if hint not in (bool, int, float, str):
        raise TypeError(f"an option cannot be of type {hint!r}")
    return hint.__name__, optional, (), bounds


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _read_value(owner: str, option: Option, value: OptionValue) -> OptionValue:
    if option.optional and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    wanted = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "text"}.get(option.kind)
    if option.kind == "choice":
        wanted = " or ".join(str(choice) for choice in option.choices)
        for choice in option.choices:
            if value == choice or str(value) == str(choice):
                return choice
    elif option.kind == "bool":
        word = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if word is not None:
            return word
    elif option.kind == "str" and isinstance(value, str):
        return value
    elif option.kind in ("int", "float") and not isinstance(value, bool) and value is not None:
        try:
            number = float(value) if option.kind == "float" else int(str(value))
        except ValueError:
            number = None
        if number is not None:
            return number
    also = " or none" if option.optional else ""
    raise InputError(f"option {option.name!r} of {owner} is {value!r}, not {wanted}{also}")


def read_tables(data: Mapping[str, Any], kind: type[T], parts: Mapping[str, type[Any]], where: str, *, help: str, strict: bool = True) -> T:
    """Read a file of named tables; an error names the table, which that of the whole would leave open.

    Args:
        data: What a parser gave.
        kind: Of the whole.
        parts: Of the tables below a name of the whole.
        where: What to call the source in messages.
        help: What the error says to do.
        strict: Whether a text is never a number.

    Raises:
        InputError: it is none.
    """
    for part, one in parts.items():
        tables = data.get(part)
        for name, table in tables.items() if isinstance(tables, Mapping) else ():
            read_table(table, one, f"{where}: [{part}.{name}]", help=help, strict=strict)
    return read_table(data, kind, where, help=help, strict=strict)


def read_table(data: Any, kind: type[T], where: str, *, help: str, strict: bool = True) -> T:
    """Read one table; see `read_tables`."""
    try:
        return msgspec.convert(data, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_in_words(str(error), data, kind)}", help=help) from error


_REFUSED = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?")
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]*)`(?: (?P<side>[<>]=?) (?P<end>\S+))?(?:, got `\w+`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_SIDES = {">=": " of at least", ">": " above", "<=": " of at most", "<": " below"}
_KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list", "object": "a table"}


def _in_words(message: str, data: Any, kind: type[Any]) -> str:
    """What msgspec found wrong with `data`, in words for who wrote it, with the value; its own where they are of another form."""
    refused = _REFUSED.fullmatch(message)
    assert refused is not None
    what, path = refused["what"], refused["path"] or ""
    inside = f" in {path}" if path else ""
    if unknown := _UNKNOWN.fullmatch(what):
        return f"there is no field {unknown['field']!r}{inside}"
    if missing := _MISSING.fullmatch(what):
        return f"the field {missing['field']!r} is missing{inside}"
    if what.startswith("Invalid enum value") and path in (hints := get_type_hints(kind, include_extras=True)):
        return f"{path} is {_at(path, data)!r}, not {' or '.join(map(str, _read_type(hints[path])[2]))}"
    expected = _EXPECTED.fullmatch(what)
    if expected is None:
        return message
    kinds = " or ".join(_KINDS.get(kind, kind) for kind in expected["kinds"].split(" | ") if kind != "null")
    bound = f"{_SIDES[expected['side']]} {float(expected['end']):g}" if expected["side"] else ""
    return f"{path or 'it'} is {_at(path, data)!r}, not {kinds}{bound}"


def _at(path: str, data: Any) -> Any:
    """The value at a path of msgspec's, such as ``steps[0].technique``; at one that goes through a mapping, whose keys it does not tell, the mapping."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path.partition("[...]")[0]):
        data = data[int(index)] if index else data[name]
    return data


def _field_texts(member: type[Any]) -> dict[str, str]:
    """Field -> the string that stands under it in the source."""
    texts: dict[str, str] = {}
    for part in reversed([c for c in member.__mro__ if dataclasses.is_dataclass(c)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            text = following.value.value if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) else None
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(text, str):
                texts[statement.target.id] = inspect.cleandoc(text)
    return texts
