"""Network demand: bytes against captured sockets and counted collectives, times against hand-computed figures."""

import contextlib
import http.client
import importlib.util
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from models import RUNNABLE, TinyCNN, TinyMLP, assert_same, features, snapshot
from serving.servers import WEIGHT, write_linear
from torch import nn

from aimass_lab import Study
from aimass_lab.devices import get_device
from aimass_lab.errors import InputError, UnknownNameError, UnsupportedError
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.network import estimate_network, make_scenario
from aimass_lab.network.copies import estimate_copy
from aimass_lab.network.framing import (
    ETHERNET,
    GRPC_REQUEST_FRAMES,
    GRPC_RESPONSE_FRAMES,
    IP_TCP,
    grpc_data,
    http_request_head,
    http_response_head,
    on_the_wire,
    tls_bytes,
)
from aimass_lab.network.payload import base64_bytes, request_parts, request_sizes, response_parts, response_sizes, varint_bytes
from aimass_lab.network.rollout import busiest_bytes, rollout_bytes, rollout_time_s, rounds
from aimass_lab.network.serialisation import Codec, cpu_seconds, growth, measure_codec
from aimass_lab.records import NetworkDemand, Number, from_json, to_json
from aimass_lab.tracing.trace import trace_call
from aimass_lab.wire import runtime_bytes, server_codecs
from aimass_lab.workload import Workload


def network(model, inputs, *, codecs=None, **scenario):
    return estimate_network(Workload(model, inputs, name="net"), make_scenario(**scenario), codecs=codecs, budget_s=0.2)


def codes(demand):
    return {note.code for note in demand.notes}


# --- messages: equal to what a socket carries --------------------------------------------------


class CountingProxy:
    """A TCP proxy that keeps every byte of both directions."""

    def __init__(self, address):
        self._target = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.up, self.down = bytearray(), bytearray()
        self._sockets, self._pumps = [], []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, sink, kept in ((client, server, self.up), (server, client, self.down)):
                self._pumps.append(threading.Thread(target=self._pump, args=(source, sink, kept), daemon=True))
                self._pumps[-1].start()

    @staticmethod
    def _pump(source, sink, kept):
        try:
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
        except OSError:
            pass

    def settled(self):
        """Bytes of both directions, once nothing more has come at five looks in a row: frames that answer a frame come after the answer to a call."""
        looks = []
        while len(looks) < 100 and (len(looks) < 5 or len(set(looks[-5:])) > 1):
            time.sleep(0.1)
            looks.append((len(self.up), len(self.down)))
        return looks[-1]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """No thread is left, which might go on with another's socket that has got the number of one that was closed under it."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for it, as closing does not
        self._accepting.join()
        for each in self._sockets:
            with contextlib.suppress(OSError):  # the other side was quicker
                each.shutdown(socket.SHUT_RDWR)
        for pump in self._pumps:
            pump.join()
        for each in (self._listener, *self._sockets):
            each.close()


class Net(nn.Module):
    """The model of the bundle that the serving tests run."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT))

    def forward(self, x):
        return {"y": x @ self.weight}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from aimass_lab.serving.launch import start

    with start(write_linear(tmp_path_factory.mktemp("network") / "bundle")) as server:
        yield server


@pytest.fixture(scope="module")
def item():
    """One product a result and no sum, whose last digit, and so the length of the JSON, would depend on the order that the server's runtime adds in."""
    item = torch.zeros(1, 4)
    item[0, 1] = float(np.float32(np.random.default_rng(3).normal()))
    return item


@pytest.fixture(scope="module")
def sizes(item):
    """Of request and response, for one item of a call of five."""
    model, x = Net(), item.repeat(5, 1)
    call = Workload(model, x).call
    trace = trace_call(model, call)
    return request_sizes(model, call, "net"), response_sizes("net", trace.outputs, call, trace.batch_size)


def codecs_of(item):
    """The codecs of the very tensors that the server will answer with."""
    model = Net()
    call = Workload(model, item).call
    parts = response_parts(trace_call(model, call).outputs, call, 1)
    with torch.no_grad():
        values = model(item)["y"]
    return server_codecs("net", request_parts(model, call), [type(parts[0])(p.name, p.dtype, p.shape, values) for p in parts])


