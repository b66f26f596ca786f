"""Faults under load, on real processes, as long as one likes: a few seconds in the tests, an hour in tests/benchmarks/serving."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from aimass_lab.serving.arrivals import arrival_times
from aimass_lab.serving.config import load_config
from aimass_lab.serving.launch import Server, start
from aimass_lab.serving.load import make_bodies, run_load

from . import fuzzing
from .servers import TYPES, WEIGHT, call, infer, linear_onnx, metric, rehash, wait_for, write_faulty, write_identity, write_linear

CALM = WEIGHT / (2 * np.abs(WEIGHT).sum())
"""Cannot overflow, whatever 32-bit floats come in: then every 500 is the server's."""
PATIENCE_S = 120.0
"""For what happens by itself: starting a worker takes seconds where a machine is shared."""


@dataclasses.dataclass
class Askers:
    """Threads that ask one server without a pause, each over a connection that stays open, and check every number of every answer."""

    server: Server
    number: int = 8
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    results: Counter[str] = dataclasses.field(default_factory=Counter)
    latency_s: list[float] = dataclasses.field(default_factory=list)
    _stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def wrong(self) -> dict[str, int]:
        """Everything that was no right answer."""
        return {what: count for what, count in self.results.items() if what != "right"}

    @contextlib.contextmanager
    def asking(self) -> Iterator[Askers]:
        """Ask until the block ends."""
        threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(self.number)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many more are right."""
        before = self.results["right"]
        wait_for(lambda: self.results["right"] >= before + count, timeout=PATIENCE_S)

    def _ask(self, seed: int) -> None:
        generator, connection = np.random.default_rng(seed), None
        while not self._stop.is_set():
            x = generator.normal(size=(1, 4)).astype(np.float32)
            body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": x.ravel().tolist()}]})
            address = urlsplit(self.server.url)
            connection = connection or http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_S)
            began = time.monotonic()
            try:
                connection.request("POST", "/v2/models/net/infer", body, self.headers)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.results[f"{type(error).__name__}: {error}"] += 1
                connection.close()
                connection = None
                continue
            self.latency_s.append(time.monotonic() - began)
            self.results[self._judge(x, response.status, answer)] += 1
            if response.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _judge(self, x: np.ndarray[Any, Any], status: int, answer: bytes) -> str:
        if status != 200:
            return f"{status}: {answer.decode(errors='replace')[:200]}"
        return "right" if np.allclose(json.loads(answer)["outputs"][0]["data"], (x @ WEIGHT)[0], rtol=1e-4, atol=1e-5) else "other numbers"


def tree(server: Server) -> list[psutil.Process]:
    """The front end and its workers."""
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def running(server: Server, module: str) -> list[psutil.Process]:
    """The processes of a server that run one of its modules: ``worker``, or ``remote``, which is a front end of several."""
    found = []
    for process in psutil.Process(server.pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if module in process.cmdline():
                found.append(process)
    return found


def connections(server: Server, processes: list[psutil.Process]) -> list[int]:
    """How many clients of a server each of its processes has."""
    port = urlsplit(server.url).port
    return [sum(bool(one.raddr) and one.laddr.port == port for one in process.net_connections("tcp")) for process in processes]


def resident_bytes(server: Server) -> int:
    """Of all processes of a server."""
    return sum(process.memory_info().rss for process in tree(server))


def is_ready(server: Server) -> bool:
    """Whether requests should be sent to it."""
    return call(server, "GET", "/v2/health/ready").status == 200


def kills(folder: Path, *, count: int, workers: int = 2, frontends: int = 1) -> dict[str, Any]:
    """Kill -9 one worker after the other under load, which comes in through so many front ends."""
    bundle = write_linear(folder / "bundle", workers=workers, **({"frontends": frontends} if frontends > 1 else {}))
    with start(bundle, grpc_port=None) as server, Askers(server).asking() as askers:
        taking = running(server, "remote") if frontends > 1 else [psutil.Process(server.pid)]
        assert len(taking) == frontends, "these are not the front ends that were asked for"
        askers.wait_for_answers(50)
        shares = connections(server, taking)
        for number in range(count):
            wait_for(lambda: len(running(server, "worker")) == workers and is_ready(server), timeout=PATIENCE_S)
            askers.wait_for_answers(20)
            running(server, "worker")[number % workers].kill()
        wait_for(lambda: metric(server, "aimass_worker_restarts_total") == count, timeout=PATIENCE_S)
        wait_for(lambda: metric(server, "aimass_workers_ready") == workers, timeout=PATIENCE_S)
        askers.wait_for_answers(50)
        same = all(process.is_running() for process in taking)
    return {
        "kills": count,
        "workers": workers,
        "clients_of_each_front_end": shares,
        "front_ends_lived_on": same,
        "right": askers.results["right"],
        "lost_or_wrong": askers.wrong,
        "passed": same and not askers.wrong,
    }


def reloads(folder: Path, *, count: int, warm_up: int = 3) -> dict[str, Any]:
    """Take one version's place with the next, again and again, under load."""
    (folder / "bundles").mkdir(parents=True)
    (folder / "tokens").write_text("change admin\nuse user\n")
    own = write_linear(folder / "own")
    arguments = ("--repository", str(folder / "bundles"), "--token-file", str(folder / "tokens"))
    sizes = []
    with (
        start(own, grpc_port=None, arguments=arguments) as server,
        Askers(server, headers={"Authorization": "Bearer use"}).asking() as askers,
    ):
        askers.wait_for_answers(50)
        for number in range(2, count + 2):
            newer = folder / "bundles" / str(number)
            shutil.copytree(own, newer, ignore=shutil.ignore_patterns("__pycache__"))
            serving = json.loads((newer / "serving.json").read_text()) | {"version": str(number)}
            (newer / "serving.json").write_text(json.dumps(serving))
            rehash(newer)
            answer = call(server, "POST", "/v2/repository/models/net/load", {}, {"Authorization": "Bearer change"}, timeout=PATIENCE_S)
            assert answer.status == 200, answer.body
            askers.wait_for_answers(50)
            wait_for(lambda: len(tree(server)) == 2, timeout=PATIENCE_S)  # the old worker has ended
            sizes.append(resident_bytes(server))
    first = sizes[min(warm_up, len(sizes) - 1)]
    growth = sizes[-1] / first - 1
    return {
        "reloads": count,
        "right": askers.results["right"],
        "lost_or_wrong": askers.wrong,
        "resident_bytes": [first, sizes[-1]],
        "memory_growth": growth,
        "passed": not askers.wrong and growth < 0.05,
    }


