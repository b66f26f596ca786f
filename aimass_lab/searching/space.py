"""What a search may choose from: dimensions with their values, and which combinations of them are possible."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..compression.base import TECHNIQUES, Stage, make_technique
from ..errors import AimassError, InputError, reason_of
from ..options import read_options
from ..recipe import FILES, read_recipe
from ..records import ORIGINAL, Number, OptionValue, Pruned, Recipe, Setting, Step
from ..samplers.base import Point

CASTS = {"float32": "", "bfloat16": "bf16", "float16": "fp16"}
"""torch's word for a type -> the technique that casts to it."""
EAGER = "eager"
COUNTS = ("batch_size", "threads", "instances")
WORDS = ("recipe", "dtype", "runtime", "device")
MOST_RECIPES = 20_000
"""Combinations of recipe, type, runtime and options that a space may have: each of them is checked before anything is tried."""
HELP = "dimensions are recipe, dtype, runtime, batch_size, threads, instances, device, and STEP.option of a step that a recipe or runtime has"

Check = Callable[[Recipe], str | None]
"""Why a recipe is not possible here, or None."""


@dataclasses.dataclass(frozen=True)
class _Form:
    """One combination of what makes a recipe, with what came of it."""

    recipe: Recipe | None
    why_not: str | None


class Space:
    """The settings that a search may try.

    Args:
        dimensions: ``"recipe"`` -> texts; ``"dtype"`` -> torch's words; ``"runtime"`` -> ``"eager"`` or a recipe that is put at the end;
            ``"batch_size"``, ``"threads"``, ``"instances"`` -> positive numbers; ``"device"`` -> names; ``"STEP.option"`` -> values of an option
            of one technique, which recipes without it do not see. All of them may be left out; a path ending in .yaml or .json holds the same.
        check: Says why a recipe is not possible on the model, or None.
        dtype: Of the model as it is.
        here: The device that settings are measured on.
        cores: Combinations of threads and instances that need more are left out; none are if not given.

    Raises:
        InputError: a dimension or a value that there is not, or nothing is left that is possible.
    """

    def __init__(
        self,
        dimensions: Mapping[str, Sequence[Any]] | Path | str,
        *,
        check: Check = lambda recipe: None,
        dtype: str = "float32",
        here: str = "cpu",
        cores: int | None = None,
    ) -> None:
        given = read_space(dimensions) if isinstance(dimensions, (str, Path)) else dimensions
        self.here, self.cores, self._dtype = here, cores, dtype
        self.dimensions = _read_dimensions({"recipe": (ORIGINAL,), **given})
        self.devices: tuple[str, ...] = self.dimensions.pop("device", (here,))
        self._making = [name for name in self.dimensions if name not in COUNTS]
        self._forms = self._make_forms(check)
        self._keys = {form.recipe.name: key for key, form in self._forms.items() if form.recipe is not None and form.why_not is None}
        if not any(self.possible(point) for point in self._points()):
            causes = "; ".join(pruned.cause for pruned in self.pruned[:3])
            raise InputError(f"nothing in the search space is possible: {causes}", help=HELP)

    @functools.cached_property
    def num_points(self) -> int:
        """Possible settings, on all devices together."""
        return sum(self.possible(point) for point in self._points()) * len(self.devices)

    @functools.cached_property
    def pruned(self) -> tuple[Pruned, ...]:
        """Why combinations are left out, and how many settings, the most frequent cause first."""
        causes = Counter(cause for point in self._points() if (cause := self.why_not(point)) is not None and cause)
        return tuple(Pruned(num_points=_count(count * len(self.devices)), cause=cause) for cause, count in causes.most_common())

    def possible(self, point: Point) -> bool:
        """Whether `point` is a setting that can be tried, and the first of those that are the same."""
        return self.why_not(point) is None

    def why_not(self, point: Point) -> str | None:
        """Why a point is not tried: a sentence; empty where another point is the same setting; None where it is tried."""
        threads, instances = point.get("threads"), point.get("instances")
        if self.cores is not None and threads and instances and threads * instances > self.cores:
            return f"{instances} instances of {threads} threads need more than the {self.cores} cores there are"
        return self._forms[self._form_key(point)].why_not

    def setting(self, point: Point) -> Setting:
        """The setting that a possible point stands for."""
        recipe = self._forms[self._form_key(point)].recipe
        assert recipe is not None
        return Setting(recipe=recipe, batch_size=point.get("batch_size"), threads=point.get("threads"), instances=point.get("instances", 1))

    def point_of(self, setting: Setting) -> Point | None:
        """The point that stands for `setting`; None where the space has none."""
        key = self._keys.get(setting.recipe.name)
        if key is None:
            return None
        counts = {name: getattr(setting, name) for name in COUNTS if name in self.dimensions}
        found = {**dict(zip(self._making, key, strict=True)), **counts}
        return {name: found[name] for name in self.dimensions}

    def features(self, point: Point) -> dict[str, Any]:
        """What makes points alike: the recipe as a whole, its steps, their options, and the counts."""
        recipe = self._forms[self._form_key(point)].recipe
        found: dict[str, Any] = {name: point[name] for name in self.dimensions if "." not in name}
        for step in recipe.steps if recipe else ():
            found[step.technique] = True
            member = make_technique(step.technique, step.options)
            options = {field.name: getattr(member, field.name) for field in dataclasses.fields(member)}
            found |= {f"{step.technique}.{name}": value for name, value in options.items() if value is not None}
        return found

    def cost(self, point: Point) -> float:
        """What it costs to try a point beside the comparison itself: training and compiling take many times longer."""
        recipe = self._forms[self._form_key(point)].recipe
        members = [TECHNIQUES[step.technique] for step in recipe.steps] if recipe else []
        return 1.0 + sum(member.effort for member in members)

    def _points(self) -> Iterator[Point]:
        for values in itertools.product(*self.dimensions.values()):
            yield dict(zip(self.dimensions, values, strict=True))

    def _form_key(self, point: Point) -> tuple[Any, ...]:
        return tuple(point[name] for name in self._making)

    def _make_forms(self, check: Check) -> dict[tuple[Any, ...], _Form]:
        columns = [self.dimensions[name] for name in self._making]
        count = math.prod(map(len, columns))
        if count > MOST_RECIPES:
            raise InputError(f"the search space makes {count:,} recipes of its dimensions, and at most {MOST_RECIPES:,} are checked", help="give fewer values")
        forms: dict[tuple[Any, ...], _Form] = {}
        seen: set[str] = set()
        for key in itertools.product(*columns):
            forms[key] = form = self._make_form(dict(zip(self._making, key, strict=True)), check, seen)
            if form.recipe is not None:
                seen.add(form.recipe.name)
        return forms

    def _make_form(self, point: Point, check: Check, seen: set[str]) -> _Form:
        try:
            recipe = make_recipe(point, self._dtype)
        except AimassError as error:
            return _Form(None, error.message)
        if recipe.name in seen:
            return _Form(None, "")
        return _Form(recipe, check(recipe))


