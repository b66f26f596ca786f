"""Where a call of a model can be interrupted: before some of its submodules, chosen so that the pieces take about equally long.

Nothing is rewritten and nothing traced: the model's own forward runs, in a thread of its own, and pauses in hooks. So any module with
submodules can be cut, whatever its control flow, and computes what it always computes. A compiled module is one piece.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..workload import Workload, call_model
from .worker import pause

if TYPE_CHECKING:
    from torch import nn

MAX_SEGMENTS = 16
MIN_SEGMENT_S = 0.0005
"""Handing the device over takes some ten microseconds: shorter pieces would be mostly that."""

Place = tuple[str, int]
"""A submodule, and the how-manieth of its calls within one call of the model."""


class Pieces:
    """A model whose calls can be interrupted; use it within ``with pieces:``, under `preserve.preserved`.

    Args:
        workload: The model and what it is called with.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.places: frozenset[Place] = frozenset()
        """Where a call pauses."""
        self._calls = threading.local()
        self._handles: list[Any] = []

    def __enter__(self) -> Pieces:
        modules = {name for name, _ in self.places}
        self._handles = [self._hook(name, module) for name, module in _submodules(self.workload.model) if name in modules]
        return self

    def __exit__(self, *exc: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def call(self) -> Any:
        """Call the model once.

        Raises:
            ModelError: the model raised.
            DoesNotFitError: the device's memory did not suffice.
        """
        import torch

        self._calls.counts = Counter()
        try:
            with torch.inference_mode():
                return call_model(self.workload.model, self.workload.call)
        finally:
            self._calls.counts = None  # another stream may call the same model in this thread

    def find(self, clock: Callable[[], float], *, rounds: int = 3) -> None:
        """Choose the places by timing each submodule's beginning within a call.

        Args:
            clock: Seconds; of the thread that calls.
            rounds: Calls; the fastest is looked at.
        """
        import torch

        best: list[tuple[Place, float]] = []
        shortest = float("inf")
        for _ in range(rounds):
            seen: list[tuple[Place, float]] = []
            with torch.inference_mode(), _watched(self.workload.model, lambda place, into=seen: into.append((place, clock()))):  # type: ignore[misc]
                begin = clock()
                call_model(self.workload.model, self.workload.call)
                took = clock() - begin
            if took < shortest:
                shortest, best = took, [(place, time - begin) for place, time in seen]
        self.places = _spread(best, shortest)

    def _hook(self, name: str, module: nn.Module) -> Any:
        def before(*_: Any) -> None:
            counts = getattr(self._calls, "counts", None)
            if counts is None:
                return
            counts[name] += 1
            if (name, counts[name]) in self.places:
                pause()

        return module.register_forward_pre_hook(before)


def _submodules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Everything below the model that torch lets us stop before: not what a compiled or scripted module holds, which runs as one."""
    import torch

    whole = (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)
    below: list[str] = []
    for name, module in model.named_modules():
        inside = isinstance(model, whole) or any(name.startswith(f"{other}.") for other in below)
        if isinstance(module, whole):
            below.append(name)
        if name and not inside:
            yield name, module


@contextlib.contextmanager
def _watched(model: nn.Module, note: Callable[[Place], None]) -> Iterator[None]:
    """Tell `note` of every call of a submodule as it begins."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        def before(*_: Any) -> None:
            counts[name] += 1
            note((name, counts[name]))

        return before

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in _submodules(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _spread(seen: list[tuple[Place, float]], total_s: float) -> frozenset[Place]:
    """Of the places that were passed, those nearest to equal steps, none so near to another that the piece would be too short."""
    count = min(MAX_SEGMENTS, int(total_s / MIN_SEGMENT_S))
    chosen: list[tuple[Place, float]] = []
    for k in range(1, count):
        goal = k * total_s / count
        place = min(seen, key=lambda pair: abs(pair[1] - goal), default=None)
        if place is None or place[1] < MIN_SEGMENT_S or total_s - place[1] < MIN_SEGMENT_S / 2:
            continue
        if not chosen or place[1] - chosen[-1][1] >= MIN_SEGMENT_S:
            chosen.append(place)
    return frozenset(place for place, _ in chosen)
