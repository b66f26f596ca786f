"""gRPC: the Open Inference Protocol v2 with its repository, gRPC's own health service and reflection, on the same models as REST."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from .config import ServingConfig
from .errors import CLIENT_GONE, RequestError, ServerError, bad
from .grpc_messages import INFERENCE_SERVICE, METHODS, POOL, ModelInferResponse, message
from .listener import KEEP_ALIVE_S, grpc_connections
from .protocol import UNSUPPORTED, check_change, check_outputs, model_metadata, server_metadata
from .request_log import request_id
from .service import Catalogue, Service
from .tally import REFUSED
from .tensors import (
    InferRequest,
    Tensor,
    check_datatype,
    check_shape,
    find_spec,
    from_raw,
    from_values,
    join_bytes,
    make_request,
    split_bytes,
)

logger = logging.getLogger(__name__)

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Which field of InferTensorContents holds a datatype; FP16 travels raw only."""
SERVING, NOT_SERVING = 1, 2
OPEN = {"ServerLive", "ServerReady", "Check"}
"""Methods that need no token: probes."""

MOST_AGE_S = 1800.0
"""Of a connection, a tenth more or less: streams that never end must not hold it for ever."""
PING_S, PONG_S = 60.0, 20.0
"""Without a sign from a client for so long it is asked for one, and is gone if it gives none for so long."""

_caller: ContextVar[str] = ContextVar("caller")
"""Who asks, in the task that answers."""

Method = Callable[[Any, Any], Awaitable[Any]]