def post(proxy, codec):
    """Send the codec's request as Python's own client does; return everything that crossed the sockets."""
    made = codec.write_request()
    length, body = made if isinstance(made, tuple) else (None, made)
    headers = {} if length is None else {"inference-header-content-length": length}
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    connection.request("POST", "/v2/models/net/infer", body, headers)
    answer = connection.getresponse()
    answer_body = answer.read()
    assert answer.status == 200, answer_body
    connection.close()
    return bytes(proxy.up), bytes(proxy.down), body, answer_body


@pytest.mark.parametrize("form", ["json", "binary"])
def test_rest_messages_are_what_the_socket_carries(server, item, sizes, form):
    address = urlsplit(server.url)
    with CountingProxy((address.hostname, address.port)) as proxy:
        up, down, body, answer = post(proxy, codecs_of(item)[form])
        host = f"127.0.0.1:{proxy.port}"
    request, response = (getattr(side, form) for side in sizes)
    assert request.value == len(body) == len(up.partition(b"\r\n\r\n")[2])
    header = {"json": (None, None), "binary": (len(body) - 16, len(answer) - 12)}[form]
    assert len(up) == http_request_head("/v2/models/net/infer", host, len(body), header[0]) + len(body)
    assert len(down) == http_response_head(len(answer), header[1]) + len(answer)
    assert codecs_of(item)[form].response_bytes == len(answer)
    if form == "binary":
        assert response.value == len(answer)
    else:  # the digits depend on the values, which nobody knows before the model ran
        assert response.interval[0] <= len(answer) <= response.interval[1]


def frames(stream, start):
    """Type and payload length of each HTTP/2 frame of a captured stream."""
    found = []
    while start + 9 <= len(stream):
        length = int.from_bytes(stream[start : start + 3], "big")
        found.append((stream[start + 3], length))
        start += 9 + length
    return found


def test_grpc_messages_are_what_the_socket_carries(server, item, sizes):
    import grpc

    from aimass_lab.serving.grpc_messages import ModelInferResponse

    host, port = server.grpc_address.split(":")
    body = codecs_of(item)["grpc"].write_request()
    calls = 12
    with CountingProxy((host, int(port))) as proxy:
        with grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", lambda m: m, ModelInferResponse.FromString)
            answer = call(body, timeout=30)
            before = proxy.settled()
            for _ in range(calls):
                call(body, timeout=30)
            after = proxy.settled()
        up, down = bytes(proxy.up), bytes(proxy.down)
    assert sizes[0].grpc.value == len(body)
    assert sizes[1].grpc.value == answer.ByteSize()
    data = 0  # the type of frames that carry messages; 24 bytes open a client's stream
    assert {n for kind, n in frames(up, 24) if kind == data and n} == {len(body) + 5}
    assert {n for kind, n in frames(down, 0) if kind == data and n} == {answer.ByteSize() + 5}
    for i, (size, bounds) in enumerate(((len(body), GRPC_REQUEST_FRAMES), (answer.ByteSize(), GRPC_RESPONSE_FRAMES))):
        beside = (after[i] - before[i]) / calls - grpc_data(size)
        assert bounds[1] <= beside <= bounds[2]


