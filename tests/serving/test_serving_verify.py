"""The proof: a bundle that keeps its promises passes, one that does not fails, and the figures are right."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from proofs import broken_in, broken_lines, proved

from aimass_lab.frontends.cli import exit_code
from aimass_lab.headlines import headline
from aimass_lab.records import Check
from aimass_lab.serving.__main__ import main
from aimass_lab.serving.arrivals import arrival_times
from aimass_lab.serving.config import load_config
from aimass_lab.serving.errors import ServerError
from aimass_lab.serving.launch import Server, start
from aimass_lab.serving.load import LoadResult, make_bodies, quantile, run_load
from aimass_lab.serving.verify import judge, quantile_interval, report, settling_times, verdict, verify
from aimass_lab.serving.watch import Disturbance, waited_s

from .servers import PROMISES, WEIGHT, infer, linear_onnx, metric, onnx_bytes, promise, rehash, tensor, write_bundle, write_faulty, write_linear


def by_name(check: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in check["promises"]}


def test_a_good_bundle_passes_on_the_command_line(tmp_path: Path) -> None:
    folder = write_linear(tmp_path / "b", promises=[*PROMISES, promise("throughput", ">=", 100.0, "request/s")])
    command = [sys.executable, str(folder / "run.py"), "verify"]
    done = proved(lambda: subprocess.run(command, capture_output=True, text=True, cwd=tmp_path), broken_lines)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (0, "PASS"), done.stdout + done.stderr
    assert [line.split()[:2] for line in lines[: len(PROMISES) + 1]] == [["PASS", entry["name"]] for entry in PROMISES] + [["PASS", "throughput"]]
    assert "promised <= 5 s" in lines[3]


def test_json_is_a_check_record(linear_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose environment has what is for the server that others ask; this one is nobody else's."""
    monkeypatch.setenv("AIMASS_TOKEN", "of-the-container")
    monkeypatch.setenv("AIMASS_AMQP", "amqp://guest:guest@127.0.0.1:1/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    command = [sys.executable, str(linear_folder / "run.py"), "verify", "--json", "--duration", "0.5"]
    check = proved(lambda: msgspec.json.decode(subprocess.run(command, capture_output=True, text=True).stdout, type=Check), broken_in)
    assert check.passed
    assert check.subject == str(linear_folder)
    measured = {entry.name: entry.measured for entry in check.promises}
    assert all(number is not None and number.source == "measured" for number in measured.values())
    p99 = measured["latency_p99"]
    assert p99 is not None
    assert p99.interval is not None
    assert p99.n == 50
    assert p99.interval[0] <= p99.value <= p99.interval[1]


FULL = 32
"""A batch larger than all stored samples together."""


def write_wrong_when_full(folder: Path, *, added: float) -> Path:
    """``y = x @ WEIGHT``, and `added` more in a full batch."""
    import onnx
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Shape", ["x"], ["all"], end=1),
        helper.make_node("Equal", ["all", "full"], ["is_full"]),
        helper.make_node("Where", ["is_full", "added", "nothing"], ["more"]),
        helper.make_node("Add", ["product", "more"], ["y"]),
    ]
    constants = {"w": WEIGHT, "full": np.array([FULL]), "added": np.array([added], np.float32), "nothing": np.zeros(1, np.float32)}
    sides = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])] for name, size in (("x", 4), ("y", 3))]
    model = onnx_bytes(nodes, *sides, [numpy_helper.from_array(value, name) for name, value in constants.items()])
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    vectors = {"input.x": x, "output.y": x @ WEIGHT}
    return write_bundle(folder, model, [tensor("x", "FP32", -1, 4)], [tensor("y", "FP32", -1, 3)], vectors, max_batch_size=FULL)


def test_what_is_wrong_in_a_full_batch_alone_fails_fidelity(tmp_path: Path) -> None:
    folder = write_wrong_when_full(tmp_path / "b", added=0.01)
    with start(folder, grpc_port=None) as server:
        x, y = (np.load(folder / "vectors.npz")[name] for name in ("input.x", "output.y"))
        np.testing.assert_allclose(infer(server, x.tolist()).json["outputs"][0]["data"], y.ravel(), rtol=1e-4, atol=1e-6)
        expected = max(0.01 * 3**0.5 / np.linalg.norm(row) for row in y)
        assert metric(server, "aimass_parity_error") == pytest.approx(expected, rel=1e-3)
    check = verify(folder, duration_s=0.3)
    assert {name for name, entry in by_name(check).items() if not entry["passed"]} == {"fidelity"}
    assert by_name(check)["fidelity"]["measured"]["value"] == pytest.approx(expected, rel=1e-3)