class GrpcApp:
    """The methods of all services."""

    def __init__(self, service: Service, catalogue: Catalogue) -> None:
        self._service = service
        self._catalogue = catalogue

    def handlers(self) -> list[Any]:
        """Handlers for `grpc.aio.server`."""
        return [*(self._handlers(service) for service in METHODS), *self._reflection()]

    def _handlers(self, service: str) -> Any:
        package, made = service.rpartition(".")[0], {}
        for name, (request, response) in METHODS[service].items():
            method = self._guarded(name, getattr(self, name), message(f"{package}.{request}"), message(f"{package}.{response}"))
            made[name] = grpc.unary_unary_rpc_method_handler(method, None, lambda answer: answer.SerializeToString())
        return grpc.method_handlers_generic_handler(service, made)

    @contextlib.asynccontextmanager
    async def _guard(self, name: str, context: Any) -> AsyncIterator[None]:
        """Check the token, translate errors, and write down what became of a call."""
        began, status, error_text = time.monotonic(), 500, None
        metadata = dict(context.invocation_metadata() or ())
        trailing = {"x-request-id": request_id(metadata.get("x-request-id"))}
        context.set_trailing_metadata(tuple(trailing.items()))
        try:
            if name not in OPEN:
                _caller.set(self._service.door.admit(metadata.get("authorization")))
            yield
            status = 200
        except RequestError as error:
            status, error_text = error.status, error.text
            if status in REFUSED:
                self._service.tally.add("grpc", status)
            if error.retry_after_s is not None:
                context.set_trailing_metadata((*trailing.items(), ("retry-after", str(math.ceil(error.retry_after_s)))))
            await context.abort(CODES.get(error.status, grpc.StatusCode.UNKNOWN), error.text)
        except asyncio.CancelledError:
            status, error_text = CLIENT_GONE, "the client hung up, or its deadline passed"  # gRPC ended the call: the server did not fail
            raise
        finally:
            if self._service.log:
                self._service.log.write(
                    id=trailing["x-request-id"], protocol="grpc", client=context.peer(), caller=_caller.get(None), method=name, status=status,
                    seconds=round(time.monotonic() - began, 6), error=error_text,
                )  # fmt: skip

    def _guarded(self, name: str, method: Method, request: Any, response: Any) -> Method:
        """Read the message, and make the answer from keyword arguments."""

        async def call(data: bytes, context: Any) -> Any:
            async with self._guard(name, context):
                answer = await method(_read(request, data), context)
                return answer if isinstance(answer, response) else response(**answer)

        return call

    def _reflection(self) -> list[Any]:
        """Handlers that tell clients such as grpcurl which methods and messages there are, where grpcio-reflection is installed; else none."""
        try:
            from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]  # here, because it is an extra
        except ImportError:
            return []
        POOL.AddSerializedFile(reflection_pb2.DESCRIPTOR.serialized_pb)
        servicer = reflection.aio.ReflectionServicer((*METHODS, reflection.SERVICE_NAME), pool=POOL)

        async def tell(asked: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            async with self._guard("ServerReflectionInfo", context):
                async for answer in servicer.ServerReflectionInfo((_read(reflection_pb2.ServerReflectionRequest, data) async for data in asked), context):
                    yield answer

        handler = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(tell, None, lambda answer: answer.SerializeToString())}
        names = (reflection.SERVICE_NAME, reflection.SERVICE_NAME.replace("v1alpha", "v1"))  # the same on the wire; newer clients ask for v1 first
        return [grpc.method_handlers_generic_handler(name, handler) for name in names]

    async def ServerLive(self, _: Any, __: Any) -> Any:
        """Always true: whoever answers is alive."""
        return {"live": True}

    async def ServerReady(self, _: Any, __: Any) -> Any:
        """Whether new requests should be sent here."""
        return {"ready": self._service.ready}

    async def ModelReady(self, request: Any, _: Any) -> Any:
        """Whether a worker of the model is up."""
        model = self._service.find(request.name, request.version)
        return {"ready": self._service.started and model.ready and not self._service.draining}

    async def ServerMetadata(self, _: Any, __: Any) -> Any:
        """Name, version and extensions."""
        return server_metadata()

    async def ModelMetadata(self, request: Any, _: Any) -> Any:
        """The model's signature."""
        model = self._service.find(request.name, request.version)
        return model_metadata(model.config, model.platform, self._service.versions(request.name))

    async def RepositoryIndex(self, request: Any, _: Any) -> Any:
        """What is served, and whether it can be used."""
        _refuse_repository(request.repository_name)
        return {"models": await self._catalogue.index(ready=request.ready)}

    async def RepositoryModelLoad(self, request: Any, _: Any) -> Any:
        """Serve the newest versions of a model, for those who may say so."""
        name = self._demand_change(request)
        await self._catalogue.load(name)
        return {"model_name": name, "isLoaded": True}

    async def RepositoryModelUnload(self, request: Any, _: Any) -> Any:
        """Stop serving a model, for those who may say so."""
        name = self._demand_change(request)
        await self._catalogue.unload(name)
        return {"model_name": name, "isUnloaded": True}

    def _demand_change(self, request: Any) -> str:
        """The model that is to be loaded or unloaded; a client of KServe's names it where one of Triton's names the repository.

        Raises:
            RequestError: 403; 400, the request asks for more than that.
        """
        self._service.door.demand_admin(_caller.get())
        if request.model_name:
            _refuse_repository(request.repository_name)
        check_change({name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in request.parameters.items()})
        return str(request.model_name or request.repository_name)

    async def Check(self, request: Any, _: Any) -> Any:
        """Tell whether to send requests here, for the whole server and for the inference service."""
        if request.service not in ("", INFERENCE_SERVICE):
            raise RequestError(404, f"no service {request.service[:80]!r}")
        return {"status": SERVING if self._service.ready else NOT_SERVING}

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Compute outputs; raw in the answer when they were raw in the request."""
        code, began = 500, time.monotonic()
        try:
            model = self._service.find(request.model_name, request.model_version)
            await self._service.spend(_caller.get())
            with model.in_use(), self._service.trace("grpc", model, dict(context.invocation_metadata() or ()).get) as trace:
                checked = parse_request(model.config, request)
                remaining = context.time_remaining()
                if remaining is not None and remaining < (checked.timeout_s or remaining + 1):
                    checked.timeout_s = max(remaining, 1e-3)
                checked.trace = trace
                outputs = await self._service.infer(model, checked)
            answer = make_response(model.config, checked, outputs, raw=bool(request.raw_input_contents))
            code = 200
            return answer
        except RequestError as error:
            code = error.status
            raise
        except asyncio.CancelledError:
            code = CLIENT_GONE
            raise
        finally:
            if code not in REFUSED:
                self._service.tally.add("grpc", code, time.monotonic() - began)


def _read(kind: Any, data: bytes) -> Any:
    """The message in some bytes; read here, because gRPC itself calls bytes that hold none the server's fault.

    Raises:
        RequestError: 400.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise bad(f"{len(data)} bytes are no {kind.DESCRIPTOR.name}") from None


def parse_request(config: ServingConfig, request: Any) -> InferRequest:
    """Check a ModelInferRequest.

    Raises:
        RequestError: 400, with what was wrong.
    """
    parameters = _parameters(request.parameters)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    inputs = []
    for index, tensor in enumerate(request.inputs):
        spec = config.inputs[find_spec(config.inputs, tensor.name, "input")]
        check_datatype(spec, tensor.datatype)
        _parameters(tensor.parameters)
        shape = check_shape(spec, list(tensor.shape))
        if raw and tensor.HasField("contents"):
            raise bad(f"input {spec.name!r} has contents besides raw_input_contents")
        inputs.append(from_raw(spec, shape, raw[index]) if raw else _from_contents(spec, shape, tensor.contents))
    for output in request.outputs:
        _parameters(output.parameters)
    wanted = [find_spec(config.outputs, output.name, "output") for output in request.outputs] or range(len(config.outputs))
    outputs = check_outputs(config, [(index, bool(raw)) for index in wanted])
    return make_request(config, id=request.id, inputs=inputs, outputs=outputs, parameters=parameters)


