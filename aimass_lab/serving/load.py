"""An open-loop load generator: requests leave when they are due whatever the server does, and wait counts from when they should have left."""

from __future__ import annotations

import asyncio
import collections
import selectors
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np

from .config import ServingConfig, load_vectors
from .errors import ServerError
from .protocol import HEADER_LENGTH
from .tensors import encode

Array = np.ndarray[Any, Any]

MAX_CONNECTIONS = 400
OPENED_BEFORE = 8
OK = 200
NO_ANSWER = 0
"""Status of a request whose connection failed or that got no answer in time."""
NUM_BODIES = 64
MOST_OF_REASON = 300
"""Characters; a proxy may answer with a whole page."""
GRACE_SHARE, GRACE_S = 0.02, 0.1
"""Answers count for the throughput until this share of the run after its end, and this long, or as long as two of the quickest took where that is longer."""
LATE_SHARE, LATE_S = 0.1, 1e-3
"""A generator whose own lateness makes up more than this share of a figure, and more than this time, measures itself."""
FIGURES = 50, 95, 99
"""Quantiles of the latency that are shown, in percent."""
LOAD_THREAD = "load"


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What happened to every request of a run."""

    rate: float
    duration_s: float
    sent_s: Array
    """When each request should have left, from the start of the run."""
    late_s: Array
    """How much later the generator got to it."""
    latency_s: Array
    """From when it should have left to its whole answer; NaN without an answer."""
    status: Array
    """HTTP status; 0 without an answer."""
    began_s: float = 0.0
    """The start of the run, by `time.perf_counter`."""
    interrupted: bool = False
    """Ended early: only what was sent until then is in it."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """What the first answer of each status but 200 said."""

    @property
    def ok(self) -> Array:
        """Mask of the requests answered with 200."""
        return self.status == OK

    @property
    def num_failed(self) -> int:
        """Requests not answered with 200."""
        return int((~self.ok).sum())

    @property
    def lateness(self) -> str | None:
        """That a figure is the generator's own rather than the server's; None where it sent in time for all of them.

        Asked of the figures themselves: where cores are shared, one request in a hundred leaves some milliseconds late on nearly every run, and is
        seldom one of the slowest.
        """
        if not self.ok.any():
            return None
        latency = self.latency_s[self.ok]
        for percent in FIGURES:
            figure = quantile(latency, percent / 100)
            own = figure - quantile(latency - self.late_s[self.ok], percent / 100)
            if own > max(LATE_S, LATE_SHARE * figure):
                return f"the load generator sent late, which is {own * 1e3:.1f} ms of the p{percent} of {figure * 1e3:.1f} ms"
        return None

    def throughput(self) -> float:
        """Requests/s answered while they were offered; see `kept_up`."""
        in_time = kept_up((self.sent_s + self.latency_s)[self.ok], self.latency_s[self.ok], self.duration_s)
        return self.rate * float(in_time.sum()) / len(self.status)

    def summary(self) -> dict[str, Any]:
        """The run in figures, for JSON."""
        latencies = self.latency_s[self.ok]
        failed = collections.Counter(self.status[~self.ok].tolist())
        return {
            "requests": len(self.status),
            "rate_per_s": self.rate,
            "duration_s": self.duration_s,
            "ok": int(self.ok.sum()),
            "failed": {"no answer" if status == NO_ANSWER else str(status): count for status, count in failed.items()},
            "reasons": {str(status): reason for status, reason in self.reasons.items()},
            "throughput_per_s": self.throughput(),
            "latency_s": _figures(latencies),
            "late_s": _figures(self.late_s),
        }


SoFar = Callable[[], LoadResult]


def _figures(values: Array) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f"p{q}": quantile(values, q / 100) for q in FIGURES} | {"max": float(values.max()), "mean": float(values.mean())}


def kept_up(finish_s: Array, latency_s: Array, duration_s: float) -> Array:
    """Which answers count for the throughput: those that were there when the load ended, or too soon after it for a queue that had grown.

    A request that leaves just before the end gets its answer after it, however idle the server is: the quickest answer's time is what that takes, and
    twice as long where it first had to wait for one that was under way. In a simulation at half load, with calls of 0.2 to 0.4 s, 1 to 2 % of the runs
    are called late in spite of it, and 10 % without the wait.

    Args:
        finish_s: When each answer was there, from the start of the run.
        latency_s: How long each took.
        duration_s: Over which requests left.
    """
    grace_s = max(GRACE_S, 2 * float(latency_s.min())) if len(latency_s) else GRACE_S
    kept: Array = finish_s <= duration_s * (1 + GRACE_SHARE) + grace_s
    return kept


def quantile(values: Array, share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def make_bodies(folder: Path, config: ServingConfig, *, items: int = 1, seed: int = 0, token: str | None = None) -> list[bytes]:
    """Complete HTTP requests made of the stored inputs, tensors in binary, which show a token where one is given.

    Raises:
        BundleError: the stored inputs cannot be read.
    """
    arrays, _ = load_vectors(folder, config)
    if not config.batched:
        return [http_request(config, arrays, token)]
    generator = np.random.default_rng(seed)
    samples = len(arrays[0])
    picks = [generator.integers(0, samples, items) for _ in range(NUM_BODIES)]
    return [http_request(config, [array[pick] for array in arrays], token) for pick in picks]


def infer_body(config: ServingConfig, arrays: list[Array]) -> tuple[int, bytes]:
    """Length of the JSON header, and a body with every tensor in binary, in and out."""
    import orjson

    parts = [encode(spec.datatype, array) for spec, array in zip(config.inputs, arrays, strict=True)]
    inputs = [
        {"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "parameters": {"binary_data_size": len(part)}}
        for spec, array, part in zip(config.inputs, arrays, parts, strict=True)
    ]
    header = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return len(header), b"".join([header, *parts])


def infer_path(config: ServingConfig) -> str:
    """Where inference requests go."""
    return f"/v2/models/{config.name}/versions/{config.version}/infer"


def http_request(config: ServingConfig, arrays: list[Array], token: str | None = None) -> bytes:
    """A whole HTTP request."""
    length, body = infer_body(config, arrays)
    shown = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {infer_path(config)} HTTP/1.1\r\nHost: load\r\n{shown}{HEADER_LENGTH}: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def run_load(
    url: str,
    config: ServingConfig,
    bodies: list[bytes],
    times: Array,
    *,
    duration_s: float,
    meanwhile: Callable[[SoFar], None] | None = None,
    cafile: Path | None = None,
) -> LoadResult:
    """Send requests when they are due, and wait for the answers.

    It runs in a thread, so it can be called where an event loop already runs.

    Args:
        url: ``http://HOST:PORT``, or ``https://``.
        config: For its time limit.
        bodies: Whole HTTP requests, sent in turn.
        times: Seconds from the start, ascending; see `arrivals`.
        duration_s: Over which they are spread; makes a rate of their number.
        meanwhile: Called about ten times a second while it runs; what it is given gives the requests that were answered by then.
        cafile: Certificate that vouches for the server's, in PEM; None: those that the system trusts.

    Raises:
        ServerError: the server cannot be reached, or `url` is no address.
    """
    look = None if meanwhile is None else lambda so_far: meanwhile(so_far[0])
    return run_loads([url], config, bodies, [times], duration_s=duration_s, meanwhile=look, cafile=cafile)[0]


def run_loads(
    urls: Sequence[str],
    config: ServingConfig,
    bodies: list[bytes],
    times: Sequence[Array],
    *,
    duration_s: float,
    meanwhile: Callable[[Sequence[SoFar]], None] | None = None,
    keep: bool = False,
    connections: int = OPENED_BEFORE,
    cafile: Path | None = None,
) -> list[LoadResult]:
    """Send requests to several servers at the same time, to each its own.

    Args:
        urls: Of each server.
        config: For the time limit.
        bodies: Whole HTTP requests, sent in turn.
        times: Of each server: seconds from the start, ascending.
        duration_s: Over which they are spread.
        meanwhile: Called about ten times a second while it runs; what it is given gives the requests that were answered by then, of each server.
        keep: Whether an interrupt only ends the sending, so that what was sent is waited for and returned; a second one is raised.
        connections: To each server, that are open before the first request leaves.
        cafile: Certificate that vouches for the servers', in PEM; None: those that the system trusts.

    Raises:
        ServerError: a server cannot be reached, or one of `urls` is no address.
    """
    done: Future[list[LoadResult]] = Future()
    stop, enough = threading.Event(), threading.Event()
    patience_s = config.request_timeout_s + 5
    addresses = [_address(url, cafile) for url in urls]
    loads = [_Load(address, bodies, due, duration_s, patience_s, stop, enough, connections) for address, due in zip(addresses, times, strict=True)]

    async def run() -> list[LoadResult]:
        return list(await asyncio.gather(*(load.run() for load in loads)))

    def work() -> None:
        # Only select() waits with a precision better than 1 ms.
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        try:
            done.set_result(loop.run_until_complete(run()))
        except BaseException as error:
            done.set_exception(error)
        finally:
            loop.close()

    thread = threading.Thread(target=work, name=LOAD_THREAD, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            try:
                thread.join(0.1)
                if meanwhile is not None:
                    meanwhile([load.so_far for load in loads])
            except KeyboardInterrupt:
                if not keep or enough.is_set():
                    raise
                enough.set()
    finally:
        stop.set()
        thread.join()
    return done.result()


@dataclass(frozen=True)
class _Address:
    """Where a server is."""

    url: str
    host: str
    port: int
    context: ssl.SSLContext | None


def _address(url: str, cafile: Path | None) -> _Address:
    """Read an address.

    Raises:
        ServerError: it is none, or the certificate cannot be read.
    """
    try:
        parts = urlsplit(url)
        host, port, secure = parts.hostname, parts.port, parts.scheme == "https"
    except ValueError:
        host, port, secure = None, None, False
    if not host or parts.scheme not in ("http", "https"):
        raise ServerError(f"{url!r} is no address: http://HOST:PORT")
    if cafile is not None and not secure:
        raise ServerError(f"no certificate vouches for {url}, which is not encrypted: give https://, or leave --cafile out")
    try:
        context = ssl.create_default_context(cafile=cafile) if secure else None
    except OSError as error:  # of which ssl.SSLError is one
        raise ServerError(f"cannot use the certificate {cafile}: {error.strerror or error}") from None
    return _Address(url, host, port or (443 if secure else 80), context)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._number: int | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._newest = b""
        """Of what came: a refusal is short and comes in one piece, and to take the body of every answer would be this machine's time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, number: int, request: bytes) -> None:
        self._number = number
        assert self._transport is not None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._newest = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        status, keep_alive = self._parser.get_status_code(), self._parser.should_keep_alive()
        number, self._number = self._number, None
        self._parser = httptools.HttpResponseParser(self)
        if not keep_alive:
            self.close()
        if status != OK:
            self._load.refused(status, self._newest.partition(b"\r\n\r\n")[2])
        if number is not None:
            self._load.answered(number, status, self if keep_alive else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self, self._number)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _reason(body: bytes) -> str:
    """What an error says, in this protocol's form or as whoever stands before the server puts it."""
    import orjson

    try:
        said = orjson.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace")
    return " ".join(str(said).split())[:MOST_OF_REASON]


