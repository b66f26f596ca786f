"""A collector of traces, which takes spans over OTLP/HTTP as OpenTelemetry's own messages describe them."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """Takes spans over OTLP/HTTP."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # here, because not everybody has it

        collector = self
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                for sent in service.ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append({entry.key: entry.value.string_value for entry in sent.resource.attributes})
                    collector.spans += [span for scope in sent.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def trace(self, trace_id: str) -> dict[str, list[Any]]:
        """The spans of a trace by name, in the order of their beginnings."""
        found: dict[str, list[Any]] = {}
        for span in sorted((span for span in self.spans if span.trace_id.hex() == trace_id), key=lambda span: span.start_time_unix_nano):
            found.setdefault(span.name, []).append(span)
        return found
