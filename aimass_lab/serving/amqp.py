"""Takes requests from a RabbitMQ queue: the same bodies, batcher and models as over HTTP, acknowledged once their answer is safe."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter, Gauge

from .config import ServingConfig
from .errors import RequestError, ServerError, bad
from .protocol import HEADER_LENGTH, encode_infer, error_body, parse_infer
from .request_log import request_id
from .service import LocalService

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0
"""Between attempts to reach the broker; doubled at each, and spread, so that consumers do not come back all at once."""
DELIVERY_LIMIT = 5
"""Deliveries after which the broker itself puts a message aside: one that ends the whole server each time never gets to us."""
REMEMBERED = 10_000
"""Answered messages, to know those again whose acknowledgement was lost."""
NO_MODEL_WAIT_S = 1.0
WAIT = {404, 503}
"""Statuses that say nothing about the message: the model is not loaded, or its queue is full. It waits, and the broker keeps the rest."""


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """Where requests are taken from."""

    url: str
    """``amqp://USER:PASSWORD@HOST:PORT/VHOST``, or ``amqps://``."""
    queue: str
    prefetch: int
    """Messages taken and not answered yet."""

    @property
    def dead(self) -> str:
        """Where messages go that cannot be answered."""
        return f"{self.queue}.dead"

    @property
    def broker(self) -> str:
        """Host and port, without the password."""
        address = urlsplit(self.url)
        return f"{address.hostname}:{address.port or (5671 if address.scheme == 'amqps' else 5672)}"


def queue_options(url: str, queue: str | None, prefetch: int | None, config: ServingConfig, *, workers: int | None) -> QueueOptions:
    """Check what the command line says, and fill in what it does not: the model's name, and two batches for every worker.

    Raises:
        ServerError: the address is none.
    """
    try:
        address = urlsplit(url)
        usable = address.scheme in ("amqp", "amqps") and bool(address.hostname) and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ServerError("the address of the broker must be amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps://")
    most = min(config.max_queue_items, 65535)
    batches = 2 * (workers or config.workers) * config.max_batch_size
    return QueueOptions(url=url, queue=queue or config.name, prefetch=min(prefetch or batches, most))


