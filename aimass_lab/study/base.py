"""What a study knows so far: the model, its results, the copies that were made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError, StoreError
from ..records import BatchPoint, Profile, Record, Setting
from ..store import Store
from ..verbs import Progress
from ..workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..trial import Variant

R = TypeVar("R", bound=Record)

ORIGINAL = "none"
"""The technique that changes nothing: what is served is the model itself."""


def no_progress(share: float, text: str) -> None:
    """The progress of who does not want to know."""


class StudyState:
    """What a study holds, and what its verbs share."""

    def __init__(
        self,
        model: nn.Module | Workload,
        inputs: Any = None,
        *,
        data: tuple[Any, torch.Tensor] | None = None,
        metric: Any = None,
        loss: Any = None,
        batch_axis: int = 0,
        name: str | None = None,
        store: Store | Path | str | None = None,
    ) -> None:
        if isinstance(model, Workload):
            if inputs is not None or data is not None or metric is not None or loss is not None:
                raise InputError("a Workload already has its inputs and data", help="Study(workload), or Study(model, inputs, ...)")
            self.workload = model
        else:
            self.workload = Workload(model, inputs, data=data, metric=metric, loss=loss, batch_axis=batch_axis, name=name)
        self.store = store if isinstance(store, Store) else Store(store)
        self.results: list[Record] = []
        """Everything found so far, oldest first."""
        self.progress: Progress = no_progress
        """Where long work tells how far it is; a front-end puts its own here."""
        self._variants: dict[str, Variant] = {}
        self._profiles: dict[str, Profile] = {}
        """The newest of each technique, on the model's own device."""

    @property
    def model(self) -> nn.Module:
        """The user's own model, as it was."""
        return self.workload.model

    def variant(self, name: str) -> nn.Module:
        """The copy that a trial made, to be called like the model.

        Args:
            name: The technique, with the options that were given: ``"bf16"``, ``"int8_dynamic(compile=true)"``.

        Raises:
            InputError: this study did not try it, or undid it.
        """
        if name not in self._variants:
            tried = ", ".join(self._variants) or "none yet"
            raise InputError(f"{name!r} was not tried in this study, or was undone", help=f"tried: {tried}; study.trial(...) makes one")
        return self._variants[name].model

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the copies that are held, oldest first."""
        return tuple(self._variants)

    def _keep(self, verb_name: str, record: R, *, technique: str = ORIGINAL) -> R:
        info = self.workload.info()
        record = self._through_ledger(record, info.digest, technique)
        self.results.append(record)
        self.store.remember(verb_name, record, model=info.name, model_digest=info.digest)
        return record

    def _through_ledger(self, record: R, digest: str, technique: str) -> R:
        """Score earlier predictions by what `record` measured, and keep what it predicts; see `prediction.bookkeeping`."""
        from ..prediction.bookkeeping import through_ledger

        try:
            return through_ledger(record, self.store, digest=digest, technique=technique)
        except StoreError:  # `remember` warns of the same store
            return record

    def _last(self, kind: type[R]) -> R | None:
        return next((r for r in reversed(self.results) if isinstance(r, kind)), None)

    def _environment_device(self) -> str:
        device = self.workload.torch_device
        return str(device) if device.type != "cuda" or device.index is not None else "cuda:0"

    def _on_device(self, device: str | None) -> Workload:
        """The workload, or a copy of it on another attached device."""
        import copy

        import torch

        if device is None or device == self._environment_device():
            return self.workload
        attached = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if device not in attached:
            raise InputError(
                f"{device!r} is not attached to this machine, so nothing can be measured on it",
                help=f"attached: {', '.join(attached)}; for other devices there is an estimate: demand --device {device}",
            )
        model = copy.deepcopy(self.model).to(device)
        return Workload(model, self.workload.call.map(lambda t: t.to(device)), name=self.workload.name)

    def _served(self, technique: str) -> Workload:
        """The original, or a copy to be served in its place: the one that a trial made, or a new one."""
        if technique == ORIGINAL:
            return self.workload
        if technique not in self._variants and "(" not in technique:  # with options, only a trial makes one
            from ..trial import apply_setting

            self._variants[technique] = apply_setting(self.workload, Setting(technique=technique))
        return Workload(self.variant(technique), self.workload.call, name=self.workload.name)

    def _setting(self, technique: str) -> Setting:
        """What makes the copy that is called `technique`."""
        if technique == ORIGINAL:
            return Setting(technique=ORIGINAL)
        self._served(technique)
        return self._variants[technique].setting

    def _measured_ladder(self, technique: str) -> tuple[BatchPoint, ...]:
        """By batch size, from the newest profile of what is served; from a new one if there is none."""
        return self._measured_profile(technique).ladder

    def _measured_profile(self, technique: str) -> Profile:
        from ..profiling import profile_model

        if technique not in self._profiles:
            self._profiles[technique] = self._keep("profile", profile_model(self._served(technique), progress=self.progress), technique=technique)
        return self._profiles[technique]
