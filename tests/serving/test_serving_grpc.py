"""gRPC: the Open Inference Protocol v2 as an independent client speaks it, and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from aimass_lab.serving.grpc_messages import HEALTH_SERVICE, INFERENCE_SERVICE, METHODS, message
from aimass_lab.serving.launch import Server, start

from .servers import TYPES, WEIGHT, call, infer, metric, wait_for, write_faulty
from .test_serving_rest import values_of, wire

X = np.float32([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def triton() -> Any:
    return pytest.importorskip("tritonclient.grpc", reason="tritonclient with gRPC is not installed")


@pytest.fixture
def client(triton: Any, linear: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(linear.grpc_address) as client:
        yield client


def request(**changes: Any) -> Any:
    """A good ModelInferRequest with raw contents, changed."""
    made = message("inference.ModelInferRequest")(model_name="net", id="9")
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(X.tobytes())
    for name, value in changes.items():
        made.ClearField(name)
        if isinstance(value, list):
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


def send(server: Server, made: Any, method: str = "ModelInfer", service: str = INFERENCE_SERVICE, response: str = "", **options: Any) -> Any:
    """Call a method over a channel of its own."""
    answer = message(response or f"inference.{method}Response")
    with grpc.insecure_channel(server.grpc_address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/{service}/{method}", lambda m: m.SerializeToString(), answer.FromString)
        return call(made, **({"timeout": 20} | options))


def code_of(server: Server, made: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        send(server, made, **options)
    return caught.value.code().name, caught.value.details()


def test_messages_are_those_of_an_independent_description(triton: Any) -> None:
    """Same field names, numbers, types and labels as the protocol's messages in tritonclient, for all that we describe."""
    theirs = triton.service_pb2.DESCRIPTOR.pool

    def fields(descriptor: Any) -> dict[int, tuple[Any, ...]]:
        described = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(described)
        return {field.number: (field.name, field.type, field.label) for field in described.field}

    def compare(ours: Any) -> None:
        other = theirs.FindMessageTypeByName(ours.full_name)
        assert fields(ours).items() <= fields(other).items(), ours.full_name
        for field in ours.fields:
            if field.message_type is not None:
                compare(field.message_type)

    (service,) = (file.services_by_name["GRPCInferenceService"] for file in [triton.service_pb2.DESCRIPTOR])
    for method, names in METHODS[INFERENCE_SERVICE].items():
        assert (service.methods_by_name[method].input_type.name, service.methods_by_name[method].output_type.name) == names
        for name in names:
            if name not in ("RepositoryModelLoadResponse", "RepositoryModelUnloadResponse"):  # which Triton leaves empty, and KServe does not
                compare(message(f"inference.{name}").DESCRIPTOR)


# --- reflection --------------------------------------------------------------------------


