"""Requests from a queue, with a real RabbitMQ broker: nothing is lost, nothing is answered wrongly, and what cannot be answered says why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from aimass_lab.serving.launch import Server, start

from .broker import Broker, missing
from .servers import WEIGHT, call, metric, wait_for, write_faulty, write_linear
from .test_serving_faults import DIE, RAISE, run
from .test_serving_rest import GOOD, binary, given

aio_pika = pytest.importorskip("aio_pika", reason="aio-pika is not installed")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


Start = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path, broker: Broker) -> Iterator[Start]:
    """Start a server that takes requests from a queue."""
    servers: list[Server] = []

    def serve(queue: str, *, write: Callable[..., Path] = write_linear, arguments: tuple[str, ...] = (), **settings: Any) -> Server:
        folder = tmp_path / f"bundle{len(servers)}"
        write(folder, **settings)
        servers.append(start(folder, grpc_port=None, arguments=("--amqp", broker.url, "--queue", queue, *arguments)))
        return servers[-1]

    yield serve
    for server in servers:
        with server:
            pass


def asking(values: list[float]) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}]}).encode()


class Sender:
    """Sends messages to a queue and collects answers, over a connection of its own; an independent client of the broker."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self._broker, self._queue = broker, queue

    def ask(self, bodies: list[bytes], *, patience_s: float = 60.0, **properties: Any) -> dict[str, list[Any]]:
        """Answers by message id, which is the number of the body."""
        return asyncio.run(self._ask(bodies, patience_s, properties))

    async def _ask(self, bodies: list[bytes], patience_s: float, properties: dict[str, Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        async with await aio_pika.connect(self._broker.url) as connection:
            channel = await connection.channel(on_return_raises=True)
            answers = await channel.declare_queue(exclusive=True)

            async def collect(message: Any) -> None:
                found.setdefault(message.message_id, []).append(message)

            await answers.consume(collect, no_ack=True)
            for number, body in enumerate(bodies):
                names = {"message_id": str(number), "correlation_id": f"c{number}", "reply_to": answers.name} | properties
                await channel.default_exchange.publish(aio_pika.Message(body, **names), routing_key=self._queue)
            end = time.monotonic() + patience_s
            while len(found) < len(bodies) and time.monotonic() < end:
                await asyncio.sleep(0.02)
        return found

    def send(self, body: bytes, **properties: Any) -> None:
        async def send() -> None:
            async with await aio_pika.connect(self._broker.url) as connection:
                channel = await connection.channel(on_return_raises=True)
                await channel.default_exchange.publish(aio_pika.Message(body, **properties), routing_key=self._queue)

        asyncio.run(send())

    def dead(self, patience_s: float = 30.0) -> Any:
        """The next message that was put aside."""

        async def take() -> Any:
            async with await aio_pika.connect(self._broker.url) as connection:
                channel = await connection.channel()
                queue = await channel.get_queue(f"{self._queue}.dead")
                return await queue.get(no_ack=True, fail=False, timeout=patience_s)

        end = time.monotonic() + patience_s
        while (message := asyncio.run(take())) is None:
            assert time.monotonic() < end, "no message was put aside"
            time.sleep(0.1)
        return message

    def count(self, name: str) -> int:
        """Messages that wait in a queue and are with nobody."""

        async def count() -> int:
            async with await aio_pika.connect(self._broker.url) as connection:
                channel = await connection.channel()
                return int((await channel.declare_queue(name, passive=True)).declaration_result.message_count)

        return asyncio.run(count())


def outcome(server: Server, name: str) -> float:
    text = call(server, "GET", "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'aimass_amqp_messages_total{{outcome="{name}"}}'))


def output(message: Any) -> Any:
    assert message.headers["x-status"] == 200, message.body
    return json.loads(message.body)["outputs"][0]["data"]


def test_messages_are_answered_as_over_http_and_share_batches(broker: Broker, serve: Start) -> None:
    server, sender = serve("plain", wait_policy="always", max_wait_s=0.05), Sender(broker, "plain")  # however slowly they are sent
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    answers = sender.ask([asking(row.tolist()) for row in x])
    assert sorted(map(int, answers)) == list(range(200))
    for number, row in enumerate(x):
        (answer,) = answers[str(number)]
        assert (answer.correlation_id, answer.content_type) == (f"c{number}", "application/json")
        np.testing.assert_allclose(output(answer), row @ WEIGHT, rtol=1e-4, atol=1e-5)
    assert metric(server, "aimass_batch_items_count") < 200, "no two messages shared a batch"
    wait_for(lambda: outcome(server, "answered") == 200)
    told = call(server, "GET", "/metrics").body
    assert b'aimass_requests_total{code="200",protocol="amqp"} 200.0' in told
    assert b'aimass_request_seconds_count{protocol="amqp"} 200.0' in told
    assert metric(server, "aimass_amqp_connected") == 1
    assert (sender.count("plain"), sender.count("plain.dead")) == (0, 0)


def test_binary_tensors_and_names(broker: Broker, serve: Start) -> None:
    serve("binary")
    data = np.float32([[1, 2, 3, 4]]).tobytes()
    document = given(data=None, parameters={"binary_data_size": 16}) | {"parameters": {"binary_data_output": True}}
    body, headers = binary(document, data)
    length = "inference-header-content-length"
    (answer,) = Sender(broker, "binary").ask([body], headers={length: headers["Inference-Header-Content-Length"]}, correlation_id=None)["0"]
    assert (answer.content_type, answer.correlation_id) == ("application/octet-stream", "0")
    np.testing.assert_allclose(np.frombuffer(answer.body[answer.headers[length] :], np.float32), np.float32([1, 2, 3, 4]) @ WEIGHT, rtol=1e-5)


def test_what_is_malformed_is_put_aside_with_the_reason(broker: Broker, serve: Start) -> None:
    server, sender = serve("malformed"), Sender(broker, "malformed")
    (answer,) = sender.ask([b'{"inputs": ['])["0"]
    assert (answer.headers["x-status"], "character 12" in json.loads(answer.body)["error"]) == (400, True)
    dead = sender.dead()
    assert (dead.body, dead.message_id, dead.headers["x-status"]) == (b'{"inputs": [', "0", 400)
    assert "character 12" in dead.headers["x-error"]
    sender.send(asking([1, 2, 3, 4]), message_id="nobody")
    assert "reply_to is missing" in sender.dead().headers["x-error"]
    (answer,) = sender.ask([bytes(2**20 + 1)])["0"]
    assert (answer.headers["x-status"], sender.dead().headers["x-status"]) == (413, 413)
    assert outcome(server, "dead") == 3
    assert sender.ask([asking([1, 2, 3, 4])])["0"][0].headers["x-status"] == 200


def test_what_fails_twice_is_put_aside_and_others_go_on(broker: Broker, serve: Start, tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    server, sender = serve("failing", write=write_faulty, arguments=("--log-requests", str(log))), Sender(broker, "failing")
    answers = sender.ask([asking([float(value), 0.0]) for value in (1, RAISE, 2, DIE, 3)])
    assert [answers[str(i)][0].headers["x-status"] for i in range(5)] == [200, 500, 200, 500, 200]
    reasons = {message.message_id: message.headers["x-error"] for message in (sender.dead(), sender.dead())}
    assert "asked to raise" in reasons["1"]
    assert "died" in reasons["3"]
    wait_for(lambda: (outcome(server, "requeued"), outcome(server, "dead"), outcome(server, "answered")) == (2, 2, 3))
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if line["protocol"] == "amqp"]
    assert sorted((line["id"], line["status"]) for line in lines) == [("0", 200), ("1", 500), ("1", 500), ("2", 200), ("3", 500), ("3", 500), ("4", 200)]
    assert {line["queue"] for line in lines} == {"failing"}
    assert all(("asked to raise" in line["error"]) == (line["id"] == "1") for line in lines if line["status"] == 500)


def test_a_server_killed_within_a_batch_loses_no_message(broker: Broker, serve: Start, tmp_path: Path) -> None:
    """The first is killed with a hundred messages taken, four of which its worker holds and will never answer; the second answers them all."""
    first = serve("killed", write=write_faulty, max_batch_size=4, arguments=("--prefetch", "100"))
    sender = Sender(broker, "killed")
    seconds: list[Server] = []

    def kill_and_replace() -> None:
        wait_for(lambda: outcome(first, "answered") >= 5, timeout=60)
        children = psutil.Process(first.pid).children()
        children[0].suspend()
        wait_for(lambda: metric(first, "aimass_batch_items_count") == metric(first, "aimass_compute_seconds_count") + 1)
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: not any(child.is_running() for child in children))
        seconds.append(serve("killed", write=write_faulty, max_batch_size=4))

    replacing = threading.Thread(target=kill_and_replace)
    replacing.start()
    answers = sender.ask([asking([1000.0 + i, 0.05]) for i in range(150)], patience_s=120)
    replacing.join()
    assert sorted(map(int, answers)) == list(range(150))
    for number in range(150):
        assert {tuple(np.round(output(a), 3)) for a in answers[str(number)]} == {(2000.0 + 2 * number, 0.1)}, "one message got different answers"
    assert 0 < outcome(seconds[0], "answered") < 150
    assert (sender.count("killed"), sender.count("killed.dead")) == (0, 0)


def test_a_message_joins_the_trace_of_its_sender(broker: Broker, serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="OpenTelemetry's OTLP exporter is not installed")
    from .collector import Collector

    collector, trace_id = Collector(), f"{7:032x}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    server = serve("traced")
    (answer,) = Sender(broker, "traced").ask([asking([1, 2, 3, 4])], headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})["0"]
    assert answer.headers["x-status"] == 200
    assert server.stop() == 0
    collector.close()
    found = collector.trace(trace_id)
    assert {name: len(spans) for name, spans in found.items()} == {"request": 1, "queue": 1, "batch": 1, "compute": 1}
    assert (found["request"][0].kind, found["request"][0].parent_span_id.hex()) == (5, "00f067aa0ba902b7")  # a consumer's


def test_a_message_that_comes_twice_is_answered_once(broker: Broker, serve: Start) -> None:
    """The same name, sender and body: a sender that did not get its confirmation. Another body under the same name is another message."""
    server, sender = serve("twice"), Sender(broker, "twice")
    answers = sender.ask([asking([1, 2, 3, 4])] * 3 + [asking([2, 4, 6, 8])], message_id="same", patience_s=3)
    wait_for(lambda: outcome(server, "repeated") + outcome(server, "answered") == 4)
    assert len(answers["same"]) == outcome(server, "answered")
    assert {round(output(answer)[0], 4) for answer in answers["same"]} == {round(float(v @ WEIGHT[:, 0]), 4) for v in (np.arange(1, 5), 2 * np.arange(1, 5))}
    again = sender.ask([asking([1, 2, 3, 4])], message_id="same", reply_to="plain-answers-of-nobody", patience_s=0.1)
    wait_for(lambda: outcome(server, "unroutable") == 1)
    assert again == {}


def test_sigterm_answers_what_was_taken_and_gives_back_the_rest(broker: Broker, serve: Start) -> None:
    server = serve("drained", write=write_faulty, max_batch_size=1, arguments=("--prefetch", "5"))
    sender = Sender(broker, "drained")
    for number in range(20):
        sender.send(asking([float(number), 0.3]), message_id=str(number), reply_to="drained.answers")
    wait_for(lambda: outcome(server, "unroutable") >= 2)
    os.kill(server.pid, signal.SIGTERM)
    wait_for(lambda: server.exit_code is not None, timeout=60)
    assert server.exit_code == 0
    left = sender.count("drained")
    assert 10 <= left < 20
    again = serve("drained", write=write_faulty)
    wait_for(lambda: outcome(again, "unroutable") == left, timeout=60)
    assert sender.count("drained") == 0


def test_a_broker_that_comes_back_is_found_again(broker: Broker, serve: Start) -> None:
    server, sender = serve("away"), Sender(broker, "away")
    assert sender.ask([asking([1, 2, 3, 4])])["0"][0].headers["x-status"] == 200
    broker.stop()
    wait_for(lambda: metric(server, "aimass_amqp_connected") == 0)
    assert call(server, "POST", "/v2/models/net/infer", {"inputs": [GOOD]}).status == 200
    broker.start()
    wait_for(lambda: metric(server, "aimass_amqp_connected") == 1, timeout=120)
    assert sender.ask([asking([1, 2, 3, 4])])["0"][0].headers["x-status"] == 200
    assert "guest:guest" not in server.log


def test_a_broker_that_refuses_is_one_line(broker: Broker, tmp_path: Path) -> None:
    folder = write_linear(tmp_path / "b")
    sender = Sender(broker, "other")
    asyncio.run(_declare_classic(broker, "other"))
    serve = ("serve", "--port", "0", "--grpc-port", "none")
    for url, queue, text in [
        (broker.url, "other", "refuses the queue 'other': PRECONDITION_FAILED"),
        (broker.url.replace("guest:guest", "guest:wrong"), "q", "refuses"),
        ("http://127.0.0.1", "q", "must be amqp://"),
    ]:
        done = run(folder, *serve, "--queue", queue, AIMASS_AMQP=url)
        assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
        assert text in done.stderr
        assert "wrong" not in done.stderr
    assert sender.count("other") == 0


async def _declare_classic(broker: Broker, name: str) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        await (await connection.channel()).declare_queue(name, durable=True)