class _Load:
    """One run."""

    def __init__(
        self,
        address: _Address,
        bodies: list[bytes],
        times: Array,
        duration_s: float,
        patience_s: float,
        stop: threading.Event,
        enough: threading.Event,
        connections: int,
    ) -> None:
        self._address = address
        self._bodies, self._times, self._duration_s, self._patience_s, self._stop = bodies, times, duration_s, patience_s, stop
        self._enough, self._opened_before = enough, connections
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._opening = 0
        self._waiting: collections.deque[int] = collections.deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = len(times)
        self._start = 0.0
        self._late = np.zeros(len(times))
        self._latency = np.full(len(times), np.nan)
        self._status = np.full(len(times), NO_ANSWER)
        self._reasons: dict[int, str] = {}

    async def run(self) -> LoadResult:
        try:
            for _ in range(self._opened_before):
                self._idle.append(await self._open())
        except OSError as error:
            raise ServerError(f"cannot reach {self._address.url}: {error.strerror or error}") from None
        self._start, sent = time.perf_counter() + 0.01, len(self._times)
        for number, intended in enumerate(self._times.tolist()):
            if (delay := self._start + intended - time.perf_counter()) > 0:
                await asyncio.sleep(delay)
            if self._stop.is_set() or self._enough.is_set():
                sent = number
                self._unanswered -= len(self._times) - sent
                break
            self._late[number] = max(0.0, time.perf_counter() - self._start - intended)
            self._waiting.append(number)
            self._send_waiting()
        end = time.perf_counter() + self._patience_s
        while self._unanswered and time.perf_counter() < end and not self._stop.is_set():
            await asyncio.sleep(0.005)
        self._waiting.clear()  # who is not answered by now is given up
        opening = list(self._tasks)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)
        return self.result(slice(sent), float(self._times[sent]) if sent < len(self._times) else None)

    def so_far(self) -> LoadResult:
        """What happened to the requests that have their answer."""
        return self.result(self._status != NO_ANSWER)

    def result(self, which: Any, ended_s: float | None = None) -> LoadResult:
        """What happened to these requests; `ended_s`: when the sending was ended before its time."""
        return LoadResult(
            rate=len(self._times) / self._duration_s,
            duration_s=self._duration_s if ended_s is None else ended_s,
            sent_s=self._times[which],
            late_s=self._late[which],
            latency_s=self._latency[which],
            status=self._status[which],
            began_s=self._start,
            interrupted=ended_s is not None,
            reasons=dict(self._reasons),
        )

    async def _open(self) -> _Connection:
        self._opening += 1
        try:
            to = self._address
            _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(self), to.host, to.port, ssl=to.context)
        finally:
            self._opening -= 1
        self._connections.add(connection)
        return connection

    def _send_waiting(self) -> None:
        """Give waiting requests to idle connections; open further ones for the rest."""
        while self._waiting and self._idle:
            number = self._waiting.popleft()
            self._idle.pop().send(number, self._bodies[number % len(self._bodies)])
        if len(self._waiting) > self._opening and len(self._connections) + self._opening < MAX_CONNECTIONS:
            task = asyncio.get_running_loop().create_task(self._open_and_send())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open_and_send(self) -> None:
        try:
            self._idle.append(await self._open())
        except OSError:
            if self._waiting:
                self.answered(self._waiting.popleft(), NO_ANSWER, None)
        self._send_waiting()

    def answered(self, number: int, status: int, connection: _Connection | None) -> None:
        """Note an answer; the connection, if it lives, is free again."""
        self._unanswered -= 1
        self._status[number] = status
        if status != NO_ANSWER:
            self._latency[number] = time.perf_counter() - self._start - self._times[number]
        if connection is not None:
            self._idle.append(connection)
        self._send_waiting()

    def refused(self, status: int, body: bytes) -> None:
        """Note why, where it is the first that says so."""
        if status not in self._reasons and (reason := _reason(body)):
            self._reasons[status] = reason

    def lost(self, connection: _Connection, number: int | None) -> None:
        """A connection is closed, perhaps before its request was answered."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if number is not None:
            self.answered(number, NO_ANSWER, None)
