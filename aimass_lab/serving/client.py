"""A client in one file, which needs numpy and nothing else: the Open Inference Protocol v2 over REST, tensors in binary.

::

    from client import Client

    with Client("http://127.0.0.1:8000", token="...") as client:
        outputs = client.infer({"image": image})

Several addresses are tried one after the other: the first is the primary and the others stand by, or, with ``spread=True``, each request begins at
the next one. What failed is tried again, since a model's answer depends on its inputs alone: after a lost connection or 503 at the next address, and where
all were asked, or after 429, with waits that grow, as long as the server asked for at least, and never beyond the time that the caller gave.

An address that took a request and is silent is waited for alone with a part of that time only, as long as others stand behind it: then one of those
is asked, too, and whoever answers first is heard. The silent one is listened to all the same, since a slow model is silent for long as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import queue
import random
import selectors
import ssl
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

Array = np.ndarray[Any, Any]

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BYTES": object,
}  # fmt: skip
"""The protocol's datatypes as numpy has them; elements of BYTES are `bytes`."""
DATATYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
HEADER_LENGTH = "Inference-Header-Content-Length"
BUSY, OVER_RATE = 503, 429
"""What a server answers that had no time for a request, and to a token that asked too often: another server would have to refuse that, too."""
FIRST_WAIT_S, MOST_WAIT_S = 0.05, 5.0
CONNECT_S = 3.0
"""A machine that is switched off refuses nothing: it is silent, and would take all of the caller's time."""
SELECTOR: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""Needs no file of its own, of which a client with many connections may have none left."""
REST_S = 2.0
"""An address that could not be reached is tried after the others for so long, one that was busy for as long as it asked for."""


class InferenceError(Exception):
    """A request that got no outputs.

    Args:
        text: What was wrong.
        status: Of the answer; None where there was none.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text if status is None else f"{status}: {text}")
        self.text = text
        self.status = status


