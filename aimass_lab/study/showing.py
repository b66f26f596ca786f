"""The verb that opens what a study knows as one linked panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..records import Record
from ..verbs import verb
from .base import StudyState

View = Literal["profile", "what-if", "try", "search", "plan", "ship"]


@dataclass(frozen=True)
class Workbench:
    """A panel of a study, still to be shown: which study, and which view is in front."""

    study: StudyState
    view: View

    @property
    def newest(self) -> dict[str, Record]:
        """The newest result of each kind, by the kind's name in JSON; the original's, not a copy's."""
        return {kind: record for kind, _, record in self.numbered()}

    def numbered(self) -> Iterator[tuple[str, int, Record]]:
        """Kind, index among the study's results, and record: the newest of each kind, oldest first."""
        found = {str(type(record).__struct_config__.tag): (i, record) for i, record in enumerate(self.study.results)}
        for kind, (i, record) in sorted(found.items(), key=lambda item: item[1][0]):
            yield kind, i, record


class Showing(StudyState):
    """The verb that shows a study."""

    @verb
    def workbench(self, *, view: View = "profile") -> Workbench:
        """Open everything that is known of the model as one linked panel, in a notebook.

        Whatever is clicked there is a line of code that is shown, runs beside the notebook, and can be inserted as a cell; what a
        cell finds out appears in the panel. A study has one panel: opening it again moves it, and leaves its picture behind.

        Args:
            view: What is in front: profile, what-if, try, search, plan or ship.
        """
        return Workbench(self, view)