def _parameters(parameters: Any) -> dict[str, Any]:
    values = {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in parameters.items()}
    if refused := [name for name in UNSUPPORTED if values.get(name)]:
        raise bad(f"parameter {refused[0]!r} belongs to an extension that this server does not have")
    return values


def _from_contents(spec: Any, shape: tuple[int, ...], contents: Any) -> Tensor:
    field = CONTENTS.get(spec.datatype)
    if field is None:
        raise bad(f"input {spec.name!r}: {spec.datatype} travels in raw_input_contents only")
    if filled := [descriptor.name for descriptor, _ in contents.ListFields() if descriptor.name != field]:
        raise bad(f"input {spec.name!r} of {spec.datatype} belongs in {field}, not in {filled[0]}")
    values = getattr(contents, field)
    if spec.datatype == "BYTES":
        return from_raw(spec, shape, join_bytes(list(values)))
    return from_values(spec, shape, list(values))


def make_response(config: ServingConfig, request: InferRequest, outputs: list[Tensor], *, raw: bool) -> Any:
    """The ModelInferResponse, with the outputs in the order the request asked for."""
    response = ModelInferResponse(model_name=config.name, model_version=config.version, id=request.id)
    for index, _ in request.outputs:
        tensor = outputs[index]
        entry = response.outputs.add(name=tensor.spec.name, datatype=tensor.spec.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(bytes(tensor.data))
        elif tensor.spec.datatype == "BYTES":
            count = tensor.array().size
            entry.contents.bytes_contents.extend(split_bytes(tensor.data, count, tensor.spec.name))
        else:
            getattr(entry.contents, CONTENTS[tensor.spec.datatype]).extend(tensor.array().ravel().tolist())
    return response


def _refuse_repository(name: str) -> None:
    if name:
        raise bad(f"repository_name is {name[:80]!r}; there is one repository here, and it has no name")


def _connection_limits(greeting_timeout_s: float, grace_s: float) -> list[tuple[str, int]]:
    """How many connections there may be, and when they are closed: whoever only holds one must not shut out those who ask.

    The names are those of gRPC's own channel arguments (``grpc/impl/channel_arg_names.h``); a client that is told to go connects anew with its next call.
    """
    seconds = {
        "grpc.server_handshake_timeout_ms": greeting_timeout_s,
        "grpc.max_connection_idle_ms": KEEP_ALIVE_S,
        "grpc.max_connection_age_ms": MOST_AGE_S,
        "grpc.max_connection_age_grace_ms": grace_s,
        "grpc.keepalive_time_ms": PING_S,
        "grpc.keepalive_timeout_ms": PONG_S,
    }
    return [("grpc.max_allowed_incoming_connections", grpc_connections()), *((name, math.ceil(1e3 * limit)) for name, limit in seconds.items())]


async def start_grpc(
    service: Service,
    catalogue: Catalogue,
    address: str,
    max_body_bytes: int,
    tls: tuple[Path, Path] | None = None,
    *,
    shared: bool = False,
    greeting_timeout_s: float = 10.0,
    grace_s: float = 30.0,
) -> tuple[Any, int]:
    """Start listening; with `tls`, a certificate and its key, encrypted.

    Args:
        service: Answers.
        catalogue: Tells and changes what is served.
        address: ``HOST:PORT``.
        max_body_bytes: Of a message.
        tls: A certificate and its key.
        shared: Whether other processes of this server listen on the same port.
        greeting_timeout_s: How long a new connection may take until it speaks HTTP/2.
        grace_s: How long calls may take to end on a connection that is too old.

    Returns:
        The server, and its port.

    Raises:
        ServerError: the address is taken or not ours.
    """
    options = [("grpc.max_receive_message_length", max_body_bytes), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", int(shared))]
    options += _connection_limits(greeting_timeout_s, grace_s)
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(GrpcApp(service, catalogue).handlers())
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            certificate, key = (file.read_bytes() for file in tls)
            port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError:
        port = 0
    if not port:
        raise ServerError(f"cannot listen for gRPC on {address}: the port is taken or the address is not this machine's")
    await server.start()
    return server, port
