"""Reads a server's journal: what its pool did during a run, and what became of workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..records import Number, Recovery
from ..serving.load import LoadResult

if TYPE_CHECKING:
    from ..planning.queueing import Array


@dataclass(frozen=True, eq=False)
class Events:
    """What one server did since a moment, in seconds from it."""

    start_s: Array
    """When each batch was sent to its worker, ascending; likewise the next two."""
    seconds: Array
    """Until its outputs were back."""
    items: Array
    queued_s: Array
    """When each request came, ascending."""
    reply_s: Array
    """By request, in the same order: when its outputs were back."""
    workers: tuple[dict[str, Any], ...] = ()
    """Workers that got ready, ended, and what they handed on, as the journal has it; oldest first."""

    @property
    def sojourn_s(self) -> Array:
        """Queue and model, by request."""
        return self.reply_s - self.queued_s

    def overhead_s(self, result: LoadResult) -> tuple[Array, Array] | None:
        """When each answered request was sent and what it took besides, in the order in which they came to the queue; None where these are not the same.

        Requests come to the queue as they were sent but for a few that overtake others within microseconds, which get each other's.
        """
        sent = (result.sent_s + result.late_s)[result.ok]
        if len(self.queued_s) != len(sent):
            return None  # some came to the queue and got no answer
        order = np.argsort(sent, kind="stable")
        return sent[order], np.maximum(result.latency_s[result.ok][order] - self.sojourn_s, 0.0)


def read_journal(path: Path, begin_s: float) -> Events:
    """What a journal tells of the time since `begin_s` (`time.monotonic`); files that it was rotated to are read too."""
    events = [event for event in _lines(path) if event["at"] >= begin_s]
    batches = sorted((event for event in events if event["event"] == "batch"), key=lambda event: event["at"])
    starts = np.array([batch["at"] for batch in batches], float) - begin_s
    seconds = np.array([batch["seconds"] for batch in batches], float)
    counts = [len(batch["queued"]) for batch in batches]
    queued = np.array([time for batch in batches for time in batch["queued"]], float) - begin_s
    reply = np.repeat(starts + seconds, counts)
    order = np.argsort(queued, kind="stable")
    return Events(
        start_s=starts,
        seconds=seconds,
        items=np.array([sum(batch["items"]) for batch in batches], int),
        queued_s=queued[order],
        reply_s=reply[order],
        workers=tuple(event | {"at": event["at"] - begin_s} for event in events if event["event"] != "batch"),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    rotated = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: -int(file.suffix[1:]))
    found = []
    for file in (*rotated, path):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # the last one may be half written
    return found


def recoveries(events: Events) -> tuple[Recovery, ...]:
    """Each worker that ended, what became of its requests, and how long until another stood in for it."""
    found, used = [], set[int]()
    for event in (event for event in events.workers if event["event"] == "ended"):
        handed = [other for other in events.workers if other["event"] == "handed_on" and other["worker"] == event["worker"]]
        later = (k for k, other in enumerate(events.workers) if other["event"] == "ready" and other["again"] and k not in used and other["at"] >= event["at"])
        stood_in = next(later, None)
        if stood_in is not None:
            used.add(stood_in)
        ready_s = None if stood_in is None else events.workers[stood_in]["at"] - event["at"]
        found.append(
            Recovery(
                ended_at=_seconds(event["at"], "from the start of the run to the end of the worker"),
                handed_on=sum(other["requests"] for other in handed),
                failed=sum(other["failed"] for other in handed),
                ready_after=None if ready_s is None else _seconds(ready_s, "from the end of a worker until another took batches in its place"),
            )
        )
    return tuple(found)


def _seconds(value: float, method: str) -> Number:
    return Number(value=value, unit="s", source="measured", method=method, n=1)