def drains(folder: Path, *, count: int, concurrency: int = 16) -> dict[str, Any]:
    """SIGTERM with requests in the queue, again and again: each one that was accepted is answered, and the server ends with 0."""
    bundle, codes, answers = write_faulty(folder / "bundle", max_batch_size=2), Counter[int](), Counter[int]()
    for _ in range(count):
        with start(bundle, grpc_port=None) as server:
            threads = [threading.Thread(target=lambda i=i: answers.update([infer(server, [[float(i), 0.05]]).status])) for i in range(concurrency)]
            for thread in threads:
                thread.start()
            wait_for(lambda: metric(server, "aimass_queue_items") + 2 * metric(server, "aimass_queue_seconds_count") >= concurrency / 2, timeout=PATIENCE_S)
            os.kill(server.pid, signal.SIGTERM)
            for thread in threads:
                thread.join()
            codes[server.wait()] += 1
    passed = answers == {200: count * concurrency} and codes == {0: count}
    return {"drains": count, "answers": {str(k): n for k, n in answers.items()}, "exit_codes": {str(k): n for k, n in codes.items()}, "passed": passed}


def overload(folder: Path, *, duration_s: float, factor: float = 5.0) -> dict[str, Any]:
    """Offer several times what the model can do: 8 items in 200 ms, which takes no CPU, so that the queue is what is tested and not the processor."""
    batch, batch_s, queued = 8, 0.2, 64
    capacity = batch / batch_s
    bundle = write_faulty(folder / "bundle", max_batch_size=batch, max_queue_items=queued)
    slow = np.float32([[1, batch_s]] * 2)
    np.savez(bundle / "vectors.npz", **{"input.x": slow, "output.y": slow * 2})
    rehash(bundle)
    config = load_config(bundle)
    bodies = make_bodies(bundle, config)
    with start(bundle, grpc_port=None) as server:
        times = arrival_times("poisson", rate=capacity, duration_s=2.0, seed=1)
        run_load(server.url, config, bodies, times, duration_s=2.0)
        before = resident_bytes(server)
        times = arrival_times("poisson", rate=factor * capacity, duration_s=duration_s, seed=0)
        result = run_load(server.url, config, bodies, times, duration_s=duration_s)
        after = resident_bytes(server)
    statuses = Counter(result.status.tolist())
    goodput = statuses[200] / (duration_s + batch_s)
    accepted, refused = result.latency_s[result.status == 200], result.latency_s[result.status == 503]
    bound_s = (queued + 2 * batch) / capacity
    return {
        "offered_per_s": factor * capacity,
        "capacity_per_s": capacity,
        "goodput_per_s": goodput,
        "goodput_share": goodput / capacity,
        "statuses": {str(status): count for status, count in statuses.items()},
        "accepted_p99_s": float(np.quantile(accepted, 0.99)),
        "accepted_bound_s": bound_s,
        "refused_p50_s": float(np.median(refused)) if len(refused) else None,
        "generator_late_p99_s": float(np.quantile(result.late_s, 0.99)),
        "resident_growth_bytes": after - before,
        "passed": goodput >= 0.9 * capacity and set(statuses) == {200, 503} and after - before < 20 * 2**20,
    }