def test_a_full_batch_that_is_not_finite_is_told(tmp_path: Path) -> None:
    check = verify(write_wrong_when_full(tmp_path / "b", added=float("inf")), duration_s=0.3)
    assert not check["passed"]
    assert [(finding["code"], finding["path"]) for finding in check["findings"] if finding["code"] == "E-FIDELITY"] == [("E-FIDELITY", "warm-up")]
    assert by_name(check)["fidelity"]["measured"] is None


def test_other_weights_fail_fidelity(linear_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(linear_folder, tmp_path / "b")
    (folder / "model/net/1/model.onnx").write_bytes(linear_onnx(WEIGHT * np.float32(1.01)))
    rehash(folder)
    check = verify(folder, duration_s=0.3)
    assert not check["passed"]
    assert {name for name, entry in by_name(check).items() if not entry["passed"]} == {"fidelity"}
    assert by_name(check)["fidelity"]["measured"]["value"] == pytest.approx(0.01, rel=1e-2)


def test_an_impossible_promise_fails(tmp_path: Path) -> None:
    impossible = promise("latency_p99", "<=", -1.0, "s")  # which other work on the machine cannot be the cause of
    check = verify(write_linear(tmp_path / "b", promises=[impossible, promise("errors", "==", 0, "request")]))
    assert not check["passed"]
    assert [entry["passed"] for entry in check["promises"]] == [False, True]


def test_more_load_than_it_can_take_fails(tmp_path: Path) -> None:
    """The model takes 50 ms a batch of one, so 20 requests/s at most; 60 are offered."""
    slow = np.float32([[1, 0.05]] * 2)
    folder = write_faulty(
        tmp_path / "b", max_batch_size=1, rate=60.0, request_timeout_s=1.0,
        promises=[promise("errors", "==", 0, "request"), promise("throughput", ">=", 60.0, "request/s"), promise("latency_p99", "<=", 0.5, "s")],
    )  # fmt: skip
    np.savez(folder / "vectors.npz", **{"input.x": slow, "output.y": slow * 2})
    rehash(folder)
    check = verify(folder, duration_s=2.0)
    assert check["passed"] is False
    assert [entry["passed"] for entry in check["promises"]][:2] == [False, False]
    assert not check["promises"][2]["passed"]
    assert by_name(check)["throughput"]["measured"]["value"] < 30


def test_an_altered_file_is_a_finding(linear_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(linear_folder, tmp_path / "b")
    (folder / "run.py").write_text("print('mine')")
    check = verify(folder)
    assert not check["passed"]
    assert [finding["code"] for finding in check["findings"]] == ["E-BUNDLE"]
    assert "'run.py' was altered" in check["findings"][0]["text"]
    assert all(entry["measured"] is None and not entry["passed"] for entry in check["promises"])


@pytest.mark.parametrize("unknown", [promise("speed", "<=", 1, "s"), promise("errors", "<", 1, "request"), promise("memory", "<=", 1, "MiB")])
def test_a_promise_that_nobody_can_check_is_refused(tmp_path: Path, unknown: dict[str, Any]) -> None:
    check = verify(write_linear(tmp_path / "b", promises=[*PROMISES, unknown]))
    assert not check["passed"]
    assert "promises.json" in check["findings"][0]["text"]


def test_a_server_that_does_not_start_is_a_finding(linear_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(linear_folder, tmp_path / "b")
    (folder / "model/net/1/model.onnx").write_bytes(b"nothing")
    rehash(folder)
    check = verify(folder)
    assert [finding["code"] for finding in check["findings"]] == ["E-SERVER"]
    assert "not an ONNX file" in check["findings"][0]["text"]


def test_a_busy_machine_is_said(linear_folder: Path) -> None:
    """Half of all cores, at least, are kept busy by other processes."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(max(1, (os.cpu_count() or 1) // 2))]
    try:
        check = verify(linear_folder, duration_s=1.0)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    (finding,) = [finding for finding in check["findings"] if finding["code"] == "W-NOISY"]
    assert "cores busy" in finding["text"]
    assert by_name(check)["latency_p99"]["measured"]["quality"] == "noisy"


@pytest.mark.parametrize(("rate", "num_compared", "sent"), [(100.0, 12, 20), (100.0, 20, 0), (4.0, 10, 0), (4.0, 2, 4), (0.1, 0, 1), (0.1, 1, 0)])
def test_a_slow_model_has_settled_once_its_outputs_were_compared(rate: float, num_compared: int, sent: int) -> None:
    assert len(settling_times(rate, num_compared, seed=1)) == sent


def test_load_counts_waiting_from_the_intended_time(linear_folder: Path) -> None:
    """While the server stands still for 0.5 s, requests go on leaving; those that left at once waited almost as long."""
    config = load_config(linear_folder)
    stops: list[int] = []
    with start(linear_folder, grpc_port=None) as server:

        def stand_still_once(_: Any) -> None:
            if not stops:
                stops.append(1)
                os.kill(server.pid, signal.SIGSTOP)
                time.sleep(0.5)
                os.kill(server.pid, signal.SIGCONT)

        times = arrival_times("poisson", rate=200, duration_s=1.5, seed=3)
        result = run_load(server.url, config, make_bodies(linear_folder, config), times, duration_s=1.5, meanwhile=stand_still_once)
    assert len(result.status) == 300
    assert result.num_failed == 0
    assert (result.latency_s > 0.1).sum() >= 50  # 0.4 s x 200/s; a generator that waits for answers would have had few of them
    assert result.latency_s.max() >= 0.4


def test_load_runs_where_an_event_loop_runs_and_its_own_lateness_is_told_and_counted(linear_folder: Path) -> None:
    """The generator stands still for 0.4 s as it sends the third request; those that were due meanwhile left late, and waited from when they were due."""
    config = load_config(linear_folder)

    class Slow(list[bytes]):
        def __getitem__(self, index: Any) -> Any:
            if index == 2:
                time.sleep(0.4)
            return super().__getitem__(index)

    async def inside() -> Any:
        with start(linear_folder, grpc_port=None) as server:
            return run_load(server.url, config, Slow(make_bodies(linear_folder, config)), np.arange(20) / 100, duration_s=0.2)

    result = asyncio.run(inside())
    assert result.summary()["ok"] == 20
    assert result.late_s[2] < result.late_s[3:].max()
    assert result.late_s.max() >= 0.2
    assert "the load generator sent late" in str(result.lateness)
    assert dataclasses.replace(result, late_s=np.zeros(20)).lateness is None
    assert (result.latency_s >= result.late_s).all()


def test_load_command(linear_folder: Path) -> None:
    with start(linear_folder, grpc_port=None) as server:
        command = [sys.executable, str(linear_folder / "run.py"), "load", "--url", server.url, "--rate", "100", "--duration", "0.3", "--items", "4"]
        done = subprocess.run(command, capture_output=True, text=True)
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["ok"], summary["failed"]) == (0, 30, {})
    after = subprocess.run(command, capture_output=True, text=True)
    assert (after.returncode, "cannot reach" in after.stderr) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--rate", "5", "--seed", "-1"), 2, "argument --seed: '-1' is not a whole number from 0 on"),
        (("--rate", "5", "--items", "²"), 2, "argument --items: '²' is not a positive whole number"),
        (("--rate", "5", "--items", "100000000"), 4, "--items 100000000 is more than a request to this bundle may hold: 16"),
        (("--rate", "1e9", "--duration", "3600"), 4, "--rate 1e+09 over --duration 3600 s are 3.6e+12 requests: give values that make 1 to 10,000,000"),
        (("--rate", "0.0001", "--duration", "1"), 4, "are 0.0001 requests"),  # it would wait hours for one
    ],
)
def test_a_load_that_no_machine_sends_is_refused(linear_folder: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    command = [sys.executable, str(linear_folder / "run.py"), "load", "--url", "http://127.0.0.1:1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False)


def test_a_load_shows_its_token(guarded: Server) -> None:
    command = [sys.executable, str(guarded.folder / "run.py"), "load", "--url", guarded.url, "--rate", "50", "--duration", "0.2"]
    refused = {"401": "a valid token is needed: Authorization: Bearer TOKEN"}
    for token, code, failed, reasons in (("secret", 0, {}, {}), ("wrong", 1, {"401": 10}, refused)):
        done = subprocess.run([*command, "--token", token], capture_output=True, text=True)
        summary = json.loads(done.stdout)
        assert (done.returncode, summary["failed"], summary["reasons"]) == (code, failed, reasons)


def test_a_load_whose_reader_has_seen_enough_ends_as_it_would(guarded: Server) -> None:
    command = [sys.executable, str(guarded.folder / "run.py"), "load", "--url", guarded.url, "--rate", "50", "--duration", "0.2"]
    for token, code in (("secret", 0), ("wrong", 1)):
        load = subprocess.Popen([*command, "--token", token], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert load.stdout is not None
        assert load.stderr is not None
        load.stdout.close()
        assert "Traceback" not in load.stderr.read()
        assert load.wait(60) == code
        load.stderr.close()


def test_a_load_says_why_it_was_refused(linear_folder: Path) -> None:
    config = load_config(linear_folder)
    good, bad = make_bodies(linear_folder, config)[0], b"GET /nothing HTTP/1.1\r\nHost: load\r\n\r\n"
    with start(linear_folder, grpc_port=None) as server:
        result = run_load(server.url, config, [good, bad], np.arange(10) / 100, duration_s=0.1)
    assert result.summary()["failed"] == {"404": 5}
    assert result.reasons == {404: "no such address; GET / lists them"}


def test_a_certificate_for_what_is_not_encrypted_is_refused(linear_folder: Path) -> None:
    command = [sys.executable, str(linear_folder / "run.py"), "load", "--url", "http://127.0.0.1:1", "--rate", "5", "--cafile", "nix"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "no certificate vouches for http://127.0.0.1:1, which is not encrypted" in done.stderr) == (4, True)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://[", "http://a:b"])
def test_a_load_to_no_address_is_refused(linear_folder: Path, url: str) -> None:
    config = load_config(linear_folder)
    with pytest.raises(ServerError, match=re.escape(f"{url!r} is no address")):
        run_load(url, config, [b""], np.zeros(1), duration_s=1.0)


def test_a_recorded_trace_is_replayed(linear_folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,tenant\n1000.0,a\n1000.4,b\n1000.2,a\n\n1001.0,c\n")
    with start(linear_folder, grpc_port=None) as server:
        command = [sys.executable, str(linear_folder / "run.py"), "load", "--url", server.url, "--trace", str(trace), "--speed", "2"]
        summary = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (summary["ok"], summary["duration_s"], summary["rate_per_s"]) == (4, 0.5, 8.0)
    trace.write_text("1.0\nnoon\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "line 2 of the trace" in done.stderr) == (4, True)


def test_quantile_interval_holds_the_true_quantile_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits, runs = 0, 400
    for _ in range(runs):
        values = np.sort(generator.exponential(size=500))
        low, high = quantile_interval(values, 0.95)
        assert low <= quantile(values, 0.95) <= high
        hits += low <= -np.log(0.05) <= high
    assert 0.92 <= hits / runs <= 0.99


def test_quantile_interval_is_that_of_the_binomial_law() -> None:
    stats = pytest.importorskip("scipy.stats")
    ordered = np.arange(1, 1001, dtype=float)
    low, high = quantile_interval(ordered, 0.99)
    below = stats.binom(1000, 0.99).cdf
    assert below(low - 1) <= 0.025 < below(low)
    assert below(high - 2) < 0.975 <= below(high - 1)


# --- beside other work -------------------------------------------------------------------


def made_run(latencies_ms: list[float], *, every_ms: float = 100.0) -> LoadResult:
    """Requests at a steady pace."""
    latency = np.array(latencies_ms) / 1e3
    sent = np.arange(len(latency)) * every_ms / 1e3
    return LoadResult(
        rate=1e3 / every_ms,
        duration_s=len(latency) * every_ms / 1e3,
        sent_s=sent,
        late_s=np.zeros(len(latency)),
        latency_s=latency,
        status=np.full(len(latency), 200),
    )


def test_lateness_is_told_where_it_makes_up_a_figure_and_nowhere_else() -> None:
    run = made_run([10.0] * 98 + [50.0, 50.0])
    slowest, quickest = np.zeros(100), np.zeros(100)
    slowest[-2:], quickest[:3] = 0.02, 0.006  # of the quickest, the three are later than a tenth of the p99
    assert dataclasses.replace(run, late_s=quickest).lateness is None
    assert dataclasses.replace(run, late_s=slowest).lateness == "the load generator sent late, which is 20.0 ms of the p99 of 50.0 ms"
    assert dataclasses.replace(run, late_s=np.full(100, 0.0015)).lateness == "the load generator sent late, which is 1.5 ms of the p50 of 10.0 ms"


def disturbed(stalls_ms: list[float], foreign_cores: float = 1.0) -> Disturbance:
    """Slices of 100 ms."""
    return Disturbance(foreign_cores, 0.0, np.arange(len(stalls_ms) + 1) / 10, np.array(stalls_ms) / 1e3)


def test_a_stall_is_taken_off_those_who_were_under_way_and_off_nobody_else() -> None:
    least = disturbed([0, 0, 60, 0]).least_latency(made_run([5, 5, 70, 5]))
    assert (least * 1e3).round(6).tolist() == [5, 5, 10, 5]


def test_a_stall_is_taken_off_those_who_waited_behind_it() -> None:
    """The second request keeps the server busy until the fourth has come: what delayed the second delays them all."""
    least = disturbed([0, 50, 0, 0, 0]).least_latency(made_run([5, 250, 200, 150, 55]))
    assert (least * 1e3).round(6).tolist() == [5, 200, 150, 100, 5]


def test_no_request_becomes_shorter_than_nothing_and_one_without_answer_has_none() -> None:
    least = disturbed([90, 90]).least_latency(made_run([5, float("nan")]))
    assert least[0] == 0
    assert np.isnan(least[1])


def test_what_is_under_way_at_the_end_counts_for_as_long_as_two_of_the_quickest_calls_take() -> None:
    """Of a slow model the last answers come after the end of the load, however well it keeps up; those of one that does not keep up come later still."""
    slow = made_run([700] * 9 + [900], every_ms=1000)
    slow = dataclasses.replace(slow, sent_s=slow.sent_s + 0.95)  # the last one leaves 50 ms before the end
    assert slow.throughput() == slow.rate
    later = dataclasses.replace(slow, latency_s=np.append(slow.latency_s[:-1], 1.8))
    assert later.throughput() == pytest.approx(0.9 * slow.rate)
    quick = made_run([5] * 9 + [400])
    assert quick.throughput() == pytest.approx(0.9 * quick.rate)  # of whom a tenth of a second is more than enough
    overloaded = made_run([700 + 200 * i for i in range(40)], every_ms=500)
    assert overloaded.throughput() == pytest.approx(31 / 40 * overloaded.rate)
    assert dataclasses.replace(slow, status=np.zeros(10)).throughput() == 0


@pytest.mark.parametrize(
    ("measured", "least", "expected"),
    [(0.009, None, True), (0.009, 0.001, True), (0.076, 0.006, None), (0.076, 0.02, False), (0.076, None, False)],
    ids=["quiet", "good enough even so", "may be the noise", "slow by itself", "slow on a quiet machine"],
)
def test_only_what_noise_can_explain_is_not_judged(measured: float, least: float | None, expected: bool | None) -> None:
    assert judge(promise("latency_p99", "<=", 0.01, "s"), measured, least) is expected


def test_a_failure_is_never_hidden_by_what_was_not_judged() -> None:
    kept, failed, unjudged = ({"name": "latency_p99", "passed": passed} for passed in (True, False, None))
    assert verdict([kept, kept], []) is True
    assert verdict([kept, unjudged], []) is None
    assert verdict([unjudged, failed], []) is False
    assert verdict([unjudged], [{"code": "E-SHUTDOWN", "path": "", "text": ""}]) is False
    assert verdict([], []) is False


def test_what_was_not_judged_has_a_word_and_an_exit_code_of_its_own(
    linear_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"value": 0.076, "unit": "s", "source": "measured", "method": "m"}
    busy = {**promise("latency_p99", "<=", 0.01, "s"), "measured": measured, "passed": None}
    record = {"record": "check", "subject": "b", "passed": None, "promises": [busy], "findings": []}
    monkeypatch.setattr("aimass_lab.serving.verify.verify", lambda *_, **__: record)
    assert main(linear_folder, ["verify"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines == report(record).splitlines()
    assert [lines[0].split()[0], lines[-1]] == ["BUSY", "NOT JUDGED: the machine was too busy with other work"]
    check = msgspec.convert(record, Check)
    assert (check.passed, exit_code(check), headline(check)) == (None, 5, "NOT JUDGED: b: other work kept the machine too busy for latency_p99")


def test_a_server_that_is_slow_by_itself_fails_beside_other_work(tmp_path: Path) -> None:
    """The model takes 0.3 s and no processor time; other work that takes half the machine cannot be why half of the requests took so long."""
    slow = np.float32([[1, 0.3]] * 2)
    folder = write_faulty(tmp_path / "b", rate=2.0, promises=[promise("latency_p50", "<=", 0.01, "s")])
    np.savez(folder / "vectors.npz", **{"input.x": slow, "output.y": slow * 2})
    rehash(folder)
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        check = verify(folder, duration_s=4.0)
    finally:
        burner.kill()
        burner.wait()
    assert check["passed"] is False
    assert by_name(check)["latency_p50"]["passed"] is False


def test_waiting_for_a_processor_is_seen() -> None:
    """Two processes on one core: each waits for the other about as long as it runs."""
    if waited_s(os.getpid()) is None:
        pytest.skip("the system does not tell how long threads wait for a processor")
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    burners = [subprocess.Popen(command) for _ in range(2)]
    try:
        time.sleep(1.0)
        before = waited_s(burners[0].pid)
        time.sleep(2.0)
        assert before is not None
        assert (waited_s(burners[0].pid) or 0.0) - before > 0.3
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
