"""The techniques as a form shows them: what each does, its options with their bounds, and what is lacking for it here."""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

from ....compression.base import TECHNIQUES, Context, Stage, Technique, make_technique
from ....errors import MissingPackageError
from ....study import StudyState
from ._fields import fields_of
from .base import FACTS

STAGES = {
    Stage.ARCHITECTURE: "architecture", Stage.CHANNELS: "channels", Stage.RANK: "rank", Stage.VALUES: "values", Stage.PRECISION: "precision",
    Stage.LAYOUT: "layout", Stage.RUNTIME: "runtime", Stage.ANY: "training",
}  # fmt: skip
_lacking: WeakKeyDictionary[StudyState, dict[str, str | None]] = WeakKeyDictionary()
"""Why a technique is not possible: a study's device, samples and students stay what they are."""


@FACTS.register("techniques")
def techniques(study: StudyState) -> list[dict[str, Any]]:
    """All of them, in the order in which they may follow each other."""
    if study not in _lacking:
        context = Context.of(study.workload)
        # Of a runtime it shows when a recipe is checked: to look for its compiler takes seconds, in which no panel would open.
        _lacking[study] = {name: None if member.stage is Stage.RUNTIME else _why_not(name, context) for name, member in TECHNIQUES.items()}
    return [{**one, "lacking": _lacking[study][one["name"]]} for one in _described()]


@functools.cache
def _described() -> tuple[dict[str, Any], ...]:
    in_order = sorted(TECHNIQUES.items(), key=lambda item: (item[1].stage, item[0]))
    return tuple({"name": name, "stage": STAGES[member.stage], "text": _text(member), "options": fields_of(member)} for name, member in in_order)


def _text(member: type[Technique]) -> str:
    return " ".join((member.__doc__ or "").partition("\n\n")[0].split())


def _why_not(name: str, context: Context) -> str | None:
    try:
        return make_technique(name).unavailable(context)
    except MissingPackageError as error:
        return error.message