def soak(folder: Path, *, duration_s: float, share: float = 0.7, rate: float | None = None) -> dict[str, Any]:
    """A steady share of what the server can do here, for long; memory is read in ten parts, and the first is warm-up."""
    bundle = write_linear(folder / "bundle")
    config = load_config(bundle)
    bodies = make_bodies(bundle, config)
    with start(bundle, grpc_port=None) as server:
        if rate is None:
            rate = share * _capacity(server, duration_s=min(10.0, duration_s))
        sizes, handles, statuses, late, latencies = [], [], Counter[int](), [], []
        for part in range(10):
            times = arrival_times("poisson", rate=rate, duration_s=duration_s / 10, seed=part)
            result = run_load(server.url, config, bodies, times, duration_s=duration_s / 10)
            statuses.update(result.status.tolist())
            latencies.append(float(np.quantile(result.latency_s[result.ok], 0.99)))
            late.append(float(np.quantile(result.late_s, 0.99)))
            sizes.append(resident_bytes(server))
            handles.append(sum(process.num_fds() for process in tree(server)))
        restarts = metric(server, "aimass_worker_restarts_total")
    growth = sizes[-1] / sizes[1] - 1
    return {
        "duration_s": duration_s,
        "rate_per_s": rate,
        "requests": sum(statuses.values()),
        "statuses": {str(k): n for k, n in statuses.items()},
        "p99_s_by_part": latencies,
        "generator_late_p99_s_by_part": late,
        "resident_bytes_by_part": sizes,
        "handles_by_part": handles,
        "memory_growth_after_first_part": growth,
        "restarts": restarts,
        "passed": set(statuses) == {200} and restarts == 0 and growth < 0.05 and handles[-1] <= handles[1] + 16,
    }


def _capacity(server: Server, *, duration_s: float) -> float:
    """Right answers a second to a few askers that do not pause."""
    with Askers(server, number=4).asking() as askers:
        askers.wait_for_answers(20)
        before, began = askers.results["right"], time.monotonic()
        time.sleep(duration_s)
        return (askers.results["right"] - before) / (time.monotonic() - began)


def malformed(folder: Path, *, count: int, seed: int = 0) -> dict[str, Any]:
    """Fuzz REST bodies, HTTP itself, what the OpenAPI document describes, and gRPC, a quarter each, and look at what is left of the server."""
    found: dict[str, Counter[str]] = {}
    with start(write_identity(folder / "identity")) as identity, start(_write_calm(folder / "linear")) as linear:
        send: dict[str, tuple[Server, Callable[[int, int], Counter[str]]]] = {
            "rest": (identity, lambda seed, n: fuzzing.send_rest(identity, fuzzing.rest_requests(seed, datatypes=tuple(TYPES)), n)),
            "http": (linear, lambda seed, n: fuzzing.send_http(linear, fuzzing.http_requests(seed), n)),
            "openapi": (linear, lambda _, n: fuzzing.send_generated(linear, call(linear, "GET", "/openapi.json").json, n)),
            "grpc": (linear, lambda seed, n: fuzzing.send_grpc(linear, fuzzing.grpc_requests(seed), n)),
        }
        warm_up = max(10, count // 30)
        for name, (_, ask) in send.items():
            found[name] = ask(seed + 1, warm_up)
        before = [(process.pid, process.memory_info().rss) for server in (identity, linear) for process in tree(server)]
        for name, (_, ask) in send.items():
            found[name] += ask(seed, count // len(send))
        after = [(process.pid, process.memory_info().rss) for server in (identity, linear) for process in tree(server)]
        right = np.allclose(infer(linear, [[1, 2, 3, 4]]).json["outputs"][0]["data"], np.float32([1, 2, 3, 4]) @ CALM, rtol=1e-4)
        alive = [pid for pid, _ in before] == [pid for pid, _ in after] and is_ready(identity)
        logs = identity.log + linear.log
    growth = sum(size for _, size in after) - sum(size for _, size in before)
    return {
        "requests": sum(sum(counts.values()) for counts in found.values()),
        "seed": seed,
        "answers": {name: dict(sorted(counts.items())) for name, counts in found.items()},
        "resident_growth_bytes": growth,
        "log_lines": len(logs.splitlines()),
        "passed": right and alive and growth < 20 * 2**20 and "Traceback" not in logs,
    }


def _write_calm(folder: Path) -> Path:
    bundle = write_linear(folder)
    (bundle / "model/net/1/model.onnx").write_bytes(linear_onnx(CALM))
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    np.savez(bundle / "vectors.npz", **{"input.x": x, "output.y": x @ CALM})
    rehash(bundle)
    return bundle