def _count(value: int) -> Number:
    return Number(value=value, unit="point", source="derived", trust="user", method="combinations of the space that are not possible")


def make_recipe(point: Point, dtype: str = "float32") -> Recipe:
    """The recipe that a point stands for: that of its dimension, its options set, the cast put where it belongs, the runtime at the end.

    Args:
        point: Of a space; dimensions that make no recipe are ignored.
        dtype: Of the model as it is.

    Raises:
        InputError: the type cannot be had, or an option cannot have its value.
    """
    steps = list(read_recipe(point.get("recipe", ORIGINAL)).steps)
    wanted = point.get("dtype", dtype)
    if wanted != dtype:
        if not CASTS[wanted]:
            raise InputError(f"the model is in {dtype}, and no step makes it {wanted}")
        later = (i for i, step in enumerate(steps) if Stage.PRECISION < TECHNIQUES[step.technique].stage < Stage.ANY)
        steps.insert(next(later, len(steps)), Step(technique=CASTS[wanted]))
    runtime = point.get("runtime", EAGER)
    steps += () if runtime == EAGER else read_recipe(runtime).steps
    options: dict[str, dict[str, OptionValue]] = {}
    for name, value in point.items():
        technique, dot, option = name.partition(".")
        if dot:
            options.setdefault(technique, {})[option] = value
    set_steps = (msgspec.structs.replace(step, options={**step.options, **options.get(step.technique, {})}) for step in steps)
    return read_recipe(Recipe(steps=tuple(set_steps)))


def read_space(path: Path | str) -> dict[str, list[Any]]:
    """Read the dimensions of a space from a YAML or JSON file: name -> list of values.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    if path.suffix not in FILES:
        raise InputError(f"{path} is no file of a search space", help=f"its name ends in {', '.join(FILES)}")
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the search space {path} cannot be read: {reason_of(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} holds no search space", help=f"a mapping of names to lists of values; {HELP}")
    return {name: values if isinstance(values, list) else [values] for name, values in content.items()}


def _read_dimensions(given: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    dimensions = {}
    for name, values in given.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"the dimension {name!r} of the search space is {values!r}, not a list of values")
        read = [_read_value(name, value) for value in values]
        dimensions[name] = tuple({repr(value): value for value in read}.values())
    techniques = {step.technique for text in dimensions["recipe"] for step in read_recipe(text).steps}
    techniques |= {step.technique for text in dimensions.get("runtime", ()) if text != EAGER for step in read_recipe(text).steps}
    for name in dimensions:
        if "." in name and name.partition(".")[0] not in techniques:
            raise InputError(f"the search space has options of {name.partition('.')[0]!r}, which is in none of its recipes", help=HELP)
    return dimensions


def _read_value(name: str, value: Any) -> Any:
    if name in COUNTS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} {value!r} of the search space is not a positive whole number")
        return value
    if name == "recipe" or (name == "runtime" and value != EAGER):
        return read_recipe(value).name
    if name in WORDS:
        if name == "dtype" and value not in CASTS:
            raise InputError(f"dtype {value!r} of the search space is none of {', '.join(CASTS)}")
        return str(value)
    technique, dot, option = name.partition(".")
    if not dot:
        raise InputError(f"the search space has no place for a dimension {name!r}", help=HELP)
    return read_options(TECHNIQUES[technique], technique, {option: value})[option]
