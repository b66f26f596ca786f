"""Model workers as supervised child processes: started, warmed up, watched, and started again when they die."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .child import start_child
from .config import ServingConfig
from .devices import CPU, device_environment, device_of
from .errors import ServerError
from .frames import FrameReader, pack
from .journal import Journal
from .tensors import Array, Buffer, cut, relative_error

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
"""In a row; then the server gives up, so that whoever runs it can act."""
MAX_BACKOFF_S = 5.0
PARITY_TOLERANCE = 0.05
"""Relative L2 error of a stored output above which a version is not let in; what a bundle promises of its fidelity is finer, and `verify` holds it to that."""
WAIT_POLICY = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
"""How threads of torch wait for one another: those that spin would take the core from the one they wait for, and from the front end."""

Frame = tuple[dict[str, Any], list[Buffer]]
Reply = tuple[dict[str, Any], memoryview]


@dataclass(frozen=True)
class WarmUp:
    """A batch that a new worker must answer."""

    frame: Frame
    expected: list[Array] | None
    """The outputs that are stored for it, item for item; None where none are."""


class WorkerDied(Exception):
    """The worker's process ended, or was ended, before it answered."""


class Worker(asyncio.Protocol):
    """One worker process, and the socket to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.closed = asyncio.Event()
        self.batches = 0
        self.hung = False
        self._reader = FrameReader()
        self._reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()  # the first frame comes unasked
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand a complete frame to whoever waits for it."""
        for reply in self._reader.feed(data):
            if not self._reply.done():
                self._reply.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process is gone, or as good as: make sure, and tell whoever waits."""
        self.kill()
        if not self._reply.done():
            self._reply.set_exception(WorkerDied())
            self._reply.exception()  # nobody may be waiting: a worker that dies idle is no error of a request
        self.closed.set()

    @property
    def greeting(self) -> asyncio.Future[Reply]:
        """The first frame: ready, or why not."""
        return self._reply

    def send(self, frame: Frame) -> asyncio.Future[Reply]:
        """Give it a batch; one at a time.

        Returns:
            The reply to come, or `WorkerDied`.
        """
        self._reply = asyncio.get_running_loop().create_future()
        if self.closed.is_set() or self._transport is None:
            self._reply.set_exception(WorkerDied())
        else:
            self._transport.writelines(pack(*frame))
        return self._reply

    def kill(self, *, hung: bool = False) -> None:
        """End the process at once."""
        self.hung |= hung
        self.process.kill()

    def step_back(self) -> None:
        """Whoever else is ready to run goes first, at once; there is no way back without rights that nobody should have."""
        with contextlib.suppress(OSError):  # it has just ended
            if sys.platform == "linux":
                for thread in os.listdir(f"/proc/{self.process.pid}/task"):
                    os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, self.process.pid, 19)

    def close(self) -> None:
        """Close the socket, upon which the process ends by itself when it is done."""
        if self._transport is not None:
            self._transport.close()


class WorkerPool:
    """Keeps `config.workers` workers alive.

    Args:
        folder: The bundle.
        config: How many workers, and how long they may take.
        warm_up: Batches that a new worker must answer before it counts as ready.
        on_parity: Told of `parity_error` when a new worker has answered them.
        on_ready: Called with a worker that can take a batch.
        on_restart: Called when a worker had to be replaced.
        journal: Where it is written down that workers got ready and ended.
        devices: Where they compute, in turn.
    """

    def __init__(
        self,
        folder: Path,
        config: ServingConfig,
        warm_up: list[WarmUp],
        on_parity: Callable[[float], None],
        on_ready: Callable[[Worker], None],
        on_restart: Callable[[], None],
        journal: Journal,
        *,
        devices: Sequence[str] = (CPU,),
    ) -> None:
        self.ready: set[Worker] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets a `ServerError` when there is no use in going on."""
        self._folder = folder
        self._config = config
        self.parity_error = 0.0
        """Largest relative error of a worker's answers to the warm-up; infinite where one cannot be compared with what is stored."""
        self._warm_up = warm_up
        self._on_parity = on_parity
        self._on_ready = on_ready
        self._on_restart = on_restart
        self._journal = journal
        self._model = (config.name, config.version)
        self._background = False
        self._devices = devices
        self._failed_starts = 0
        self._stopping = False
        self._started: list[asyncio.Future[None]] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._allowed_error = math.inf
        """Of those that take the places of the first ones."""

    async def start(self) -> None:
        """Start all workers and wait until they are ready.

        Raises:
            ServerError: one does not load the model or does not answer the warm-up.
        """
        loop = asyncio.get_running_loop()
        self._started = [loop.create_future() for _ in range(self._config.workers)]
        self._keepers = [loop.create_task(self._keep(first, device_of(self._devices, place))) for place, first in enumerate(self._started)]
        await asyncio.gather(*self._started)
        self._allowed_error = max(self.parity_error, PARITY_TOLERANCE)

    def step_back(self) -> None:
        """Let the workers, and those that take their places, compute only while nobody else wants the processor."""
        self._background = True
        for worker in self.ready:
            worker.step_back()

    async def stop(self) -> None:
        """Let every worker finish and end; whoever does not within two seconds is killed."""
        self._stopping = True
        for worker in self.ready:
            worker.close()
        _, late = await asyncio.wait(self._keepers, timeout=2.0) if self._keepers else ((), ())
        for task in late:
            task.cancel()
        for worker in list(self.ready):
            worker.kill()

    async def _keep(self, first: asyncio.Future[None], device: str) -> None:
        """Keep one place filled."""
        unproductive = 0
        while not self._stopping:
            began = time.monotonic()
            try:
                worker = await self._start_worker(device)
            except ServerError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                unproductive += 1
                self._count_failed_start(error)
            else:
                self._failed_starts = 0
                self._tell_ready(worker, time.monotonic() - began, again=first.done() and not first.cancelled())
                if not first.done():
                    first.set_result(None)
                await self._watch(worker)
                unproductive = 0 if worker.batches else unproductive + 1
            if not self._stopping:
                self._on_restart()
                await asyncio.sleep(min(0.05 * 2**unproductive, MAX_BACKOFF_S) if unproductive else 0)

    def _tell_ready(self, worker: Worker, seconds: float, *, again: bool) -> None:
        self._journal.ready(self._model, worker.process.pid, time.monotonic(), seconds, again=again)
        if again:
            logger.warning("worker %d is ready after %.2f s, in place of one that ended", worker.process.pid, seconds)

    def _count_failed_start(self, error: ServerError) -> None:
        logger.warning("a worker did not start: %s", error)
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS and not self.failed.done():
            self.failed.set_exception(ServerError(f"{self._failed_starts} workers in a row did not start; the last: {error}"))

    async def _watch(self, worker: Worker) -> None:
        """Offer a ready worker until it dies."""
        self.ready.add(worker)
        try:
            self._on_ready(worker)
            await worker.closed.wait()
        finally:
            self.ready.discard(worker)
            worker.kill()
            code = worker.process.wait()  # it was killed, so this does not block
            if not self._stopping:
                logger.warning("worker %d ended with code %d after %d batches", worker.process.pid, code, worker.batches)
                self._journal.ended(self._model, worker.process.pid, time.monotonic(), code, worker.batches)

    async def _start_worker(self, device: str) -> Worker:
        """Start a process, wait for its greeting and warm it up.

        Raises:
            ServerError: it ended, took too long, or said what is wrong.
        """
        try:
            worker = await self._spawn(device)
        except OSError as error:
            raise ServerError(f"cannot start a model worker: {error.strerror or error}") from None
        timer = asyncio.get_running_loop().call_later(self._config.start_timeout_s, lambda: worker.kill(hung=True))
        try:
            await self._greet_and_warm_up(worker)
            if self._background:
                worker.step_back()
        except BaseException as error:
            worker.kill()
            code = worker.process.wait()
            if isinstance(error, WorkerDied):
                limit = f"did not get ready within {self._config.start_timeout_s:g} s" if worker.hung else f"ended with code {code}"
                raise ServerError(f"a model worker {limit} while starting") from None
            raise
        finally:
            timer.cancel()
        return worker

    async def _greet_and_warm_up(self, worker: Worker) -> None:
        header, _ = await worker.greeting
        if "error" in header:
            raise ServerError(header["error"])
        worst = 0.0
        for one in self._warm_up:
            header, payload = await worker.send(one.frame)
            (answer,) = header["requests"]
            if "error" in answer:
                raise ServerError(f"warm-up: {answer['error']}")
            if one.expected is not None:
                worst = max(worst, _difference(self._config, answer, payload, one.expected))
        if worst > self._allowed_error:
            raise ServerError(f"it computes something else than those before it, by a relative error of {worst:.3g}: the file was changed under the server")
        self.parity_error = max(self.parity_error, worst)
        self._on_parity(self.parity_error)

    async def _spawn(self, device: str) -> Worker:
        threads = str(self._config.threads_per_worker)
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "OMP_WAIT_POLICY": WAIT_POLICY} | device_environment(device)
        process, ours = start_child("worker", {"bundle": str(self._folder), "device": device}, environment=environment)
        worker = Worker(process)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        return worker


def _difference(config: ServingConfig, answer: dict[str, Any], payload: memoryview, expected: list[Array]) -> float:
    """Largest relative error of an item's outputs; infinite where they cannot be compared.

    Item by item, because all at once would take a multiple of a large batch's memory.
    """
    outputs = [tensor.array() for tensor in cut(config.outputs, answer, payload)]
    parts: list[Any] = [slice(i, i + 1) for i in range(len(expected[0]))] if config.batched else [...]
    try:
        return max(relative_error(config, [array[part] for array in outputs], [array[part] for array in expected]) for part in parts)
    except ServerError:  # of other shapes, or not finite
        return math.inf