class Client:
    """Asks a model for outputs. May be used by several threads at once.

    Args:
        urls: Address of the server, or several: ``"http://HOST:PORT"``.
        model: Name of the model; the server's only one if not given.
        version: Of the model; the server's choice if not given.
        token: To show to the server.
        timeout_s: For a request, all attempts together.
        attempts: Most attempts for a request; 1: none is repeated.
        spread: Let each request begin at the next address, instead of all at the first.
        cafile: Certificate that vouches for the servers', in PEM; those that the system trusts if not given.
        sleep: Waits between attempts.

    Raises:
        ValueError: an address that is not understood, or a certificate that cannot be used.
    """

    def __init__(
        self, urls: str | Sequence[str], *, model: str | None = None, version: str | None = None, token: str | None = None, timeout_s: float = 30.0,
        attempts: int = 5, spread: bool = False, cafile: str | None = None, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        given = [urls] if isinstance(urls, str) else list(urls)
        context = _trusting(cafile) if any(url.startswith("https") for url in given) else None
        self._addresses = [_Address(url, context) for url in given]
        if not given or attempts < 1 or timeout_s <= 0:
            raise ValueError(f"urls={given}, attempts={attempts}, timeout_s={timeout_s} leave nothing to try")
        self._model, self._version = model, version
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s, self._attempts, self._spread = timeout_s, attempts, spread
        self._sleep = sleep
        self._turns = itertools.count()
        self._metadata: dict[str, Any] | None = None

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for address in self._addresses:
            address.close()

    def infer(
        self, inputs: Any, *, outputs: Sequence[str] | None = None, timeout_s: float | None = None, priority: int | None = None, id: str | None = None
    ) -> dict[str, Array]:  # fmt: skip
        """Outputs of the model by name.

        Args:
            inputs: Arrays by name, or the array alone where the model has one input. What is no array, such as a nested list, becomes one of the
                model's own type; an array has to have it already.
            outputs: Names of those wanted; all if not given.
            timeout_s: For this request, in place of the client's; the server stops computing it then, too.
            priority: 1 goes first.
            id: Name of the request in the server's log.

        Raises:
            InferenceError: the server refused the request, or no server answered in time.
        """
        limit_s = timeout_s or self._timeout_s
        deadline = time.monotonic() + limit_s
        tensors = self._tensors(inputs, deadline)
        parameters: dict[str, Any] = {"binary_data_output": True, "timeout": max(1, int(1e6 * limit_s))}
        if priority is not None:
            parameters["priority"] = priority
        document: dict[str, Any] = {"inputs": [entry for entry, _ in tensors], "parameters": parameters}
        if outputs is not None:
            document["outputs"] = [{"name": name} for name in outputs]
        if id is not None:
            document["id"] = id
        header = json.dumps(document).encode()
        body = b"".join([header, *(data for _, data in tensors)])
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))} | ({"X-Request-Id": id} if id else {})
        answer = self._ask("POST", f"{self._path(deadline)}/infer", body, headers, deadline)
        return _read_outputs(answer)

    def metadata(self) -> dict[str, Any]:
        """The model's name, versions, inputs and outputs, as the server tells them.

        Raises:
            InferenceError: no server answered.
        """
        return self._describe(time.monotonic() + self._timeout_s)

    def ready(self) -> bool:
        """Whether some server would take a request now."""
        try:
            self._ask("GET", "/v2/health/ready", None, {}, time.monotonic() + self._timeout_s, attempts=len(self._addresses))
        except InferenceError:
            return False
        return True

    # --- the model ---

    def _describe(self, deadline: float) -> dict[str, Any]:
        if self._metadata is None:
            self._metadata = json.loads(self._ask("GET", self._path(deadline), None, {}, deadline).body)
        return self._metadata

    def _path(self, deadline: float) -> str:
        if self._model is None:
            entries = json.loads(self._ask("POST", "/v2/repository/index", b"{}", {}, deadline).body)
            names = sorted({entry["name"] for entry in entries if entry["state"] == "READY"})
            if len(names) != 1:
                raise InferenceError(f"the server has {', '.join(names) or 'no model'}: say which, Client(..., model=NAME)")
            self._model = names[0]
        version = f"/versions/{quote(self._version, safe='')}" if self._version else ""
        return f"/v2/models/{quote(self._model, safe='')}{version}"

    def _tensors(self, inputs: Any, deadline: float) -> list[tuple[dict[str, Any], bytes]]:
        if not isinstance(inputs, Mapping):
            names = [spec["name"] for spec in self._describe(deadline)["inputs"]]
            if len(names) != 1:
                raise InferenceError(f"the model has the inputs {', '.join(names)}: give them by name")
            inputs = {names[0]: inputs}
        tensors = []
        for name, value in inputs.items():
            array = value if isinstance(value, np.ndarray) else self._array(name, value, deadline)
            datatype = _datatype(name, array)
            data = _to_bytes(name, datatype, array)
            tensors.append(({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(data)}}, data))
        return tensors

    def _array(self, name: str, value: Any, deadline: float) -> Array:
        """What is no array yet, in the model's type."""
        known = {spec["name"]: spec["datatype"] for spec in self._describe(deadline)["inputs"]}
        if name not in known:
            raise InferenceError(f"the model has no input {name!r}; it has {', '.join(known)}")
        try:
            array = np.asarray(value, DTYPES[known[name]])
            if array.dtype.kind in "biu" and not np.array_equal(array, np.asarray(value)):
                raise ValueError("its numbers would become others")
            return array
        except (TypeError, ValueError, OverflowError) as error:
            raise InferenceError(f"input {name!r} is no array of {known[name]}: {error}") from None

    # --- attempts ---

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], deadline: float, attempts: int | None = None) -> _Answer:
        """Send a request to one address after the other until one answers it.

        Raises:
            InferenceError: the answer is an error, or there is none in time.
        """
        last = InferenceError("no server answered in time")
        begin = next(self._turns) if self._spread else 0
        tried: dict[_Address, float] = {}
        """Since the last pause, and how long each asked to wait."""
        wait_s, left_attempts = FIRST_WAIT_S, attempts or self._attempts
        with contextlib.closing(_Sents()) as sent:
            while (left_attempts or sent) and (left := deadline - time.monotonic()) > 0:
                status, others = None, 0
                try:
                    if left_attempts and len(tried) < len(self._addresses):
                        left_attempts -= 1
                        address = self._choose(begin, tried)
                        tried[address] = 0.0
                        others = len(self._addresses) - len(tried) if left_attempts else 0
                        limit_s = left / 3 if sent else left  # to reach it and to send: then there is time left to hear the others
                        sent.append(address.send((method, path, body, self._headers | headers), limit_s))
                    patience_s = left / (1 + others)
                    speaks = sent[0] if len(sent) == 1 and not others else sent.first_to_speak(patience_s)
                    if speaks is None:
                        for one in sent:
                            one.address.rests_until = time.monotonic() + max(REST_S, patience_s)
                        if last.status is None:  # else what was said says more than silence
                            last = InferenceError(f"{sent[-1].address.url}: no answer within {patience_s:.3g} s")
                        continue
                    sent.remove(speaks)
                    address = speaks.address
                    answer = address.receive(speaks, left)
                except (OSError, http.client.HTTPException) as error:
                    address.rests_until = time.monotonic() + REST_S
                    last = InferenceError(f"{address.url}: {type(error).__name__}: {error}")
                else:
                    if answer.status < 400:
                        address.rests_until = 0.0
                        return answer
                    status, last = answer.status, InferenceError(answer.error, answer.status)
                    if status not in (BUSY, OVER_RATE):
                        left_attempts = 0  # nobody else is asked; who was before may still have outputs
                        continue
                    tried[address] = answer.retry_after_s
                    address.rests_until = time.monotonic() + answer.retry_after_s if status == BUSY else 0.0
                if sent or (len(tried) < len(self._addresses) and status != OVER_RATE):
                    continue  # another address may answer at once
                asked_s = tried[address] if status == OVER_RATE else min(tried.values())
                tried.clear()
                pause = max(asked_s, random.uniform(0.5, 1.0) * wait_s)
                if time.monotonic() + pause >= deadline:
                    break  # what could be asked then would come too late
                if left_attempts:
                    self._sleep(pause)
                wait_s = min(2 * wait_s, MOST_WAIT_S)
        raise last

    def _choose(self, begin: int, tried: Collection[_Address]) -> _Address:
        """The first in turn that was not tried yet, those that answered lately before those that did not or asked for time, the longest ago first."""
        number = len(self._addresses)
        turn = [self._addresses[(begin + i) % number] for i in range(number)]
        left = [address for address in turn if address not in tried] or turn
        now = time.monotonic()
        return min(left, key=lambda address: max(address.rests_until, now))


