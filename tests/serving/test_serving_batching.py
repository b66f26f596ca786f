"""The batcher: requests share batches of items, never too large, and each gets its own rows back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aimass_lab.serving.batcher import Batcher
from aimass_lab.serving.config import ServingConfig, TensorSpec
from aimass_lab.serving.journal import Journal
from aimass_lab.serving.launch import Server, start
from aimass_lab.serving.metrics import Metrics, ModelMetrics
from aimass_lab.serving.tensors import from_values, make_request

from .servers import call, infer, metric, onnx_bytes, tensor, wait_for, write_bundle

RunFaulty = Callable[..., Server]


def batches(server: Server) -> tuple[int, int]:
    """How many batches were computed, and how many items in all."""
    return int(metric(server, "aimass_batch_items_count")), int(metric(server, "aimass_batch_items_sum"))


def test_requests_gather_while_the_worker_is_busy(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_wait_s=0.0, max_batch_size=8)
    with ThreadPoolExecutor(30) as pool:
        first = pool.submit(infer, server, [[1000.0, 1.5]])
        wait_for(lambda: batches(server) == (1, 1))
        others = [pool.submit(infer, server, [[float(i), 0.0]] * (1 + i % 3)) for i in range(12)]
        wait_for(lambda: metric(server, "aimass_queue_items") == 24)
        assert first.result().json["outputs"][0]["data"] == [2000.0, 3.0]
        for i, answer in enumerate(others):
            (output,) = answer.result().json["outputs"]
            assert output["shape"] == [1 + i % 3, 2]
            assert output["data"] == [2.0 * i, 0.0] * (1 + i % 3)
    count, items = batches(server)
    assert items == 25
    assert 1 + 24 / 8 <= count <= 6
    text = call(server, "GET", "/metrics").body.decode()
    assert f'aimass_batch_items_bucket{{le="8.0",model="net",version="1"}} {count}.0' in text


def test_who_asks_for_too_much_at_once_is_told_how_much_is_enough(run_faulty: RunFaulty) -> None:
    answer = infer(run_faulty(max_batch_size=1), [[1.0, 0.0]] * 2)
    assert (answer.status, answer.json["error"]) == (400, "a request may hold at most 1 item, got 2: split it")


def test_an_idle_worker_gets_a_lone_request_at_once(run_faulty: RunFaulty) -> None:
    """The adaptive policy does not hold a request back when none came together with the last one."""
    server = run_faulty(max_wait_s=5.0, max_batch_size=8)
    for i in range(3):
        assert infer(server, [[float(i), 0.0]]).status == 200
    assert metric(server, "aimass_queue_seconds_sum") < 2.5


def test_requests_of_one_turn_of_the_loop_leave_together() -> None:
    """The first of them does not take the idle worker for itself."""
    tensors = (TensorSpec("x", "FP32", (-1, 2)),)
    config = ServingConfig(schema=1, name="net", version="1", format="onnx", model_file="", inputs=tensors, outputs=tensors, max_batch_size=8)
    frames: list[Any] = []

    class Recorder:
        """A worker that keeps its first batch and never answers."""

        closed = asyncio.Event()

        def send(self, frame: Any) -> asyncio.Future[Any]:
            frames.append(frame)
            return asyncio.get_running_loop().create_future()

        def kill(self, *, hung: bool) -> None:
            raise AssertionError("nothing takes long here")

    async def ask() -> None:
        batcher = Batcher(config, ModelMetrics(Metrics(), config.name, config.version), Journal(None))
        batcher.offer(Recorder())  # type: ignore[arg-type]
        row = from_values(config.inputs[0], (1, 2), [1.0, 2.0])
        requests = [make_request(config, id="", inputs=[row], outputs=[(0, False)], parameters={}) for _ in range(3)]
        waiting = [asyncio.create_task(batcher.infer(request)) for request in requests]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(ask())
    assert [header["items"] for header, _ in frames] == [[1, 1, 1]]


def test_always_waiting_gathers_a_full_batch(run_faulty: RunFaulty) -> None:
    server = run_faulty(max_wait_s=20.0, wait_policy="always", max_batch_size=4)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: infer(server, [[float(i), 0.0]]), range(4)))
    assert [answer.json["outputs"][0]["data"][0] for answer in answers] == [0.0, 2.0, 4.0, 6.0]
    assert batches(server) == (1, 4)


def test_shapes_that_differ_do_not_share_a_batch(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", "k"]) for name in "xy")
    model = onnx_bytes([helper.make_node("Neg", ["x"], ["y"])], [x], [y])
    signature = [tensor("x", "FP32", -1, -1)], [tensor("y", "FP32", -1, -1)]
    ones = np.ones((2, 3), np.float32)
    vectors = {"input.x": ones, "output.y": -ones}
    folder = write_bundle(tmp_path / "b", model, *signature, vectors, max_wait_s=0.2, wait_policy="always")
    with start(folder, grpc_port=None) as server, ThreadPoolExecutor(8) as pool:
        rows: list[list[list[float]]] = [[[float(i)] * (1 + i % 2)] for i in range(8)]
        answers: list[Any] = list(pool.map(lambda row: infer(server, row), rows))
        for i, answer in enumerate(answers):
            assert answer.json["outputs"][0]["data"] == [-float(i)] * (1 + i % 2)
        count, items = batches(server)
        assert items == 8
        assert 2 <= count < 8


def test_a_model_without_batch_axis(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "xy")
    model = onnx_bytes([helper.make_node("Neg", ["x"], ["y"])], [x], [y])
    vectors = {"input.x": np.ones(3, np.float32), "output.y": -np.ones(3, np.float32)}
    signature = [tensor("x", "FP32", 3)], [tensor("y", "FP32", 3)]
    folder = write_bundle(tmp_path / "b", model, *signature, vectors, batched=False, max_batch_size=1)
    with start(folder) as server:
        answer = call(server, "POST", "/predict", {"inputs": {"x": [1, 2, 3]}})
        assert answer.json == {"outputs": {"y": [-1.0, -2.0, -3.0]}}
