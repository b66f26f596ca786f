"""Traces for OpenTelemetry: a request, its wait in the queue, its batch and what the worker computed, as spans of the caller's own trace.

Off unless the standard environment names an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`), and told over OTLP/HTTP by OpenTelemetry's own SDK, which the
standard environment configures: sampling, headers, certificates, propagation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .config import ServingConfig
from .errors import CLIENT_GONE, RequestError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

logger = logging.getLogger(__name__)

ModelKey = tuple[str, str]
"""Name and version."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
"""The one that is spoken here, and what the specification recommends."""
FLUSH_S = 2.0
"""For the last spans, when the server ends: a collector that is away must not hold it up."""


class _Clock:
    """Tells when a moment of `time.monotonic` was, by the wall clock as it stood when this was made: a jump bends no trace."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def __call__(self, monotonic_s: float) -> int:
        return int(monotonic_s * 1e9) + self._offset_ns


class Recorder(ABC):
    """Is told what becomes of a request; the times given to it are those of `time.monotonic`."""

    @abstractmethod
    def queue(self, model: ModelKey, began: float, ended: float) -> None:
        """It waited for a worker of a model."""

    @abstractmethod
    def batch(self, model: ModelKey, began: float, ended: float, *, items: int, requests: int, computed: tuple[float, float] | None) -> None:
        """It was in a batch.

        Args:
            model: Name and version.
            began: When the batch left for a worker.
            ended: When its outputs were back.
            items: In the batch.
            requests: In the batch.
            computed: When the worker had read it and when it had the outputs; None: the worker died.
        """


class Notes(Recorder):
    """What a process is told of a request that another one records, in a form that JSON holds."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[Any], dict[str, Any]]] = []

    def queue(self, model: ModelKey, began: float, ended: float) -> None:
        """Keep it."""
        self.told.append(("queue", [model, began, ended], {}))

    def batch(self, model: ModelKey, began: float, ended: float, *, items: int, requests: int, computed: tuple[float, float] | None) -> None:
        """Keep it."""
        self.told.append(("batch", [model, began, ended], {"items": items, "requests": requests, "computed": computed}))


def tell(recorder: Recorder, told: Iterable[tuple[str, list[Any], dict[str, Any]]]) -> None:
    """Tell a recorder what `Notes` kept."""
    for kind, (model, *times), more in told:
        record = recorder.queue if kind == "queue" else recorder.batch
        record(tuple(model), *times, **more)


class Trace(Recorder):
    """One request that is recorded by OpenTelemetry."""

    def __init__(self, tracer: Tracer, span: Span, clock: _Clock) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._context, self._clock = tracer, set_span_in_context(span), clock

    def queue(self, model: ModelKey, began: float, ended: float) -> None:
        """It waited for a worker of a model."""
        self._child("queue", model, began, ended)

    def batch(self, model: ModelKey, began: float, ended: float, *, items: int, requests: int, computed: tuple[float, float] | None) -> None:
        """It was in a batch."""
        attributes = {"aimass.batch.items": items, "aimass.batch.requests": requests}
        span = self._child("batch", model, began, ended, attributes, error=None if computed else "the worker died")
        if computed is not None:
            from opentelemetry.trace import set_span_in_context

            self._child("compute", model, *computed, context=set_span_in_context(span))

    def _child(
        self, name: str, model: ModelKey, began: float, ended: float, attributes: Mapping[str, int] | None = None, *,
        context: Any = None, error: str | None = None,
    ) -> Span:  # fmt: skip
        from opentelemetry.trace import StatusCode

        told: dict[str, str | int] = {"aimass.model": model[0], "aimass.version": model[1], **(attributes or {})}
        span = self._tracer.start_span(name, context or self._context, attributes=told, start_time=self._clock(began))
        if error is not None:
            span.set_status(StatusCode.ERROR, error)
        span.end(self._clock(ended))
        return span


class Tracing:
    """Records requests and sends what was recorded, in a thread of its own; what the collector does not take in time is dropped.

    Args:
        name: Of the service, where the environment names none.
        environment: The process's.

    Raises:
        ImportError: OpenTelemetry's SDK or its exporter is not installed.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        from opentelemetry import propagate
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._provider = TracerProvider(resource=Resource.create({} if named else {"service.name": name}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("aimass_serve")
        self._propagator = propagate.get_global_textmap()

    @contextlib.contextmanager
    def request(self, protocol: str, config: ServingConfig, find: Callable[[str], str | None]) -> Iterator[Trace | None]:
        """Record what happens in the block.

        Args:
            protocol: ``"rest"``, ``"predict"``, ``"grpc"`` or ``"amqp"``.
            config: Of the model that is asked.
            find: The header of a name, such as ``traceparent``.

        Yields:
            None where the caller or the sampler does not want it recorded.
        """
        from opentelemetry.trace import SpanKind, StatusCode

        carrier = {field: value for field in self._propagator.fields if (value := find(field))}
        attributes = {"aimass.protocol": protocol, "aimass.model": config.name, "aimass.version": config.version}
        kind = SpanKind.CONSUMER if protocol == "amqp" else SpanKind.SERVER
        clock, began = _Clock(), time.monotonic()
        span = self._tracer.start_span("request", self._propagator.extract(carrier), kind=kind, attributes=attributes, start_time=clock(began))
        status, text = 500, "the server failed"
        try:
            yield Trace(self._tracer, span, clock) if span.is_recording() else None
            status, text = 200, ""
        except RequestError as error:
            status, text = error.status, error.text
            raise
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            span.set_attribute("aimass.status", status)
            if status >= 500:  # a client's mistake is no error of a server's span, says the specification
                span.set_status(StatusCode.ERROR, text)
            span.end(clock(time.monotonic()))

    async def close(self) -> None:
        """Send what is left, as far as there is time."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, FLUSH_S)


def make_tracing(name: str, environment: Mapping[str, str]) -> Tracing | None:
    """What records, where the environment asks for it; where that cannot be done, a warning says why, since a platform may ask everybody.

    Args:
        name: Of the service, where the environment names none.
        environment: The process's.
    """
    endpoint = next((name for name in ENDPOINTS if environment.get(name)), None)
    if endpoint is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        logger.warning("%s asks for traces over %s; here they are told over %s only, so there are none", endpoint, protocol, PROTOCOL)
        return None
    try:
        return Tracing(name, environment)
    except ImportError as error:
        logger.warning("%s asks for traces, and there are none: %s; pip install -r requirements-tracing.txt", endpoint, error)
        return None
