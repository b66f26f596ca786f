"""The HTTP side of a connection: uvicorn's protocol, with limits on slow and oversized senders and word of hang-ups."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 64 * 2**10
KEEP_ALIVE_S = 75.0
TICKS = 20
"""Of uvicorn's, ten a second, from one look at connections that rest to the next."""
LINGER_S = 0.5
GOODBYE_S = 3.0
"""How long a client may take to end TLS on its side, too; one that rests does not even read that we did, and would hold up the end for half a minute."""
ONE_WRITE_BYTES = 64 * 2**10
"""Up to so many are copied behind their header, and leave with it."""
MAX_CONNECTIONS = 8192
RESERVED_HANDLES = 64
"""For workers that are started again, logs and what else needs a file handle while all connections are taken."""
HTTP_SHARE = 0.75
"""Of the other handles; gRPC has the rest."""

logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's mistake is no log line


class _Flow(FlowControl):
    """Reads no further while requests that were sent ahead wait for their turn: one who never stops sending would fill the memory."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[Any]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Do, unless some wait."""
        if not self._pipeline:
            super().resume_reading()


class _Cycle(RequestResponseCycle):
    """A request and its answer, for an application that gives the whole answer in two messages, with its length and with headers that it made itself."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        super().__init__(
            scope=protocol.scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=False,
            default_headers=protocol.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=protocol.expect_100_continue,
            keep_alive=protocol.parser.get_http_version() != "1.0" and protocol.parser.should_keep_alive(),
            on_response=protocol.on_response_complete,
        )
        self._head = b""
        self.task: asyncio.Task[None] | None = None
        """Which answers."""

    async def send(self, message: Any) -> None:
        """Keep the head, and write it with the body: one write, and nothing is looked at that cannot be wrong."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self.response_started, self.waiting_for_100_continue = True, False
            lines = [STATUS_LINE[message["status"]]]
            for name, value in (*self.default_headers, *message["headers"]):
                lines += (name, b": ", value, b"\r\n")
                if name == b"connection":
                    self.keep_alive = False
            lines.append(b"\r\n" if self.keep_alive or b"connection" in lines else b"connection: close\r\n\r\n")
            self._head = b"".join(lines)
            return
        body = message["body"]
        if len(body) <= ONE_WRITE_BYTES:
            self.transport.write(self._head + body)
        else:
            self.transport.writelines((self._head, body))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class LimitedProtocol(HttpToolsProtocol):
    """Closes connections that are too slow or send endless headers.

    The scope of each request carries ``"aimass.hangup"``: a `batcher.Hangup`, or None, that the
    application may set; its callback is called when the client goes away.
    """

    header_timeout_s = 10.0
    body_timeout_s = 60.0
    max_connections = MAX_CONNECTIONS
    waiting: dict[LimitedProtocol, None]
    """Connections that owe a request, the one that has owed it longest first. Shared by all of one server."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first header."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._in_headers = True
        """Or behind the body, where more of them may stand."""
        self._header_bytes = 0
        self._refused = False
        self._answering: _Cycle | None = None
        """The request whose turn it is, or was; those that were sent ahead of it are in the pipeline."""
        self._limit_s, self._is_new = self.header_timeout_s, True
        """How long what is owed now may take, 0 where nothing is; and whether the clock does not know yet."""
        self._clock: asyncio.TimerHandle | None = None
        self._set_clock()
        self.rests_since = math.inf
        """When the last answer was given, where nothing came after it."""
        self.waiting[self] = None
        if len(self.connections) > self.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection that has owed a request longest, which may be this one."""
        oldest: LimitedProtocol = next(iter(self.waiting))
        del self.waiting[oldest]
        if oldest is self:
            self._refuse(b"503 Service Unavailable", b"too many connections")
        else:
            oldest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever computes for this client."""
        super().connection_lost(exc)
        self._stop_clock()
        self.waiting.pop(self, None)
        cycle = self._answering
        if cycle is None or cycle.response_complete:
            return
        cycle.disconnected = True
        cycle.message_event.set()
        hangup: Any = cycle.scope.get("aimass.hangup")
        if hangup is not None and hangup.callback:
            hangup.callback()

    def data_received(self, data: bytes) -> None:
        """Count header bytes until they are complete."""
        if self._refused:
            return
        if self._in_headers:
            self._header_bytes += len(data)
        self.rests_since = math.inf
        self._feed(data)
        self._set_clock()
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", b"the headers are too large")

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    data = memoryview(data)[upgrade.args[0] :]
                    self.parser.feed_data(self._without_upgrade())
        except httptools.HttpParserError:
            self._refuse(b"400 Bad Request", b"this is no HTTP request that can be read")

    def _without_upgrade(self) -> bytes:
        """The head that was just read, without the wish for another protocol, for which the parser left out the body; some clients always have that wish."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Start the clock for the headers."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._limit_s, self._is_new = self.header_timeout_s, True

    def on_headers_complete(self) -> None:
        """Start the clock for the body."""
        scope, target = self.scope, httptools.parse_url(self.url)
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = self.parser.get_http_version()
        scope["path"] = target.path.decode("ascii")  # or the parser answers for us that this is no HTTP
        scope["raw_path"], scope["query_string"] = target.path, target.query or b""
        if self.parser.should_upgrade():  # it is read again
            if scope["method"] == "CONNECT":  # which is nothing but that wish
                raise httptools.HttpParserInvalidMethodError("we are no proxy")
            return
        self._in_headers = False
        self._limit_s, self._is_new = self.body_timeout_s, True
        self.headers = []  # what stands behind the body is no header of the request
        before, self.cycle = self.cycle, _Cycle(self)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # sent ahead
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        assert isinstance(cycle, _Cycle)
        self._answering = cycle
        cycle.task = self.loop.create_task(self._run(cycle, app))
        self.tasks.add(cycle.task)

    async def _run(self, cycle: _Cycle, app: Any) -> None:
        try:
            await cycle.run_asgi(app)
        finally:
            self.tasks.discard(cycle.task)
            cycle.task = None  # which has the cycle

    def on_chunk_header(self) -> None:
        """Count what comes as headers until it is known to be of the body: the last chunk has none, and headers may stand behind it."""
        self._in_headers = True
        self._header_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Keep it."""
        self._in_headers = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The client has sent everything in time."""
        if self.parser.should_upgrade():
            return
        self._limit_s, self._is_new = 0.0, True
        self.waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request is owed from now on."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.rests_since = time.monotonic()
            self.waiting[self] = None

    def _set_clock(self) -> None:
        """Start or stop the clock, once for all that came together: of most requests that is the whole, and takes no clock at all."""
        if not self._is_new:
            return
        self._is_new = False
        self._stop_clock()
        if self._limit_s:
            self._clock = self.loop.call_later(self._limit_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def shutdown(self) -> None:
        """End the connection, once nobody waits for an answer on it any more."""
        super().shutdown()
        if self.scheme == "https" and self.transport.is_closing():
            self.loop.call_later(GOODBYE_S, self._leave)

    def _leave(self) -> None:
        """Wait no longer for the client's goodbye, but for it to take what it was given."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(GOODBYE_S, self._leave)
        else:
            self.transport.abort()

    def _too_slow(self) -> None:
        if self.pipeline:  # it is we who read no further
            self._is_new = True
            self._set_clock()
        else:
            self._refuse(b"408 Request Timeout", b"the request was not complete in time")

    def _refuse(self, status: bytes, text: bytes) -> None:
        """Answer, unless an answer is on its way, and close; first only our side, so that the sender gets to read it."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        before = [self._answering, *(cycle for cycle, _ in reversed(self.pipeline))]
        if owed := [cycle for cycle in before if cycle is not None and not cycle.response_complete and not cycle.more_body]:
            owed[-1].keep_alive = False  # this answer would be taken for theirs, so they get their own, and there is none behind them
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = b'{"error":"%b"}' % text
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(body)) + body)
        if self.cycle is not None:
            self.cycle.disconnected = True  # or it would be answered twice
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


