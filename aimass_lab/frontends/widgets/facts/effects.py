"""What was predicted of recipes before they were tried: the newest prediction of each, on the model's own device."""

from __future__ import annotations

from typing import Any

import msgspec

from ....records import Prediction
from ....study import StudyState
from .base import FACTS

MOST = 12


@FACTS.register("effects")
def effects(study: StudyState) -> dict[str, dict[str, Any]]:
    """Recipe -> its prediction, without what it rests on; one that was made of a copy that is there already is a measurement's and not among them."""
    found: dict[str, dict[str, Any]] = {}
    for i, record in enumerate(study.results):
        if isinstance(record, Prediction) and record.effect_batch_size is not None and record.environment is not None:
            found.pop(record.technique, None)
            parts = ("points", "speedup", "weight_bytes", "effect_batch_size", "notes")
            found[record.technique] = {"index": i, **{name: msgspec.to_builtins(getattr(record, name)) for name in parts}}
    return dict(list(found.items())[-MOST:])
