"""What is known by sequence length, for models that read token numbers."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ....records import Demand
from ....study import StudyState
from .base import FACTS


@FACTS.register("length")
def length(study: StudyState) -> dict[str, Any] | None:
    """Tokens of the example inputs, the most that the model reads where it says so, and demands by length; None where no input holds token numbers.

    The points are those of every demand that is for the same device and batch as the newest one with lengths.
    """
    from ....demand.lengths import sequence_length

    own = sequence_length(study.workload.call)
    if own is None:
        return None
    most = getattr(getattr(study.model, "config", None), "max_position_embeddings", None)
    demands = [record for record in study.results if isinstance(record, Demand) and record.by_length]
    if not demands:
        return {"own": own, "most": most, "points": []}
    newest = demands[-1]
    alike = [d for d in demands if (d.device, d.batch_size, d.model.digest) == (newest.device, newest.batch_size, newest.model.digest)]
    points = {point.length: point for demand in alike for point in demand.by_length}
    return {
        "own": own,
        "most": most,
        "batch": newest.batch_size,
        "device": newest.device,
        "limit": newest.memory_limit_bytes.value if newest.memory_limit_bytes else None,
        "points": [json.loads(msgspec.json.encode(points[tokens])) for tokens in sorted(points)],
    }
