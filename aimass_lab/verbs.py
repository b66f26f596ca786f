"""What a user can ask for, defined once: names, options, help and types are read off the Python functions.

A function marked with `verb` becomes ``aimass NAME ...`` on the command line and ``%aimass NAME ...``
in a notebook. Its signature gives the arguments and its docstring the help, so the three cannot drift apart.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
import os
import re
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast

import msgspec

from .dynamic_shapes import read_dynamic_shapes
from .errors import ArgumentError, DoesNotFitError, InputError, did_you_mean, without_traceback
from .interrupts import spare_imports
from .units import (
    parse_amount,
    parse_bandwidth,
    parse_burst,
    parse_bytes,
    parse_count,
    parse_latency,
    parse_part,
    parse_rate,
    parse_seconds,
    parse_seed,
    parse_share,
)

Rate = Annotated[float | str, parse_rate]
"""Per second: 400, "400/s" or "24000/min"."""
Seconds = Annotated[float | str, parse_seconds]
"""A time: 0.05 or "50ms"."""
Latency = Annotated[float | str, parse_latency]
"""A time that some say in milliseconds: 0.05 or "50ms", but not 50. Reading takes the unit away, so it is done once, and texts stay texts until then."""
Bytes = Annotated[float | str, parse_bytes]
"""A size: 1e9 or "512MiB"."""
Bandwidth = Annotated[float | str, parse_bandwidth]
"""One direction of a link: 1.25e9 (bytes per second), "10Gbit/s" or "1.25GB/s"."""
Count = Annotated[int, parse_count]
"""A number of things, at least one."""
Seed = Annotated[int, parse_seed]
"""Of everything random: the same seed draws the same lots."""
Burst = Annotated[float, parse_burst]
"""Rate of bursts over the rate between them."""
Amount = Annotated[float, parse_amount]
"""How much of something, 0 or more."""
Share = Annotated[float, parse_share]
"""Relative to something, 0 or more: 0.01 or "1%"."""
Part = Annotated[float, parse_part]
"""A part of a whole, above 0 and at most 1."""


def model_name(text: str) -> str:
    """A model's name as it was typed; the front-end finds what stands behind it."""
    return text


Model = Annotated[Any, model_name]
"""One more model: in Python a `Study`, a `Workload` or ``(model, example_inputs)``; elsewhere a name, as the first one's."""

DynamicShapes = Annotated[Any, read_dynamic_shapes]
"""Which sizes requests may choose: ``"1=1..512"``, or in Python as `torch.export` has it."""

Progress = Callable[[float, str], None]
"""Told the finished share (0 to 1) of a long piece of work, and what is being done."""
Seen = Callable[[Any], None]
"""Given, as a record, what is known before the end of a long piece of work."""

NOT_ASKED = frozenset({"self", "progress", "seen"})
"""Parameters of a verb's function that no person fills in: `progress` is told how far it is, `seen` is given what it has found so far."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One argument of a verb."""

    name: str
    help: str
    parse: Callable[[str], Any]
    """Text to value; raises `InputError`."""
    check: Callable[[Any], Any]
    """One value from Python to the same, read where it is a text; raises `InputError` where the verb could do nothing with it."""
    default: Any
    required: bool
    positional: bool
    flag: bool
    """Stands for True when given; takes no value."""
    multiple: Literal["no", "list", "pairs"]
    """Whether it may be repeated, and then what the repetitions make: a tuple, or a dict of ``key=value``."""
    names_model: bool = False
    """Whether its text names a model, which the front-end has to find."""
    choices: tuple[str, ...] = ()
    metavar: str = ""
    """What stands for its value in the help: ``N``, ``NAME=VALUE``, ``RATE``."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One thing a user can ask for."""

    name: str
    function: Callable[..., Any]
    of_study: bool
    """Whether it is a method of `Study` and so needs a model."""
    summary: str
    description: str
    parameters: tuple[Parameter, ...]


VERBS: dict[str, Verb] = {}


class Watcher(Protocol):
    """Told of every verb that a person asks for; verbs that verbs call are left out."""

    def began(self, name: str) -> None:
        """A verb begins."""

    def ended(self, name: str, result: Any) -> None:
        """It ended; `result` is None when it raised."""


WATCHERS: list[Watcher] = []
_inside = threading.local()
_TURN = threading.Lock()
"""Held by the thread whose verb works on a model: of two at once, each would spoil the other's figures, and neither could put the model back."""


