"""What a spec can be written for, and what may be chosen about it."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from functools import cache
from typing import Any

from ....study import StudyState
from .base import FACTS


@FACTS.register("exporters")
def exporters(study: StudyState) -> list[dict[str, Any]]:
    """Name, first sentence and options of each."""
    return _described()


@cache
def _described() -> list[dict[str, Any]]:
    from ....export import EXPORTERS
    from ....options import describe_options

    return [
        {
            "name": name,
            "text": (inspect.getdoc(member) or "").partition("\n")[0].replace("``", ""),
            "options": [asdict(option) for option in describe_options(member)],  # type: ignore[arg-type]  # classes are hashable
        }
        for name, member in EXPORTERS.items()
    ]
