"""What a view asks of the kernel while a form is filled in; answered at once, and nothing of the model is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...compression.base import Context
from ...errors import AimassError
from ...recipe import check_recipe, read_recipe
from ...study import StudyState

Question = Callable[[StudyState, Any], dict[str, Any]]


def check_text(study: StudyState, text: str) -> dict[str, Any]:
    """Whether a recipe can be tried, as far as its options, its order, the device and the samples tell: its `name`, or the `error` and its `help`.

    And why its effect is not predicted, where that is known: `unpredicted`.
    """
    from ...prediction.effects import why_not_predicted

    try:
        recipe = read_recipe(text)
        members = check_recipe(recipe, Context.of(study.workload))
    except AimassError as error:
        return {"name": None, "error": error.message, "help": error.help}
    unpredicted = why_not_predicted({step.technique: member for step, member in zip(recipe.steps, members, strict=True)}, study.workload)
    return {"name": recipe.name, "error": None, "help": None, "unpredicted": unpredicted}


QUESTIONS: dict[str, Question] = {"recipe": check_text}
