"""Several front-end processes on one port: started, told what is served, and started again when they die.

The models stay in this process, and so does all that must be one for the whole server: the queues and their bounds, batches, rate limits, deadlines,
the repository, logs, metrics. A front end takes connections, reads and checks requests and writes answers; what passed every check comes here over a
socket, and its outputs go back. Front ends with workers of their own would save that way, and would cost what batching is for: requests that come
together would be divided into as many batches as there are front ends, each with a queue bound and a rate limit of its own.

The way over the socket is paid by every request, so one front end, which is this process, is the default: on two cores two of them cost more than they give.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import IO, Any

from .channel import Channel, error_header
from .child import start_child
from .config import ServingConfig
from .errors import RequestError, ServerError
from .frontend import FrontEndOptions
from .pool import MAX_BACKOFF_S, MAX_FAILED_STARTS
from .repository import Repository
from .service import LocalService, Servable
from .tally import NUM_BYTES, Tally
from .tensors import Buffer, InferRequest, Tensor
from .tracing import Notes

logger = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 5.0
"""A front end that stands still keeps nobody from loading a model for longer."""
LONG_LIVED_S = 10.0
"""One that lived so long is replaced at once."""
DRAIN_SLACK_S = 2.0
"""A front end ends its connections by itself; so much later it is ended."""

SILENCE_S = 5.0
"""A front end that was silent for so long, and for longer than a request may take, has no request that could be answered in time, and is ended."""
SILENT_STEPS = 5
"""In which this time is waited for."""

Answer = tuple[dict[str, Any], list[Buffer]]


class FrontEnds:
    """Keeps as many front ends alive as there are listeners.

    Args:
        service: Computes.
        repository: Tells and changes what is served.
        listeners: One for each, of the same port. They stay open here, so that connections wait for the front end that takes the place of one that died.
        reserved: Holds the port for gRPC.
        config: Of the server's own bundle.
        options: How each listens.
    """

    def __init__(
        self,
        service: LocalService,
        repository: Repository,
        listeners: list[socket.socket],
        reserved: socket.socket | None,
        config: ServingConfig,
        options: FrontEndOptions,
        *,
        canary: float | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = loop.create_future()
        """Gets a `ServerError` when there is no use in going on."""
        self.grpc_port = reserved.getsockname()[1] if reserved is not None else None
        self._service, self._repository, self._options = service, repository, options
        self._listeners, self._reserved, self._start_timeout_s = listeners, reserved, config.start_timeout_s
        self._silence_s = max(SILENCE_S, config.request_timeout_s)
        door = service.door
        self._begin = {
            "name": config.name, "canary": canary, "options": asdict(options) | {"tls": options.tls and [str(file) for file in options.tls]},
            "tokens": [[token.value, token.name] for token in door.tokens], "limited": sorted(door.limited), "log": bool(service.log),
        }  # fmt: skip
        self._links: set[_Link] = set()
        self._counts: list[IO[bytes]] = []
        """What each has counted, in files that outlive it and have no name."""
        self._started: list[asyncio.Future[None]] = [loop.create_future() for _ in listeners]
        self._keepers: list[asyncio.Task[None]] = []
        self._failed_starts = 0
        self._stopping = self._publishing = False
        service.changed = self._publish_soon

    async def start(self) -> None:
        """Start all and wait until they listen.

        Raises:
            ServerError: one cannot.
        """
        try:
            for _ in self._listeners:
                self._counts.append(tempfile.TemporaryFile())  # noqa: SIM115  # for as long as they are needed
                self._counts[-1].truncate(NUM_BYTES)
                self._service.metrics.answers.tallies.append(Tally(self._counts[-1].fileno()))
        except OSError as error:
            raise ServerError(f"cannot make a file for the counts of a front end: {error.strerror or error}") from None
        self._keepers = [asyncio.get_running_loop().create_task(self._keep(place)) for place in range(len(self._listeners))]
        await asyncio.gather(*self._started)

    async def drain(self) -> None:
        """Accept no more, and finish what was accepted."""
        self._close_listeners()
        for link in self._links:
            link.channel.tell("finish", {})
        ends = [asyncio.ensure_future(link.closed.wait()) for link in self._links]
        if ends:
            await asyncio.wait(ends, timeout=self._options.drain_timeout_s + DRAIN_SLACK_S)

    async def stop(self) -> None:
        """End those that are left at once."""
        self._close_listeners()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for counts in self._counts:
            counts.close()

    def _close_listeners(self) -> None:
        self._stopping = True
        for taken in (*self._listeners, *([self._reserved] if self._reserved else [])):
            taken.close()

    # --- what all of them must know ---

    def _publish_soon(self) -> None:
        """Tell all of them what is served now, once for all that changes in this turn of the loop."""
        if not self._publishing:
            self._publishing = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._publishing = False
        for link in self._links:
            link.show()

    async def settled(self) -> None:
        """Wait until all of them know what is served now, so that whoever is told of a change finds it at every one."""
        self._publish()
        if self._links:
            await asyncio.wait([link.seen for link in self._links], timeout=SETTLE_TIMEOUT_S)

    # --- one of them ---

    async def _keep(self, place: int) -> None:
        """Keep one place filled."""
        first, short_lived = self._started[place], 0
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._run(place, first)
            except ServerError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                self._count_failed_start(error)
            short_lived = 0 if time.monotonic() - began > LONG_LIVED_S else short_lived + 1
            if short_lived > 1:
                await asyncio.sleep(min(0.05 * 2**short_lived, MAX_BACKOFF_S))

    def _count_failed_start(self, error: ServerError) -> None:
        logger.warning("a front end did not start: %s", error)
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS and not self.failed.done():
            self.failed.set_exception(ServerError(f"{self._failed_starts} front ends in a row did not start; the last: {error}"))

    async def _run(self, place: int, first: asyncio.Future[None]) -> None:
        """Start one and wait until it ends.

        Raises:
            ServerError: it does not get ready.
        """
        listener, counts = self._listeners[place].fileno(), self._counts[place].fileno()
        try:
            process, ours = start_child("remote", {"listener": listener, "counts": counts}, handles=(listener, counts))
        except OSError as error:
            raise ServerError(f"cannot start a front end: {error.strerror or error}") from None
        link, watch = _Link(self._service, self._repository, self.settled), None
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link.channel, sock=ours)
            link.channel.tell("begin", self._begin)
            self._links.add(link)
            link.show()
            await asyncio.wait_for(link.ready, self._start_timeout_s)
            self._failed_starts = 0
            if not first.done():
                first.set_result(None)
            else:
                logger.warning("front end %d is ready, in place of one that ended", process.pid)
            watch = asyncio.get_running_loop().create_task(self._watch(link, process))
            await link.closed.wait()
        except asyncio.TimeoutError:
            raise ServerError(f"a front end did not get ready within {self._start_timeout_s:g} s") from None
        except OSError as error:
            raise ServerError(f"a front end cannot be reached: {error.strerror or error}") from None
        finally:
            if watch is not None:
                watch.cancel()
            self._links.discard(link)
            process.kill()
            code = process.wait()  # it was killed, so this does not block
            link.close()
        if not self._stopping:
            logger.warning("front end %d ended with code %d; its connections are lost", process.pid, code)

    async def _watch(self, link: _Link, process: subprocess.Popen[bytes]) -> None:
        """End a front end that does not answer, which the system would go on giving connections to.

        The time is counted in short waits, each of which lets what was said be heard before the next: while this process, or the whole machine,
        stands still no more than one of them passes.
        """
        is_heard = True
        while is_heard:
            _, answer = link.channel.ask("alive", {})
            for _ in range(SILENT_STEPS):
                await asyncio.sleep(self._silence_s / SILENT_STEPS)
                if is_heard := answer.done():
                    break
        if not self._stopping:
            logger.warning("front end %d has been silent for %g s, and is ended", process.pid, self._silence_s)
            process.kill()


class _Link:
    """The way to one front end: answers what it asks.

    Args:
        service: Computes.
        repository: Tells and changes what is served.
        settled: Waits until every front end knows of a change.
    """

    def __init__(self, service: LocalService, repository: Repository, settled: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        self.channel = Channel(self._on_message, self.close)
        self.closed = asyncio.Event()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.seen: asyncio.Future[Any] = loop.create_future()
        """Done when it knows what was published last."""
        self._service, self._repository, self._settled = service, repository, settled
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._known: dict[int, Servable] = {}
        """Versions that it may send requests to; each is in use until it says that it is done with it."""

    def show(self) -> None:
        """Tell it what is served."""
        service, models = self._service, []
        for model in service.models.values():
            if model.number not in self._known:
                self._known[model.number] = model
                model.num_users += 1
            models.append({
                "number": model.number, "config": asdict(model.config), "folder": str(model.folder), "platform": model.platform, "ready": model.ready,
                "background": model.background,
            })  # fmt: skip
        _, self.seen = self.channel.ask("models", {"started": service.started, "draining": service.draining, "models": models})

    def close(self) -> None:
        """It is gone, and with it those who asked it."""
        self.channel.close()
        for task in self._tasks.values():
            task.cancel()
        for model in self._known.values():
            model.num_users -= 1
        self._known.clear()
        if not self.ready.done():
            self.ready.set_exception(ServerError("a front end ended while starting"))
            self.ready.exception()  # nobody may be waiting
        self.closed.set()

    def _on_message(self, header: dict[str, Any], payload: memoryview) -> None:
        match header["kind"]:
            case "infer":
                self._start(header["number"], self._infer, header, payload)
            case "drop":
                if (task := self._tasks.pop(header["of"], None)) is not None:
                    task.cancel()
            case "log":
                self._service.log.write(**header["fields"])
            case "done":
                self._known.pop(header["model"]).num_users -= 1
            case "ready":
                if "failed" in header:
                    self.ready.set_exception(ServerError(header["failed"]))
                else:
                    self.ready.set_result(None)
            case kind:
                self._start(header["number"], getattr(self, f"_on_{kind}"), header)

    def _start(self, number: int, work: Callable[..., Awaitable[Answer]], *asked: Any) -> None:
        self._tasks[number] = asyncio.get_running_loop().create_task(self._answer(number, work, *asked))

    async def _answer(self, number: int, work: Callable[..., Awaitable[Answer]], *asked: Any) -> None:
        try:
            header, parts = await work(*asked)
        except RequestError as error:
            header, parts = error_header(error), []
        except Exception:
            logger.exception("a request of a front end failed in the server")
            header, parts = error_header(RequestError(500, "the server failed; its log says how")), []
        finally:
            self._tasks.pop(number, None)
        self.channel.answer(number, header, parts)

    async def _infer(self, header: dict[str, Any], payload: memoryview) -> Answer:
        """The outputs of a request that passed every check there."""
        model, notes = self._known[header["model"]], Notes() if header["traced"] else None
        inputs, position = [], 0
        for spec, shape, size in zip(model.config.inputs, header["shapes"], header["sizes"], strict=True):
            inputs.append(Tensor(spec, tuple(shape), payload[position : position + size]))
            position += size
        request = InferRequest("", inputs, header["items"], [], header["timeout_s"], header["priority"], notes)
        try:
            with model.in_use():
                outputs = await self._service.infer(model, request)
        except RequestError as error:
            if notes is None:
                raise
            return error_header(error) | {"notes": notes.told}, []
        parts = [tensor.data for tensor in outputs]
        found: dict[str, Any] = {"shapes": [tensor.shape for tensor in outputs], "sizes": [len(part) for part in parts]}
        return found if notes is None else found | {"notes": notes.told}, parts

    async def _on_spend(self, header: dict[str, Any]) -> Answer:
        self._service.door.spend(header["caller"])
        return {}, []

    async def _on_exposition(self, _: dict[str, Any]) -> Answer:
        return {}, [await self._service.exposition()]

    async def _on_index(self, header: dict[str, Any]) -> Answer:
        return {"entries": await self._repository.index(ready=header["ready"])}, []

    async def _on_load(self, header: dict[str, Any]) -> Answer:
        await self._repository.load(header["name"])
        await self._settled()
        return {}, []

    async def _on_unload(self, header: dict[str, Any]) -> Answer:
        await self._repository.unload(header["name"])
        await self._settled()
        return {}, []
