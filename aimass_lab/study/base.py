"""What a study knows so far: the model, its results, the copies that were made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError, UnsupportedError
from ..recipe import read_recipe
from ..records import ORIGINAL, BatchPoint, HeldVariants, Profile, Recipe, Record, was_interrupted
from ..store import Store
from ..verbs import Progress, Seen
from ..workload import Call, Workload
from .held import held_variants
from .keeping import keep

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..planning.simulations import Simulations
    from ..tracing.trace import Trace
    from ..trial import Variant

R = TypeVar("R", bound=Record)


def no_progress(share: float, text: str) -> None:
    """The progress of who does not want to know."""


def unseen(record: Record) -> None:
    """What is known early, for who does not want to see it."""


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
        train: Any = None,
        students: Mapping[str, nn.Module] | None = None,
        batch_axis: int = 0,
        dynamic_shapes: Any = None,
        name: str | None = None,
        store: Store | Path | str | None = None,
    ) -> None:
        if isinstance(model, Workload):
            if any(given is not None for given in (inputs, data, metric, loss, train, students, dynamic_shapes)):
                raise InputError("a Workload already has its inputs and data", help="Study(workload), or Study(model, inputs, ...)")
            self.workload = model
        else:
            self.workload = Workload(
                model, inputs, data=data, metric=metric, loss=loss, train=train, students=students, batch_axis=batch_axis,
                dynamic_shapes=dynamic_shapes, name=name,
            )  # fmt: skip
        self.store = store if isinstance(store, Store) else Store(store)
        self.results: list[Record] = []
        """Everything found so far, oldest first."""
        self.last_kept = ""
        """The verb that found the newest of them."""
        self.progress: Progress = no_progress
        """Where long work tells how far it is; a front-end puts its own here."""
        self.seen: Seen = unseen
        """Where it shows what it knows before its end."""
        self._variants: dict[str, Variant] = {}
        self._profiles: dict[str, Profile] = {}
        """The newest of each technique, on the model's own device."""
        self._simulated: Simulations | None = None
        """What the plans so far simulated."""
        self._followed: tuple[str, Call, list[Trace]] | None = None
        """What was served last, what it is called with, and its operators by batch size, whatever the device."""

    @contextlib.contextmanager
    def telling(self, progress: Progress, seen: Seen | None = None) -> Iterator[None]:
        """Let what is asked for within tell its progress, and show what it knows before its end."""
        before = self.progress, self.seen
        self.progress, self.seen = progress, seen or unseen
        try:
            yield
        finally:
            self.progress, self.seen = before

    @property
    def model(self) -> nn.Module:
        """The user's own model, as it was."""
        return self.workload.model

    def variant(self, name: str) -> nn.Module:
        """The copy that a trial made, to be called like the model, beside it, as often as you like.

        Args:
            name: The recipe that was tried, however it is spaced: ``"bf16"``, ``"low_rank(ratio=0.5) + int8_dynamic"``.

        Raises:
            InputError: this study did not try it, or released it.
        """
        return self._tried(name).model

    def recipe(self, name: str) -> Recipe:
        """What made the copy that is called `name`: to be written down with `aimass_lab.recipe.write_recipe`.

        Raises:
            InputError: this study did not try it, or released it.
        """
        return self._tried(name).recipe

    @property
    def variants(self) -> HeldVariants:
        """The copies that are in memory, oldest first, with the memory that `release` would give back."""
        return held_variants(self.workload.name, tuple(self._variants.values()), self.results)

    def undo(self) -> str | None:
        """Release the copy that was made last.

        Returns:
            Its name; None when there is nothing to undo.
        """
        if not self._variants:
            return None
        name = next(reversed(self._variants))
        self._release(name)
        return name

    def _release(self, name: str) -> None:
        self._variants.pop(name).release()
        if name != ORIGINAL:
            self._profiles.pop(name, None)

    def _variant_of(self, recipe: Recipe) -> Variant:
        """The copy that `recipe` made, or a new one where there is none, or where the model was trained since."""
        from ..trial import apply_recipe

        held = self._variants.get(recipe.name)
        if held is not None and held.recipe == recipe and held.original_digest == self.workload.info().digest:
            return held
        return apply_recipe(self.workload, recipe, progress=self.progress)

    def _take_over(self, variant: Variant) -> None:
        """Keep `variant` as the newest one; an older one of the same name is released."""
        held = self._variants.pop(variant.name, None)
        if held is not None and held is not variant:
            held.release()
            if variant.name != ORIGINAL:
                self._profiles.pop(variant.name, None)
        self._variants[variant.name] = variant

    def _tried(self, name: str) -> Variant:
        known = read_recipe(name).name
        if known not in self._variants:
            tried = "; ".join(self._variants) or "none yet"
            raise InputError(f"{name!r} was not tried in this study, or was released", help=f"tried: {tried}; study.trial(...) makes one")
        return self._variants[known]

    def _keep(self, verb_name: str, record: R, *, technique: str = ORIGINAL) -> R:
        record = keep(record, verb_name, model=self.workload.info(), technique=technique, results=self.results, store=self.store)
        self.last_kept = verb_name
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
        recipe = read_recipe(technique)
        if not recipe.steps:
            return self.workload
        if recipe.name not in self._variants:
            self._take_over(self._variant_of(recipe))
        return Workload(self._variants[recipe.name].model, self.workload.call, name=self.workload.name)

    def _recipe(self, technique: str) -> Recipe:
        """What makes the copy that is called `technique`."""
        name = read_recipe(technique).name
        return self._variants[name].recipe if name in self._variants else read_recipe(technique)

    def _measured_ladder(self, technique: str) -> tuple[BatchPoint, ...]:
        """By batch size, from the newest profile of what is served; from a new one if there is none."""
        return self._measured_profile(technique).ladder

    def _estimated_ladder(self, technique: str, device: str) -> tuple[BatchPoint, ...]:
        """By batch size on a device that is not here: as the device's table gives it, else predicted.

        Raises:
            UnsupportedError: neither is possible.
        """
        from ..devices import load_devices
        from ..prediction.ladder import estimate_ladder

        entry = load_devices().get(device)
        name = self.workload.name if technique == ORIGINAL else f"{self.workload.name} {technique}"
        given = entry.ladder(name) if entry else ()
        if given:
            return given
        try:
            served = self._served(technique)
            return estimate_ladder(served, device, traces=self._ladder_traces(served))
        except UnsupportedError as error:
            if entry is None or entry.kind in ("cpu", "gpu"):
                raise
            text = f'give what calls take there, in its table of your device catalogue: latency = {{ "{name}" = {{ "1" = "2ms", "8" = "9ms" }} }}'
            raise UnsupportedError(error.message, help=text) from error

    def _ladder_traces(self, served: Workload) -> list[Trace]:
        """Operators of what is served, by batch size: the same for every device."""
        from ..prediction.ladder import ladder_traces

        digest = served.info().digest
        if self._followed is None or self._followed[0] != digest or self._followed[1] is not served.call:
            self._followed = digest, served.call, ladder_traces(served)
        return self._followed[2]

    def _measured_profile(self, technique: str) -> Profile:
        """The newest one of what is served, or a new one: nothing is founded on one that was cut short.

        Raises:
            KeyboardInterrupt: the new one was cut short, which was meant for what it is a part of; it is kept.
        """
        from ..profiling import profile_model

        known = self._profiles.get(technique)
        if known is None or was_interrupted(known.notes):
            known = self._keep("profile", profile_model(self._served(technique), progress=self.progress), technique=technique)
            if was_interrupted(known.notes):
                raise KeyboardInterrupt
            self._profiles[technique] = known
        return known