def test_reflection_tells_a_client_all_that_it_needs(linear: Server) -> None:
    """As grpcurl does it: list, describe, and call with what was described, knowing nothing beforehand."""
    reflection = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database", reason="grpcio-reflection is not installed")
    with grpc.insecure_channel(linear.grpc_address) as channel:
        database = reflection.ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {INFERENCE_SERVICE, HEALTH_SERVICE, "grpc.reflection.v1alpha.ServerReflection"}
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName(INFERENCE_SERVICE)
        assert {method.name for method in service.methods} == set(METHODS[INFERENCE_SERVICE])
        statuses = pool.FindMessageTypeByName("grpc.health.v1.HealthCheckResponse").enum_types_by_name["ServingStatus"].values
        assert [(value.name, value.number) for value in statuses] == [("UNKNOWN", 0), ("SERVING", 1), ("NOT_SERVING", 2), ("SERVICE_UNKNOWN", 3)]
        method = service.methods_by_name["ModelInfer"]
        made = message_factory.GetMessageClass(method.input_type)(model_name="net", raw_input_contents=[X.tobytes()])
        made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        answer_type = message_factory.GetMessageClass(method.output_type)
        answer = channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer", lambda m: m.SerializeToString(), answer_type.FromString)(made, timeout=20)
        np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], np.float32), (X @ WEIGHT)[0], rtol=1e-5)
        # a newer client asks the same of v1 first
        newer = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        (listed,) = newer(iter([b"\x3a\x00"]), timeout=20)
        assert INFERENCE_SERVICE.encode() in listed
        with pytest.raises(grpc.RpcError) as caught:
            list(newer(iter([b"\xff"]), timeout=20))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_without_the_package_everything_but_reflection_is_there(linear_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grpc_reflection").mkdir()
    (tmp_path / "grpc_reflection/__init__.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with start(linear_folder) as server, grpc.insecure_channel(server.grpc_address) as channel:
        assert send(server, request()).id == "9"
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x00"]), timeout=20))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_tritonclient_grpc(triton: Any, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net", "1")
    assert client.get_server_metadata().name == "aimass_serve"
    metadata = client.get_model_metadata("net")
    assert (metadata.platform, list(metadata.versions), list(metadata.inputs[0].shape)) == ("onnx_onnxv1", ["1"], [-1, 4])
    x = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)
    given = triton.InferInput("x", [7, 4], "FP32")
    given.set_data_from_numpy(x)
    result = client.infer("net", [given], outputs=[triton.InferRequestedOutput("y")], request_id="5", client_timeout=20)
    np.testing.assert_allclose(result.as_numpy("y"), x @ WEIGHT, rtol=1e-5)
    assert result.get_response().id == "5"


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_an_output_that_would_be_something_else_elsewhere_is_refused(linear: Server, name: str) -> None:
    """Where clients of Triton ask for it; over REST, too."""
    made = request()
    output = made.outputs.add(name="y")
    output.parameters["note"].string_param = "nobody minds"
    assert send(linear, made).outputs[0].name == "y"
    output.parameters[name].string_param = "3"
    assert code_of(linear, made) == ("INVALID_ARGUMENT", f"parameter {name!r} belongs to an extension that this server does not have")
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X.ravel().tolist()}], "outputs": [{"name": "y", "parameters": {name: "3"}}]}
    assert call(linear, "POST", "/v2/models/net/infer", body).status == 400


def test_typed_contents_get_typed_contents(linear: Server) -> None:
    made = request(raw_input_contents=[])
    made.inputs[0].contents.fp32_contents.extend(X.ravel().tolist())
    answer = send(linear, made)
    assert list(answer.raw_output_contents) == []
    np.testing.assert_allclose(answer.outputs[0].contents.fp32_contents, (X @ WEIGHT)[0], rtol=1e-5)


CONTENTS = {
    "BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64", "UINT8": "uint", "UINT16": "uint", "UINT32": "uint",
    "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes",
}  # fmt: skip


def every_type(*, raw: bool) -> Any:
    made = message("inference.ModelInferRequest")(model_name="net")
    for datatype in TYPES:
        entry = made.inputs.add(name=f"in_{datatype}", datatype=datatype, shape=[1, 3])
        values = values_of(datatype)
        if raw:
            made.raw_input_contents.append(wire(datatype, values))
        elif datatype != "FP16":
            getattr(entry.contents, f"{CONTENTS[datatype]}_contents").extend([v.encode() for v in values] if datatype == "BYTES" else values)
    return made


def test_every_datatype_raw(identity: Server) -> None:
    answer = send(identity, every_type(raw=True))
    assert [output.name for output in answer.outputs] == [f"out_{datatype}" for datatype in TYPES]
    assert list(answer.raw_output_contents) == [wire(datatype, values_of(datatype)) for datatype in TYPES]


def test_typed_fp16_is_refused(identity: Server) -> None:
    code, text = code_of(identity, every_type(raw=False))
    assert (code, "raw_input_contents only" in text) == ("INVALID_ARGUMENT", True)


def test_unknown_model(linear: Server) -> None:
    assert code_of(linear, request(model_name="other"))[0] == "NOT_FOUND"
    assert code_of(linear, request(model_version="2"))[0] == "NOT_FOUND"


@pytest.mark.parametrize("case", ["both", "short", "count", "wrong field", "int8 range", "duplicate", "rows", "output", "no text"])
def test_invalid_argument(linear: Server, identity: Server, case: str) -> None:
    made, server = request(), linear
    if case == "both":
        made.inputs[0].contents.fp32_contents.append(1)
    elif case == "short":
        made = request(raw_input_contents=[b"abc"])
    elif case == "count":
        made.raw_input_contents.append(b"")
    elif case == "wrong field":
        made = request(raw_input_contents=[])
        made.inputs[0].contents.fp64_contents.extend([1, 2, 3, 4])
    elif case == "int8 range":
        made, server = message("inference.ModelInferRequest")(model_name="net"), identity
        made.inputs.add(name="in_INT8", datatype="INT8", shape=[1, 1]).contents.int_contents.append(200)
    elif case == "duplicate":
        made.inputs.append(made.inputs[0])
        made.raw_input_contents.append(X.tobytes())
    elif case == "rows":
        made.inputs[0].shape[0] = 2**40
    elif case == "no text":
        made, server = every_type(raw=True), identity
        made.raw_input_contents[-1] = b"\1\0\0\0\xff" * 3
    else:
        made.outputs.add(name="nothing")
    assert code_of(server, made)[0] == "INVALID_ARGUMENT"
    assert len(send(linear, request()).raw_output_contents) == 1