class AsyncClient:
    """The same for asyncio: requests wait in threads, at most `concurrency` at once.

    Args:
        urls: As for `Client`, and so are all other arguments.
        concurrency: Requests on their way at once.
    """

    def __init__(self, urls: str | Sequence[str], *, concurrency: int = 32, **options: Any) -> None:
        self._client = Client(urls, **options)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="inference")

    async def __aenter__(self) -> AsyncClient:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connections."""
        await self.close()

    async def infer(self, inputs: Any, **options: Any) -> dict[str, Array]:
        """See `Client.infer`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: self._client.infer(inputs, **options))

    async def metadata(self) -> dict[str, Any]:
        """See `Client.metadata`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._client.metadata)

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._client.ready)

    async def close(self) -> None:
        """Wait for requests on their way, and close the connections."""
        await asyncio.to_thread(self._pool.shutdown)
        self._client.close()


# --- one address ---------------------------------------------------------------------------


class _Answer:
    """What came back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def error(self) -> str:
        """What the server said was wrong."""
        try:
            return str(json.loads(self.body)["error"])
        except (ValueError, KeyError, TypeError):
            return self.body[:200].decode("utf-8", "replace")

    @property
    def retry_after_s(self) -> float:
        """How long the server asked to wait; 0 where it did not."""
        text = self.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else 0.0


def _trusting(cafile: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cafile)
    except OSError as error:  # whose text does not name the file
        raise ValueError(f"cannot use the certificate {cafile}: {error.strerror or error}") from error


_Request = tuple[str, str, bytes | None, dict[str, str]]
"""Method, path, body and headers."""


class _Sent:
    """A request on its way to an address."""

    def __init__(self, address: _Address, connection: http.client.HTTPConnection, request: _Request, is_new: bool) -> None:
        self.address, self.connection, self.request, self.is_new = address, connection, request, is_new
        self.response: http.client.HTTPResponse | None = None
        """What it was looked at with, where that was needed."""

    def speaks(self) -> bool:
        """Whether what there is to read is of an answer, or the end: with TLS there may be something else, such as tickets for a later connection."""
        if not isinstance(self.connection.sock, ssl.SSLSocket):
            return True
        self.response = self.response or http.client.HTTPResponse(self.connection.sock, method=self.request[0])
        self.connection.sock.settimeout(0)
        try:
            self.response.fp.peek(1)
        except ssl.SSLWantReadError:
            return False
        except OSError:  # which whoever reads will get, too
            return True
        return True


