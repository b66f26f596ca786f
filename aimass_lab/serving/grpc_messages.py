"""The messages of the Open Inference Protocol v2 and of gRPC's health service, described here and built when imported.

Built at run time in a pool of their own, so that they fit every protobuf release and live beside a
client library in the same process that describes the same messages.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE_SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

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
InferParameter: bool_param bool| 1, int64_param int64| 2, string_param string| 3, double_param double| 4, uint64_param uint64| 5
InferTensorContents: bool_contents bool* 1, int_contents int32* 2, int64_contents int64* 3, uint_contents uint32* 4
InferTensorContents: uint64_contents uint64* 5, fp32_contents float* 6, fp64_contents double* 7, bytes_contents bytes* 8
ModelInferRequest.InferInputTensor: name string 1, datatype string 2, shape int64* 3, parameters map 4, contents InferTensorContents 5
ModelInferRequest.InferRequestedOutputTensor: name string 1, parameters map 2
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters map 4, inputs .InferInputTensor* 5
ModelInferRequest: outputs .InferRequestedOutputTensor* 6, raw_input_contents bytes* 7
ModelInferResponse.InferOutputTensor: name string 1, datatype string 2, shape int64* 3, parameters map 4, contents InferTensorContents 5
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters map 4, outputs .InferOutputTensor* 5
ModelInferResponse: raw_output_contents bytes* 6
"""
"""One line a message: fields with type and number; ``*`` repeated, ``|`` one of, ``map`` from name to InferParameter, ``.`` nested."""

HEALTH = """
HealthCheckRequest: service string 1
HealthCheckResponse: status int32 1
"""
"""The status is an enum of the specification; an enum travels as an int32."""

Field = descriptor_pb2.FieldDescriptorProto


def _describe(file: str, package: str, text: str) -> descriptor_pb2.FileDescriptorProto:
    """Turn a table of messages into a protobuf description."""
    described = descriptor_pb2.FileDescriptorProto(name=file, package=package, syntax="proto3")
    found: dict[str, Any] = {}
    for line in text.strip().splitlines():
        path, _, fields = line.partition(":")
        outer, _, inner = path.rpartition(".")
        if path not in found:
            if outer and outer not in found:
                found[outer] = described.message_type.add(name=outer)
            found[path] = found[outer].nested_type.add(name=inner) if outer else described.message_type.add(name=inner)
        for field in filter(None, (part.strip() for part in fields.split(","))):
            name, kind, number = field.split()
            _add_field(found[path], f".{package}.{path}", package, name, kind, int(number))
    return described


def _add_field(message: Any, full_name: str, package: str, name: str, kind: str, number: int) -> None:
    field = message.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind.endswith("*") or kind == "map":
        field.label = Field.LABEL_REPEATED
    if kind == "map":
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "", package, "key", "string", 1)
        _add_field(entry, "", package, "value", "InferParameter", 2)
        kind = f".{entry.name}"
    kind = kind.rstrip("*|")
    scalar = getattr(Field, f"TYPE_{kind.upper()}", None)
    field.type = Field.TYPE_MESSAGE if scalar is None else scalar
    if scalar is None:
        field.type_name = f"{full_name}{kind}" if kind.startswith(".") else f".{package}.{kind}"


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_describe("open_inference_grpc.proto", "inference", INFERENCE))
_pool.Add(_describe("grpc/health/v1/health.proto", "grpc.health.v1", HEALTH))


def message(name: str) -> Any:
    """The class of a message: ``message("inference.ModelInferRequest")``."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


ModelInferRequest = message("inference.ModelInferRequest")
ModelInferResponse = message("inference.ModelInferResponse")
