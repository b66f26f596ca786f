"""Options as the fields of a form."""

from __future__ import annotations

from typing import Any

from ....options import Option, describe_bounds, describe_options


def fields_of(member: type[Any]) -> list[dict[str, Any]]:
    """The options of a member of a family, in the order of its fields."""
    return [_field(option) for option in describe_options(member)]  # type: ignore[arg-type]  # classes are hashable


def _field(option: Option) -> dict[str, Any]:
    """An option as a field: a choice where few values are possible, else what is typed, within its bounds."""
    bounds = {name: end for name in ("gt", "ge", "lt", "le") if (end := getattr(option.bounds, name)) is not None}
    return {
        "name": option.name, "kind": option.kind, "default": option.default, "choices": list(option.choices), "optional": option.optional,
        "text": " ".join(option.text.split()), "bounds": bounds, "within": describe_bounds(option.bounds),
    }  # fmt: skip