class _Sents(list[_Sent]):
    """Requests to those that may answer yet."""

    def first_to_speak(self, timeout_s: float) -> _Sent | None:
        """The first that an answer begins to come to; None where none does in time."""
        deadline = time.monotonic() + timeout_s
        with SELECTOR() as selector:
            for one in self:
                selector.register(one.connection.sock, selectors.EVENT_READ, one)
            while (left_s := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    found: _Sent = key.data
                    if found.speaks():
                        return found
        return None

    def close(self) -> None:
        """Listen to none of them any more."""
        for one in self:
            one.connection.close()


class _Address:
    """One server, and the connections to it that are not in use."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address: http://HOST:PORT")
        self.url = url
        self.rests_until = 0.0
        """When it is asked again before others that it stands before."""
        self._host, self._port, self._secure, self._context = parts.hostname, parts.port, parts.scheme == "https", context
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def send(self, request: _Request, timeout_s: float) -> _Sent:
        """Send a request over a connection that is open, or a new one.

        Raises:
            OSError: it cannot be reached, or the connection was lost.
            http.client.HTTPException: the connection cannot be used.
        """
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            return self._send_anew(request, timeout_s)
        try:
            return self._send(connection, request, timeout_s, is_new=False)
        except (BrokenPipeError, ConnectionResetError):  # it may have been closed while it was not in use
            return self._send_anew(request, timeout_s)

    def receive(self, sent: _Sent, timeout_s: float) -> _Answer:
        """Read the answer to a request that was sent here.

        Raises:
            OSError: there is none in time, or the connection was lost.
            http.client.HTTPException: what came back is no HTTP.
        """
        connection = sent.connection
        try:
            connection.sock.settimeout(timeout_s)
            if (begun := sent.response) is not None:  # it may hold the first bytes
                vars(connection)["response_class"] = lambda *_, **__: begun
            response = connection.getresponse()
            vars(connection).pop("response_class", None)
            answer = _Answer(response)
        except BaseException as error:
            connection.close()
            if sent.is_new or not isinstance(error, (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)):
                raise
        else:
            if response.will_close:
                connection.close()
            else:
                self._idle.put(connection)
            return answer
        return self.receive(self._send_anew(sent.request, timeout_s), timeout_s)  # it may have been closed while it was not in use

    def _send_anew(self, request: _Request, timeout_s: float) -> _Sent:
        return self._send(self._connect(timeout_s), request, timeout_s, is_new=True)

    def _send(self, connection: http.client.HTTPConnection, request: _Request, timeout_s: float, *, is_new: bool) -> _Sent:
        try:
            connection.sock.settimeout(timeout_s)
            connection.request(*request)
        except BaseException:
            connection.close()
            raise
        return _Sent(self, connection, request, is_new)

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        limit_s = min(timeout_s, CONNECT_S)
        if self._secure:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(self._host, self._port, timeout=limit_s, context=self._context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=limit_s)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connections that are not in use."""
        with contextlib.suppress(queue.Empty):
            while True:  # another thread may take the last one
                self._idle.get_nowait().close()


# --- tensors -------------------------------------------------------------------------------


def _datatype(name: str, array: Array) -> str:
    if array.dtype.kind in "SUO":
        return "BYTES"
    datatype = DATATYPES.get(array.dtype.newbyteorder("<"))
    if datatype is None:
        raise InferenceError(f"input {name!r} is of {array.dtype}, which the protocol does not have; it has {', '.join(DTYPES)}")
    return datatype


def _to_bytes(name: str, datatype: str, array: Array) -> bytes:
    if datatype != "BYTES":
        return np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
    elements = [element.encode() if isinstance(element, str) else element for element in array.ravel().tolist()]
    if wrong := [type(element).__name__ for element in elements if not isinstance(element, bytes)]:  # of a number, bytes() makes as many zeros
        raise InferenceError(f"input {name!r} holds an element of type {wrong[0]}; elements of BYTES are bytes or texts")
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def _read_outputs(answer: _Answer) -> dict[str, Array]:
    length = answer.headers.get(HEADER_LENGTH)
    document = json.loads(answer.body if length is None else answer.body[: int(length)])
    position, found = int(length or 0), {}
    for entry in document["outputs"]:
        dtype, shape = DTYPES[entry["datatype"]], entry["shape"]
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[entry["name"]] = np.array(entry["data"], dtype).reshape(shape)
            continue
        data = answer.body[position : position + size]
        position += size
        if entry["datatype"] == "BYTES":
            found[entry["name"]] = _texts(data).reshape(shape)
        else:
            found[entry["name"]] = np.frombuffer(data, dtype).reshape(shape)
    return found


def _texts(data: bytes) -> Array:
    elements, position = [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        elements.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    array = np.empty(len(elements), object)
    array[:] = elements
    return array
