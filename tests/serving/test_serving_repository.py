"""Several versions behind one server: loaded, switched and ended under load without a lost request; what is broken is left out and says why."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc as channels
import numpy as np
import psutil
import pytest

from aimass_lab.serving.client import Client, InferenceError
from aimass_lab.serving.errors import ServerError
from aimass_lab.serving.launch import Server, start

from .servers import WEIGHT, call, linear_onnx, rehash, tensor, wait_for, write_bundle, write_faulty

X = np.random.default_rng(5).normal(size=(2, 4)).astype(np.float32)


def write_version(folder: Path, version: int, **settings: Any) -> Path:
    """A model whose outputs are the version times those of version 1."""
    weight = WEIGHT * version
    x = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    vectors = {"input.x": x, "output.y": x @ weight}
    signature = [tensor("x", "FP32", -1, 4)], [tensor("y", "FP32", -1, 3)]
    return write_bundle(folder, linear_onnx(weight), *signature, vectors, version=str(version), **settings)


def version_of(client: Client) -> float:
    return float(client.infer({"x": X})["y"][0, 0] / (X @ WEIGHT)[0, 0])


def admin(server: Server, verb: str, name: str = "net", token: str = "boss") -> Any:
    return call(server, "POST", f"/v2/repository/models/{name}/{verb}", {}, {"Authorization": f"Bearer {token}"})


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    entries = call(server, "POST", "/v2/repository/index", {}, {"Authorization": "Bearer boss"}).json
    return {(e["name"], e["version"]): (e["state"], e.get("reason", "")) for e in entries}


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    (tmp_path / "tokens").write_text("boss admin\nuser alice\n")
    return str(tmp_path / "tokens")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def run(tmp_path: Path, repository: Path, tokens: str, *arguments: str, grpc_port: int | None = None) -> Server:
    own = write_version(tmp_path / "own", 1)
    return start(own, grpc_port=grpc_port, arguments=("--token-file", tokens, "--repository", str(repository), *arguments))


def test_reloading_under_load_loses_nothing_and_gives_memory_back(tmp_path: Path, repository: Path, tokens: str) -> None:
    seen: list[float] = []
    errors: list[Exception] = []
    stop = threading.Event()
    with run(tmp_path, repository, tokens) as server:

        def ask() -> None:
            with Client(server.url, model="net", token="user", attempts=1) as client:  # nothing is tried again: what is lost shows
                while not stop.is_set():
                    try:
                        seen.append(version_of(client))
                    except InferenceError as error:
                        errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for version in range(2, 7):
                write_version(tmp_path / f"v{version}", version)
                shutil.move(tmp_path / f"v{version}", repository / f"net-{version}")
                count = len(seen)
                answer = admin(server, "load")
                assert answer.status == 200, answer.body
                wait_for(lambda version=version: bool(seen) and round(seen[-1]) == version)
                wait_for(lambda count=count: len(seen) > count + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors
        versions = [round(version) for version in seen]
        assert set(versions) == {1, 2, 3, 4, 5, 6}
        # the old workers are gone, and one is left
        wait_for(lambda: len(psutil.Process(server.pid).children()) == 1)
        assert index(server) == {("net", "6"): ("READY", "")}
        text = call(server, "GET", "/metrics", None, {"Authorization": "Bearer boss"}).body.decode()
        assert 'model="net",version="6"' in text
        assert 'version="5"' not in text


def test_a_version_that_is_broken_is_left_out_and_the_old_one_goes_on(tmp_path: Path, repository: Path, tokens: str) -> None:
    with run(tmp_path, repository, tokens) as server, Client(server.url, model="net", token="user") as client:
        altered = write_version(repository / "altered", 2)
        with (altered / "model/net/1/model.onnx").open("ab") as file:
            file.write(b"x")
        lying = write_version(repository / "lying", 3)  # its outputs are not what its vectors say
        (lying / "model/net/1/model.onnx").write_bytes(linear_onnx(WEIGHT * 9))
        rehash(lying)
        refused = admin(server, "load")
        assert refused.status == 400
        assert "'net' was not loaded: it computes something else than its stored outputs say: a relative error of 2" in refused.json["error"]
        assert version_of(client) == pytest.approx(1, rel=1e-3)
        told = index(server)
        assert told["net", "1"] == ("READY", "")
        assert told["net", "3"][0] == "UNAVAILABLE"
        assert "was altered" in told["altered", ""][1]
        shutil.rmtree(lying)
        shutil.rmtree(altered)
        write_version(repository / "good", 4)
        assert admin(server, "load").status == 200
        assert version_of(client) == pytest.approx(4, rel=1e-3)


def with_file(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": manifest["files"] | {name: "sha256:0"}}))


def with_serving(folder: Path, **changes: Any) -> None:
    (folder / "serving.json").write_text(json.dumps(json.loads((folder / "serving.json").read_text()) | changes))
    rehash(folder)


def with_vectors(folder: Path, data: bytes) -> None:
    (folder / "vectors.npz").write_bytes(data)
    rehash(folder)


def with_texts(folder: Path) -> None:
    np.savez(folder / "vectors.npz", **{"input.x": np.full((8, 4), "a"), "output.y": np.ones((8, 3), np.float32)})
    rehash(folder)


NEIGHBOURS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda folder: with_vectors(folder, (folder / "vectors.npz").read_bytes()[:200]), "vectors.npz cannot be used"),
    "empty": (lambda folder: with_vectors(folder, b""), "vectors.npz cannot be used"),
    "texts": (with_texts, "'x' is of <U1, which is no FP32"),
    "no name": (lambda folder: with_file(folder, "a\0b"), "null byte"),
    "long name": (lambda folder: with_file(folder, "a" * 300), "name too long"),
    "circle": (lambda folder: ((folder / "run").symlink_to("run"), with_file(folder, "run")), "loop|levels of symbolic links|missing"),
    "deep": (lambda folder: (folder / "manifest.json").write_text('{"schema":1,"files":' + "[" * 100_000), "is not JSON"),
    "half": (lambda folder: with_serving(folder, name="\ud800"), "is not JSON"),
    "datatype": (lambda folder: with_serving(folder, inputs=[{"name": "x", "datatype": ["FP32"], "shape": [-1, 4]}]), "has datatype"),
    "axes": (lambda folder: with_serving(folder, dimensions=[{"name": "n", "min": 1, "max": 2, "axes": [[[], 1]]}]), "has axes"),
    "endless": (lambda folder: with_serving(folder, request_timeout_s=float("inf")), "is not JSON"),
}


def test_no_neighbour_is_so_broken_that_the_others_are_not_served(tmp_path: Path, repository: Path, tokens: str) -> None:
    for version, (name, (sabotage, _)) in enumerate(NEIGHBOURS.items(), 2):
        sabotage(write_version(repository / name, version))
    (repository / os.fsdecode(b"\xff")).mkdir()
    (repository / "gone.ensemble.json").symlink_to("nowhere")
    (repository / "odd.ensemble.json").write_text(json.dumps({"schema": 1, "name": "odd", "version": "1", "combine": [], "members": [{"model": "net"}]}))
    write_version(repository / "two", 1, name="two").joinpath("serving.json").write_text("{}")
    write_version(repository / "three", 1, name="three")
    with_serving(repository / "three", version="\u00b2")  # a digit, and no number
    with run(tmp_path, repository, tokens) as server:
        told = index(server)
        assert {key for key, (state, _) in told.items() if state == "READY"} == {("net", "1"), ("three", "\u00b2")}
        for version, (name, (_, reason)) in enumerate(NEIGHBOURS.items(), 2):
            assert re.search(reason, told.get((name, ""), told.get(("net", str(version)), ("", "")))[1]), (name, told)
        assert {"?", "gone.ensemble.json", "odd.ensemble.json", "two"} <= {name for name, _ in told}
        for name in NEIGHBOURS:
            shutil.rmtree(repository / name)
        assert admin(server, "load", "three").status == 200
        assert not {key for key in index(server) if key[0] == "net" and key != ("net", "1")}, "what is not there any more is still told of"


def test_a_folder_that_is_still_being_copied_waits_until_it_is_whole(tmp_path: Path, repository: Path, tokens: str) -> None:
    whole = write_version(tmp_path / "whole", 2)
    with run(tmp_path, repository, tokens, "--poll", "0.1") as server, Client(server.url, model="net", token="user") as client:
        (repository / "net-2").mkdir()
        for path in sorted(whole.rglob("*"), key=lambda path: (path.name == "manifest.json", path)):
            target = repository / "net-2" / path.relative_to(whole)
            if path.is_dir():
                target.mkdir(exist_ok=True)
                time.sleep(0.05)  # looked at meanwhile
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
                assert version_of(client) == pytest.approx(1, rel=1e-3) or path.name == "manifest.json"
        wait_for(lambda: version_of(client) == pytest.approx(2, rel=1e-3))


def test_several_versions_are_served_and_the_newest_answers_who_names_none(tmp_path: Path, repository: Path, tokens: str) -> None:
    for version in (2, 10, 9):  # numbers, not texts
        write_version(repository / f"v{version}", version)
    with run(tmp_path, repository, tokens, "--versions", "2") as server:
        assert {key for key, state in index(server).items() if state[0] == "READY"} == {("net", "9"), ("net", "10")}
        assert call(server, "GET", "/v2/models/net", None, {"Authorization": "Bearer user"}).json["versions"] == ["9", "10"]
        for name, expected in ((None, 10), ("9", 9), ("10", 10)):
            with Client(server.url, model="net", version=name, token="user") as client:
                assert version_of(client) == pytest.approx(expected, rel=1e-3)
        with Client(server.url, model="net", version="1", token="user") as client, pytest.raises(InferenceError, match="404"):
            version_of(client)


@pytest.mark.parametrize(
    ("policies", "served"),
    [
        (["all"], {("net", "1"), ("net", "2"), ("net", "10"), ("other", "1"), ("other", "2")}),
        (["only:1,10"], {("net", "1"), ("net", "10"), ("other", "1")}),
        (["net=only:2, 7", "other=all"], {("net", "2"), ("other", "1"), ("other", "2")}),
        (["2", "other=1"], {("net", "2"), ("net", "10"), ("other", "2")}),
    ],
)
def test_each_model_has_its_versions_by_a_policy(tmp_path: Path, repository: Path, tokens: str, policies: list[str], served: set[tuple[str, str]]) -> None:
    for name, version in (("net", 2), ("net", 10), ("other", 1), ("other", 2)):
        write_version(repository / f"{name}{version}", version, name=name)
    arguments = [word for policy in policies for word in ("--versions", policy)]
    with run(tmp_path, repository, tokens, *arguments) as server:
        assert {key for key, state in index(server).items() if state[0] == "READY"} == served
        for name, version in served:
            with Client(server.url, model=name, version=version, token="user") as client:
                assert version_of(client) == pytest.approx(int(version), rel=1e-3)


def test_of_the_newest_two_the_older_one_goes_when_another_comes_under_load(tmp_path: Path, repository: Path, tokens: str) -> None:
    write_version(repository / "v2", 2)
    seen: dict[str | None, list[int]] = {None: [], "2": []}
    errors: list[Exception] = []
    stop = threading.Event()

    with run(tmp_path, repository, tokens, "--versions", "2") as server:

        def ask(version: str | None) -> None:
            with Client(server.url, model="net", version=version, token="user", attempts=1) as client:
                while not stop.is_set():
                    try:
                        seen[version].append(round(version_of(client)))
                    except InferenceError as error:
                        errors.append(error)

        threads = [threading.Thread(target=ask, args=(version,)) for version in (None, "2", None, "2")]
        for thread in threads:
            thread.start()
        try:
            for name in (None, "2"):
                wait_for(lambda name=name: len(seen[name]) > 20)
            write_version(tmp_path / "v3", 3)
            shutil.move(tmp_path / "v3", repository / "v3")
            assert admin(server, "load").status == 200
            wait_for(lambda: 3 in seen[None])
            told = len(seen["2"])
            wait_for(lambda: len(seen["2"]) > told + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors
        assert set(seen[None]) == {2, 3}
        assert set(seen["2"]) == {2}, "it stays, and answers who names it"
        assert {key for key, state in index(server).items() if state[0] == "READY"} == {("net", "2"), ("net", "3")}
        wait_for(lambda: len(psutil.Process(server.pid).children()) == 2)


@pytest.mark.parametrize(
    ("policies", "told"),
    [
        (["0"], "--versions: '0' does not say which versions are served; give 2 (the newest two), all, or only:1,3"),
        (["only:"], "'only:' does not say"),
        (["net=newest"], "'net=newest' does not say"),
        (["2", "3"], "there are two policies for the models that are not named: '3' is the second"),
        (["net=2", "net=all"], "there are two policies for the model 'net'"),
        (["only:2", "--canary", "0.1"], "a canary share needs several versions"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(tmp_path: Path, repository: Path, tokens: str, policies: list[str], told: str) -> None:
    arguments = [word for policy in policies for word in (("--versions", policy) if policy[0] != "-" and policy != "0.1" else (policy,))]
    with pytest.raises(ServerError) as caught:
        run(tmp_path, repository, tokens, *arguments)
    assert told in str(caught.value)


def test_versions_of_a_model_that_is_not_there_are_told_and_wait_for_it(tmp_path: Path, repository: Path) -> None:
    own = write_version(tmp_path / "own", 1)
    words = [sys.executable, str(own / "run.py"), "serve", "--port", "0", "--grpc-port", "none", "--repository", str(repository)]
    words += ["--versions", "nett=all", "--versions", "net=1"]
    server = subprocess.Popen([*words, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("ready ")
    _, log = server.communicate("", timeout=60)
    assert [line.partition("WARNING ")[2] for line in log.splitlines()] == [
        "--versions says which versions of 'nett' are served, and there is no such model yet, but net"
    ]


def test_a_canary_gets_its_share(tmp_path: Path, repository: Path, tokens: str) -> None:
    write_version(repository / "v2", 2)
    with run(tmp_path, repository, tokens, "--versions", "2", "--canary", "0.2") as server, Client(server.url, model="net", token="user") as client:
        found = [round(version_of(client)) for _ in range(400)]
    assert set(found) == {1, 2}
    assert 40 <= found.count(2) <= 125  # 80 on average, deviation 8


def test_other_models_are_served_beside_it(tmp_path: Path, repository: Path, tokens: str) -> None:
    write_version(repository / "other", 5, name="other")
    write_faulty(repository / "faulty", name="strange")  # whose runner this server does not have
    with run(tmp_path, repository, tokens) as server:
        told = index(server)
        assert {key: state for key, (state, _) in told.items()} == {("net", "1"): "READY", ("other", "5"): "READY", ("strange", "1"): "UNAVAILABLE"}
        assert "no runner for the format 'faulty'" in told["strange", "1"][1]
        with Client(server.url, model="other", token="user") as client:
            assert version_of(client) == pytest.approx(5, rel=1e-3)
        with Client(server.url, token="user") as client, pytest.raises(InferenceError, match="the server has net, other: say which"):
            client.infer({"x": X})
        plain = call(server, "POST", "/predict", {"inputs": [[1, 2, 3, 4]]}, {"Authorization": "Bearer user"})
        assert (plain.status, "several models" in plain.json["error"]) == (400, True)


def test_unloading_and_who_may(tmp_path: Path, repository: Path, tokens: str) -> None:
    with run(tmp_path, repository, tokens) as server:
        for verb in ("load", "unload"):
            refused = admin(server, verb, token="user")
            assert (refused.status, "only the token named 'admin'" in refused.json["error"]) == (403, True)
        assert admin(server, "unload", "nobody").status == 404
        assert admin(server, "unload").status == 200
        assert call(server, "GET", "/v2/models/net", None, {"Authorization": "Bearer user"}).status == 404
        assert call(server, "GET", "/v2/health/ready").status == 503
        assert admin(server, "load").status == 200
        with Client(server.url, token="user") as client:
            assert version_of(client) == pytest.approx(1, rel=1e-3)
        assert admin(server, "load", "nobody").status == 404


def test_the_repository_over_grpc_and_who_may(tmp_path: Path, repository: Path, tokens: str) -> None:
    """With Triton's client, and with the messages of KServe's."""
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient with gRPC is not installed")
    errors = pytest.importorskip("tritonclient.utils").InferenceServerException
    write_version(repository / "other", 5, name="other")
    broken = write_version(repository / "broken", 2)
    (broken / "model/net/1/model.onnx").write_bytes(linear_onnx(WEIGHT * 9))
    rehash(broken)
    with run(tmp_path, repository, tokens, grpc_port=0) as server, grpc.InferenceServerClient(server.grpc_address) as client:
        boss, user = {"authorization": "Bearer boss"}, {"authorization": "Bearer user"}

        def index(**options: Any) -> dict[tuple[str, str], tuple[str, str]]:
            return {(m.name, m.version): (m.state, m.reason) for m in client.get_model_repository_index(headers=user, **options).models}

        def refusal(call: Any, *given: Any, **options: Any) -> str:
            with pytest.raises(errors) as caught:
                call(*given, **options)
            return str(caught.value.status())

        told = index()
        assert (told["net", "1"], told["other", "5"], told["net", "2"][0]) == (("READY", ""), ("READY", ""), "UNAVAILABLE")
        assert "computes something else" in told["net", "2"][1]
        assert refusal(client.get_model_repository_index) == "StatusCode.UNAUTHENTICATED"
        for change in (client.load_model, client.unload_model):
            assert refusal(change, "net") == "StatusCode.UNAUTHENTICATED"
            assert refusal(change, "net", headers=user) == "StatusCode.PERMISSION_DENIED"
            assert refusal(change, "nobody", headers=boss) == "StatusCode.NOT_FOUND"
        client.unload_model("other", headers=boss)
        assert ("other", "5") not in index()
        assert call(server, "GET", "/v2/models/other", None, {"Authorization": "Bearer user"}).status == 404
        client.load_model("other", headers=boss)
        assert index()["other", "5"] == ("READY", "")
        assert refusal(client.load_model, "net", headers=boss) == "StatusCode.INVALID_ARGUMENT"  # what is broken, tried again
        for options in ({"config": "{}"}, {"files": {"file:1/model.onnx": b"x"}, "config": "{}"}):
            assert refusal(client.load_model, "other", headers=boss, **options) == "StatusCode.INVALID_ARGUMENT"
        assert refusal(client.unload_model, "other", headers=boss, unload_dependents=True) == "StatusCode.INVALID_ARGUMENT"
        with channels.insecure_channel(server.grpc_address) as channel:
            for verb in ("Unload", "Load"):  # KServe's request has the name in its first field, its answer the name and "done"
                change = channel.unary_unary(f"/inference.GRPCInferenceService/RepositoryModel{verb}")
                answer = change(b"\x0a\x05other", metadata=tuple(boss.items()), timeout=60)
                assert answer == b"\x0a\x05other\x10\x01"
            with pytest.raises(channels.RpcError) as caught:
                list(channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x00"]), timeout=20))
            assert caught.value.code() == channels.StatusCode.UNAUTHENTICATED
        assert len(index()) == 3
        over_rest = call(server, "POST", "/v2/repository/index", {"ready": True}, {"Authorization": "Bearer user"}).json
        assert {(entry["name"], entry["state"]) for entry in over_rest} == {("net", "READY"), ("other", "READY")}
        assert call(server, "POST", "/v2/repository/models/net/load", {"parameters": {"config": "{}"}}, {"Authorization": "Bearer boss"}).status == 400


def test_nobody_may_where_there_is_no_token_for_it(linear: Server) -> None:
    assert call(linear, "POST", "/v2/repository/models/net/unload", {}).status == 403


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--repository", "/nowhere"), 4, "the repository /nowhere is no folder"),
        (("--canary", "0.1"), 4, "a canary share needs several versions"),
        (("--canary", "2"), 2, "is not a share from 0 to 1"),
        (("--devices", "cuda:0,gpu1"), 4, "'gpu1' is no device: name cpu or cuda:NUMBER"),
        (("--devices", "cpu", "--workers", "2"), 4, "give --workers or --devices"),
        (("--shadow", "0.1"), 4, "a shadow needs several versions"),
        (("--poll", "1"), 4, "give --repository FOLDER with --poll"),
        (("--queue", "requests"), 4, "give --amqp URL with --queue"),
        (("--shadow", "0.1", "--canary", "0.1", "--versions", "2"), 4, "either a canary, which answers, or a shadow, which does not"),
    ],
)
def test_options_that_cannot_be_used(linear_folder: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    from .test_serving_faults import run as run_command

    done = run_command(linear_folder, "serve", "--port", "0", "--grpc-port", "none", *arguments)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
