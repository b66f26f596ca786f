"""Who tries which setting: a log that several searches may share, where each setting is tried by one of them."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from ..records import FailureKind, Setting, TrialResult

CLOCK_SLACK_S = 2.0
"""Two readings of when a process started differ by rounding, and by what the clock was set to meanwhile."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="failure", forbid_unknown_fields=True):
    """Why a setting could not be tried."""

    kind: FailureKind
    cause: str


Outcome = TrialResult | Failure


@dataclass(frozen=True)
class Row:
    """One setting of the log."""

    setting: Setting
    state: Literal["running", "done"]
    outcome: Outcome | None
    """None while it is being tried."""
    mine: bool
    """Whether this process tried it, or is trying it."""
    again: bool = False
    """Whether it was left undecided by the search that this one goes on with: it may be taken once more."""


def is_undecided(outcome: Outcome | None) -> bool:
    """Whether a setting was tried on a machine that was too busy to tell what it is worth."""
    return isinstance(outcome, TrialResult) and outcome.verdict == "cannot tell"


class TrialLog(Protocol):
    """What a search writes down, and what others wrote."""

    def rows(self) -> Sequence[Row]:
        """All settings that were tried or are being tried by a process that is alive, oldest first."""

    def claim(self, setting: Setting) -> bool:
        """Take a setting for this process; False where another one has it, or it was tried and is not to be tried again."""

    def finish(self, setting: Setting, outcome: Outcome) -> None:
        """Write down what came of a setting that this process took."""

    def release(self, setting: Setting) -> None:
        """Give a setting back that this process took and did not try to the end: what was known of it before is known again."""


class MemoryLog:
    """A log of one search alone."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._rows = {key_of(row.setting): row for row in rows}
        self._before: dict[str, Row] = {}
        """Of settings that were taken once more, what was known of them."""

    def rows(self) -> Sequence[Row]:
        """All settings, oldest first."""
        return tuple(self._rows.values())

    def claim(self, setting: Setting) -> bool:
        """Take a setting that was not taken, or is to be tried again."""
        key = key_of(setting)
        if (known := self._rows.get(key)) is not None:
            if not known.again:
                return False
            self._before[key] = known
        self._rows[key] = Row(setting, "running", None, mine=True)
        return True

    def finish(self, setting: Setting, outcome: Outcome) -> None:
        """Write down what came of it."""
        self._rows[key_of(setting)] = Row(setting, "done", outcome, mine=True)

    def release(self, setting: Setting) -> None:
        """Forget that it was taken."""
        key = key_of(setting)
        if (row := self._rows.get(key)) is not None and row.outcome is None:
            del self._rows[key]
            if (before := self._before.pop(key, None)) is not None:
                self._rows[key] = before


@dataclass(frozen=True)
class Owner:
    """A process, known again even if its number is given to another one."""

    host: str
    pid: int
    started: float
    """Seconds since the epoch."""

    @classmethod
    def this(cls) -> Owner:
        """The process that asks."""
        import psutil

        return cls(platform.node(), os.getpid(), psutil.Process().create_time())

    def alive(self) -> bool:
        """Whether it still runs; one on another machine is taken to."""
        import psutil

        if self.host != platform.node():
            return True
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < CLOCK_SLACK_S
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


def key_of(setting: Setting) -> str:
    """What tells settings apart."""
    return hashlib.sha256(msgspec.json.encode(setting)).hexdigest()[:24]


def search_digest(**facts: object) -> str:
    """Digest of what a search's trials depend on: those of the same model, machine and space may be shared."""
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()[:24]