def test_long_grpc_messages_are_cut_into_frames():
    assert grpc_data(100) == 9 + 5 + 100
    assert grpc_data(16384 - 5) == 16384 + 9
    assert grpc_data(16384) == 16384 + 5 + 2 * 9
    assert [varint_bytes(n) for n in (0, 127, 128, 16383, 16384)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_codecs_of_our_server_write_as_many_bytes_as_the_formulas_say(name):
    make, inputs = RUNNABLE[name]
    model, call = make().eval(), Workload(make(), inputs()).call
    trace = trace_call(model, call)
    requests, responses = request_parts(model, call), response_parts(trace.outputs, call, trace.batch_size)
    made = server_codecs(name, requests, responses)
    wanted = request_sizes(model, call, name), response_sizes(name, trace.outputs, call, trace.batch_size)
    for form, codec in made.items():
        assert isinstance(codec, Codec), codec
        assert codec.request_bytes == getattr(wanted[0], form).value
        assert codec.response_bytes == getattr(wanted[1], form).value
        for step in codec.steps():
            step()


def test_a_type_that_has_no_json_form_says_so_and_one_that_has_no_form_at_all_too():
    model, x = nn.Linear(4, 2).half(), torch.ones(2, 4, dtype=torch.float16)
    call = Workload(model, x).call
    made = server_codecs("net", request_parts(model, call), response_parts(trace_call(model, call).outputs, call, 2))
    assert "FP16" in made["json"]
    assert isinstance(made["binary"], Codec)
    assert isinstance(made["grpc"], Codec)
    demand = network(model.bfloat16(), x.bfloat16(), codecs=server_codecs)
    assert all(form.write_request_time is None for form in demand.forms)
    assert {"missing:serialisation:json", "missing:serialisation:binary", "missing:serialisation:grpc"} <= codes(demand)


def test_base64_by_hand_and_by_python():
    import base64

    for size in (0, 1, 2, 3, 4, 1000):
        assert base64_bytes(size) == len(base64.b64encode(bytes(size)))
    model, x = TinyMLP(), features(2)
    entry = {"name": "x", "shape": [1, 8], "datatype": "BYTES", "data": [base64.b64encode(x[0].numpy().tobytes()).decode()]}
    written = json.dumps({"inputs": [entry]}, separators=(",", ":"))
    assert request_sizes(model, Workload(model, x).call).base64.value == len(written)


# --- framing: equal to TLS and TCP as they run here ----------------------------------------------


def test_framing_by_hand():
    plain = on_the_wire(1000, tls=False)
    assert plain.sent == 1000 + 52
    assert plain.line == 1000 + 52 + 38
    assert plain.acknowledged == 52 + 38
    full = on_the_wire(10 * 1448, tls=False)
    assert full.sent == 10 * 1500
    assert full.line == 10 * 1538
    assert full.acknowledged == 5 * 90
    assert tls_bytes(100) == 122
    assert tls_bytes(2**14 + 1) == 2**14 + 1 + 44


def test_a_tls_record_adds_what_the_formula_says(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(certificate, key)
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    here.check_hostname, here.verify_mode, here.minimum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_3
    pipes = [ssl.MemoryBIO() for _ in range(4)]
    client = here.wrap_bio(pipes[0], pipes[1])
    server = there.wrap_bio(pipes[2], pipes[3], server_side=True)
    for _ in range(4):  # the handshake: each side reads what the other wrote
        for side, source, sink in ((client, pipes[1], pipes[2]), (server, pipes[3], pipes[0])):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            sink.write(source.read())
    assert client.version() == "TLSv1.3"
    for size in (1, 1000, 2**14, 2**14 + 1, 100_000):
        assert client.write(bytes(size)) == size
        assert len(pipes[1].read()) == tls_bytes(size)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not tell what a socket sent")
def test_a_tcp_segment_carries_what_the_formula_says():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)  # what an Ethernet of 1500 bytes gives
    sender = socket.socket()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    with listener, sender, receiver:
        info = sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (segment,) = struct.unpack_from("I", info, 16)
    if segment != 1448:
        pytest.skip(f"segments of {segment} bytes: TCP timestamps are switched off here")
    assert segment == 1500 - IP_TCP
    assert ETHERNET == 38


# --- serialisation --------------------------------------------------------------------------------


def number(value, unit="s", **more):
    return Number(value=value, unit=unit, source="measured", method="of a test", **more)


def test_cpu_time_is_that_of_the_work_and_not_of_waiting():
    def work():
        sum(range(20_000))

    def wait():
        time.sleep(0.003)

    working, waiting = (float(np.median(cpu_seconds(step, budget_s=0.1))) for step in (work, wait))
    assert working > 20e-6
    assert waiting < 0.001


def test_growth_is_the_added_bytes_over_the_added_time_and_unknown_where_time_does_not_grow():
    small, large = (Codec("json", *[lambda: None] * 4, request_bytes=size, response_bytes=0) for size in (1000, 5000))
    slow = [number(3e-6, interval=(2e-6, 4e-6))] + [number(0.0, interval=(0.0, 0.0))] * 3
    fast = [number(1e-6, interval=(0.5e-6, 1.5e-6))] + [number(0.0, interval=(0.0, 0.0))] * 3
    rate = growth(small, large, fast, slow)
    assert rate.value == pytest.approx(4000 / 2e-6)
    assert rate.interval == pytest.approx((4000 / 3.5e-6, 4000 / 0.5e-6))
    assert growth(small, large, slow, fast) is None


def test_times_are_measured_with_their_spread(item):
    times = measure_codec(codecs_of(item)["json"], budget_s=0.1, environment="here")
    for time_ in times:
        assert time_.source == "measured"
        assert time_.n >= 7
        assert 0 < time_.interval[0] <= time_.value <= time_.interval[1]


def test_a_long_message_is_timed_in_part_and_says_so():
    demand = network(nn.Identity(), torch.randn(1, 3, 400, 400), codecs=server_codecs)
    timed = {form.form: form for form in demand.forms}["binary"].write_request_time
    assert timed.source == "derived"
    assert "scaled from 200000 of 960000 elements" in timed.method


# --- rate, cost, copies, roll-out: by hand ----------------------------------------------------------


def test_load_and_cost_by_hand():
    demand = network(TinyMLP(), features(3), rate=1000, bandwidth="10Gbit/s", egress_price=0.09)
    form = {form.form: form for form in demand.forms}["binary"]
    request = form.request_bytes.value
    raw = 8 * 4
    stream = tls_bytes(request + http_request_head("/v2/models/net/infer", "localhost:8000", request, request - raw))
    assert stream < 1448
    assert form.request_wire_bytes.value == stream + 52 + 38
    response = form.response_bytes.value
    answer = tls_bytes(response + http_response_head(response, response - 3 * 4))
    assert form.response_wire_bytes.value == answer + 90
    assert form.received_bytes_per_s.value == 1000 * (stream + 90 + 90)  # the segment, and the acknowledgement of the other
    assert form.sent_bytes_per_s.value == 1000 * (answer + 90 + 90)
    assert form.link_share.value == pytest.approx(1000 * (max(stream, answer) + 180) / 1.25e9)
    assert form.saturating_rate.value == pytest.approx(1.25e9 / (max(stream, answer) + 180))
    assert form.egress_cost.value == pytest.approx((answer + 52) * 1000 * 3600 / 1e9 * 0.09)
    assert form.egress_cost.unit == "USD/h"


def test_what_was_not_said_is_left_out_and_noted():
    demand = network(TinyMLP(), features(3))
    assert {"missing:requests_per_s", "missing:egress_cost", "missing:serialisation", "missing:image_bytes"} <= codes(demand)
    assert demand.link_bytes_per_s.source == "assumed"
    assert all(form.egress_cost is None and form.sent_bytes_per_s is None and form.write_request_time is None for form in demand.forms)
    assert demand.step == ()
    assert demand.step_bytes is None


def test_a_response_that_is_nearly_all_one_tensor_is_pointed_out():
    class Logits(nn.Module):
        def forward(self, x):
            return {"logits": x.expand(-1, 300_000), "label": x}

    demand = network(Logits(), torch.ones(2, 1))
    (text,) = [note.text for note in demand.notes if note.code == "W-LARGE-RESPONSE"]
    assert "'logits'" in text
    assert "1.14 MiB" in text
    assert "W-LARGE-RESPONSE" not in codes(network(TinyMLP(), features(2)))


def test_copies_by_hand():
    device = get_device("h100-sxm")
    demand = network(TinyMLP(), features(3), device="h100-sxm")
    assert demand.host_to_device_bytes.value == 3 * 8 * 4
    assert demand.device_to_host_bytes.value == 3 * 3 * 4
    copied = estimate_copy(10**9, 2, device)
    one_way = device.pcie_bytes_per_s.value / 2
    assert copied.value == pytest.approx(2 * 10e-6 + 1e9 / (0.75 * one_way))
    assert copied.interval == pytest.approx((2 * 4e-6 + 1e9 / (0.95 * one_way), 2 * 30e-6 + 1e9 / (0.25 * one_way)))
    here = network(TinyMLP(), features(3))
    assert here.host_to_device_bytes.value == 0
    assert "host's memory" in here.host_to_device_bytes.method
    unknown = network(TinyMLP(), features(3), device="v100-sxm2")  # its catalogue entry has no PCIe rate
    assert unknown.host_to_device_time is None
    assert "missing:host_to_device_time" in codes(unknown)


def test_a_roll_out_by_hand_and_by_simulation():
    weights, link = 1000, 100.0
    assert rollout_bytes(weights, 7) == 7000
    assert [busiest_bytes(weights, 7, way) for way in ("one source", "tree", "pipelined")] == [7000, 3000, 1000]
    assert rollout_time_s(weights, 7, link, "one source") == 70
    assert rollout_time_s(weights, 7, link, "tree") == 30
    assert rollout_time_s(weights, 7, link, "pipelined", chunk_bytes=100) == (1000 + 6 * 100) / 100
    assert rollout_time_s(weights, 0, link, "tree") == 0
    for replicas in range(1, 40):
        holders = taken = 0
        while holders < replicas:  # the source and all holders send a copy each round
            holders, taken = min(replicas, 2 * holders + 1), taken + 1
        assert rounds(replicas) == taken


def test_downloads_by_hand():
    runtime = number(200_000_000, "B", interval=(100_000_000, 300_000_000), interval_kind="of a test")
    demand = estimate_network(Workload(TinyMLP(), features(2)), make_scenario(bandwidth=1e8, replicas=3), runtime_bytes=runtime)
    weights = demand.weight_bytes.value
    assert demand.image_bytes.value == weights + 200_000_000
    assert demand.image_time.value == pytest.approx((weights + 200_000_000) / 0.94e8)
    assert demand.image_time.interval == pytest.approx(((weights + 1e8) / 1e8, (weights + 3e8) / 0.3e8))
    assert demand.weights_time.value == pytest.approx(weights / 0.94e8)
    assert [t.bytes.value for t in demand.rollouts] == [3 * weights, 2 * weights, weights]


def test_the_runtime_is_what_is_installed():
    runtime = runtime_bytes()
    folder = Path(importlib.util.find_spec("onnxruntime").origin).parent
    onnxruntime = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc")
    assert runtime.value > onnxruntime + 100e6
    assert runtime.value < 1e9


# --- the verb ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_model_has_a_network_demand_and_is_left_alone(name):
    make, inputs = RUNNABLE[name]
    model = make().train()
    before = snapshot(model)
    demand = network(model, inputs(), rate=10, parallel="ddp", ranks=4, device="a100-80")
    assert_same(before, snapshot(model))
    assert from_json(to_json(demand), NetworkDemand) == demand
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    assert demand.step[0].bytes.value == 2 * 3 / 4 * gradients
    assert demand.step_time.interval[0] <= demand.step_time.value <= demand.step_time.interval[1]


def test_the_verb_measures_and_is_kept_and_shown():
    study = Study(TinyMLP(), features(4), name="net")
    demand = study.network(rate="6000/min", bandwidth="10Gbit/s", egress_price=0.1, parallel="ddp", ranks=8, device="h100-sxm", seconds=0.3)
    assert study.results == [demand]
    assert demand.requests_per_s.value == 100
    assert demand.link_bytes_per_s.value == 1.25e9
    measured = [form for form in demand.forms if form.write_request_time]
    assert [form.form for form in measured] == ["json", "binary", "grpc"]
    text = render_text(demand)
    assert "ddp on 8" in text
    assert "link full at" in text
    assert "egress" in text
    assert "Network demand of net" in render_html(demand)


def test_the_command_line_knows_the_verb(model_file, capsys):
    from aimass_lab.frontends.cli import main

    options = ["--rate", "100", "--bandwidth", "1GB/s", "--parallel", "ddp", "--ranks", "2", "--seconds", "0.2"]
    assert main(["network", f"{model_file}:make", *options]) == 0
    assert "Network demand" in capsys.readouterr().out


def test_a_model_on_the_meta_device_is_as_welcome():
    with torch.device("meta"):
        model, inputs = TinyCNN(), torch.empty(4, 1, 8, 8)
    demand = network(model, inputs, codecs=server_codecs, parallel="zero3", ranks=8, device="h100-sxm")
    json_form = demand.forms[0]
    assert json_form.request_bytes.interval is not None
    assert demand.step_bytes.value > 0


@pytest.mark.parametrize(
    ("scenario", "error", "words"),
    [
        ({"parallel": "dpp", "ranks": 2}, UnknownNameError, "did you mean 'ddp'"),
        ({"parallel": "ddp"}, InputError, "ranks=8"),
        ({"ranks": 4}, InputError, "parallel="),
        ({"ranks": 0, "parallel": "ddp"}, InputError, "not a positive integer"),
        ({"replicas": 0}, InputError, "replicas 0"),
        ({"ranks": 6, "parallel": "ddp", "ranks_per_node": 4}, InputError, "evenly"),
        ({"bandwidth": "10 apples"}, InputError, "10Gbit/s"),
        ({"rate": -1}, InputError, "rate"),
        ({"egress_price": -0.1}, InputError, "USD per GB"),
        ({"device": "h1000"}, UnknownNameError, "h100"),
        ({"device": "cuda:99"}, UnsupportedError, "not attached"),
    ],
)
def test_what_cannot_be_used_is_refused(scenario, error, words):
    with pytest.raises(error, match=words):
        network(TinyMLP(), features(2), **scenario)
