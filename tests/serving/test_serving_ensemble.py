"""Ensembles: outputs combined as the file says, late and failing members replaced, what cannot be combined left out with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimass_lab.serving.client import Client, InferenceError
from aimass_lab.serving.grpc_messages import HEALTH_SERVICE, message
from aimass_lab.serving.launch import Server, start

from .servers import WEIGHT, call, metric, wait_for, write_faulty
from .test_serving_grpc import send
from .test_serving_repository import write_version

X = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)


def describe(folder: Path, name: str, combine: str, members: list[dict[str, Any]], **more: Any) -> None:
    text = json.dumps({"schema": 1, "name": name, "version": "1", "combine": combine, "members": members} | more)
    (folder / f"{name}.ensemble.json").write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ensembles")
    repository = folder / "repository"
    repository.mkdir()
    write_version(repository / "four", 4, name="four")
    (folder / "tokens").write_text("boss admin\n")
    two = [{"model": "net", "weight": 3}, {"model": "four"}]
    describe(repository, "mean", "average", two)
    describe(repository, "poll", "vote", two)
    poll = repository / "poll.ensemble.json"
    poll.write_text(poll.read_text(), encoding="utf-8-sig")  # as some editors write
    describe(repository, "race", "first", two)
    describe(repository, "lost", "average", [{"model": "net"}, {"model": "nobody"}])
    describe(repository, "odd", "sum", two)
    with start(write_version(folder / "own", 1), grpc_port=0, arguments=("--repository", str(repository), "--token-file", str(folder / "tokens"))) as server:
        yield server
        assert server.exit_code is None, server.log


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two faulty models: the second column of an input asks both for seconds of work, so members differ by their deadlines only."""
    folder = tmp_path_factory.mktemp("slow")
    repository = folder / "repository"
    repository.mkdir()
    own = write_faulty(folder / "own", name="steady")
    write_faulty(repository / "other", name="other")
    describe(repository, "strict", "average", [{"model": "steady"}, {"model": "other", "timeout_s": 0.2}])
    describe(repository, "lenient", "average", [{"model": "steady"}, {"model": "other", "timeout_s": 0.2}], min_members=1)
    describe(repository, "replaced", "average", [{"model": "other", "timeout_s": 0.2, "fallback": "steady"}])
    with start(
        own,
        grpc_port=None,
        arguments=(
            "--repository",
            str(repository),
        ),
    ) as server:
        yield server


def ask(server: Server, name: str, x: np.ndarray[Any, Any] = X, token: str | None = "boss") -> Any:
    with Client(server.url, model=name, token=token, attempts=1) as client:
        return client.infer({"x": x})["y"]


def test_outputs_are_combined(server: Server) -> None:
    one = X @ WEIGHT
    np.testing.assert_allclose(ask(server, "mean"), one * (3 * 1 + 4) / 4, rtol=1e-5)
    first = ask(server, "race")
    assert np.allclose(first, one, rtol=1e-5) or np.allclose(first, 4 * one, rtol=1e-5)
    votes = ask(server, "poll")
    np.testing.assert_array_equal(votes, np.eye(3)[one.argmax(axis=1)])  # both name the same class


def test_it_is_like_any_model(server: Server) -> None:
    headers = {"Authorization": "Bearer boss"}
    told = call(server, "GET", "/v2/models/mean", None, headers).json
    assert (told["platform"], told["inputs"][0]["shape"]) == ("aimass_ensemble", [-1, 4])
    assert call(server, "GET", "/v2/models/mean/ready", None, headers).json == {"name": "mean", "ready": True}
    assert call(server, "GET", "/v2/models/mean/promises", None, headers).json["promises"] == []
    assert call(server, "GET", "/v2/models/mean/sample", None, headers).json["outputs"] == []
    assert "/v2/models/mean/infer" in call(server, "GET", "/openapi.json", None, headers).json["paths"]
    ask(server, "mean")
    text = call(server, "GET", "/metrics", None, headers).body.decode()
    assert 'aimass_ensemble_steps_total{model="mean",result="in time",step="four",version="1"}' in text
    with Client(server.url, model="mean", token="boss") as client, pytest.raises(InferenceError, match="wants"):
        client.infer({"x": X[:, :2]})


def test_members_batch_what_comes_together(server: Server) -> None:
    def total(name: str) -> float:
        text = call(server, "GET", "/metrics", None, {"Authorization": "Bearer boss"}).body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and 'model="four"' in line)

    batches, items = total("aimass_batch_items_count"), total("aimass_batch_items_sum")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: ask(server, "mean", X[i % 3 : i % 3 + 1]), range(160)))
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer, X[i % 3 : i % 3 + 1] @ WEIGHT * 7 / 4, rtol=1e-4)
    assert total("aimass_batch_items_sum") - items == 160
    assert total("aimass_batch_items_count") - batches < 160