class HttpServer(uvicorn.Server):
    """uvicorn without hands on the signals, which belong to the whole server, and with one clock for all connections that rest."""

    async def on_tick(self, counter: int) -> bool:
        """Close those that have rested for too long."""
        if counter % TICKS == 0:
            waiting: dict[LimitedProtocol, None] = self.config.http.waiting  # type: ignore[union-attr]
            limit = time.monotonic() - KEEP_ALIVE_S
            for connection in [connection for connection in waiting if connection.rests_since < limit]:
                connection.transport.close()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_http_server(
    app: Any, *, header_timeout_s: float, body_timeout_s: float, drain_timeout_s: float, tls: tuple[Path, Path] | None = None, forwarded: bool = True
) -> HttpServer:
    """An HTTP/1.1 server for an ASGI application; start it with ``serve(sockets=[...])``.

    Args:
        app: The application.
        header_timeout_s: How long headers may take.
        body_timeout_s: How long a body may take.
        drain_timeout_s: How long connections may take to end.
        tls: A certificate and its key.
        forwarded: Whether the application wants to know for whom a proxy on this machine asks.
    """
    limits = {"header_timeout_s": header_timeout_s, "body_timeout_s": body_timeout_s, "max_connections": http_connections(), "waiting": {}}
    protocol = type("Protocol", (LimitedProtocol,), limits)
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=forwarded,
        timeout_graceful_shutdown=int(drain_timeout_s) + 1,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    return HttpServer(config)


def take_handles() -> None:
    """Use as many file handles as this process may: what it gets without asking is meant for programs that need few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _handles() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, limit - RESERVED_HANDLES) if limit != resource.RLIM_INFINITY else 2 * MAX_CONNECTIONS


def http_connections() -> int:
    """How many HTTP connections there may be at once."""
    return min(MAX_CONNECTIONS, int(HTTP_SHARE * _handles()))


def grpc_connections() -> int:
    """How many gRPC connections there may be at once."""
    return min(MAX_CONNECTIONS, _handles() - http_connections())


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address is taken or not ours.
    """
    (listener,) = bind_shared(host, port, 1)
    return listener


def bind_shared(host: str, port: int, count: int) -> list[socket.socket]:
    """Listening sockets of one address, for as many processes: the kernel divides the connections among them.

    With one socket for all, whoever wakes first takes nearly all connections that come together, and keeps them. Linux alone divides them;
    elsewhere all get that one socket all the same.

    Raises:
        OSError: the address is taken or not ours.
    """
    first = reserve(host, port)
    sockets = [first]
    try:
        if count > 1:
            share(first)
        for _ in range(1, count):
            sockets.append(_beside(first) if sys.platform == "linux" else first.dup())
        for listener in sockets:
            listener.listen(2048)
            listener.setblocking(False)
    except OSError:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def reserve(host: str, port: int) -> socket.socket:
    """A socket that has an address and does not listen; the only one: a port that another server shares among its own processes counts as taken.

    Raises:
        OSError: the address is taken or not ours.
    """
    taker = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind((host, port))
    except OSError:
        taker.close()
        raise
    return taker


def share(taker: socket.socket) -> None:
    """Let other sockets of this user have the address, too."""
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _beside(first: socket.socket) -> socket.socket:
    """Another socket with the address of a shared one."""
    other = socket.socket(first.family, socket.SOCK_STREAM)
    try:
        share(other)
        other.bind(first.getsockname()[:2])
    except OSError:
        other.close()
        raise
    return other
