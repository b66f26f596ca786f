"""Who ran when in the newest rotation: the beginning of it, because a run has thousands of turns."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ....headlines import describe_policy
from ....records import Gantt, Rotation, RotationRun
from ....study import StudyState
from .base import FACTS

MOST_TURNS = 200
"""Of a run; more could not be told apart in a notebook's width."""


@FACTS.register("turns")
def turns(study: StudyState) -> dict[str, Any] | None:
    """The rotation with each turn as lane, model, start, end and whether the call was finished; None where there is none."""
    for i, record in reversed(list(enumerate(study.results))):
        if isinstance(record, Rotation):
            return {
                "index": i,
                "models": [m.model.name for m in record.models],
                "clock": record.clock,
                "lanes": record.lanes,
                "span": _plain(record.span),
                "runs": [_run(run) for run in record.runs],
            }
    return None


def _run(run: RotationRun) -> dict[str, Any]:
    return {
        "policy": describe_policy(run),
        "num_jobs": run.num_jobs,
        "metrics": [_plain(metric) for metric in run.metrics if not metric.model],
        "turns": {"run": _turns(run.real), "replayed": _turns(run.replayed), "predicted": _turns(run.predicted)},
        "cut": len(run.real.start_s) if len(run.real.start_s) > MOST_TURNS else None,
    }


def _turns(gantt: Gantt) -> list[tuple[int, int, float, float, bool]]:
    rows = sorted(zip(gantt.start_s, gantt.end_s, gantt.lane, gantt.model, gantt.finished, strict=True))[:MOST_TURNS]
    return [(lane, model, round(start, 6), round(end, 6), finished) for start, end, lane, model, finished in rows]


def _plain(record: Any) -> Any:
    return json.loads(msgspec.json.encode(record))