def verb(function: Function) -> Function:
    """Make `function` a verb of every front-end; its parameters before ``*`` are positional, those after are options.

    Called from Python, an option that may be repeated takes a single value as well: ``batch=8`` is ``batch=(8,)``.

    Raises:
        ValueError: a verb of this name is there, or a parameter has no help in the docstring.
    """
    name = function.__name__
    if name in VERBS:
        raise ValueError(f"two verbs are called {name!r}")
    doc = inspect.cleandoc(function.__doc__ or "")
    head, helps = _parse_docstring(doc)
    signature = inspect.signature(function)
    # Without the result's type, which is for readers and may name what is loaded only when it is needed.
    annotations = types.SimpleNamespace(__annotations__={k: v for k, v in function.__annotations__.items() if k != "return"})
    hints = typing.get_type_hints(annotations, globalns=function.__globals__, include_extras=True)
    parameters = tuple(_parameter(p, hints[p.name], helps, name) for p in signature.parameters.values() if p.name not in NOT_ASKED)
    summary, _, rest = head.partition("\n")
    of_study = "self" in signature.parameters
    called = _called(function, name, parameters, of_study)
    VERBS[name] = Verb(
        name=name,
        function=called,
        of_study=of_study,
        summary=summary.strip(),
        description=rest.strip(),
        parameters=parameters,
    )
    return called


def announce(name: str, work: Callable[[], Any]) -> Any:
    """Do what a person asked for, and tell the watchers when it begins and ends; what it does on the way is not told.

    An interrupt ends it, but breaks off no import.
    """
    if _is_inside():
        return work()
    _inside.verb, result = True, None
    for watcher in WATCHERS:
        watcher.began(name)
    try:
        result = spare_imports(work)
    finally:
        _inside.verb = False
        for watcher in WATCHERS:
            watcher.ended(name, result)
    return result


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other thread's verb works on a model; in slices, between which what is raised from outside ends the waiting."""
    mine = False
    try:
        while not mine:
            mine = _TURN.acquire(timeout=0.05)
        yield
    finally:
        if mine:
            _TURN.release()


def _is_inside() -> bool:
    """Whether this thread is within a verb already."""
    return getattr(_inside, "verb", False)


def _called(function: Function, name: str, parameters: Iterable[Parameter], of_study: bool) -> Function:
    """The same function as a verb: one value of a list need not be put into a tuple, no nonsense gets in, and watchers are told.

    Verbs of studies take turns: one in another thread is waited for.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            given = signature.bind_partial(*args, **options)
        except TypeError as error:
            raise _misfit(name, signature, args, options, error) from None
        for option, value in given.arguments.items():
            if option in by_name and not _is_inside():  # what a verb hands on was read before
                given.arguments[option] = _read(by_name[option], value)
        try:
            with contextlib.nullcontext() if _is_inside() or not of_study else _turn():
                return announce(name, lambda: function(*given.args, **given.kwargs))
        except DoesNotFitError as error:
            without_traceback(error)
            raise error  # a bare raise would bring the traceback back, in Python 3.10

    return cast("Function", call)


def _misfit(name: str, signature: inspect.Signature, args: Sequence[Any], options: Mapping[str, Any], error: TypeError) -> ArgumentError:
    """Say which argument a verb does not take, and what it takes."""
    asked = [one for one in signature.parameters.values() if one.name not in NOT_ASKED]
    there = f"there are: {', '.join(one.name for one in asked)}"
    unknown = next((option for option in options if option not in signature.parameters), None)
    if unknown is not None:
        return ArgumentError(f"{name}() has no argument {unknown!r}", help=f"{did_you_mean(unknown, [one.name for one in asked])}{there}")
    num_places = sum(one.kind is not one.KEYWORD_ONLY for one in signature.parameters.values())
    if len(args) <= num_places:
        return ArgumentError(f"{name}(): {error}", help=there)
    by_name = [one for one in asked if one.kind is one.KEYWORD_ONLY]
    needed = [one.name for one in by_name if one.default is one.empty] or [one.name for one in by_name[:1]]
    example = ", ".join(f"{one}=..." for one in needed)
    return ArgumentError(f"{name}() takes its options by name, and got {args[num_places]!r} without one", help=f"write {name}({example}); {there}")


def _read(parameter: Parameter, value: Any) -> Any:
    """Read a value that came from Python.

    Raises:
        InputError: the verb could do nothing with it: a text for a number, a number that is none, a list for one thing.
    """
    if value is None and parameter.default is None and not parameter.required:
        return None
    if parameter.multiple == "pairs":
        if not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise InputError(f"{parameter.name}: {value!r} is not a dict by name")
        return {key: str(one) if isinstance(one, numbers.Real) and not isinstance(one, bool) else one for key, one in value.items()}
    if parameter.multiple == "no":
        return parameter.check(value)
    many = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    return tuple(map(parameter.check, value if many else (value,)))


def _parse_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into its prose and the help of each argument."""
    head, _, tail = doc.partition("\nArgs:\n")
    block = re.split(r"\n(?=\S)", tail, maxsplit=1)[0] if tail else ""
    helps: dict[str, str] = {}
    current = None
    for line in block.splitlines():
        match = re.match(r"^    (\w+): (.*)$", line)
        if match:
            current = match[1]
            helps[current] = match[2].strip()
        elif current and line.strip():
            helps[current] += " " + line.strip()
    head = re.split(r"\n(?:Returns|Raises):\n", head)[0]
    return head.strip(), helps