def test_what_cannot_be_combined_is_left_out_and_says_why(server: Server) -> None:
    entries = call(server, "POST", "/v2/repository/index", {}, {"Authorization": "Bearer boss"}).json
    reasons = {entry["name"]: entry.get("reason", "") for entry in entries}
    assert "no model 'nobody'" in reasons["lost.ensemble.json"]
    assert "combine is 'sum'; it can be average, vote, first" in reasons["odd.ensemble.json"]


def test_unloading_and_a_member_that_is_gone(server: Server) -> None:
    headers = {"Authorization": "Bearer boss"}

    def change(name: str, verb: str) -> int:
        return call(server, "POST", f"/v2/repository/models/{name}/{verb}", {}, headers).status

    def told() -> bytes:
        return call(server, "GET", "/metrics", None, headers).body

    ask(server, "poll")
    assert b'model="poll"' in told()
    assert change("poll", "unload") == 200
    wait_for(lambda: b'model="poll"' not in told())
    assert call(server, "GET", "/v2/models/poll", None, headers).status == 404
    assert change("poll", "load") == 200
    ask(server, "poll")
    assert change("four", "unload") == 200
    with pytest.raises(InferenceError, match="503.*no model 'four'"):
        ask(server, "mean")
    assert call(server, "GET", "/v2/models/mean/ready", None, headers).status == 503
    assert change("four", "load") == 200
    ask(server, "mean")


@pytest.mark.parametrize("frontends", ["1", "2"])
def test_an_ensemble_that_lost_a_member_takes_no_requests_from_the_other_models(frontends: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("boss admin\n")
    write_version(tmp_path / "repository/four", 4, name="four")
    describe(tmp_path / "repository", "mean", "average", [{"model": "net"}, {"model": "four"}])
    arguments = ("--repository", str(tmp_path / "repository"), "--token-file", str(tmp_path / "tokens"), "--frontends", frontends)
    with start(write_version(tmp_path / "own", 1), arguments=arguments) as server:

        def change(name: str, verb: str) -> None:
            assert call(server, "POST", f"/v2/repository/models/{name}/{verb}", {}, {"Authorization": "Bearer boss"}).status == 200

        def ready() -> tuple[bool, bool]:
            """Of the server and of the ensemble, as both protocols agree."""
            over_grpc = [send(server, message("inference.ServerReadyRequest")(), "ServerReady").ready]
            healthy = send(server, message("grpc.health.v1.HealthCheckRequest")(), "Check", HEALTH_SERVICE, "grpc.health.v1.HealthCheckResponse").status == 1
            asked = message("inference.ModelReadyRequest")(name="mean")
            over_grpc.append(send(server, asked, "ModelReady", metadata=(("authorization", "Bearer boss"),)).ready)
            paths = ("/v2/health/ready", "/v2/models/mean/ready")
            over_rest = [call(server, "GET", path, None, {"Authorization": "Bearer boss"}).status == 200 for path in paths]
            assert over_grpc == over_rest
            assert healthy == over_rest[0]
            return over_rest[0], over_rest[1]

        assert ready() == (True, True)
        change("four", "unload")
        assert ready() == (True, False)
        ask(server, "net")
        change("net", "unload")
        assert ready() == (False, False)  # there is nothing left to ask
        change("net", "load")
        change("four", "load")
        assert ready() == (True, True)


def test_deadlines_and_fallbacks(slow: Server) -> None:
    quick, late = np.float32([[1, 0]]), np.float32([[1, 0.8]])
    for name in ("strict", "lenient", "replaced"):
        np.testing.assert_array_equal(ask(slow, name, quick, None), 2 * quick)
    with pytest.raises(InferenceError, match=r"504.*no answer within 0\.2 s"):
        ask(slow, "strict", late, None)
    np.testing.assert_array_equal(ask(slow, "lenient", late, None), 2 * late)
    np.testing.assert_array_equal(ask(slow, "replaced", late, None), 2 * late)
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 0.5]}
    limited = {"inputs": [entry], "parameters": {"timeout": 600_000}}
    assert call(slow, "POST", "/v2/models/replaced/infer", limited).status == 504  # 0.2 s are for the one, and only what is left for the other
    text = call(slow, "GET", "/metrics").body.decode()
    assert 'aimass_ensemble_steps_total{model="replaced",result="late",step="other",version="1"} 2.0' in text
    assert 'aimass_ensemble_steps_total{model="replaced",result="in place of another",step="steady",version="1"} 1.0' in text
    assert metric(slow, "aimass_requests_total") >= 6
