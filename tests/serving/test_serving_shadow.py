"""Shadows: their answers are compared and never given, and whatever they do, whoever asks does not notice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from aimass_lab.serving.access import Door
from aimass_lab.serving.client import Client
from aimass_lab.serving.config import ServingConfig, TensorSpec
from aimass_lab.serving.journal import Journal
from aimass_lab.serving.launch import Server, start
from aimass_lab.serving.metrics import Metrics
from aimass_lab.serving.request_log import RequestLog
from aimass_lab.serving.service import LocalService
from aimass_lab.serving.shadow import Shadows, compare
from aimass_lab.serving.tensors import InferRequest, Tensor, encode

from .servers import WEIGHT, call, infer, linear_onnx, metric, rehash, tensor, write_bundle
from .servers import wait_for as wait_briefly

TWINS = '''
"""Twice the input. The version whose model file says "odd" does what the first column asks for, and any waits while the file of its name lies beside it."""
import os, signal, time
PLATFORM = "test"
RAISE, DIE = 101, 102

def load(path, config):
    if os.path.exists(path.with_name("poison")):
        os.kill(os.getpid(), signal.SIGKILL)
    return Twin(path)

class Twin:
    def __init__(self, path):
        self.hold, self.odd = path.with_name("hold"), path.read_bytes() == b"odd"

    def run(self, inputs):
        (x,) = inputs
        while os.path.exists(self.hold):
            time.sleep(0.01)
        if self.odd and RAISE in x[:, 0]:
            raise ValueError("asked to raise")
        if self.odd and DIE in x[:, 0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return [x * 2]
'''
RAISE, DIE = 101.0, 102.0


def wait_for(condition: Callable[[], bool]) -> None:
    """A shadow has the processor when nobody else wants it, which on a busy machine is seldom."""
    wait_briefly(condition, timeout=180)


def write_version(folder: Path, version: int, weight: np.ndarray[Any, Any]) -> Path:
    x = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    signature = [tensor("x", "FP32", -1, 4)], [tensor("y", "FP32", -1, 3)]
    return write_bundle(folder, linear_onnx(weight), *signature, {"input.x": x, "output.y": x @ weight}, version=str(version))


def told(server: Server, name: str, **labels: str) -> float:
    lines = call(server, "GET", "/metrics").body.decode().splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{") and all(text in line for text in wanted))


def index(server: Server) -> dict[str, tuple[str, str]]:
    """State of each version, and why."""
    return {entry["version"]: (entry["state"], entry.get("reason", "")) for entry in call(server, "POST", "/v2/repository/index").json}


def policies(server: Server) -> list[int]:
    """How the system schedules each worker."""
    return sorted(os.sched_getscheduler(child.pid) for child in psutil.Process(server.pid).children())


def test_answers_are_compared_and_never_given(tmp_path: Path) -> None:
    """Version 2 shadows 1, until 3 shadows 2; each copy is waited for, so none is dropped and every count is exact."""
    repository = tmp_path / "repository"
    turned = np.roll(WEIGHT, 1, axis=1)  # other classes win
    write_version(repository / "v2", 2, 2 * WEIGHT)
    own = write_version(tmp_path / "own", 1, WEIGHT)
    options = ("--versions", "2", "--shadow", "1", "--poll", "0.1", "--repository", str(repository))
    x = np.random.default_rng(7).normal(size=(12, 3, 4)).astype(np.float32)
    with start(own, grpc_port=None, arguments=options) as server:
        assert policies(server) == [os.SCHED_OTHER, os.SCHED_IDLE]
        proved = told(server, "aimass_batch_items_sum", version="2")  # on its stored samples
        for number, rows in enumerate(x, 1):
            answer = infer(server, rows.tolist())
            assert answer.json["model_version"] == "1"
            np.testing.assert_allclose(np.reshape(answer.json["outputs"][0]["data"], (3, 3)), rows @ WEIGHT, rtol=1e-4, atol=1e-5)
            wait_for(lambda number=number: told(server, "aimass_shadow_requests_total", version="2", result="compared") == number)
        assert told(server, "aimass_shadow_relative_error_sum", version="2") == pytest.approx(12, rel=1e-4)  # twice as much: an error of 1
        assert told(server, "aimass_shadow_items_total", version="2", alike="true") == 36  # and the same classes
        assert [told(server, "aimass_shadow_seconds_count", version="2", answer=answer) for answer in ("given", "shadow")] == [12, 12]
        assert told(server, "aimass_batch_items_sum", version="2") == proved + 36
        with Client(server.url, model="net", version="2") as client:  # who asks it by its version gets its answer
            np.testing.assert_allclose(client.infer({"x": x[0]})["y"], 2 * x[0] @ WEIGHT, rtol=1e-4, atol=1e-5)

        write_version(tmp_path / "v3", 3, turned)
        shutil.move(tmp_path / "v3", repository / "v3")
        wait_for(lambda: {version: state for version, (state, _) in index(server).items()} == {"2": "READY", "3": "READY"})
        wait_for(lambda: policies(server) == [os.SCHED_OTHER, os.SCHED_IDLE])  # the one that answers now is not held back any more
        assert [told(server, "aimass_workers_ready", version=version) for version in ("1", "2", "3")] == [0, 1, 1]
        assert told(server, "aimass_shadow_requests_total", version="2", result="compared") == 12
        for number, rows in enumerate(x, 1):
            assert infer(server, rows.tolist()).json["model_version"] == "2"
            wait_for(lambda number=number: told(server, "aimass_shadow_requests_total", version="3", result="compared") == number)
        expected = int((np.argmax(x @ WEIGHT, -1) == np.argmax(x @ turned, -1)).sum())
        assert told(server, "aimass_shadow_items_total", version="3", alike="true") == expected


@pytest.fixture
def twins(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Server, Path, Path]]:
    """A server of two versions, and where the models of the one that answers and of its shadow lie; a parameter is the seconds that the shadow has."""
    x = np.ones((4, 2), np.float32)
    signature = [tensor("x", "FP32", -1, 2)], [tensor("y", "FP32", -1, 2)]

    def write(folder: Path, version: str, model: bytes, max_batch_size: int, limit_s: float = 30.0) -> Path:
        settings = {"format": "faulty", "extra_runner": TWINS, "version": version, "max_batch_size": max_batch_size, "request_timeout_s": limit_s}
        return write_bundle(folder, model, *signature, {"input.x": x, "output.y": 2 * x}, **settings)

    own = write(tmp_path / "own", "1", b"even", 1)
    shadow = write(tmp_path / "repository" / "v2", "2", b"odd", 4, getattr(request, "param", 30.0))
    options = ("--versions", "2", "--shadow", "1", "--repository", str(tmp_path / "repository"))
    with start(own, grpc_port=None, arguments=options) as server:
        yield server, own / "model/net/1", shadow / "model/net/1"
        assert server.exit_code is None, server.log


def results(server: Server) -> dict[str, float]:
    found = {result: told(server, "aimass_shadow_requests_total", result=result) for result in ("compared", "failed", "late", "dropped", "unfit")}
    return {result: count for result, count in found.items() if count}


def test_a_shadow_that_fails_dies_or_hangs_is_noticed_by_nobody(twins: tuple[Server, Path, Path]) -> None:
    server, _, shadow = twins
    for value in (RAISE, DIE):
        assert infer(server, [[value, 0.0]]).json["outputs"][0]["data"] == [2 * value, 0.0]
        wait_for(lambda value=value: results(server) == {"failed": 1 if value == RAISE else 2})
    wait_for(lambda: told(server, "aimass_worker_restarts_total", version="2") == 2)  # a request is tried twice
    wait_for(lambda: told(server, "aimass_workers_ready", version="2") == 1)
    (shadow / "hold").touch()
    for value in range(20):
        assert infer(server, [[float(value), 1.0]]).json["outputs"][0]["data"] == [2.0 * value, 2.0]
    wait_for(lambda: results(server) == {"failed": 2, "dropped": 16})  # it never has more than one batch
    (shadow / "hold").unlink()
    wait_for(lambda: results(server) == {"failed": 2, "dropped": 16, "compared": 4})
    assert infer(server, [[1.0, 1.0]]).status == 200
    # one that cannot be started any more is given up, and the server goes on
    (shadow / "poison").touch()
    (worker,) = (child for child in psutil.Process(server.pid).children() if os.sched_getscheduler(child.pid) == os.SCHED_IDLE)
    worker.send_signal(signal.SIGKILL)
    assert call(server, "GET", "/v2/health/ready").status == 200

    wait_for(lambda: "workers in a row did not start" in index(server).get("2", ("", ""))[1])
    assert index(server)["1"] == ("READY", "")
    assert infer(server, [[3.0, 1.0]]).json["outputs"][0]["data"] == [6.0, 2.0]


def test_answers_that_wait_to_be_compared_count_as_copies(tmp_path: Path) -> None:
    """Else they would pile up where it takes longer to compare large outputs than to compute them."""
    hold = tmp_path / "hold"
    slow = f"import os\n_compare = compare\ndef compare(*t):\n    while os.path.exists({str(hold)!r}):\n        time.sleep(0.01)\n    return _compare(*t)\n"
    own = write_version(tmp_path / "own", 1, WEIGHT)
    file = own / "aimass_serve/shadow.py"
    file.write_text(file.read_text().replace("COMPARED_AT_ONCE = 64 * 2**10", "COMPARED_AT_ONCE = 0") + slow)
    rehash(own)
    write_version(tmp_path / "repository" / "v2", 2, WEIGHT)  # a batch is 16 items
    with start(own, grpc_port=None, arguments=("--versions", "2", "--shadow", "1", "--repository", str(tmp_path / "repository"))) as server:
        hold.touch()
        for _ in range(40):
            assert infer(server, [[1.0, 2.0, 3.0, 4.0]] * 4).status == 200
            time.sleep(0.02)  # in which the shadow may get to its copy
        hold.unlink()
        wait_for(lambda: results(server) == {"compared": 4, "dropped": 36})


@pytest.mark.parametrize("twins", [1.0], indirect=True)
def test_a_shadow_that_does_not_get_to_it_in_time_is_late_and_not_hung(twins: tuple[Server, Path, Path]) -> None:
    server, _, shadow = twins
    (shadow / "hold").touch()
    assert infer(server, [[1.0, 1.0]]).status == 200
    wait_for(lambda: results(server) == {"late": 1})
    (shadow / "hold").unlink()
    wait_for(lambda: told(server, "aimass_compute_seconds_count", version="2") == told(server, "aimass_batch_items_count", version="2"))
    assert told(server, "aimass_worker_restarts_total", version="2") == 0


def test_while_requests_wait_there_are_no_copies(twins: tuple[Server, Path, Path]) -> None:
    server, own, _ = twins
    (own / "hold").touch()
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(infer, server, [[float(value), 1.0]]) for value in range(5)]
        wait_for(lambda: metric(server, "aimass_queue_items") == 4)
        (own / "hold").unlink()
        assert [answer.result().status for answer in asked] == [200] * 5
    wait_for(lambda: sum(results(server).values()) == 5)
    assert results(server)["dropped"] == 3  # those that were answered while another waited


SPEC = TensorSpec("y", "FP32", (-1, 3))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_requests_is_copied(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a shadow that they do not fit, so that they are counted and nothing is computed."""
    service = LocalService(Metrics(), Door(), RequestLog(None), Journal(None))
    config = ServingConfig(schema=1, name="n", version="2", format="onnx", model_file="m", inputs=(SPEC,), outputs=(SPEC,))
    monkeypatch.setattr(service, "shadow_of", lambda model: SimpleNamespace(config=config))
    answering: Any = SimpleNamespace(config=replace(config, inputs=(TensorSpec("x", "FP32", (-1, 4)),)))
    shadows, request = Shadows(service, share), InferRequest("", [], 1, [])
    random.seed(0)
    for _ in range(4000):
        shadows.offer(answering, request, [], 0.0)
    copied = sum(sample.value for family in service.metrics.shadow_requests.collect() for sample in family.samples if sample.name.endswith("_total"))
    assert abs(copied - 4000 * share) <= 4 * (4000 * share * (1 - share)) ** 0.5


