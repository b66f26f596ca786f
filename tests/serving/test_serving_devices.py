"""A worker on each device: it sees no other, shares the load with the others, and what is not there is refused with the reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from aimass_lab.serving.launch import start

from .servers import infer, metric, tensor, wait_for, write_bundle
from .test_serving_faults import run

TELLS = '''
"""Waits while a file lies beside the model, and then tells which device it sees."""
import os, time
PLATFORM, DEVICES = "test", ("cpu", "cuda")

def load(path, config):
    return Tells(config.device, path.with_name("hold"))

class Tells:
    def __init__(self, device, hold):
        self.hold = hold
        self.seen = float(os.environ["CUDA_VISIBLE_DEVICES"] or -1) if device == "cuda" else -1.0

    def run(self, inputs):
        while self.hold.exists():
            time.sleep(0.01)
        return [inputs[0] * 0 + self.seen]
'''


def test_every_worker_sees_its_device_and_all_are_used(tmp_path: Path) -> None:
    signature = [tensor("x", "FP32", -1, 2)], [tensor("y", "FP32", -1, 2)]
    vectors = {"input.x": np.zeros((2, 2), np.float32), "output.y": np.zeros((2, 2), np.float32)}
    folder = write_bundle(tmp_path / "b", b"none", *signature, vectors, format="faulty", extra_runner=TELLS, max_batch_size=1)
    hold = folder / "model/net/1/hold"
    with start(folder, grpc_port=None, arguments=("--devices", "cuda:2,cuda:5,cpu")) as server, ThreadPoolExecutor(3) as pool:

        def told() -> set[float]:
            """What three requests get that are computed at the same time, so that no worker has two."""
            before = metric(server, "aimass_queue_seconds_count")
            hold.touch()
            asked = [pool.submit(infer, server, [[0.0, 0.0]]) for _ in range(3)]
            wait_for(lambda: metric(server, "aimass_queue_seconds_count") == before + 3)
            hold.unlink()
            return {answer.result().json["outputs"][0]["data"][0] for answer in asked}

        assert told() == {2.0, 5.0, -1.0}
        (fifth,) = (child for child in psutil.Process(server.pid).children() if child.environ()["CUDA_VISIBLE_DEVICES"] == "5")
        fifth.kill()
        wait_for(lambda: metric(server, "aimass_worker_restarts_total") == 1 and metric(server, "aimass_workers_ready") == 3, timeout=60)
        assert told() == {2.0, 5.0, -1.0}  # the new one has the place of the old


def test_a_device_that_is_not_there_is_refused(linear_folder: Path, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime computes with CUDA")
    serve = ("serve", "--port", "0", "--grpc-port", "none", "--devices", "cuda:0")
    done = run(linear_folder, *serve)
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
    assert "ONNX Runtime computes on cuda with CUDAExecutionProvider, and has" in done.stderr
    assert "pip install onnxruntime-gpu" in done.stderr
    vectors = {"input.x": np.zeros((2, 2), np.float32), "output.y": np.zeros((2, 2), np.float32)}
    signature = [tensor("x", "FP32", -1, 2)], [tensor("y", "FP32", -1, 2)]
    elsewhere = write_bundle(tmp_path / "b", b"none", *signature, vectors, format="faulty", extra_runner=TELLS.replace(', ("cpu", "cuda")', ', ("cpu",)'))
    done = run(elsewhere, *serve)
    assert (done.returncode, "computes on cpu, not on cuda:0; write it with --format onnx" in done.stderr) == (4, True), done.stderr
