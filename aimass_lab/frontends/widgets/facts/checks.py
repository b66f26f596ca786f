"""The newest proof of the newest bundle, and the newest check of anything else that was written."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ....records import Bundle, Check
from ....study import StudyState
from .base import FACTS


@FACTS.register("checks")
def checks(study: StudyState) -> dict[str, Any]:
    """``{"proof": ..., "manifests": ...}``, each with its place among the results; None where there is none, or it is older than the bundle."""
    found: dict[str, Any] = {"proof": None, "manifests": None}
    for i, record in enumerate(study.results):
        if isinstance(record, Bundle):
            found["proof"] = None
        elif isinstance(record, Check):
            found["proof" if record.promises else "manifests"] = {**json.loads(msgspec.json.encode(record)), "index": i}
    return found