class QueueConsumer:
    """Answers the messages of one queue.

    A message's body is a REST body: JSON, or JSON and binary tensors with the length of the JSON in the header
    ``inference-header-content-length``. The answer goes to its `reply_to`, with its `correlation_id` and `message_id`.
    It is acknowledged once the broker has confirmed the answer; until then a crash gives it back. What is malformed, or
    failed twice, goes to ``QUEUE.dead`` with the reason in the header ``x-error``, and its sender is told.

    Args:
        service: Computes.
        config: Of the model that is asked.
        options: Where the messages are.
    """

    def __init__(self, service: LocalService, config: ServingConfig, options: QueueOptions) -> None:
        self._service, self._config, self._options = service, config, options
        self._answered: OrderedDict[bytes, None] = OrderedDict()
        self._handling: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._messages: Any = None
        self._stopping = False
        registry = service.metrics.registry
        self._outcomes = Counter("aimass_amqp_messages", "Messages taken from the queue, by what became of them", ["outcome"], registry=registry)
        self._connected = Gauge("aimass_amqp_connected", "Whether the broker is reached", registry=registry)

    async def start(self) -> None:
        """Reach the broker, and take messages from now on; a broker that is away is tried again.

        Raises:
            ServerError: aio-pika is not installed, or the broker refuses: password, rights, or a queue of the same name and another kind.
        """
        try:
            import aio_pika  # here, because it is an extra
        except ImportError:
            raise ServerError("taking requests from a queue needs aio-pika: pip install -r requirements-rabbitmq.txt") from None
        from aiormq.exceptions import AuthenticationError, ChannelClosed, ConnectionNotAllowed, ProbableAuthenticationError

        self._errors = (aio_pika.exceptions.AMQPError, aio_pika.exceptions.ChannelInvalidStateError, OSError, asyncio.TimeoutError)
        connection = None
        try:
            connection = await self._connect()
        except (AuthenticationError, ProbableAuthenticationError, ChannelClosed, ConnectionNotAllowed) as error:
            raise ServerError(f"the broker {self._options.broker} refuses the queue {self._options.queue!r}: {_text(error)}") from None
        except self._errors as error:
            logger.warning("the broker %s cannot be reached yet: %s", self._options.broker, _text(error))
        self._running = asyncio.get_running_loop().create_task(self._run(connection))

    async def stop(self, timeout_s: float) -> None:
        """Take no more messages, answer those that were taken, and leave what is not answered in time to the broker."""
        self._stopping = True
        if self._running is None:
            return
        if self._messages is not None:
            await self._close_messages()
        else:
            self._running.cancel()
        if self._handling:
            await asyncio.wait(self._handling, timeout=timeout_s)
        for task in self._handling:
            task.cancel()
        self._running.cancel()
        await asyncio.gather(self._running, *self._handling, return_exceptions=True)

    # --- the connection ---

    async def _connect(self) -> Any:
        """A connection, after a look at whether it may use the queue.

        Raises:
            AMQPError, OSError: it cannot.
        """
        import aio_pika

        connection = await aio_pika.connect(self._options.url, timeout=CONNECT_TIMEOUT_S, client_properties={"connection_name": f"aimass {self._config.name}"})
        try:
            await self._declare(await connection.channel())
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _declare(self, channel: Any) -> Any:
        """The queue and the one for what cannot be answered; both survive the loss of a broker in a cluster."""
        options = self._options
        await channel.declare_queue(options.dead, durable=True, arguments={"x-queue-type": "quorum"})
        dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": options.dead, "x-dead-letter-strategy": "at-least-once"}
        limits = {"x-delivery-limit": DELIVERY_LIMIT, "x-overflow": "reject-publish"}
        return await channel.declare_queue(options.queue, durable=True, arguments={"x-queue-type": "quorum", **dead_letters, **limits})

    async def _run(self, connection: Any) -> None:
        """Take messages from one connection after the other."""
        wait_s = FIRST_WAIT_S
        while not self._stopping:
            try:
                connection = connection or await self._connect()
                wait_s = FIRST_WAIT_S
                await self._consume(connection)
            except self._errors as error:
                logger.warning("no connection to the broker %s: %s", self._options.broker, _text(error))
            finally:
                self._connected.set(0)
                if connection is not None:
                    with contextlib.suppress(*self._errors):
                        await connection.close()
                connection = None
            if not self._stopping:
                await asyncio.sleep(random.uniform(0.5, 1.0) * wait_s)
                wait_s = min(2 * wait_s, MOST_WAIT_S)

    async def _consume(self, connection: Any) -> None:
        """Give every message a task of its own until the connection is lost or the server stops."""
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await channel.set_qos(prefetch_count=self._options.prefetch)
        queue = await self._declare(channel)
        self._messages = queue.iterator()
        self._connected.set(1)
        try:
            async for message in self._messages:
                task = asyncio.get_running_loop().create_task(self._handle(message, channel))
                self._handling.add(task)
                task.add_done_callback(self._handling.discard)
            if self._stopping and self._handling:
                await asyncio.wait(self._handling)
        finally:
            self._messages = None

    async def _close_messages(self) -> None:
        if self._messages is not None:
            with contextlib.suppress(*self._errors):
                await self._messages.close()

    # --- one message ---

    async def _handle(self, message: Any, channel: Any) -> None:
        """Answer a message, and only then let the broker forget it."""
        known = _digest(message)
        try:
            if known is not None and known in self._answered:
                outcome = "repeated"
            else:
                outcome = await self._answer(message, channel)
            if outcome == "requeued":
                await message.nack(requeue=True)
            else:
                if known is not None:
                    self._remember(known)
                await message.ack()
        except self._errors as error:  # the broker gives the message to somebody again
            outcome = "interrupted"
            logger.warning("a message goes back to the broker: %s", _text(error))
            await self._close_messages()  # a new channel, and the queues as they should be
        self._outcomes.labels(outcome).inc()

    async def _answer(self, message: Any, channel: Any) -> str:
        """Compute and send the answer; say what became of the message.

        Raises:
            AMQPError: the broker did not take an answer.
        """
        import aio_pika

        code, began, error_text = 500, time.monotonic(), None
        try:
            headers, body = await self._compute(message)
            code = 200
        except RequestError as error:
            code, error_text = error.status, error.text
            if code >= 500 and not message.headers.get("x-delivery-count"):
                return "requeued"
            told = {"x-error": error.text.encode("utf-8", "replace").decode()[:1000], "x-status": code}
            kept = _copy(message, message.body, headers={**message.headers, **told}, reply_to=message.reply_to, content_type=message.content_type)
            await channel.default_exchange.publish(kept, routing_key=self._options.dead)
            headers, body, outcome = [(b"content-type", b"application/json")], error_body(error.text), "dead"
        else:
            outcome = "answered"
        finally:
            seconds = time.monotonic() - began
            self._service.tally.add("amqp", code, seconds)
            if self._service.log:
                name = request_id(message.message_id)
                self._service.log.write(id=name, protocol="amqp", queue=self._options.queue, status=code, seconds=round(seconds, 6), error=error_text)
        if not message.reply_to:
            return outcome
        content_type, *rest = (value.decode() for _, value in headers)
        answer = _copy(message, body, headers={"x-status": code} | ({HEADER_LENGTH: int(rest[0])} if rest else {}), content_type=content_type)
        try:
            await channel.default_exchange.publish(answer, routing_key=message.reply_to)
        except aio_pika.exceptions.PublishError:
            return "unroutable" if outcome == "answered" else outcome  # the queue of the sender, who has left, is gone
        return outcome

    async def _compute(self, message: Any) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body of the answer.

        Raises:
            RequestError: 400 or 413, the message is malformed; 500 or 504, the model failed.
        """
        if len(message.body) > self._config.max_body_bytes:
            raise RequestError(413, f"the body is longer than {self._config.max_body_bytes} bytes")
        if not message.reply_to:
            raise bad("reply_to is missing: nobody would get the answer")
        length = message.headers.get(HEADER_LENGTH)
        while True:
            try:
                model = self._service.find(self._config.name, None)
                with model.in_use(), self._service.trace("amqp", model, lambda name: _header(message, name)) as trace:
                    request = parse_infer(model.config, message.body, None if length is None else str(length))
                    request.trace = trace
                    outputs = await self._service.infer(model, request)
                return encode_infer(model.config, request, outputs)
            except RequestError as error:
                if error.status not in WAIT:
                    raise
                await asyncio.sleep(error.retry_after_s or NO_MODEL_WAIT_S)

    def _remember(self, digest: bytes) -> None:
        self._answered[digest] = None
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)


def _copy(message: Any, body: bytes, **properties: Any) -> Any:
    """A message that keeps the names of another and lasts as long."""
    import aio_pika

    names = {"correlation_id": message.correlation_id or message.message_id, "message_id": message.message_id}
    return aio_pika.Message(body, delivery_mode=message.delivery_mode, **names, **properties)


def _header(message: Any, name: str) -> str | None:
    value = message.headers.get(name)
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else None


def _digest(message: Any) -> bytes | None:
    """Tells messages apart; None where the sender gave no name. The body is part of it, so that a name used twice loses no answer."""
    if not message.message_id:
        return None
    return hashlib.sha256(repr((message.reply_to, message.message_id)).encode() + message.body).digest()


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
