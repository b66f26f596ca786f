"""Shadows: a version that is to come gets copies of a share of the requests; its answers are compared with those given, and nobody waits for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace

import numpy as np

from .config import ServingConfig, TensorSpec
from .errors import RequestError, ServerError
from .service import LocalService, Servable
from .tensors import Array, InferRequest, Tensor, relative_error

TOLERANCE = 0.01
"""Within which two numbers that are no scores of classes count as the same, relative to the larger one."""
COMPARED_AT_ONCE = 64 * 2**10
"""Bytes of outputs; more are compared in a thread, so that the loop goes on answering."""


class Shadows:
    """Copies requests once they are answered, when there is nothing better to do.

    A copy is dropped where requests wait for the version that answers, and where the shadow has a batch of copies already:
    under load it is the first that goes.

    Args:
        service: Where both versions are served.
        share: Of the answered requests, from 0 to 1.
    """

    def __init__(self, service: LocalService, share: float) -> None:
        self._service, self._share = service, share
        self._metrics = service.metrics
        self._items: Counter[Servable] = Counter()
        """Of the copies under way, by shadow."""
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, model: Servable, request: InferRequest, outputs: list[Tensor], seconds: float) -> None:
        """Copy a request that `model` answered with `outputs` within `seconds`, perhaps."""
        shadow = self._service.shadow_of(model)
        if shadow is None or random.random() >= self._share:
            return
        alike = shadow.config.inputs == model.config.inputs and shadow.config.dimensions == model.config.dimensions
        if not alike or request.items > shadow.config.max_batch_size:
            self._count(shadow, "unfit")
            return
        busy = self._items[shadow] + request.items > shadow.config.max_batch_size
        if busy or model.num_waiting or not shadow.ready or self._service.draining:
            self._count(shadow, "dropped")
            return
        self._items[shadow] += request.items
        task = asyncio.get_running_loop().create_task(self._compute(model, shadow, request, outputs, seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up the copies that are under way."""
        for task in self._tasks:
            task.cancel()

    def _count(self, shadow: Servable, result: str) -> None:
        self._metrics.shadow_requests.labels(shadow.config.name, shadow.config.version, result).inc()

    async def _compute(self, model: Servable, shadow: Servable, request: InferRequest, outputs: list[Tensor], seconds: float) -> None:
        """Ask the shadow, behind everybody who asks it by its version, and compare."""
        began = time.monotonic()
        try:
            with shadow.in_use():
                try:
                    answers = await shadow.infer(replace(request, priority=shadow.config.priority_levels, timeout_s=None, trace=None))
                except RequestError as error:
                    self._count(shadow, "late" if error.status == 504 else "failed")
                    return
                elapsed, pairs = time.monotonic() - began, pair(outputs, answers)
                if sum(len(given.data) for given, _ in pairs) > COMPARED_AT_ONCE:
                    apart, agreeing = await asyncio.to_thread(compare, model.config, pairs, request.items)
                else:
                    apart, agreeing = compare(model.config, pairs, request.items)
                labels = shadow.config.name, shadow.config.version
                self._metrics.shadow_error.labels(*labels).observe(apart)
                self._metrics.shadow_items.labels(*labels, "true").inc(agreeing)
                self._metrics.shadow_items.labels(*labels, "false").inc(request.items - agreeing)
                for answer, taken in (("given", seconds), ("shadow", elapsed)):
                    self._metrics.shadow_s.labels(*labels, answer).observe(taken)
                self._count(shadow, "compared")
        finally:  # not before: outputs that wait to be compared would pile up where that takes longer than to compute them
            self._items[shadow] -= request.items
            if not self._items[shadow]:
                del self._items[shadow]


def pair(given: list[Tensor], answers: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The outputs that both versions have, by name."""
    by_name = {tensor.spec.name: tensor for tensor in answers}
    return [(tensor, by_name[tensor.spec.name]) for tensor in given if tensor.spec.name in by_name]


def compare(config: ServingConfig, pairs: list[tuple[Tensor, Tensor]], items: int) -> tuple[float, int]:
    """How far two versions are apart.

    Args:
        config: Of the version that answered.
        pairs: Its outputs, each with that of the shadow.
        items: Of the request.

    Returns:
        The largest relative L2 error over items and outputs, infinite where an output has another datatype or shape or is not finite;
        and the number of items that both decide alike: of scores the same class, of other numbers the same within `TOLERANCE`.
    """
    if not pairs:
        return float("inf"), 0
    worst, alike = 0.0, np.ones(items, bool)
    for given, answer in pairs:
        expected, got = given.array(), answer.array()
        if given.spec.datatype != answer.spec.datatype or expected.shape != got.shape:
            return float("inf"), 0
        try:
            worst = max(worst, relative_error(replace(config, outputs=(given.spec,)), [got], [expected]))
        except ServerError:  # not finite
            worst = float("inf")
        alike &= _alike(given.spec, config.batched, expected, got).reshape(items, -1).all(axis=1)
    return worst, int(alike.sum())


def _alike(spec: TensorSpec, batched: bool, expected: Array, got: Array) -> Array:
    if not spec.datatype.startswith("FP"):
        return np.asarray(expected == got)
    if expected.ndim > int(batched) and expected.shape[-1] > 1:
        return np.asarray(np.argmax(expected, axis=-1) == np.argmax(got, axis=-1))
    return np.asarray(np.abs(expected - got) <= TOLERANCE * np.maximum(np.abs(expected), np.abs(got)))
