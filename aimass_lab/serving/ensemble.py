"""Ensembles: several served models answer one request at the same time, and their outputs become one.

Described by `NAME.ensemble.json` in the repository's folder::

    {"schema": 1, "name": "committee", "version": "1", "combine": "average", "min_members": 2,
     "members": [{"model": "net", "version": "1", "weight": 2}, {"model": "big", "timeout_s": 0.05, "fallback": "net"}]}

Every member's part joins the batches of that member, with whatever else it is asked at the time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .batcher import Hangup
from .config import ServingConfig, TensorSpec, read_json
from .errors import CLIENT_GONE, BundleError, RequestError
from .metrics import ModelMetrics
from .service import ENSEMBLE, LocalService, Servable
from .tensors import Array, InferRequest, Tensor, encode

SUFFIX = ".ensemble.json"
KEYS = {"schema", "name", "version", "combine", "min_members", "members"}
MEMBER_KEYS = {"model", "version", "weight", "timeout_s", "fallback"}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One step: a model, how much it counts, how long it may take, and whom to ask in its place."""

    model: str
    version: str | None = None
    """None: the newest, as for any request that names none."""
    weight: float = 1.0
    timeout_s: float | None = None
    fallback: str | None = None
    """The model asked, once, where this one is late or fails."""


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """The content of an ensemble's file."""

    name: str
    version: str
    combine: str
    """``"average"``, ``"vote"``, ``"first"``."""
    members: tuple[Member, ...]
    min_members: int
    """With fewer answers the request fails."""


def load_ensemble(path: Path) -> EnsembleConfig:
    """Read and check an ensemble's file.

    Raises:
        BundleError: it cannot be read, or what it says cannot be done.
    """
    raw = read_json(path)
    members = raw.get("members")
    if unknown := set(raw) - KEYS:
        raise BundleError(f"{path.name}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(KEYS))}")
    if not isinstance(members, list) or not members or not all(isinstance(member, dict) for member in members):
        raise BundleError(f"{path.name}: members must be a list of at least one object")
    if not isinstance(raw.get("combine"), str) or raw["combine"] not in COMBINE:
        raise BundleError(f"{path.name}: combine is {raw.get('combine')!r}; it can be {', '.join(COMBINE)}")
    for key in ("name", "version"):
        if not isinstance(raw.get(key), str) or not raw[key]:
            raise BundleError(f"{path.name}: {key} must be a text, got {raw.get(key)!r}")
    checked = tuple(_member(path.name, member) for member in members)
    least = raw.get("min_members", 1 if raw["combine"] == "first" else len(checked))
    if type(least) is not int or not 1 <= least <= len(checked):
        raise BundleError(f"{path.name}: min_members is {least!r}; it can be from 1 to {len(checked)}, the number of members")
    return EnsembleConfig(name=raw["name"], version=raw["version"], combine=raw["combine"], members=checked, min_members=least)


def _member(file: str, raw: dict[str, Any]) -> Member:
    if unknown := set(raw) - MEMBER_KEYS:
        raise BundleError(f"{file}: unknown key {sorted(unknown)[0]!r} of a member; known are {', '.join(sorted(MEMBER_KEYS))}")
    if not isinstance(raw.get("model"), str) or not all(isinstance(raw.get(key, ""), str) for key in ("version", "fallback")):
        raise BundleError(f"{file}: model, version and fallback of a member must be texts, got {raw!r}")
    for key in ("weight", "timeout_s"):
        value = raw.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise BundleError(f"{file}: {key} of {raw['model']!r} is {value!r}; it must be a number greater than 0")
    return Member(**raw)


