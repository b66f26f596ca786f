"""A front-end process: it listens, and has what passed its checks computed by the process that has the models."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from .access import Door, Token
from .batcher import Hangup
from .channel import Channel, Message, raise_error
from .child import die_with
from .config import Dimension, ServingConfig, TensorSpec
from .errors import CLIENT_GONE, RequestError, ServerError
from .frontend import FrontEnd, FrontEndOptions, tidy
from .listener import take_handles
from .request_log import RequestLog
from .service import Servable, Service
from .tally import Tally
from .tensors import InferRequest, Tensor, cut
from .tracing import make_tracing, tell

logger = logging.getLogger(__name__)

DONE_STEP_S = 0.01


def main(descriptor: int, parent: int, listener: int, counts: int) -> None:
    """Listen until the parent says that it is enough.

    Args:
        descriptor: The inherited socket to the process that has the models.
        parent: The number of that process.
        listener: The inherited socket to listen on.
        counts: The inherited file to count answers in.
    """
    die_with(parent)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    uvloop.run(_run(socket.socket(fileno=descriptor), socket.socket(fileno=listener), Tally(counts)))


async def _run(ours: socket.socket, listener: socket.socket, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    take_handles()
    loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="aside"))
    begun: asyncio.Future[RemoteService] = loop.create_future()
    finish, closed = asyncio.Event(), asyncio.Event()

    def on_message(header: dict[str, Any], _: memoryview) -> None:
        match header["kind"]:
            case "begin":
                begun.set_result(RemoteService(channel, tally, header))
            case "models":
                begun.result().show(header)
                channel.answer(header["number"], {})
            case "alive":
                channel.answer(header["number"], {})
            case "finish":
                finish.set()

    def on_close() -> None:
        if not finish.is_set():
            os._exit(1)  # without the models nothing can be answered, and whoever has them starts another one
        closed.set()

    channel = Channel(on_message, on_close)
    await loop.create_unix_connection(lambda: channel, sock=ours)
    service = await begun
    front = FrontEnd(service, RemoteCatalogue(channel), listener, service.options)
    try:
        await front.start()
    except ServerError as error:
        channel.tell("ready", {"failed": str(error)})
    else:
        channel.tell("ready", {})
    tidying = loop.create_task(tidy(service))
    await finish.wait()
    tidying.cancel()
    await front.drain()
    await front.stop()
    if service.tracing is not None:
        await service.tracing.close()
    channel.close()
    await closed.wait()  # what was said has left


class RemoteModel(Servable):
    """A version whose queue and workers another process has."""

    def __init__(self, channel: Channel, told: dict[str, Any]) -> None:
        super().__init__(read_config(told["config"]), Path(told["folder"]), background=told["background"])
        self.number = told["number"]
        self.platform = told["platform"]
        self.is_ready = False
        self._channel = channel

    @property
    def ready(self) -> bool:
        """Whether it was ready when last heard of."""
        return self.is_ready

    async def infer(self, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """Have all outputs computed in a batch with others, of whatever front end; raises as `Batcher.infer`."""
        parts = [tensor.data for tensor in request.inputs]
        header = {
            "model": self.number, "items": request.items, "shapes": [tensor.shape for tensor in request.inputs], "sizes": [len(part) for part in parts],
            "timeout_s": request.timeout_s, "priority": request.priority, "traced": request.trace is not None,
        }  # fmt: skip
        number, answer = self._channel.ask("infer", header, parts)
        if hangup is not None:
            hangup.callback = partial(_give_up, answer)
        try:
            found, payload = await answer
        except BaseException:
            self._channel.forget(number)
            self._channel.tell("drop", {"of": number})
            raise
        if request.trace is not None:
            tell(request.trace, found.get("notes", ()))
        raise_error(found)
        return cut(self.config.outputs, found, payload)

    async def close(self) -> None:
        """Tell that nobody here uses it any more, once that is so."""
        while self.num_users:
            await asyncio.sleep(DONE_STEP_S)
        self._channel.tell("done", {"model": self.number})


def _give_up(answer: asyncio.Future[Message]) -> None:
    if not answer.done():
        answer.set_exception(RequestError(CLIENT_GONE, "the client hung up"))


class RemoteService(Service):
    """The models of another process.

    Args:
        channel: The way to it.
        tally: Where answers are counted.
        told: What it says first: how to listen, who may come in, and what is written down.
    """

    def __init__(self, channel: Channel, tally: Tally, told: dict[str, Any]) -> None:
        door = Door([Token(value, name) for value, name in told["tokens"]])
        super().__init__(door, RemoteLog(channel, wanted=told["log"]), tally, canary=told["canary"])
        self.tracing = make_tracing(told["name"], os.environ)
        options = told["options"]
        self.options = FrontEndOptions(**{**options, "tls": options["tls"] and tuple(map(Path, options["tls"]))})
        self._channel, self._limited = channel, frozenset(told["limited"])
        self._closing: set[asyncio.Task[None]] = set()

    def show(self, told: dict[str, Any]) -> None:
        """Serve what is served now."""
        self.started, self.draining = told["started"], told["draining"]
        before = {model.number: model for model in self.models.values()}
        self.models = {}
        self._answering.clear()
        for entry in told["models"]:
            model = before.pop(entry["number"], None) or RemoteModel(self._channel, entry)
            assert isinstance(model, RemoteModel)
            model.is_ready = entry["ready"]
            self.models[model.config.name, model.config.version] = model
        for model in before.values():
            task = asyncio.get_running_loop().create_task(model.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def spend(self, caller: str) -> None:
        """As of `Service`: one rate for all front ends, asked for only where there is one."""
        if caller in self._limited:
            await self._channel.answer_to("spend", {"caller": caller})

    async def exposition(self) -> bytes:
        """As the process that has the models tells it."""
        _, payload = await self._channel.answer_to("exposition")
        return bytes(payload)


class RemoteCatalogue:
    """The repository of another process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """As of `Catalogue`."""
        header, _ = await self._channel.answer_to("index", {"ready": ready})
        entries: list[dict[str, Any]] = header["entries"]
        return entries

    async def load(self, name: str) -> None:
        """As of `Catalogue`."""
        await self._channel.answer_to("load", {"name": name})

    async def unload(self, name: str) -> None:
        """As of `Catalogue`."""
        await self._channel.answer_to("unload", {"name": name})


class RemoteLog(RequestLog):
    """Has requests written down by another process, which writes those of all front ends to one file.

    Args:
        channel: The way to it.
        wanted: Whether they are.
    """

    def __init__(self, channel: Channel, *, wanted: bool) -> None:
        super().__init__(None)
        self._channel, self._wanted = channel, wanted

    def __bool__(self) -> bool:
        """Whether anything is written."""
        return self._wanted

    def write(self, **fields: Any) -> None:
        """Have one line written."""
        self._channel.tell("log", {"fields": fields})


def read_config(told: dict[str, Any]) -> ServingConfig:
    """A config that was checked, from JSON."""
    specs = {side: tuple(TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in told[side]) for side in ("inputs", "outputs")}
    dimensions = tuple(Dimension(one["name"], one["min"], one["max"], tuple(map(tuple, one["axes"]))) for one in told["dimensions"])
    return ServingConfig(**{**told, **specs, "dimensions": dimensions})
