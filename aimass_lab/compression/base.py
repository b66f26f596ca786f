"""What every technique promises, and how one is made from its name and options.

A technique is a frozen dataclass: its fields are its options, and so the form that a user sees.
torch is imported inside the methods, so that listing the techniques does not load it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from ..errors import InputError, MissingPackageError
from ..registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..workload import Call

OptionValue = bool | int | float | str | None


@dataclass(frozen=True)
class Coverage:
    """How much of a model a technique changes."""

    num_changed: int
    """Layers that the technique changes."""
    num_layers: int
    """Layers that hold weights."""
    weight_share: float
    """Share of the elements of all weights that lie in changed layers."""


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One way to make a model smaller or faster.

    A member sets `changes` and writes `apply`; it narrows `eligible` and adds to `check` where
    it does not work on every layer or on every device.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Distributions that must be installed."""
    changes: ClassVar[str] = "layers with weights"
    """What it changes, in words that follow 'it changes'."""

    @property
    def compiles(self) -> bool:
        """Whether the first call of the result includes a compilation."""
        return False

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the layers in `model` that `apply` would change."""
        return tuple(weight_layers(model))

    def check(self, model: nn.Module, call: Call, device: torch.device) -> str | None:
        """Say why the technique is not possible here, or None; asked before anything is copied."""
        if self.eligible(model):
            return None
        num_layers = len(weight_layers(model))
        if num_layers == 0:
            return f"it changes {self.changes}, and the model has no layer with weights"
        return f"0 of {num_layers} layers would be changed: it changes {self.changes} only"

    def apply(self, model: nn.Module) -> nn.Module:
        """Change `model`, a private copy in eval mode, and return it or what is to be called in its place."""
        raise NotImplementedError

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """What is known to keep this technique from being faster here: one sentence each."""
        return ()

    def coverage(self, model: nn.Module) -> Coverage:
        """How much of `model`, not yet changed, `apply` would change."""
        layers = weight_layers(model)
        changed = set(self.eligible(model))
        sizes = {name: sum(p.numel() for p in layer.parameters(recurse=False)) for name, layer in layers.items()}
        total = sum(sizes.values())
        share = sum(size for name, size in sizes.items() if name in changed) / total if total else 0.0
        return Coverage(num_changed=len(changed), num_layers=len(layers), weight_share=share)


TECHNIQUES: Registry[type[Technique]] = Registry("technique", "aimass_lab.compression")


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of every module that itself holds a floating-point parameter of two or more dimensions."""

    def holds_weight(module: nn.Module) -> bool:
        return any(p.dim() >= 2 and p.is_floating_point() for p in module.parameters(recurse=False))

    return {name: module for name, module in model.named_modules() if holds_weight(module)}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> module of the `nn.Linear` layers whose weight may be replaced by another kind of tensor.

    Left out: `nn.MultiheadAttention`'s output projection, whose weight the attention hands
    straight to a fused kernel, and weights that are already a special kind of tensor.
    """
    import torch
    from torch import nn

    return {
        name: layer
        for name, layer in weight_layers(model).items()
        if isinstance(layer, nn.Linear)
        and not isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and type(layer.weight) in (nn.Parameter, torch.Tensor)
    }


# --- options -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One field of a technique, as a form shows it."""

    name: str
    kind: str
    """``"bool"``, ``"int"``, ``"float"``, ``"str"`` or ``"choice"``."""
    default: OptionValue
    choices: tuple[OptionValue, ...]
    """The values there are, for a choice."""
    optional: bool
    """Whether None is a value."""
    text: str
    """The field's own documentation."""


def describe_options(member: type[Technique]) -> tuple[Option, ...]:
    """List the options of a technique in the order of its fields."""
    texts = _field_texts(member)
    hints = get_type_hints(member)
    options = []
    for field in dataclasses.fields(member):
        kind, optional, choices = _read_type(hints[field.name])
        default = cast(OptionValue, field.default)  # every option has one
        text = texts.get(field.name, "")
        options.append(Option(name=field.name, kind=kind, default=default, choices=choices, optional=optional, text=text))
    return tuple(options)


def make_technique(name: str, options: Mapping[str, OptionValue] | None = None) -> Technique:
    """Make the technique called `name`.

    Args:
        name: Of a member of `TECHNIQUES`.
        options: Field -> value; text is read by the field's type, ``"none"`` is None where a field allows it.

    Raises:
        UnknownNameError: there is no such technique.
        InputError: there is no such option, or a value that it cannot have.
        MissingPackageError: the technique needs a package that is not installed.
    """
    member = TECHNIQUES[name]
    known = {option.name: option for option in describe_options(member)}
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            there_are = f"options of {name}: {', '.join(known)}" if known else f"{name} has no options"
            raise InputError(f"{name} has no option {key!r}", help=there_are)
        values[key] = _read_value(name, known[key], value)
    technique = member(**values)
    for package in technique.requires:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise MissingPackageError(package, f"technique {name!r}")
    return technique


def changed_options(technique: Technique) -> dict[str, OptionValue]:
    """The options of `technique` that differ from their defaults."""
    return {f.name: getattr(technique, f.name) for f in dataclasses.fields(technique) if getattr(technique, f.name) != f.default}


def _read_type(hint: Any) -> tuple[str, bool, tuple[OptionValue, ...]]:
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        members = [arg for arg in get_args(hint) if arg is not type(None)]
        optional = len(members) < len(get_args(hint))
        (hint,) = members
    if get_origin(hint) is Literal:
        return "choice", optional, get_args(hint)
    if hint not in (bool, int, float, str):
        raise TypeError(f"an option of a technique cannot be of type {hint!r}")
    return hint.__name__, optional, ()


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _read_value(technique: str, option: Option, value: OptionValue) -> OptionValue:
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
    raise InputError(f"option {option.name!r} of {technique} is {value!r}, not {wanted}{also}")


def _field_texts(member: type[Technique]) -> dict[str, str]:
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