def _parameter(parameter: inspect.Parameter, hint: Any, helps: dict[str, str], verb_name: str) -> Parameter:
    if parameter.name not in helps:
        raise ValueError(f"the argument {parameter.name!r} of the verb {verb_name!r} has no help in its docstring")
    hint = _without_none(hint)
    origin = typing.get_origin(hint)
    multiple: Literal["no", "list", "pairs"] = "list" if origin is tuple else "pairs" if origin is dict else "no"
    inner = typing.get_args(hint)[0] if origin is tuple else str if origin is dict else hint
    choices = tuple(map(str, typing.get_args(inner))) if typing.get_origin(inner) is Literal else ()
    return Parameter(
        name=parameter.name,
        help=helps[parameter.name],
        parse=_keeping(parse_latency) if inner == Latency else _parser_of(inner, parameter.name),
        check=_checker_of(inner, parameter.name),
        default=None if parameter.default is parameter.empty else parameter.default,
        required=parameter.default is parameter.empty,
        positional=parameter.kind is not parameter.KEYWORD_ONLY,
        flag=inner is bool,
        multiple=multiple,
        names_model=inner == Model,
        choices=choices,
        metavar="NAME=VALUE" if multiple == "pairs" else "N" if inner in (int, Count, Seed) else parameter.name.upper(),
    )


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        left = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(left) == 1:
            return left[0]
    return hint


def _parser_of(hint: Any, name: str) -> Callable[[str], Any]:
    if typing.get_origin(hint) is Annotated:
        return typing.cast("Callable[[str], Any]", typing.get_args(hint)[1])
    if hint in (int, float):
        return lambda text: _number(text, hint, name)
    return str


def _keeping(read: Callable[[str], Any]) -> Callable[[str], str]:
    """Look whether a text can be read, and leave it as it is."""

    def parse(text: str) -> str:
        read(text)
        return text

    return parse


def _checker_of(hint: Any, name: str) -> Callable[[Any], Any]:
    """What a value must be that no text was read into."""
    if hint == Model:
        return lambda value: value  # whoever finds the model says what is wrong with it
    read = typing.get_args(hint)[1] if typing.get_origin(hint) is Annotated else _reader_of(hint)

    def check(value: Any) -> Any:
        try:
            return read(value)
        except InputError as error:
            raise InputError(f"{name}: {error.message}", help=error.help) from None

    return check


def _reader_of(hint: Any) -> Callable[[Any], Any]:
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    fits, wanted = (choices.__contains__, " or ".join(map(str, choices))) if choices else _KINDS[hint]

    def read(value: Any) -> Any:
        if not fits(value):
            raise InputError(f"{value!r} is not {wanted}")
        return value

    return read


def _is_number(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "True or False"),
    int: (lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool), "a whole number"),
    float: (_is_number, "a finite number"),
    str: (lambda value: isinstance(value, (str, os.PathLike, msgspec.Struct)), "text"),  # a path and a recipe have a text
}
"""Of each type of an argument: whether a value is one, and what is wanted."""


def _number(text: str, kind: type[int] | type[float], name: str) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        raise InputError(f"{text!r} is not a {'whole ' if kind is int else ''}number, which {name!r} must be") from None
    if not -math.inf < number < math.inf:
        raise InputError(f"{text!r} is not a finite number, which {name!r} must be")
    return number
