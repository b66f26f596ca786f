"""Traces, as a collector gets them: the caller's own, with a request's wait, batch and computation; and nothing where nobody asked."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimass_lab.serving.launch import start
from aimass_lab.serving.tracing import make_tracing

from .collector import Collector
from .servers import call, metric, wait_for, write_faulty
from .test_serving_faults import DIE
from .test_serving_grpc import request, send

pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="OpenTelemetry's OTLP exporter is not installed")

INFER = "/v2/models/net/infer"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in span.attributes}


def ask(server: Any, row: list[float], trace_id: str | None = None, *, flags: str = "01") -> int:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": row}
    headers = {} if trace_id is None else {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-{flags}"}
    return call(server, "POST", INFER, {"inputs": [entry]}, headers).status


def test_a_collector_gets_requests_with_their_parts(collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    first, second, third, over_grpc, dying, malformed = (f"{number:032x}" for number in range(0xA, 0x10))
    with start(write_faulty(tmp_path / "b", max_batch_size=2)) as server, ThreadPoolExecutor(3) as pool:
        slow = pool.submit(ask, server, [1.0, 0.5], first)
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        together = [pool.submit(ask, server, [float(value), 0.0], name) for value, name in ((2, second), (3, third))]
        assert [slow.result(), *(answer.result() for answer in together)] == [200] * 3
        made = request(raw_input_contents=[np.float32([[4, 0]]).tobytes()])
        made.inputs[0].shape[:] = [1, 2]
        send(server, made, metadata=(("traceparent", f"00-{over_grpc}-00f067aa0ba902b7-01"),))
        assert ask(server, [float(DIE), 0.0], dying) == 500
        assert ask(server, [1.0], malformed) == 400
        assert ask(server, [5.0, 0.0], "f" * 32, flags="00") == 200  # whoever began this trace does not record it
        assert ask(server, [6.0, 0.0]) == 200  # a trace of its own
        assert server.stop() == 0  # what was not sent yet is sent now

    for trace_id, requests in ((first, 1), (second, 2), (third, 2), (over_grpc, 1)):
        found = collector.trace(trace_id)
        assert {name: len(spans) for name, spans in found.items()} == {"request": 1, "queue": 1, "batch": 1, "compute": 1}
        (whole,), (queue,), (batch,), (compute,) = (found[name] for name in ("request", "queue", "batch", "compute"))
        assert whole.parent_span_id.hex() == "00f067aa0ba902b7"
        assert [span.parent_span_id for span in (queue, batch, compute)] == [whole.span_id, whole.span_id, batch.span_id]
        moments = [
            whole.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano, batch.start_time_unix_nano,
            compute.start_time_unix_nano, compute.end_time_unix_nano, batch.end_time_unix_nano, whole.end_time_unix_nano,
        ]  # fmt: skip
        assert moments == sorted(moments)
        assert attributes(batch)["aimass.batch.requests"] == requests
        told = attributes(whole)
        assert (told["aimass.protocol"], told["aimass.model"], told["aimass.version"]) == ("grpc" if trace_id == over_grpc else "rest", "net", "1")
        assert (told["aimass.status"], whole.kind, whole.status.code) == (200, 2, 0)
    (computed,) = collector.trace(first)["compute"]
    assert computed.end_time_unix_nano - computed.start_time_unix_nano >= 0.5e9

    died = collector.trace(dying)
    assert {name: len(spans) for name, spans in died.items()} == {"request": 1, "queue": 1, "batch": 2}
    assert [(span.status.code, span.status.message) for span in died["batch"]] == [(2, "the worker died")] * 2
    assert (died["request"][0].status.code, attributes(died["request"][0])["aimass.status"]) == (2, 500)
    refused = collector.trace(malformed)
    assert [attributes(span)["aimass.status"] for span in refused["request"]] == [400]
    assert (list(refused), refused["request"][0].status.code) == (["request"], 0)  # a client's mistake is no error of the server's
    assert not collector.trace("f" * 32)
    (own,) = (span for span in collector.spans if span.name == "request" and not span.parent_span_id)
    assert len(collector.trace(own.trace_id.hex())) == 4
    assert {resource["service.name"] for resource in collector.resources} == {"net"}


def test_a_collector_that_is_away_holds_nobody_up(linear_folder: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    collector.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    with start(linear_folder, grpc_port=None) as server:
        assert call(server, "POST", "/predict", [[1, 2, 3, 4]]).status == 200
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"OTEL_SERVICE_NAME": "net"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "asks for traces over grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, "pip install -r requirements-tracing.txt"),
    ],
)
def test_where_there_are_no_traces(environment: dict[str, str], said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)  # as where it is not installed
    with caplog.at_level(logging.WARNING):
        assert make_tracing("net", environment) is None
    assert (len(caplog.messages), said in caplog.text) == (1 if said else 0, True)