def compared(datatype: str, expected: Any, got: Any, *, batched: bool = True) -> tuple[float, int]:
    arrays = [np.array(value, {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[datatype]) for value in (expected, got)]
    spec = TensorSpec("y", datatype, (-1,) * arrays[0].ndim)
    config = ServingConfig(schema=1, name="n", version="1", format="onnx", model_file="m", inputs=(spec,), outputs=(spec,), batched=batched)
    pair = tuple(Tensor(spec, array.shape, encode(datatype, array)) for array in arrays)
    return compare(config, [pair], len(arrays[0]) if batched else 1)  # type: ignore[list-item]


def test_what_counts_as_alike() -> None:
    assert compared("FP32", [[1, 2, 3], [3, 2, 1]], [[1, 2, 4], [1, 2, 3]]) == (pytest.approx((8 / 14) ** 0.5), 1)
    assert compared("FP32", [[100.0], [1.0], [0.0]], [[100.5], [1.5], [0.0]])[1] == 2  # no classes: within a hundredth
    assert compared("INT64", [[1, 2], [3, 4]], [[1, 2], [3, 5]]) == (pytest.approx(0.2), 1)
    assert compared("BYTES", [[b"a"], [b"b"]], [[b"a"], [b"c"]]) == (1.0, 1)
    assert compared("FP32", [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], batched=False)[1] == 0
    assert compared("FP32", [[1, 2, 3]], [[1, 2]]) == (float("inf"), 0)
    assert compared("FP32", [[1, 2, 3]], [[1, 2, float("nan")]])[0] == float("inf")
    assert compare(ServingConfig(schema=1, name="n", version="1", format="f", model_file="m", inputs=(SPEC,), outputs=(SPEC,)), [], 2) == (float("inf"), 0)
