"""The kernel's side of the panel: sends records, takes lines of code, lets them run beside the notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import anywidget
import traitlets

from ...errors import AimassError, InputError
from ...records import ORIGINAL, ModelSummary, Record, to_json
from ...study import StudyState, Workbench
from ...verbs import Progress, Verb
from ..background import END_STATES, Job, Work, Worker
from ..cli import call_function, find_models
from ..lines import read_line
from ..pace import Pace
from .calls import VerbCall
from .checks import ChecksKept
from .facts.base import FACTS
from .questions import QUESTIONS
from .source import script, shown_kinds, style
from .twin import twin_html, twin_text

ENDED_SHOWN = 4
"""Jobs that are listed after they ended."""

_panels: dict[str, Panel] = {}
"""The one panel of each model, by the model's name: a cell that is run again moves its panel, and none is left over."""


class Panel(anywidget.AnyWidget):
    """One study as a linked panel. `view` and `selection` may be set from a cell, and follow what is clicked."""

    _esm = script()
    _css = style()

    identity = traitlets.Unicode().tag(sync=True)
    """What saved outputs call this panel."""
    view = traitlets.Unicode("profile").tag(sync=True)
    selection = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    """Dotted name of the module that every view marks; ``""`` is the model itself."""
    subject = traitlets.Dict().tag(sync=True)
    """How lines of code name the study, and where it runs."""
    records = traitlets.Dict().tag(sync=True)
    """The newest record of each kind that is drawn, as its JSON."""
    facts = traitlets.Dict().tag(sync=True)
    """What views need besides records, by the names in `facts`."""
    jobs: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(self, bench: Workbench, worker: Worker, names: Mapping[str, Any]) -> None:
        super().__init__(view=bench.view)
        self.identity = self.model_id
        self.bench, self.worker = bench, worker
        self._names = names
        self._ended: list[dict[str, Any]] = []
        self._pace = Pace()
        self._handle: Any = None
        self._picture = ""
        self._known: dict[str, int | None] = {}
        self._checks = ChecksKept(bench.study)
        self.on_msg(self._received)
        self.refresh()

    # --- what is shown

    def refresh(self) -> None:
        """Show what the study has found since, wherever it was asked for."""
        if self.comm is None:
            return
        study = self.bench.study
        newest = self._drawn()
        with self.hold_sync():  # one message, so that a view never sees the one without the other
            self.subject = subject_of(study, self._names)
            self.facts = {name: fact(study) for name, fact in FACTS.items()}
            if {kind: i for kind, (i, _) in newest.items()} != self._known:
                self._known = {kind: i for kind, (i, _) in newest.items()}
                self.records = {kind: {**json.loads(to_json(record, indent=None)), "index": i} for kind, (i, record) in newest.items()}

    def _drawn(self) -> dict[str, tuple[int, Record]]:
        """Kind -> index and record of what the views show: of the original, and of predictions those that make a curve."""
        from ...records import Prediction

        found = {}
        for i, record in enumerate(self.bench.study.results):
            kind = str(type(record).__struct_config__.tag)
            if kind in shown_kinds() and not (isinstance(record, Prediction) and (len(record.points) < 2 or record.technique != ORIGINAL)):
                found[kind] = (i, record)
        return found

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        data, *metadata = super()._repr_mimebundle_(**kwargs) or ({},)
        return ({**data, "text/plain": twin_text(self.bench), "text/html": self._picture or twin_html(self.bench)}, *metadata)

    def show(self) -> None:
        """Put the panel under the running cell."""
        from IPython.display import display

        self._handle = display(self, display_id=True)

    def close(self) -> None:
        """End the panel: its work stops, and its picture stays where it was."""
        if self.comm is None:
            return
        own = [job.number for job in self.worker.jobs if job.changed == self._job_changed]
        if own:
            self.worker.stop(*own)
        name = self.bench.study.workload.name
        if _panels.get(name) is self:
            del _panels[name]
        self._checks.close()
        if self._handle is not None:
            self._handle.update({"text/html": self._picture or twin_html(self.bench), "text/plain": twin_text(self.bench)}, raw=True)
        super().close()

    # --- what is asked for

    def run(self, *lines: str) -> tuple[Job, ...]:
        """Let lines of code run beside the notebook, as a click does.

        Args:
            lines: Each one call of a verb of the study; those after one that is not done are dropped.

        Raises:
            InputError: not such a line.
        """
        return self.worker.submit(*((line, self._work_of(line)) for line in lines), changed=self._job_changed)

    def _work_of(self, line: str) -> Work:
        verb, values = read_line(line)
        if not verb.of_study:
            return partial(self._call_function, verb, values)
        return VerbCall(self.bench.study, verb, find_models(verb, values, partial(_other_model, self._names)), self._show_early)

    def _call_function(self, verb: Verb, values: Mapping[str, Any], progress: Progress) -> Any:
        self._checks.asked_here = True
        try:
            return call_function(verb, values, progress, seen=self._show_part)
        finally:
            self._checks.asked_here = False

    def _show_part(self, record: Record) -> None:
        """Show what a verb has found so far, in place of the newest record of its kind, until it has ended."""
        kind = str(type(record).__struct_config__.tag)
        self._known[kind] = None
        if self.comm is not None:
            self.records = {**self.records, kind: {**json.loads(to_json(record, indent=None)), "index": None}}

    def _show_early(self, record: Record) -> None:
        """Show what is known of a model that was never profiled while its first profile runs; a profile that is there says more."""
        if isinstance(record, ModelSummary) and "profile" not in self._known:
            self._show_part(record)

    def _received(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        """A message of the browser: work is queued, because it may arrive while a cell runs; questions are answered, which leave the model alone."""
        kind = content.get("kind")
        if kind == "run":
            try:
                if content.get("replace"):
                    self._drop_waiting()
                self.run(*content["lines"])
            except AimassError as error:
                self._ended = [{"number": 0, "line": content["lines"][-1], "state": "failed", "share": 0, "text": str(error)}]
                self._tell_jobs()
        elif kind == "stop":
            self.worker.stop(int(content["number"]))
        elif kind == "ask":
            self.send({"kind": "answer", "id": content["id"], "answer": QUESTIONS[content["question"]](self.bench.study, content["value"])})
        elif kind == "picture":
            self._picture = str(content["html"])

    # --- what happens

    def _job_changed(self, job: Job) -> None:
        if job.state in END_STATES:
            if job.state != "dropped":
                self._ended = [*self._ended, _as_json(job)][-ENDED_SHOWN:]
            self.refresh()
        elif job.state == "running" and job.share and not self._pace.due(f"{job.number} {job.text}"):
            return
        elif isinstance(job.work, VerbCall) and (found := job.work.so_far()) is not None:
            self._show_part(found)
        self._tell_jobs()

    def _drop_waiting(self) -> None:
        own = [job.number for job in self.worker.jobs if job.changed == self._job_changed and job.state == "waiting"]
        if own:
            self.worker.stop(*own)

    def _tell_jobs(self) -> None:
        if self.comm is not None:
            self.jobs = [*self._ended, *map(_as_json, self.worker.jobs)]


def open_panel(bench: Workbench) -> None:
    """Show `bench` under the running cell; an earlier panel of the same model leaves its picture behind."""
    from IPython import get_ipython

    from .notebook import join_worker

    shell = get_ipython()
    if getattr(shell, "kernel", None) is None:
        print(twin_text(bench))
        return
    name = bench.study.workload.name
    if name in _panels:
        _panels[name].close()
    panel = _panels[name] = Panel(bench, join_worker(shell), shell.user_ns)
    panel.show()


def open_panels() -> tuple[Panel, ...]:
    """Those that are alive."""
    return tuple(_panels.values())


def subject_of(study: StudyState, names: Mapping[str, Any]) -> dict[str, Any]:
    """How lines of code name `study`: by its variable, or by that of its model in a magic."""
    workload, call = study.workload, study.workload.call
    variables = [(name, value) for name, value in names.items() if not name.startswith("_")]
    own = next((name for name, value in variables if value is study), None)
    model = next((name for name, value in variables if value is workload.model), None)
    return {
        "style": "python" if own else "magic",
        "name": own or model or "",
        "model": workload.name,
        "device": str(workload.torch_device),
        "batch": workload.call.batch_size,
        "others": [name for name, value in variables if isinstance(value, StudyState) and value is not study],
        "inputs": next((name for name, value in variables if len(call.args) == 1 and not call.kwargs and value is call.args[0]), ""),
    }


def _other_model(names: Mapping[str, Any], name: str) -> Any:
    """What stands beside this study's model, by its variable.

    Raises:
        InputError: there is no such study.
    """
    value = names.get(name)
    if not isinstance(value, StudyState):
        raise InputError(f"there is no Study called {name!r} in this notebook", help=f"make one: {name} = Study(model, inputs)")
    return value


def _as_json(job: Job) -> dict[str, Any]:
    return {"number": job.number, "line": job.line, "state": job.state, "share": job.share, "text": job.text}
