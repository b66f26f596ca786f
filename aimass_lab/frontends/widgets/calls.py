"""One line of code as work beside the notebook: a call of its verb, which goes on where a cell took its place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...records import Record, SearchResult
from ...study import Study, StudyState
from ...units import parse_seconds
from ...verbs import Progress, Seen, Verb
from ..background import Held

LEAST_LEFT_S = 1.0


class VerbCall:
    """Calls a verb of a study, telling its progress.

    A cell ends work beside the notebook, which is then called again. A verb that can resume goes on from what it has found, in the time that is left.

    Args:
        study: Whose verb it is.
        verb: What is called.
        values: Its arguments.
        seen: Given what it knows before its end; nobody if not given.
    """

    def __init__(self, study: StudyState, verb: Verb, values: Mapping[str, Any], seen: Seen | None = None) -> None:
        self.study, self.verb, self.values, self._seen = study, verb, values, seen
        self._resumes = {"resume", "seconds"} <= {parameter.name for parameter in verb.parameters}
        self._spent_s = 0.0

    def __call__(self, progress: Progress) -> Any:
        """Call it, for the first time or again."""
        begin, known = time.monotonic(), len(self.study.results)
        try:
            with self.study.telling(progress, self._seen):
                return self.verb.function(self.study, **{**self.values, **self._rest()})
        except Held:
            if len(self.study.results) > known and self.study.last_kept == self.verb.name:
                return self.study.results[-1]  # it had all but ended: done again, it would be there twice
            raise
        finally:
            self._spent_s += time.monotonic() - begin

    def so_far(self) -> Record | None:
        """What it has found until now, where that can be told before its end."""
        return self.study.best_so_far if self.verb.name == "search" and isinstance(self.study, Study) else None

    def _rest(self) -> dict[str, Any]:
        """What is asked for differently when it is called again."""
        found = self.so_far()
        if not (self._resumes and self._spent_s and isinstance(found, SearchResult)):
            return {}
        usual = {parameter.name: parameter.default for parameter in self.verb.parameters}
        left_s = parse_seconds(self.values.get("seconds", usual["seconds"])) - self._spent_s
        tried = sum(candidate.status != "predicted" for candidate in found.candidates)
        most = self.values.get("trials")
        return {"resume": True, "seconds": max(LEAST_LEFT_S, left_s), "trials": None if most is None else max(1, most - tried)}
