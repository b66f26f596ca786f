"""What a spec can be written for, and what may be chosen about it."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from ....study import StudyState
from ._fields import fields_of
from .base import FACTS


@FACTS.register("exporters")
def exporters(study: StudyState) -> list[dict[str, Any]]:
    """Name, first sentence and options of each."""
    return _described()


@cache
def _described() -> list[dict[str, Any]]:
    from ....export import EXPORTERS

    return [
        {
            "name": name,
            "text": (inspect.getdoc(member) or "").partition("\n")[0].replace("``", ""),
            "options": fields_of(member),
        }
        for name, member in EXPORTERS.items()
    ]
