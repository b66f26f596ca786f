"""Keeps what a check found of a study's bundle among the study's results: `check` is a verb of folders, and knows of no study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...records import Bundle, Check
from ...study import StudyState
from ...verbs import WATCHERS


class ChecksKept:
    """Watches the verbs, in cells and beside the notebook, for as long as a panel is open."""

    def __init__(self, study: StudyState) -> None:
        self._study = study
        self.asked_here = False
        """Whether the panel itself asks: then the check is of what the study wrote, be it a bundle or manifests."""
        WATCHERS.append(self)

    def close(self) -> None:
        """Watch no more."""
        WATCHERS.remove(self)

    def began(self, name: str) -> None:
        """A verb begins."""

    def ended(self, name: str, result: Any) -> None:
        """A verb ended."""
        if isinstance(result, Check) and (self.asked_here or self._is_ours(result)):
            self._study.results.append(result)

    def _is_ours(self, check: Check) -> bool:
        folder = str(Path(check.subject).expanduser().resolve())
        return any(isinstance(record, Bundle) and record.folder == folder for record in self._study.results)
