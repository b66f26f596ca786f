"""The queue and the dynamic batcher: requests in, batches of items out to idle workers, each request its own rows back."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
import time
from collections import deque
from typing import Any

from .config import ServingConfig
from .errors import CLIENT_GONE, RequestError
from .frames import padding
from .journal import Journal
from .metrics import ModelMetrics
from .pool import Frame, Reply, Worker
from .tensors import Buffer, InferRequest, Tensor, cut

logger = logging.getLogger(__name__)

MAX_DEATHS = 2
"""A request during which so many workers died is not tried again."""
QUARANTINE_S = 60.0
QUARANTINE_SIZE = 128


class Pending:
    """A request that waits for its outputs."""

    __slots__ = ("deaths", "future", "key", "launched", "limit_s", "num_bytes", "number", "queued_at", "request")

    def __init__(self, request: InferRequest, number: int, future: asyncio.Future[list[Tensor]], queued_at: float, limit_s: float) -> None:
        self.request = request
        self.number = number
        self.key = request.priority, tuple(tensor.shape[1:] for tensor in request.inputs)
        """Requests of one key wait in one queue; those of equal shapes can share a batch."""
        self.future = future
        self.queued_at = queued_at
        self.limit_s = limit_s
        """From then on, until it is too late for an answer."""
        self.num_bytes = request.num_bytes
        self.deaths = 0
        self.launched = False

    def fail(self, error: RequestError) -> None:
        """Answer with an error, unless it is answered already."""
        if not self.future.done():
            self.future.set_exception(error)


class Batcher:
    """Gathers requests of one model into batches.

    A batch goes out as soon as a worker is idle; while all are busy, requests gather. Holding
    back for more (`max_wait_s`) pays only when requests come together, so the adaptive policy
    holds only after a batch of several requests, and only until as many items are there again.

    Args:
        config: Of the model.
        metrics: Of the model.
        hang_s: How long a worker may take for a batch before it is ended; None: as long as a request may.
    """

    def __init__(self, config: ServingConfig, metrics: ModelMetrics, journal: Journal, *, hang_s: float | None = None) -> None:
        self.config = config
        self._hang_s = hang_s or config.request_timeout_s
        self.metrics = metrics
        self._journal = journal
        self._model = (config.name, config.version)
        self.num_running = 0
        """Batches that workers are computing."""
        self._queues: dict[tuple[int, Any], dict[int, Pending]] = {}
        """By priority and shapes, oldest first."""
        self._unanswered: dict[int, Pending] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        """No later than the first of them is due: one clock for all, which most of them never hear."""
        self._retries: deque[Pending] = deque()
        self._items = 0
        self._bytes = 0
        self._numbers = itertools.count()
        self._idle: list[Worker] = []
        self._pump_planned = False
        self._hold: asyncio.TimerHandle | None = None
        self._last_requests = self._last_items = 0
        self._items_per_s = 0.0
        self._quarantine: dict[bytes, float] = {}

    @property
    def num_waiting(self) -> int:
        """Items in the queue."""
        return self._items

    async def infer(self, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """Queue a request and wait for its outputs, in the model's order.

        Args:
            request: A request that passed every check.
            hangup: Tells when the client hangs up, upon which the request is dropped.

        Raises:
            RequestError: 503 when the queue is full, 504 when it takes too long, 500 when the model fails.
        """
        pending = self._admit(request)
        if hangup is not None:
            hangup.callback = lambda: self._drop(pending, RequestError(CLIENT_GONE, "the client hung up"))
        try:
            return await pending.future
        except BaseException:
            self._drop(pending, RequestError(CLIENT_GONE, "cancelled"))
            raise
        finally:
            if request.trace is not None and not pending.launched:
                request.trace.queue(self._model, pending.queued_at, time.monotonic())
            del self._unanswered[pending.number]

    def _admit(self, request: InferRequest) -> Pending:
        config = self.config
        if self._quarantine:
            self._refuse_quarantined(request)
        full = self._items + request.items > config.max_queue_items or self._bytes + request.num_bytes > config.max_queue_bytes
        if full and self._items:  # where nobody waits, whatever the model takes is taken: it would be told for ever to come again
            text = f"overloaded: {self._items} items of {self._bytes} bytes wait, and at most {config.max_queue_items} of {config.max_queue_bytes} bytes may"
            raise RequestError(503, text, retry_after_s=self.expected_wait_s())
        loop = asyncio.get_running_loop()
        limit_s = min(config.request_timeout_s, request.timeout_s or math.inf)
        pending = Pending(request, next(self._numbers), loop.create_future(), time.monotonic(), limit_s)
        self._unanswered[pending.number] = pending
        if pending.queued_at + limit_s < self._alarm_at:
            self._set_alarm(pending.queued_at + limit_s)
        self._queues.setdefault(pending.key, {})[pending.number] = pending
        self._count(pending, 1)
        self._pump_soon()
        return pending

    def expected_wait_s(self) -> float:
        """How long the queue takes to empty, at the pace of the last batches; at least 1 s."""
        return max(1.0, math.ceil(self._items / self._items_per_s)) if self._items_per_s else 1.0

    def _count(self, pending: Pending, sign: int) -> None:
        self._items += sign * pending.request.items
        self._bytes += sign * pending.num_bytes

    def _drop(self, pending: Pending, reason: RequestError) -> None:
        """Fail a request that is not answered yet; if it is still queued, it will not be computed."""
        if pending in self._retries:
            self._retries.remove(pending)
            self._count(pending, -1)
        elif pending.number in self._queues.get(pending.key, ()):
            self._take_out(pending)
            self._count(pending, -1)
        pending.fail(reason)

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, at - time.monotonic()), self._end_late) if at < math.inf else None

    def _end_late(self) -> None:
        now = time.monotonic()
        for pending in list(self._unanswered.values()):
            if pending.queued_at + pending.limit_s <= now:
                self._drop(pending, RequestError(504, f"no answer within {pending.limit_s:g} s"))
        ends = (pending.queued_at + pending.limit_s for pending in self._unanswered.values() if not pending.future.done())
        self._set_alarm(min(ends, default=math.inf))

    def _take_out(self, pending: Pending) -> None:
        queue = self._queues[pending.key]
        del queue[pending.number]
        if not queue:
            del self._queues[pending.key]

    # --- from the queue to the workers ---------------------------------------------------

    def offer(self, worker: Worker) -> None:
        """A worker is ready for a batch."""
        self._idle.append(worker)
        self._pump()

    def _pump_soon(self) -> None:
        """Look for a batch once all requests that the loop has already read are queued, so that the first of them does not leave alone."""
        if self._idle and not self._pump_planned:
            self._pump_planned = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self, *, force: bool = False) -> None:
        """Send batches while there are idle workers and something that should not wait (any longer: `force`)."""
        self._pump_planned = False
        self._idle = [worker for worker in self._idle if not worker.closed.is_set()]
        while self._idle and (batch := self._next_batch(force)):
            force = False
            if self._hold is not None:
                self._hold.cancel()
                self._hold = None
            for pending in batch:
                self._count(pending, -1)
            self._launch(self._idle.pop(), batch)

    def _next_batch(self, force: bool) -> list[Pending]:
        """The oldest request of the first priority and those that can go with it; nothing when it is better to hold.

        Where requests of one priority do not fill a batch, those of the next ones that have the same shapes go along.
        A request whose worker died goes alone, so that it cannot take others down with it again.
        """
        if self._retries:
            return [self._retries.popleft()]
        if not self._queues:
            return []
        _, shapes = min(self._queues, key=lambda key: (key[0], next(iter(self._queues[key]))))
        alike = [self._queues[key] for key in sorted(key for key in self._queues if key[1] == shapes)]
        batch, items = [], 0
        for pending in itertools.chain.from_iterable(queue.values() for queue in alike):
            if items + pending.request.items > self.config.max_batch_size:
                break
            batch.append(pending)
            items += pending.request.items
        if not force and len(batch) == sum(map(len, alike)) and self._should_hold(batch[0], items):
            return []
        for pending in batch:
            self._take_out(pending)
        self._last_requests, self._last_items = len(batch), items
        return batch

    def _should_hold(self, oldest: Pending, items: int) -> bool:
        config = self.config
        if config.max_wait_s == 0 or items >= config.max_batch_size:
            return False
        if config.wait_policy == "adaptive" and (self._last_requests < 2 or items >= self._last_items):
            return False
        remaining = oldest.queued_at + config.max_wait_s - time.monotonic()
        if remaining <= 0:
            return False
        if self._hold is None:
            self._hold = asyncio.get_running_loop().call_later(remaining, self._end_hold)
        return True

    def _end_hold(self) -> None:
        self._hold = None
        self._pump(force=True)

    def _launch(self, worker: Worker, batch: list[Pending]) -> None:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        for pending in batch:
            self.metrics.queue_s.observe(started - pending.queued_at)
            pending.launched = True
        self.metrics.batch_items.observe(sum(pending.request.items for pending in batch))
        self.num_running += 1
        watchdog = loop.call_later(self._hang_s, lambda: worker.kill(hung=True))
        reply = worker.send(make_frame([pending.request for pending in batch]))
        reply.add_done_callback(lambda reply: self._finish(worker, batch, started, watchdog, reply))

    def _finish(self, worker: Worker, batch: list[Pending], started: float, watchdog: asyncio.TimerHandle, reply: asyncio.Future[Reply]) -> None:
        watchdog.cancel()
        self.num_running -= 1
        self._record(batch, started, None if reply.exception() is not None else reply.result()[0]["computed"])
        elapsed = time.monotonic() - started
        if reply.exception() is not None:
            self._after_death(worker, batch)
        else:
            self._learn_pace(sum(pending.request.items for pending in batch), elapsed)
            self.metrics.compute_s.observe(elapsed)
            worker.batches += 1
            self._answer(batch, *reply.result())
            self._idle.append(worker)
        self._pump()
        if self._journal and reply.exception() is None:  # last, so that nobody waits for it
            items, queued = [pending.request.items for pending in batch], [pending.queued_at for pending in batch]
            self._journal.batch(self._model, worker.process.pid, started, elapsed, items, queued)

    def _record(self, batch: list[Pending], started: float, computed: list[float] | None) -> None:
        """Tell those requests that are recorded what became of them; None: the worker died."""
        now, items = time.monotonic(), sum(pending.request.items for pending in batch)
        for pending in batch:
            if (trace := pending.request.trace) is None:
                continue
            if not pending.deaths:
                trace.queue(self._model, pending.queued_at, started)
            trace.batch(self._model, started, now, items=items, requests=len(batch), computed=None if computed is None else (computed[0], computed[1]))

    def _learn_pace(self, items: int, elapsed: float) -> None:
        pace = items / max(elapsed, 1e-6) * self.config.workers
        self._items_per_s = 0.9 * self._items_per_s + 0.1 * pace if self._items_per_s else pace

    def _answer(self, batch: list[Pending], header: dict[str, Any], payload: memoryview) -> None:
        position, finite = 0, header["finite"]
        for pending, entry in zip(batch, header["requests"], strict=True):
            if "error" in entry:
                pending.fail(RequestError(500, entry["error"]))
                continue
            outputs = cut(self.config.outputs, entry, payload[position:], is_finite=finite)
            position += sum(entry["sizes"])
            if not pending.future.done():
                pending.future.set_result(outputs)

    # --- when a worker dies --------------------------------------------------------------

    def _after_death(self, worker: Worker, batch: list[Pending]) -> None:
        """Queue the batch again at the head, except what took too long or was there at two deaths."""
        again = []
        for pending in batch:
            pending.deaths += 1
            if pending.future.done():
                continue
            if worker.hung:
                pending.fail(RequestError(504, f"the model did not answer within {self.config.request_timeout_s:g} s; its worker was ended"))
            elif pending.deaths >= MAX_DEATHS:
                self._put_in_quarantine(pending.request)
                pending.fail(RequestError(500, f"{pending.deaths} model workers died computing this request"))
            else:
                again.append(pending)
        for pending in reversed(again):
            self._retries.appendleft(pending)
            self._count(pending, 1)
        logger.warning("worker %d ended with %d requests; %d go to another", worker.process.pid, len(batch), len(again))
        self._journal.handed_on(self._model, worker.process.pid, time.monotonic(), len(again), len(batch) - len(again))

    def _put_in_quarantine(self, request: InferRequest) -> None:
        if len(self._quarantine) >= QUARANTINE_SIZE:
            self._quarantine.pop(next(iter(self._quarantine)))
        self._quarantine[_digest(request)] = time.monotonic() + QUARANTINE_S

    def _refuse_quarantined(self, request: InferRequest) -> None:
        self._quarantine = {digest: until for digest, until in self._quarantine.items() if until > time.monotonic()}
        if _digest(request) in self._quarantine:
            raise RequestError(500, "model workers died computing an identical request; it is not tried again for now")


class Hangup:
    """How the listener tells that the client of a request has hung up."""

    __slots__ = ("callback",)

    def __init__(self) -> None:
        self.callback: Any = None


def make_frame(requests: list[InferRequest]) -> Frame:
    """One batch for a worker: for each input the rows of all requests, one after the other."""
    shapes, sizes, parts = [], [], list[Buffer]()
    items = [request.items for request in requests]
    for index, tensor in enumerate(requests[0].inputs):
        rows = [request.inputs[index].data for request in requests]
        size = sum(map(len, rows))
        shapes.append(tensor.shape if len(requests) == 1 else (sum(items), *tensor.shape[1:]))
        sizes.append(size)
        parts += [*rows, padding(size)]
    return {"items": items, "shapes": shapes, "sizes": sizes}, parts


def _digest(request: InferRequest) -> bytes:
    digest = hashlib.sha256()
    for tensor in request.inputs:
        digest.update(repr(tensor.shape).encode())
        digest.update(tensor.data)
    return digest.digest()
