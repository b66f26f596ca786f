"""What was measured and what was predicted before, by batch size: the dots beside the curves."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ....records import ORIGINAL, Prediction, Profile
from ....study import StudyState
from .base import FACTS


@FACTS.register("points")
def points(study: StudyState) -> list[dict[str, Any]]:
    """Every batch size that was asked for itself: what was predicted of it and what was measured, in the order it happened."""
    found: list[dict[str, Any]] = []
    for record in study.results:
        if isinstance(record, Prediction) and record.technique == ORIGINAL and len(record.points) == 1:
            point = record.points[0]
            if point.basis != "measured":
                found.append({"kind": "predicted", "device": record.device, "batch": point.batch_size, **_numbers(point)})
        elif isinstance(record, Profile):
            own = next((p for p in record.ladder if p.batch_size == record.batch_size), None)
            if own is not None:
                found.append({"kind": "measured", "device": record.environment.device, "batch": own.batch_size, **_numbers(own)})
    return found


def _numbers(point: Any) -> dict[str, Any]:
    latency = getattr(point, "latency", None) or point.latency_p50
    return dict(json.loads(msgspec.json.encode({"latency": latency, "throughput": point.throughput, "memory": point.peak_memory_bytes})))