def test_message_over_the_limit(linear: Server) -> None:
    assert code_of(linear, request(raw_input_contents=[bytes(2 * 2**20)]))[0] == "RESOURCE_EXHAUSTED"


def test_deadline_and_no_compute_after_it(run_faulty: Callable[..., Server]) -> None:
    server = run_faulty(grpc_port=0)

    def row(*values: float) -> Any:
        made = request(raw_input_contents=[np.float32(values).tobytes()])
        made.inputs[0].shape[1] = len(values)
        return made

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send, server, row(1, 1))
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        assert code_of(server, row(2, 0), timeout=0.2)[0] == "DEADLINE_EXCEEDED"
        wait_for(lambda: metric(server, "aimass_queue_items") == 0)
        assert np.frombuffer(slow.result().raw_output_contents[0], np.float32).tolist() == [2, 2]
    assert metric(server, "aimass_queue_seconds_count") == 1


@pytest.mark.parametrize("frontends", [1, 2])
def test_who_gives_up_is_not_counted_as_a_failure_of_the_server(tmp_path: Path, frontends: int) -> None:
    log, folder = tmp_path / "log", write_faulty(tmp_path / "bundle", frontends=frontends, max_batch_size=1, request_timeout_s=120.0)
    with start(folder, arguments=("--log-requests", str(log))) as server, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(infer, server, [[1.0, 6.0]])
        wait_for(lambda: metric(server, "aimass_queue_seconds_count") == 1)
        made = request(raw_input_contents=[np.float32([2, 0]).tobytes()])
        made.inputs[0].shape[1] = 2
        with grpc.insecure_channel(server.grpc_address) as channel:
            ask = channel.unary_unary(f"/{INFERENCE_SERVICE}/ModelInfer", lambda m: m.SerializeToString(), lambda data: data)
            waiting = ask.future(made, timeout=60, metadata=(("x-request-id", "hung-up"),))
            wait_for(lambda: metric(server, "aimass_queue_items") == 1)
            waiting.cancel()
            wait_for(lambda: metric(server, "aimass_queue_items") == 0)
            with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                ask(made, timeout=0.3, metadata=(("x-request-id", "late"),))
        assert busy.result().status == 200
        wait_for(lambda: log.read_text().count("\n") >= 3 and "late" in log.read_text())
        lines = {line["id"]: line for line in map(json.loads, log.read_text().splitlines())}
        assert (lines["hung-up"]["status"], lines["hung-up"]["error"]) == (499, "the client hung up, or its deadline passed")
        late = lines["late"]["status"]
        assert late in (499, 504)  # whichever of them comes first: the client's word or the server's clock
        counts = [line.split("{")[1] for line in call(server, "GET", "/metrics").body.decode().splitlines() if line.startswith("aimass_requests_total")]
        assert sorted(line for line in counts if "grpc" in line) == (
            ['code="499",protocol="grpc"} 2.0'] if late == 499 else ['code="499",protocol="grpc"} 1.0', 'code="504",protocol="grpc"} 1.0']
        )


def test_model_failure_is_internal(run_faulty: Callable[..., Server]) -> None:
    server = run_faulty(grpc_port=0)
    made = request(raw_input_contents=[np.float32([101, 0]).tobytes()])
    made.inputs[0].shape[1] = 2
    code, text = code_of(server, made)
    assert (code, "asked to raise" in text) == ("INTERNAL", True)


def test_health_service(linear: Server) -> None:
    ask = message("grpc.health.v1.HealthCheckRequest")
    for service in ("", INFERENCE_SERVICE):
        answer = send(linear, ask(service=service), "Check", HEALTH_SERVICE, "grpc.health.v1.HealthCheckResponse")
        assert answer.status == 1
    with pytest.raises(grpc.RpcError) as caught:
        send(linear, ask(service="else"), "Check", HEALTH_SERVICE, "grpc.health.v1.HealthCheckResponse")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
