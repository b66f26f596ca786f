"""Recipes as text and files, and the check of a whole recipe before any of it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .compression.base import Context, Form, Stage, Technique, make_technique
from .errors import InputError, UnsupportedError, reason_of
from .options import changed_options, read_call, read_table
from .records import ORIGINAL, Recipe, Step

if TYPE_CHECKING:
    from torch import nn

FILES = (".json", ".yaml", ".yml")
HELP = "for example 'channel_pruning(ratio=0.5) + recover(epochs=3) + int8_dynamic', or the path of a .yaml or .json file"


def read_recipe(source: str | Recipe | Path, *, seed: int | None = None) -> Recipe:
    """Read a recipe: its text, the path of a file, or one that is one already.

    Every step is made once, so that what comes back names only techniques and options that there are, each option by its type and only
    where it differs from the default.

    Args:
        source: ``"low_rank(energy=0.9) + int8_dynamic"``, ``"none"``, a path ending in .yaml or .json, or a `Recipe`.
        seed: Takes the place of the recipe's own.

    Raises:
        InputError: the text is no recipe, or a technique has no such option or value.
        UnknownNameError: there is no such technique.
        MissingPackageError: a technique needs a package that is not installed.
    """
    if isinstance(source, Recipe):
        recipe = source
    elif isinstance(source, Path) or str(source).endswith(FILES):
        recipe = _from_file(Path(source))
    else:
        recipe = Recipe(steps=tuple(_steps(str(source))))
    steps = tuple(Step(technique=s.technique, options=changed_options(make_technique(s.technique, s.options))) for s in recipe.steps)
    return Recipe(steps=steps, seed=recipe.seed if seed is None else seed)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write `recipe` as YAML or JSON, by the ending of `path`.

    Raises:
        InputError: another ending, or a file that cannot be written.
    """
    if path.suffix not in FILES:
        raise InputError(f"{path} cannot hold a recipe", help=f"end the name in {', '.join(FILES)}")
    content = msgspec.to_builtins(recipe)
    if path.suffix == ".json":
        text = json.dumps(content, indent=2) + "\n"
    else:
        import yaml

        text = yaml.safe_dump(content, sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def check_recipe(recipe: Recipe, context: Context) -> tuple[Technique, ...]:
    """Check order, compatibility, and what device and samples lack, before anything is copied or run.

    Returns:
        The techniques of the steps.

    Raises:
        UnsupportedError: a step cannot stand where it does, or is not possible here.
    """
    techniques = tuple(make_technique(step.technique, step.options) for step in recipe.steps)
    form: Form = "weights"
    latest = Stage.ARCHITECTURE
    before = ""
    for step, technique in zip(recipe.steps, techniques, strict=True):
        if form not in technique.takes:
            raise UnsupportedError(
                f"{step.technique} cannot follow {before}: {technique.why_not_after(form)}", help=_advice(step.technique, technique.stage, latest, before)
            )
        if technique.stage is not Stage.ANY:
            if technique.stage < latest:
                lost = f"{step.technique} cannot follow {before}: what is done first would be lost"
                raise UnsupportedError(lost, help=f"put {step.technique} before {before}")
            latest, before = technique.stage, step.technique
        form = technique.gives or form
        if technique.gives:
            before = step.technique
    for step, technique in zip(recipe.steps, techniques, strict=True):
        lacking = technique.unavailable(context)
        if lacking is not None:
            raise UnsupportedError(f"{step.technique} is not possible here: {lacking}")
    return techniques


def check_step(step: Step, technique: Technique, model: nn.Module, context: Context) -> None:
    """Ask a technique whether it is possible on the model as the steps before left it.

    Raises:
        UnsupportedError: it is not.
    """
    cause = technique.check(model, context)
    if cause is not None:
        raise UnsupportedError(f"{step.technique} is not possible here: {cause}")


def _advice(name: str, stage: Stage, latest: Stage, before: str) -> str:
    return f"put {name} before {before}" if stage is Stage.ANY or stage < latest else f"leave one of {before} and {name} out"


def _steps(text: str) -> Iterator[Step]:
    if text.strip() == ORIGINAL:
        return
    for part in re.split(r"\+(?![^()]*\))", text):
        name, options = read_call(part, what=f"in {text!r} is no step of a recipe", help=HELP)
        yield Step(technique=name, options=dict(options))


def _from_file(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read: {reason_of(error)}", help=HELP) from error
    import yaml

    form = "a list 'steps', each with 'technique' and, where they differ from the defaults, 'options'"
    try:
        content = yaml.safe_load(text)  # JSON is YAML
        if isinstance(content, list):
            content = {"steps": content}
        if isinstance(content, Mapping) and isinstance(content.get("steps"), list):
            content = {**content, "steps": [_plain_step(step) for step in content["steps"]]}
    except yaml.YAMLError as error:
        raise InputError(f"{path} holds no recipe: {error}", help=form) from error
    return read_table(content, Recipe, f"{path} holds no recipe", help=form)


def _plain_step(step: Any) -> Any:
    """A step that is written as text, ``low_rank(energy=0.9)``, as what it stands for."""
    return msgspec.to_builtins(next(_steps(step))) if isinstance(step, str) and step.strip() != ORIGINAL else step
