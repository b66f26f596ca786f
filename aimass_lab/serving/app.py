"""REST: the Open Inference Protocol v2, a plain form for people, health and metrics, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import orjson

from .batcher import Hangup
from .config import describe_dimension
from .errors import RequestError
from .heap import give_back
from .openapi import describe
from .page import page, promises, stored_sample
from .protocol import (
    HEADER_LENGTH,
    encode_infer,
    encode_predict,
    error_body,
    model_metadata,
    parse_change,
    parse_index,
    parse_infer,
    parse_predict,
    server_metadata,
)
from .request_log import request_id
from .service import Catalogue, Servable, Service
from .tally import REFUSED
from .tensors import InferRequest, Tensor

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON: Headers = [(b"content-type", b"application/json")]
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
METRICS: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
KNOWN_PATH = 256
"""Bytes of a path up to which it is remembered: most requests ask for the same ones."""
DISCARD_S = 5.0
"""How long a body that is refused is still read, so that its sender gets to read the answer."""


class App:
    """The ASGI application.

    Args:
        service: The models and the door.
        catalogue: What can be loaded.
        max_body_bytes: Longer bodies get 413.
    """

    def __init__(self, service: Service, catalogue: Catalogue, max_body_bytes: int) -> None:
        self._service = service
        self._catalogue = catalogue
        self._max_body_bytes = max_body_bytes
        self._reading = asyncio.Semaphore(1)
        """Of stored samples, all of which are read for one of them."""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        began, error_text = time.monotonic(), None
        name = scope["aimass.id"] = request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        try:
            status, answer_headers, body = await self._answer(scope, headers, receive)
        except RequestError as error:
            error_text = error.text
            if error.status in REFUSED:
                self._service.tally.add("rest", error.status)
            status, answer_headers, body = _error_answer(error)
        except Exception:
            logger.exception("request %s failed in the server", name)
            status, answer_headers, body = 500, JSON, error_body("the server failed; its log says how")
        answer_headers = [*answer_headers, (b"content-length", str(len(body)).encode()), (b"x-request-id", name.encode())]
        if self._service.draining or status in (408, 413):
            answer_headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        if self._service.log:
            self._service.log.write(
                id=name, protocol="http", client=scope["client"][0] if scope.get("client") else None, caller=scope.get("aimass.caller"),
                method=scope["method"], path=scope["raw_path"].decode("latin-1"), status=status, seconds=round(time.monotonic() - began, 6),
                items=scope.get("aimass.items"), bytes=len(body), error=error_text,
            )  # fmt: skip

    async def _answer(self, scope: dict[str, Any], headers: dict[bytes, bytes], receive: Receive) -> Answer:
        """Find who answers this method and path.

        Raises:
            RequestError: 401, 404, 405, and whatever the handler raises.
        """
        segments = (_known_segments if len(scope["raw_path"]) <= KNOWN_PATH else _segments)(scope["raw_path"])
        if segments == [""] and scope["method"] in ("GET", "HEAD") and b"text/html" in headers.get(b"accept", b""):
            return 200, *page()  # it holds nothing of the models; what it then asks for needs a token
        if segments[:2] != ["v2", "health"]:  # probes carry no token, and learn nothing worth one
            scope["aimass.caller"] = self._service.door.admit(headers.get(b"authorization", b"").decode("latin-1"))
        handler, model, allowed = self._route(segments)
        method = scope["method"]
        if method != allowed and not (method == "HEAD" and allowed == "GET"):
            raise MethodNotAllowed(method, allowed)
        if allowed == "GET":
            return await handler(model, scope)
        return await handler(model, scope, headers, receive)

    def _route(self, segments: list[str]) -> tuple[Any, Servable | None, str]:
        match segments:
            case [""]:
                return self._home, None, "GET"
            case ["metrics"]:
                return self._metrics, None, "GET"
            case ["openapi.json"]:
                return self._describe, None, "GET"
            case ["predict"]:
                return self._predict, self._only_model(), "POST"
            case ["v2"]:
                return self._server_metadata, None, "GET"
            case ["v2", "health", "live"]:
                return self._live, None, "GET"
            case ["v2", "health", "ready"]:
                return self._ready, None, "GET"
            case ["v2", "repository", "index"]:
                return self._index, None, "POST"
            case ["v2", "repository", "models", name, ("load" | "unload") as verb]:
                change = self._catalogue.load if verb == "load" else self._catalogue.unload
                return partial(self._change, change, name), None, "POST"
            case ["v2", "models", name, *rest]:
                return self._route_model(name, rest)
        raise RequestError(404, "no such address; GET / lists them")

    def _route_model(self, name: str, rest: list[str]) -> tuple[Any, Servable | None, str]:
        version = None
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        model = self._service.find(name, version)
        match rest:
            case []:
                return self._model_metadata, model, "GET"
            case ["ready"]:
                return self._model_ready, model, "GET"
            case ["infer"]:
                return self._infer, model, "POST"
            case ["sample"]:
                return self._sample, model, "GET"
            case ["promises"]:
                return self._promises, model, "GET"
        raise RequestError(404, "no such address; GET / lists them")

    # --- answers without a body ----------------------------------------------------------

    async def _home(self, _: None, __: Any) -> Answer:
        lines = ["aimass_serve: Open Inference Protocol v2", ""]
        for model in self._service.models.values():
            config = model.config
            lines.append(f"model {config.name} version {config.version}, {'ready' if model.ready else 'not ready'}")
            lines += [f"  {kind} {s.name}: {s.datatype} {list(s.shape)}" for kind, ss in _tensors(config) for s in ss]
            lines += [f"  size {describe_dimension(config, dimension)}" for dimension in config.dimensions]
        lines.append("")
        for path, item in describe(self._service)["paths"].items():
            lines += [f"{method.upper():4} {path}   {operation['summary']}" for method, operation in item.items()]
        return 200, TEXT, "\n".join([*lines, ""]).encode()

    async def _describe(self, _: None, __: Any) -> Answer:
        return 200, JSON, orjson.dumps(describe(self._service))

    async def _metrics(self, _: None, __: Any) -> Answer:
        return 200, METRICS, await self._service.exposition()

    async def _live(self, _: None, __: Any) -> Answer:
        return 200, JSON, orjson.dumps({"live": True})

    async def _ready(self, _: None, __: Any) -> Answer:
        ready = self._service.ready
        return 200 if ready else 503, JSON, orjson.dumps({"live": True, "ready": ready})

    async def _server_metadata(self, _: None, __: Any) -> Answer:
        return 200, JSON, orjson.dumps(server_metadata())

    async def _sample(self, model: Servable, scope: dict[str, Any]) -> Answer:
        async with self._reading:
            return 200, JSON, await asyncio.to_thread(stored_sample, model, scope["query_string"])

    async def _promises(self, model: Servable, _: Any) -> Answer:
        return 200, JSON, promises(model)

    async def _model_metadata(self, model: Servable, _: Any) -> Answer:
        return 200, JSON, orjson.dumps(model_metadata(model.config, model.platform, self._service.versions(model.config.name)))

    async def _model_ready(self, model: Servable, _: Any) -> Answer:
        ready = self._service.started and model.ready and not self._service.draining
        return 200 if ready else 503, JSON, orjson.dumps({"name": model.config.name, "ready": ready})

    async def _index(self, _: None, __: dict[str, Any], headers: dict[bytes, bytes], receive: Receive) -> Answer:
        """What is served, and whether it can be used."""
        ready = parse_index(await self._read_body(headers, receive))
        return 200, JSON, orjson.dumps(await self._catalogue.index(ready=ready))

    async def _change(
        self, change: Callable[[str], Awaitable[None]], name: str, _: None, scope: dict[str, Any], headers: dict[bytes, bytes], receive: Receive
    ) -> Answer:
        """Load or unload a model, for those who may."""
        self._service.door.demand_admin(scope["aimass.caller"])
        parse_change(await self._read_body(headers, receive))
        await change(name)
        return 200, JSON, b"{}"

    def _only_model(self) -> Servable:
        """The model that `/predict` means.

        Raises:
            RequestError: 404, none is served; 400, several are.
        """
        names = {name for name, _ in self._service.models}
        if len(names) > 1:
            raise RequestError(400, f"several models are served: {', '.join(sorted(names))}; use /v2/models/NAME/infer")
        return self._service.find(next(iter(names), ""), None)

    # --- inference -----------------------------------------------------------------------

    async def _infer(self, model: Servable, scope: dict[str, Any], headers: dict[bytes, bytes], receive: Receive) -> Answer:
        length = headers.get(HEADER_LENGTH.encode())

        def parse(body: bytes) -> InferRequest:
            return parse_infer(model.config, body, None if length is None else length.decode("latin-1"))

        return await self._compute("rest", model, parse, scope, headers, receive)

    async def _predict(self, model: Servable, scope: dict[str, Any], headers: dict[bytes, bytes], receive: Receive) -> Answer:
        return await self._compute("predict", model, lambda body: parse_predict(model.config, body), scope, headers, receive)

    async def _compute(
        self,
        protocol: str,
        model: Servable,
        parse: Callable[[bytes], InferRequest],
        scope: dict[str, Any],
        headers: dict[bytes, bytes],
        receive: Receive,
    ) -> Answer:
        """Body in, outputs out; counted whatever happens."""
        code, began = 500, time.monotonic()
        try:
            with model.in_use():
                await self._service.spend(scope["aimass.caller"])
                with self._service.trace(protocol, model, lambda name: headers.get(name.encode(), b"").decode("latin-1")) as trace:
                    request = parse(await self._read_body(headers, receive))
                    scope["aimass.items"] = request.items
                    request.trace = trace
                    hangup = scope["aimass.hangup"] = Hangup()
                    outputs = await self._service.infer(model, request, hangup)
            answer = _encode(protocol, model, request, outputs)
            code = 200
            return answer
        except RequestError as error:
            code = error.status
            raise
        finally:
            self._service.tally.add(protocol, code, time.monotonic() - began)

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, as long as it is not too long; never more than that is kept.

        Raises:
            RequestError: 413, 415, or the client hung up.
        """
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise RequestError(415, "compressed bodies are not accepted; send the body as it is")
        if int(headers.get(b"content-length", b"0")) > self._max_body_bytes:
            if b"expect" not in headers:  # a client that asks first has sent nothing yet
                await _discard(receive)
            raise self._too_long()
        message = await receive()
        if message["type"] == "http.request" and not message["more_body"]:
            return bytes(message["body"])
        body = bytearray()
        while message["type"] == "http.request":
            body += message["body"]
            if len(body) > self._max_body_bytes:
                del body, message
                await _discard(receive)
                give_back()
                raise self._too_long()
            if not message["more_body"]:
                return bytes(body)
            message = await receive()
        raise RequestError(499, "the client hung up")

    def _too_long(self) -> RequestError:
        # Made where it is raised: kept in a variable it would keep the frame, and with it the last of the body, until a collection of all.
        return RequestError(413, f"the body is longer than {self._max_body_bytes} bytes")


def _segments(raw_path: bytes) -> list[str]:
    return [unquote(part) for part in raw_path.decode("ascii", "replace").strip("/").split("/")]


_known_segments = lru_cache(maxsize=256)(_segments)


class MethodNotAllowed(RequestError):
    """405, which says what is allowed."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(405, f"{method} is not possible here; use {allowed}")
        self.allowed = allowed


def _encode(protocol: str, model: Servable, request: InferRequest, outputs: list[Tensor]) -> Answer:
    if protocol == "predict":
        return 200, JSON, encode_predict(outputs)
    headers, body = encode_infer(model.config, request, outputs)
    return 200, headers, body


def _error_answer(error: RequestError) -> Answer:
    headers = [*JSON]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    return error.status, headers, error_body(error.text)


def _tensors(config: Any) -> list[tuple[str, Any]]:
    return [("input", config.inputs), ("output", config.outputs)]


async def _discard(receive: Receive) -> None:
    """Read and forget what still comes, for a short time."""
    end = time.monotonic() + DISCARD_S
    while (remaining := end - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), remaining)
        except asyncio.TimeoutError:
            return
        if message["type"] != "http.request" or not message["more_body"]:
            return