class Ensemble(Servable):
    """Answers by asking its members.

    Args:
        config: Who they are.
        service: Where they are served.

    Raises:
        BundleError: a member is not served, members have different signatures, or their outputs cannot be combined so.
    """

    platform = ENSEMBLE

    def __init__(self, config: EnsembleConfig, service: LocalService) -> None:
        self._ensemble, self._service = config, service
        try:
            members = [service.find(member.model, member.version) for member in config.members]
            others = [service.find(member.fallback, None) for member in config.members if member.fallback]
        except RequestError as error:
            raise BundleError(f"ensemble {config.name!r}: {error.text}") from None
        first = members[0]
        for model in (*members, *others):
            if isinstance(model, Ensemble):
                raise BundleError(f"ensemble {config.name!r}: {model.config.name!r} is an ensemble itself")
            if _signature(model.config) != _signature(first.config):
                raise BundleError(f"ensemble {config.name!r}: {first.config.name!r} and {model.config.name!r} have different inputs or outputs")
        if config.combine == "average" and any(not spec.datatype.startswith("FP") for spec in first.config.outputs):
            raise BundleError(f"ensemble {config.name!r}: only FP16, FP32 and FP64 can be averaged; use vote")
        super().__init__(_serving_config(config, [model.config for model in members]), first.folder)
        self._metrics = ModelMetrics(service.metrics, config.name, config.version)
        self._steps = service.metrics.ensemble_steps

    @property
    def ready(self) -> bool:
        """Whether enough members are."""
        return self._num_ready() >= self._ensemble.min_members

    def show(self) -> None:
        """Let metrics tell of these members."""
        self._metrics.workers_ready.set_function(self._num_ready)

    def _num_ready(self) -> int:
        found = [self._find(name, version) for name, version in ((member.model, member.version) for member in self._ensemble.members)]
        return sum(isinstance(model, Servable) and model.ready for model in found)

    def _find(self, name: str, version: str | None) -> Servable | RequestError:
        """A member as it is served now: it may have been unloaded, or replaced by a version of another signature."""
        try:
            model = self._service.find(name, version)
        except RequestError as error:
            return RequestError(503, f"ensemble {self.config.name!r}: {error.text}", retry_after_s=1.0)
        if _signature(model.config) != _signature(self.config):
            return RequestError(503, f"ensemble {self.config.name!r}: {name!r} has other inputs or outputs now", retry_after_s=1.0)
        return model

    async def infer(self, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """Ask all members at once, and combine what they answer in time.

        Raises:
            RequestError: fewer than `min_members` answered; the error is that of the first that did not.
        """
        began, loop = time.monotonic(), asyncio.get_running_loop()
        steps = {loop.create_task(self._step(member, request)): member for member in self._ensemble.members}
        if hangup is not None:
            hangup.callback = lambda: [step.cancel() for step in steps]
        try:
            answers = await self._gather(steps)
        finally:
            for step in steps:
                step.cancel()
        outputs = self._combine(answers)
        self._metrics.batch_items.observe(request.items)
        self._metrics.compute_s.observe(time.monotonic() - began)
        return outputs

    async def _gather(self, steps: Mapping[asyncio.Task[list[Tensor]], Member]) -> list[tuple[float, list[Tensor]]]:
        """Weights and outputs: of all that answer, or of the first ones in time where that is what is wanted."""
        wanted = self._ensemble.min_members if self._ensemble.combine == "first" else len(steps)
        pending, answers, errors = set(steps), list[tuple[float, list[Tensor]]](), list[RequestError]()
        while pending and len(answers) < wanted:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for step in done:
                if step.cancelled():
                    raise RequestError(CLIENT_GONE, "the client hung up")
                error = step.exception()
                if error is None:
                    answers.append((steps[step].weight, step.result()))
                elif isinstance(error, RequestError):
                    errors.append(error)
                else:
                    raise error
        if len(answers) < self._ensemble.min_members:
            raise errors[0]
        return answers[:wanted]  # two may be there at once

    async def _step(self, member: Member, request: InferRequest) -> list[Tensor]:
        """The answer of a member, or of the one asked in its place, who has what is left of the request's time."""
        limit_s = min(self.config.request_timeout_s, request.timeout_s or math.inf)
        deadline = time.monotonic() + limit_s
        try:
            outputs = await self._ask(member.model, member.version, replace(request, timeout_s=min(limit_s, member.timeout_s or math.inf)))
        except RequestError as error:
            self._count(member.model, "late" if error.status == 504 else "failed")
            left_s = deadline - time.monotonic()
            if member.fallback is None or left_s <= 0:
                raise
            outputs = await self._ask(member.fallback, None, replace(request, timeout_s=left_s))
            self._count(member.fallback, "in place of another")
            return outputs
        self._count(member.model, "in time")
        return outputs

    async def _ask(self, name: str, version: str | None, request: InferRequest) -> list[Tensor]:
        model = self._find(name, version)
        if isinstance(model, RequestError):
            raise model
        with model.in_use():
            return await model.infer(request)

    def _count(self, step: str, result: str) -> None:
        self._steps.labels(self.config.name, self.config.version, step, result).inc()

    def _combine(self, answers: list[tuple[float, list[Tensor]]]) -> list[Tensor]:
        if len(answers) == 1 and self._ensemble.combine != "vote":
            return answers[0][1]
        combine, weights = COMBINE[self._ensemble.combine], [weight for weight, _ in answers]
        outputs = []
        for index, spec in enumerate(self.config.outputs):
            arrays = [tensors[index].array() for _, tensors in answers]
            if len({array.shape for array in arrays}) > 1:
                raise RequestError(500, f"members gave output {spec.name!r} in different shapes: {', '.join(str(list(a.shape)) for a in arrays)}")
            combined = combine(spec, weights, arrays)
            outputs.append(Tensor(spec, combined.shape, encode(spec.datatype, combined)))
        return outputs

    async def close(self) -> None:
        """Tell of it no more; its members go on."""
        self._metrics.remove()


def _signature(config: ServingConfig) -> tuple[Any, ...]:
    return config.inputs, config.outputs, config.batched, config.dimensions


def _serving_config(config: EnsembleConfig, members: Sequence[ServingConfig]) -> ServingConfig:
    """What holds for a request to the ensemble: what every member takes."""
    return replace(
        members[0],
        name=config.name,
        version=config.version,
        format="ensemble",
        model_file="",
        max_batch_size=min(member.max_batch_size for member in members),
        priority_levels=min(member.priority_levels for member in members),
        request_timeout_s=max(member.request_timeout_s for member in members),
    )


# --- how outputs become one --------------------------------------------------------------


def _average(_: TensorSpec, weights: list[float], arrays: list[Array]) -> Array:
    """The weighted mean."""
    wide = np.float64 if arrays[0].dtype == np.float64 else np.float32
    return np.tensordot(np.array([weight / sum(weights) for weight in weights], wide), np.stack(arrays).astype(wide), axes=1)


def _vote(spec: TensorSpec, weights: list[float], arrays: list[Array]) -> Array:
    """Floats are scores of classes: each class gets the share of the votes that named it. Of anything else, the value that most named; of equals, the least."""
    votes = np.array(weights, np.float64) / sum(weights)
    if spec.datatype.startswith("FP"):
        classes = arrays[0].shape[-1] if arrays[0].ndim else 1
        chosen = np.stack([np.argmax(array, axis=-1) for array in arrays])[..., None] == np.arange(classes)
        return np.tensordot(votes, chosen, axes=1)
    values, which = np.unique(np.stack(arrays), return_inverse=True)
    shares = np.tensordot(votes, which.reshape(len(arrays), *arrays[0].shape)[..., None] == np.arange(len(values)), axes=1)
    return values[np.argmax(shares, axis=-1)]


COMBINE: dict[str, Callable[[TensorSpec, list[float], list[Array]], Array]] = {"average": _average, "vote": _vote, "first": _average}
"""Of several first ones (`min_members`), the average."""
