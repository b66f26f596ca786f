"""How a bundle can ship the model."""

from __future__ import annotations

from functools import cache
from typing import Any

from ....study import StudyState
from .base import FACTS


@FACTS.register("formats")
def formats(study: StudyState) -> list[dict[str, Any]]:
    """Name and runtime of each, and the packages that are missing for it."""
    return _described()


@cache
def _described() -> list[dict[str, Any]]:
    from importlib.util import find_spec

    from ....formats import FORMATS

    return [
        {"name": name, "runtime": member.runtime, "missing": [package for package in member.requires if find_spec(package) is None]}
        for name, member in FORMATS.items()
    ]
