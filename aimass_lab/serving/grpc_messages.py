"""The services and messages of the Open Inference Protocol v2 and of gRPC's health service, described here and built when imported.

Built at run time in a pool of their own, so that they fit every protobuf release and live beside a
client library in the same process that describes the same messages.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE_SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

METHODS = {
    INFERENCE_SERVICE: {
        name: (f"{name}Request", f"{name}Response")
        for name in (
            "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
            "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
        )
    },
    HEALTH_SERVICE: {"Check": ("HealthCheckRequest", "HealthCheckResponse")},
}  # fmt: skip
"""Service -> method -> its messages."""

INFERENCE = """
ServerLiveRequest:
ServerLiveResponse: live bool 1
ServerReadyRequest:
ServerReadyResponse: ready bool 1
ModelReadyRequest: name string 1, version string 2
ModelReadyResponse: ready bool 1
ServerMetadataRequest:
ServerMetadataResponse: name string 1, version string 2, extensions string* 3
ModelMetadataRequest: name string 1, version string 2
ModelMetadataResponse.TensorMetadata: name string 1, datatype string 2, shape int64* 3
ModelMetadataResponse: name string 1, versions string* 2, platform string 3, inputs .TensorMetadata* 4, outputs .TensorMetadata* 5
ModelRepositoryParameter: bool_param bool| 1, int64_param int64| 2, string_param string| 3, bytes_param bytes| 4
RepositoryIndexRequest: repository_name string 1, ready bool 2
RepositoryIndexResponse.ModelIndex: name string 1, version string 2, state string 3, reason string 4
RepositoryIndexResponse: models .ModelIndex* 1
RepositoryModelLoadRequest: repository_name string 1, model_name string 2, parameters map:ModelRepositoryParameter 3
RepositoryModelLoadResponse: model_name string 1, isLoaded bool 2
RepositoryModelUnloadRequest: repository_name string 1, model_name string 2, parameters map:ModelRepositoryParameter 3
RepositoryModelUnloadResponse: model_name string 1, isUnloaded bool 2
InferParameter: bool_param bool| 1, int64_param int64| 2, string_param string| 3, double_param double| 4, uint64_param uint64| 5
InferTensorContents: bool_contents bool* 1, int_contents int32* 2, int64_contents int64* 3, uint_contents uint32* 4
InferTensorContents: uint64_contents uint64* 5, fp32_contents float* 6, fp64_contents double* 7, bytes_contents bytes* 8
ModelInferRequest.InferInputTensor: name string 1, datatype string 2, shape int64* 3, parameters map:InferParameter 4, contents InferTensorContents 5
ModelInferRequest.InferRequestedOutputTensor: name string 1, parameters map:InferParameter 2
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters map:InferParameter 4, inputs .InferInputTensor* 5
ModelInferRequest: outputs .InferRequestedOutputTensor* 6, raw_input_contents bytes* 7
ModelInferResponse.InferOutputTensor: name string 1, datatype string 2, shape int64* 3, parameters map:InferParameter 4, contents InferTensorContents 5
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters map:InferParameter 4, outputs .InferOutputTensor* 5
ModelInferResponse: raw_output_contents bytes* 6
"""
"""One line a message: fields with type and number; ``*`` repeated, ``|`` one of, ``map:`` from name to a message, ``.`` nested.

Two descriptions of the repository's methods are about: Triton's requests have the repository's name before the model's, KServe's nothing but the model's,
and only KServe's answers say anything. Requests are Triton's here and answers KServe's, which the client of either reads as its own.
"""

HEALTH = """
HealthCheckRequest: service string 1
HealthCheckResponse.ServingStatus= UNKNOWN 0, SERVING 1, NOT_SERVING 2, SERVICE_UNKNOWN 3
HealthCheckResponse: status .ServingStatus 1
"""
"""``=`` lists the values of an enum."""

Field = descriptor_pb2.FieldDescriptorProto


def _describe(file: str, service: str, text: str) -> descriptor_pb2.FileDescriptorProto:
    """Turn a service and its table of messages into a protobuf description."""
    package, _, service_name = service.rpartition(".")
    described = descriptor_pb2.FileDescriptorProto(name=file, package=package, syntax="proto3")
    found: dict[str, Any] = {}
    for line in text.strip().splitlines():
        path, separator, entries = re.split("([:=])", line, maxsplit=1)
        outer, _, inner = path.rpartition(".")
        if outer and outer not in found:
            found[outer] = described.message_type.add(name=outer)
        parts = [entry.split() for entry in entries.split(",") if entry.strip()]
        if separator == "=":
            values = found[outer].enum_type.add(name=inner).value
            for name, number in parts:
                values.add(name=name, number=int(number))
            continue
        if path not in found:
            found[path] = found[outer].nested_type.add(name=inner) if outer else described.message_type.add(name=inner)
        for name, kind, number in parts:
            _add_field(found[path], f".{package}.{path}", package, name, kind, int(number))
    methods = described.service.add(name=service_name).method
    for name, (request, response) in METHODS[service].items():
        methods.add(name=name, input_type=f".{package}.{request}", output_type=f".{package}.{response}")
    return described


def _add_field(message: Any, full_name: str, package: str, name: str, kind: str, number: int) -> None:
    field = message.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind.endswith("*") or kind.startswith("map:"):
        field.label = Field.LABEL_REPEATED
    if kind.startswith("map:"):
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "", package, "key", "string", 1)
        _add_field(entry, "", package, "value", kind.removeprefix("map:"), 2)
        kind = f".{entry.name}"
    kind = kind.rstrip("*|")
    if (scalar := getattr(Field, f"TYPE_{kind.upper()}", None)) is not None:
        field.type = scalar
        return
    field.type = Field.TYPE_ENUM if kind.removeprefix(".") in {enum.name for enum in message.enum_type} else Field.TYPE_MESSAGE
    field.type_name = f"{full_name}{kind}" if kind.startswith(".") else f".{package}.{kind}"


POOL = descriptor_pool.DescriptorPool()
"""Of nothing but these services."""
POOL.Add(_describe("open_inference_grpc.proto", INFERENCE_SERVICE, INFERENCE))
POOL.Add(_describe("grpc/health/v1/health.proto", HEALTH_SERVICE, HEALTH))


def message(name: str) -> Any:
    """The class of a message: ``message("inference.ModelInferRequest")``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


ModelInferRequest = message("inference.ModelInferRequest")
ModelInferResponse = message("inference.ModelInferResponse")
