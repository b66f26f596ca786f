"""The verbs that run the model and write down what happened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import ORIGINAL, ColdStart, Profile, TraceSummary, TrialResult
from ..units import parse_seconds
from ..verbs import Count, Seconds, verb
from .base import StudyState

if TYPE_CHECKING:
    from ..profiling.traces_tensorboard import TensorBoard


class Measuring(StudyState):
    """The verbs that run the model and write down what happened."""

    @verb
    def profile(self, *, batch: int | None = None, device: str | None = None, seconds: Seconds = 4.0, force: bool = False) -> Profile:
        """Measure the model: latency, throughput, memory, time by module, and what binds.

        The model is run as it is loaded, in evaluation mode, and left as it was, bit by bit.

        Args:
            batch: Items per call; as many as the example inputs hold if not given.
            device: Attached device to measure on, such as cpu or cuda:0; where the model is if not given.
            seconds: Time to spend.
            force: Try a batch even if the estimate says that it does not fit.
        """
        from ..profiling import profile_model
        from ..profiling.advice import without_disproved

        workload = self._on_device(device)
        profile = profile_model(workload, batch_size=batch, budget_s=parse_seconds(seconds), force=force, progress=self.progress, seen=self.seen)
        profile = without_disproved(profile, (r for r in self.results if isinstance(r, TrialResult)))
        if workload is self.workload:
            self._profiles[ORIGINAL] = profile
        return self._keep("profile", profile)

    @verb
    def cold(self, *, factory: str | None = None) -> ColdStart:
        """Measure what it takes from nothing to steady calls, in a fresh process: torch, weights, first call, warm-up.

        Args:
            factory: Function without arguments that makes the model and its inputs, as path/to/file.py:name or
                package.module:name; without it the process reads the model from a file, if its classes can be imported.
        """
        from ..profiling.cold import measure_cold_start

        return self._keep("cold", measure_cold_start(self.workload, factory=factory))

    @verb
    def trace(self, *, path: str | None = None, calls: Count = 3, batch: int | None = None, lean: bool = False, stacks: bool = False) -> TraceSummary:
        """Trace some calls with every operator, kernel and module, for Perfetto and TensorBoard, and sum the trace up.

        Args:
            path: A folder, where each trace gets a name of its own, or a new .json or .json.gz file; beside the history if not given.
            calls: Calls in the trace.
            batch: Items per call; as many as the example inputs hold if not given.
            lean: Leave out the shapes of operators' inputs and the allocations: a smaller trace, and less time spent on making it.
            stacks: Note every Python function with file and line: several times slower and larger.
        """
        from ..profiling.traces import trace_model

        where = Path(path).expanduser() if path else self.store.path.parent / "traces"
        summary = trace_model(self.workload, where, calls=calls, batch_size=batch, shapes=not lean, memory=not lean, stacks=stacks, progress=self.progress)
        return self._keep("trace", summary)

    def open_tensorboard(self) -> TensorBoard:
        """Show the newest trace of this study, and others in its folder, in TensorBoard; on this machine only.

        Returns:
            What runs: its `url`, and `stop` to end it; it ends with this process in any case.

        Raises:
            InputError: nothing was traced yet.
        """
        from ..profiling.traces_tensorboard import open_tensorboard

        newest = self._last(TraceSummary)
        if newest is None:
            raise InputError("this study has no trace yet", help="make one: study.trace()")
        return open_tensorboard(newest.path)
