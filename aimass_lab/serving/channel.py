"""The socket between the process that has the models and a front end: questions, each answered when its time has come, and words that need no answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

from .errors import RequestError
from .frames import FrameReader, pack
from .tensors import Buffer

Message = tuple[dict[str, Any], memoryview]
"""Header and payload."""


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class Channel(asyncio.Protocol):
    """One end.

    Args:
        on_message: Gets what the other end asks or tells: the header holds its ``kind``, and the ``number`` of a question.
        on_close: Called when the other end is gone.
    """

    def __init__(self, on_message: Callable[[dict[str, Any], memoryview], None], on_close: Callable[[], None]) -> None:
        self._on_message, self._on_close = on_message, on_close
        self._reader = FrameReader()
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[Message]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Give answers to those who asked, and the rest to `on_message`."""
        for header, payload in self._reader.feed(data):
            number = header.pop("answers", None)
            if number is None:
                self._on_message(header, payload)
            elif (asked := self._open.pop(number, None)) is not None and not asked.done():
                asked.set_result((header, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody will answer any more."""
        self._transport = None
        self._give_up()
        self._on_close()

    def _give_up(self) -> None:
        for asked in self._open.values():
            if not asked.done():
                asked.set_exception(ChannelClosed())
                asked.exception()  # nobody may be waiting
        self._open.clear()

    def ask(self, kind: str, header: dict[str, Any], parts: Sequence[Buffer] = ()) -> tuple[int, asyncio.Future[Message]]:
        """Send a question.

        Returns:
            Its number, and the answer to come, or `ChannelClosed`.
        """
        number, asked = next(self._numbers), asyncio.get_running_loop().create_future()
        self._open[number] = asked
        self._send({"kind": kind, "number": number, **header}, parts)
        if self._transport is None:
            self._give_up()
        return number, asked

    def forget(self, number: int) -> None:
        """Wait for the answer to a question no longer."""
        self._open.pop(number, None)

    async def answer_to(self, kind: str, header: dict[str, Any] | None = None) -> Message:
        """Send a question without tensors, and wait for the answer.

        Raises:
            RequestError: the answer is that.
            ChannelClosed: there will be none.
        """
        answer = await self.ask(kind, header or {})[1]
        raise_error(answer[0])
        return answer

    def tell(self, kind: str, header: dict[str, Any]) -> None:
        """Send what needs no answer."""
        self._send({"kind": kind, **header}, ())

    def answer(self, number: int, header: dict[str, Any], parts: Sequence[Buffer] = ()) -> None:
        """Answer a question."""
        self._send({"answers": number, **header}, parts)

    def _send(self, header: dict[str, Any], parts: Sequence[Buffer]) -> None:
        if self._transport is not None:
            self._transport.writelines(pack(header, list(parts)))  # all that is sent in one turn of the loop leaves at once

    def close(self) -> None:
        """Say no more; what was said arrives."""
        if self._transport is not None:
            self._transport.close()


def error_header(error: RequestError) -> dict[str, Any]:
    """An error, as the header of an answer."""
    return {"error": [error.status, error.text.encode("utf-8", "replace").decode(), error.retry_after_s]}


def raise_error(header: dict[str, Any]) -> None:
    """Raise the error that an answer is.

    Raises:
        RequestError: it is one.
    """
    if (told := header.get("error")) is not None:
        raise RequestError(told[0], told[1], retry_after_s=told[2])
