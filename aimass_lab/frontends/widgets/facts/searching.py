"""What a search can be told, as the verb's own signature and help say it."""

from __future__ import annotations

from typing import Any

from ....samplers.base import SAMPLERS
from ....study import StudyState
from ....verbs import VERBS
from .base import FACTS

FIELDS = ("max_drop", "p99", "memory", "size", "seconds", "recipe", "runtime", "batch", "trials", "sampler")


@FACTS.register("searching")
def searching(study: StudyState) -> dict[str, Any]:
    """Its fields, in the order in which a form has them, and what quality means for this model."""
    known = {parameter.name: parameter for parameter in VERBS["search"].parameters}
    fields = [
        {"name": name, "text": known[name].help, "default": known[name].default, "choices": list(SAMPLERS) if name == "sampler" else []} for name in FIELDS
    ]
    return {"fields": fields, "quality": "dissimilarity" if study.workload.metric is None else "drop"}
