"""What every reading shares: where the operating system is read, measured numbers, and reasons for what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..records import Note, Number, Unit


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where to read; tests name folders in which a machine's files were recorded."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    cgroup: Path = Path("/sys/fs/cgroup")
    nvml: Any = None
    """A module with the calls of ``pynvml``; None: that one, if it is installed."""


def measured(value: float, unit: Unit, method: str) -> Number:
    """A number read off this machine."""
    return Number(value=value, unit=unit, source="measured", method=method)


def missing(what: str, why: str) -> Note:
    """The reason why `what`, such as ``"gpu0.power"``, could not be read."""
    return Note(code=f"missing:{what}", text=why)


@dataclass
class Reasons:
    """Collects why readings are missing while they are taken."""

    notes: list[Note] = field(default_factory=list)

    def add(self, what: str, why: str) -> None:
        """Note that `what` is missing, once."""
        note = missing(what, why)
        if note not in self.notes:
            self.notes.append(note)


def why_unreadable(error: OSError | ValueError | LookupError, path: Path) -> str:
    """An operating system's refusal in a few words."""
    if isinstance(error, FileNotFoundError):
        return f"this system has no {path}"
    if isinstance(error, PermissionError):
        return f"reading {path} is not permitted"
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror or error}"
    return f"{path} has an unknown form: {error}"
