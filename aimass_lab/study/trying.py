"""The verbs that change copies of the model and measure them beside it."""

from __future__ import annotations

from ..records import SearchResult, Setting, TrialResult
from ..units import parse_seconds
from ..verbs import Seconds, verb
from .base import ORIGINAL, StudyState


class Trying(StudyState):
    """The verbs that change copies of the model and measure them beside it."""

    @verb
    def trial(self, technique: str, *, batch: int | None = None, option: dict[str, str] | None = None, seconds: Seconds = 6.0) -> TrialResult:
        """Try one technique on a copy of the model, side by side with the original.

        Args:
            technique: What to try: a name such as bf16, int8_dynamic or compile.
            batch: Items per call; as many as the example inputs hold if not given.
            option: Field of the technique, as name=value; may be repeated.
            seconds: Time to spend on the comparison.
        """
        from ..trial import apply_setting, run_trial

        setting = Setting(technique=technique, options=dict(option or {}), batch_size=batch)
        variant = apply_setting(self.workload, setting)
        try:
            result = run_trial(self.workload, setting, variant=variant, budget_s=parse_seconds(seconds), progress=self.progress)
        except BaseException:
            variant.release()  # the notebook keeps the traceback, and with it this frame
            raise
        name = technique + (f"({','.join(f'{k}={v}' for k, v in sorted(setting.options.items()))})" if setting.options else "")
        self._variants[name] = variant
        if name != ORIGINAL:
            self._profiles.pop(name, None)
        return self._keep("trial", result)

    @verb
    def search(
        self,
        *,
        technique: tuple[str, ...] | None = None,
        batch: tuple[int, ...] | None = None,
        sampler: str = "grid",
        trials: int | None = None,
        seconds: Seconds = 60.0,
        seed: int = 0,
    ) -> SearchResult:
        """Try many settings and mark those that no other beats.

        Args:
            technique: Technique to try; may be repeated. All of them if not given.
            batch: Batch size to try; may be repeated. That of the example inputs if not given.
            sampler: How to choose the next setting: grid or random.
            trials: Most settings to try.
            seconds: Time to spend in all.
            seed: Of samplers that draw lots.
        """
        from ..compression.base import TECHNIQUES
        from ..search import make_search_result, search
        from ..trial import run_trial

        for name in technique or ():
            TECHNIQUES[name]
        techniques = technique or tuple(name for name in TECHNIQUES if name != ORIGINAL)
        space = {"technique": techniques, "batch_size": batch or (self.workload.call.batch_size,)}
        outcome = search(
            lambda setting: run_trial(self.workload, setting, budget_s=min(3.0, parse_seconds(seconds))),
            space,
            sampler=sampler,
            budget_s=parse_seconds(seconds),
            max_trials=trials,
            seed=seed,
            progress=self.progress,
        )
        return self._keep("search", make_search_result(self.workload.info(), sampler, outcome))

    def undo(self) -> str | None:
        """Forget the copy that the last trial made and give its memory back; the model itself was never touched.

        Returns:
            The name of what was forgotten; None when there is nothing to undo.
        """
        if not self._variants:
            return None
        name, variant = self._variants.popitem()
        variant.release()
        if name != ORIGINAL:
            self._profiles.pop(name, None)
        return name
