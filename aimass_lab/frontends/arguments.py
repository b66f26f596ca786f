"""Builds a parser from a verb's one definition, for the command line and the magics alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import InputError, UnknownNameError, did_you_mean
from ..verbs import VERBS, Parameter, Verb


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process: a kernel must survive a typing error."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it ends the process.

        Raises:
            InputError: always.
        """
        raise InputError(message, help=f"{self._meant()}{self._short_usage()}; {self.prog} --help lists all options")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the words: of a required option that was mistyped, only its absence is told."""
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def _meant(self) -> str:
        """Which option an unknown one is near to."""
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = (word for word in self._words if word.startswith("--") and word.partition("=")[0] not in known)
        return next((did_you_mean(word.partition("=")[0], known) for word in unknown), "")

    def _short_usage(self) -> str:
        """What must be given: the whole usage fills the screen, and what was wrong is above it."""
        words = [self.prog]
        for action in self._actions:
            if action.required:
                words += [*action.option_strings[:1], str(action.metavar or action.dest)]
        return " ".join([*words, "[OPTIONS]"])

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Leave after ``--help`` was printed.

        Raises:
            HelpShown: always.
        """
        raise HelpShown


class HelpShown(Exception):
    """The help was asked for and printed; there is nothing left to do."""


def get_verb(name: str) -> Verb:
    """The verb called `name`.

    Raises:
        UnknownNameError: there is none.
    """
    from .. import operations, study  # noqa: F401  their verbs enter themselves

    if name not in VERBS:
        raise UnknownNameError("verb", name, VERBS)
    return VERBS[name]


def all_verbs() -> tuple[Verb, ...]:
    """Every verb: those of a study first, in the order in which they are used."""
    from .. import operations, study  # noqa: F401

    return tuple(sorted(VERBS.values(), key=lambda v: not v.of_study))


def build_parser(verb: Verb, *, model_required: bool) -> Parser:
    """The parser of one verb, with its help.

    Args:
        verb: Its definition.
        model_required: Whether a verb of a study must name its model; in a notebook the last one is meant if it does not.
    """
    parser = Parser(
        prog=f"aimass {verb.name}",
        description=f"{verb.summary}\n\n{verb.description}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb.of_study:
        text = (
            "path/to/file.py:factory or package.module:factory, which returns (model, example_inputs), or a Workload or Study, with data, metric and "
            "training data; in a notebook also a variable"
        )
        parser.add_argument("model", metavar="MODEL", nargs=None if model_required else "?", help=text)
    for parameter in verb.parameters:
        _add(parser, parameter)
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    return parser


def _add(parser: Parser, parameter: Parameter) -> None:
    flags = [parameter.name] if parameter.positional else [f"--{parameter.name.replace('_', '-')}"]
    options: dict[str, Any] = {"help": parameter.help.replace("%", "%%")}
    if parameter.positional:
        options["metavar"] = parameter.name.upper()
        options["nargs"] = None if parameter.required else "?"
    elif parameter.flag:
        options["action"] = "store_true"
    else:
        options["metavar"] = parameter.metavar
        options["required"] = parameter.required
        if parameter.default not in (None, ()):
            options["help"] += f" (default: {parameter.default})"
    if not parameter.flag:
        options["type"] = _typed(parameter.parse)
        # of what may be repeated, argparse would add to it
        options["default"] = None if parameter.positional or parameter.multiple != "no" else parameter.default
        if parameter.choices:
            options["choices"] = parameter.choices
    if parameter.multiple != "no":
        options["action"] = "append"
    parser.add_argument(*flags, **options)


def _typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show what our parser found wrong."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return convert


def parse_arguments(verb: Verb, tokens: Sequence[str], *, model_required: bool) -> tuple[str | None, dict[str, Any], bool]:
    """Read the words after a verb.

    Returns:
        The model's name (None if the verb has none, or none was given), the keyword arguments of the
        verb's function, and whether JSON was asked for.

    Raises:
        InputError: the words do not fit the verb.
        HelpShown: ``--help`` was among them.
    """
    values = vars(build_parser(verb, model_required=model_required).parse_args(list(tokens)))
    as_json = values.pop("json")
    model = values.pop("model", None) if verb.of_study else None
    for parameter in verb.parameters:
        if parameter.multiple != "no" and values[parameter.name] is None:
            values[parameter.name] = parameter.default
        elif parameter.multiple == "list":
            values[parameter.name] = tuple(values[parameter.name])
        elif parameter.multiple == "pairs":
            values[parameter.name] = _pairs(parameter.name, values[parameter.name])
    return model, values, as_json


def _pairs(name: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InputError(f"--{name} {text!r} is not of the form name=value", help=f"say what it is for: --{name} NAME={text}")
        pairs[key] = value
    return pairs
