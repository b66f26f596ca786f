"""The OpenAPI 3.1 description of this very server: every address, with the request and answer schemas of the models that it serves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from .config import Dimension, ServingConfig, TensorSpec
from .protocol import HEADER_LENGTH, SERVER_NAME, SERVER_VERSION
from .service import Servable, Service, version_order
from .tensors import NUMPY

Json = dict[str, Any]

OPENAPI = "3.1.0"
FP32_END = float(2**128 - 2**103)
"""The smallest number that no 32-bit float can hold: it rounds to infinity, and anything below does not."""

DESCRIPTION = """Open Inference Protocol v2 over REST, a plain form for people, health, metrics and the model repository.

Tensors are row-major; in JSON `data` is flat, or nested like `shape`. With `Inference-Header-Content-Length` the body is so many bytes
of JSON followed by the bytes of each tensor that has `binary_data_size`; with a length of 0 it is nothing but the bytes of the only input,
as a batch of one. Some rules no schema can express, such as that a tensor has as many elements as its shape says and that all inputs have
the same batch size: a request may fit this document and still get 400, which says why."""

ERRORS: Mapping[int, str] = {
    400: "The request is malformed or does not fit the model; the text says where",
    401: "No token, or one that is not known",
    403: "The token may not do this",
    404: "There is no such model or version",
    405: "This method is not possible here",
    408: "The request was not complete in time",
    413: "The body is too long",
    415: "The body is compressed",
    429: "The token's rate is used up",
    431: "The headers are too large",
    500: "The model failed on this request",
    503: "Overloaded, or no worker is ready",
    504: "No answer in time",
}
ERROR_HEADERS: Mapping[int, str] = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
HEADERS: Mapping[str, Json] = {
    "X-Request-Id": {"description": "The client's own name of its request where it gave a usable one, else a new one", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until another try is worth while", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to show a token", "schema": {"const": "Bearer"}},
    "Allow": {"description": "What is possible instead", "schema": {"enum": ["GET", "POST"]}},
    "Inference-Header-Content-Length": {"description": "Bytes of JSON before the binary tensors", "schema": {"type": "integer", "minimum": 1}},
}
ALWAYS = (405, 431)
WITH_BODY = (408, 413, 415)
INFERENCE = (400, 404, *WITH_BODY, 429, 500, 503, 504)


def describe(service: Service) -> Json:
    """The document, for the models that are served now."""
    models = sorted(service.models.values(), key=lambda model: (model.config.name, version_order(model.config.version)))
    newest = {model.config.name: model for model in models if not model.background}
    schemas: Json = {"Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}
    paths = _common_paths()
    for model in models:
        schemas |= _model_schemas(model.config)
        if newest.get(model.config.name) is model:
            paths |= _model_paths(model, "")
        paths |= _model_paths(model, f"/versions/{quote(model.config.version, safe='')}")
    if len(newest) == 1 and not _has_fp16(config := next(iter(newest.values())).config):
        paths["/predict"] = {"post": _predict(config)}
    security: list[Json] = [{"bearer": []}] if service.door.asks_for_tokens else []
    for item in paths.values():
        for operation in item.values():
            _finish(operation, guarded=bool(security) and "security" not in operation)
    return {
        "openapi": OPENAPI,
        "info": {"title": SERVER_NAME, "version": SERVER_VERSION, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": security,
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas,
            "headers": dict(HEADERS),
            "responses": {str(status): _error(status) for status in ERRORS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


# --- operations --------------------------------------------------------------------------


def _common_paths() -> dict[str, Json]:
    ready = _object(live={"const": True}, ready={"type": "boolean"})
    entry = _object(name={"type": "string"}, version={"type": "string"}, state={"enum": ["READY", "UNAVAILABLE"]})
    entry["properties"]["reason"] = {"type": "string", "description": "Why it is not served"}
    only_ready = {"type": "object", "properties": {"ready": {"type": "boolean", "description": "Only what can be used"}}}
    as_it_is = {"type": "object", "properties": {"parameters": {"type": "object", "additionalProperties": {"const": False}}}}
    named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    changes = {
        f"/v2/repository/models/{{name}}/{verb}": {
            "post": _operation(verb, what, 400, 403, 404, *WITH_BODY, 500, answer={"type": "object"}) | {"parameters": named} | _optional(as_it_is)
        }
        for verb, what in (
            ("load", "Serve the newest versions of a model that are in the repository; for the token named admin"),
            ("unload", "Stop serving a model until it is loaded again; for the token named admin"),
        )
    }
    server = _object(name={"const": SERVER_NAME}, version={"type": "string"}, extensions=_list({"type": "string"}))
    return changes | {
        "/": {"get": _home()},
        "/metrics": {"get": _operation("metrics", "Counters and histograms for Prometheus") | _answers("text/plain", {"type": "string"})},
        "/openapi.json": {"get": _operation("describe", "This document", answer={"type": "object"})},
        "/v2": {"get": _operation("server_metadata", "Name, version and extensions of the server", answer=server)},
        "/v2/health/live": {"get": _open(_operation("live", "Whether the process answers", answer=_object(live={"const": True})))},
        "/v2/health/ready": {"get": _open(_may_be_unready(_operation("ready", "Whether to send requests here", answer=ready), ready))},
        "/v2/repository/index": {"post": _operation("index", "All there is, served or not", 400, *WITH_BODY, answer=_list(entry)) | _optional(only_ready)},
    }


def _home() -> Json:
    operation = _operation("home", "A page to try the models on, for browsers; else a list of what is served") | _answers("text/plain", {"type": "string"})
    operation["responses"]["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return operation


def _model_paths(model: Servable, version: str) -> dict[str, Json]:
    config = model.config
    key, promise = _key(config), _object(name={"type": "string"}, relation={"enum": ["<=", ">=", "=="]}, limit={"type": "object"})
    promised = _object(promises=_list(promise))
    path, tag = f"/v2/models/{quote(config.name, safe='')}{version}", key if version else _key(config, version=False)
    ready = _object(name={"const": config.name}, ready={"type": "boolean"})
    return {
        path: {"get": _operation(f"metadata_{tag}", "The model's signature", 404, answer=_metadata(config, model.platform))},
        f"{path}/ready": {"get": _may_be_unready(_operation(f"ready_{tag}", "Whether a worker of the model is up", 404, answer=ready), ready)},
        f"{path}/sample": {"get": _sample(tag)},
        f"{path}/promises": {"get": _operation(f"promises_{tag}", "What the bundle promises, and at which load", 404, answer=promised)},
        f"{path}/infer": {
            "post": _operation(f"infer_{tag}", "Compute outputs", *INFERENCE)
            | {"parameters": [_header_length()], "requestBody": _body(_ref(f"{key}_request"), binary=True)}
            | {"responses": _infer_answers(_ref(f"{key}_response"), INFERENCE)}
        },
    }


def _sample(tag: str) -> Json:
    tensor = _object(name={"type": "string"}, datatype={"type": "string"}, shape=_list({"type": "integer"}), data={})
    answer = _object(index={"type": "integer"}, count={"type": "integer"}, inputs=_list(tensor), outputs=_list(tensor))
    index = {"name": "index", "in": "query", "schema": {"type": "integer", "minimum": 0}, "description": "From 0; the first if not given"}
    operation = _operation(f"sample_{tag}", "A stored input, and what the original model answers to it", 400, 404, answer=answer)
    return operation | {"parameters": [index]}


def _predict(config: ServingConfig) -> Json:
    key = _key(config)
    operation = _operation("predict", "Compute outputs, in a plain form: nested lists by name", *INFERENCE, answer=_ref(f"{key}_plain_response"))
    return operation | {"requestBody": _body(_ref(f"{key}_plain_request"))}


def _operation(name: str, summary: str, *statuses: int, answer: Json | None = None) -> Json:
    """An operation with its errors and, given a schema, its answer in JSON."""
    responses: Json = {str(status): _response_ref(status) for status in (*statuses, *ALWAYS)}
    operation: Json = {"operationId": name, "summary": summary, "responses": responses}
    if answer is not None:
        responses["200"] = _answer("application/json", answer)
    return operation


def _answers(kind: str, schema: Json) -> Json:
    return {"responses": {"200": _answer(kind, schema)} | {str(status): _response_ref(status) for status in ALWAYS}}


def _infer_answers(schema: Json, statuses: Iterable[int]) -> Json:
    answer = _answer("application/json", schema)
    answer["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    answer["headers"]["Inference-Header-Content-Length"] = _header_ref("Inference-Header-Content-Length")
    return {"200": answer} | {str(status): _response_ref(status) for status in (*statuses, *ALWAYS)}


def _answer(kind: str, schema: Json) -> Json:
    return {"description": "Done", "headers": {"X-Request-Id": _header_ref("X-Request-Id")}, "content": {kind: {"schema": schema}}}


def _error(status: int) -> Json:
    names = [name for name in (ERROR_HEADERS.get(status), None if status in (408, 431) else "X-Request-Id") if name]
    return {
        "description": ERRORS[status],
        "headers": {name: _header_ref(name) for name in names},
        "content": {"application/json": {"schema": _ref("Error")}},
    }


def _may_be_unready(operation: Json, schema: Json) -> Json:
    operation["responses"]["503"] = _answer("application/json", schema) | {"description": "Not ready"}
    return operation


def _open(operation: Json) -> Json:
    return operation | {"security": []}


def _finish(operation: Json, *, guarded: bool) -> None:
    """Add what holds for every operation."""
    name = {"name": "X-Request-Id", "in": "header", "description": "What the log calls this request: visible ASCII, at most 128 characters"}
    operation["parameters"] = [*operation.get("parameters", ()), name | {"schema": {"type": "string"}}]
    if guarded:
        operation["responses"]["401"] = _response_ref(401)
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _header_length() -> Json:
    schema = {"type": "integer", "minimum": 0}
    return {
        "name": HEADER_LENGTH.title(),
        "in": "header",
        "description": "Bytes of JSON at the body's start; without it the body is all JSON",
        "schema": schema,
    }


def _body(schema: Json, *, binary: bool = False) -> Json:
    content: Json = {"application/json": {"schema": schema}}
    if binary:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": content}


def _optional(schema: Json) -> Json:
    """A body that may be left out."""
    return {"requestBody": _body(schema) | {"required": False}}


# --- schemas -----------------------------------------------------------------------------


def _model_schemas(config: ServingConfig) -> Json:
    """What requests and answers of one version look like."""
    key, outputs = _key(config), {"type": "array", "items": _one_of([_tensor_answer(spec) for spec in config.outputs])}
    response = _object(model_name={"const": config.name}, model_version={"type": "string"}, outputs=outputs)
    response["properties"]["id"] = {"type": "string"}
    schemas: Json = {f"{key}_request": _infer_request(config), f"{key}_response": response}
    if not _has_fp16(config):
        plain = _object(**{spec.name: _nested(config, spec) for spec in config.inputs}) | {"additionalProperties": False}
        forms = [_object(inputs=plain)]
        if len(config.inputs) == 1:
            values = _nested(config, config.inputs[0])
            forms += [_object(inputs=values), values]
        answers = _object(**{spec.name: _nested(config, spec, counted=False) for spec in config.outputs})
        schemas |= {f"{key}_plain_request": {"anyOf": forms}, f"{key}_plain_response": _object(outputs=answers)}
    return schemas


def _infer_request(config: ServingConfig) -> Json:
    binary = {"type": "boolean"}
    wanted = _object(name={"enum": [spec.name for spec in config.outputs]})
    wanted["properties"]["parameters"] = {"type": ["object", "null"], "properties": {"binary_data": binary}}
    number = len(config.inputs)
    request = _object(inputs={"type": "array", "items": _one_of([_tensor(config, spec) for spec in config.inputs]), "minItems": number, "maxItems": number})
    request["properties"] |= {
        "id": {"type": "string", "description": "Comes back with the answer"},
        "outputs": {"type": ["array", "null"], "items": wanted, "description": "Which outputs, in which order; all if not given"},
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "timeout": {"type": "integer", "minimum": 1, "description": "Microseconds, after which the answer is 504"},
                "priority": {"type": "integer", "minimum": 0, "maximum": config.priority_levels, "description": "1 goes first; 0: as usual"},
                "binary_data_output": binary | {"description": "Outputs in binary, unless an output says otherwise"},
            },
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        },
    }
    return request


def _tensor(config: ServingConfig, spec: TensorSpec) -> Json:
    """An entry of `inputs`: with `data`, or with the size of its binary data."""
    tensor = _object(name={"const": spec.name}, datatype={"const": spec.datatype}, shape=_shape(config, spec))
    size = _object(binary_data_size={"type": "integer", "minimum": 0})
    in_binary = {"properties": {"parameters": size}, "required": ["parameters"]}
    if spec.datatype == "FP16":
        return tensor | {"allOf": [in_binary]}
    data = {"anyOf": [{"type": "array", "items": _element(spec.datatype), "minItems": 1}, _nested(config, spec)]}
    return tensor | {"anyOf": [{"properties": {"data": data}, "required": ["data"]}, in_binary]}


def _tensor_answer(spec: TensorSpec) -> Json:
    tensor = _object(name={"const": spec.name}, datatype={"const": spec.datatype}, shape={"type": "array", "items": {"type": "integer", "minimum": 0}})
    tensor["properties"] |= {
        "data": {"type": "array", "items": _element(spec.datatype), "description": "Flat, row-major"},
        "parameters": _object(binary_data_size={"type": "integer", "minimum": 0}),
    }
    return tensor


def _shape(config: ServingConfig, spec: TensorSpec) -> Json:
    sizes: list[Json] = [{"const": size} if size > 0 else {"type": "integer", "minimum": 1} for size in spec.shape]
    for axis, dimension in _open_axes(config, spec).items():
        sizes[axis] |= {"minimum": dimension.min, "maximum": dimension.max}
    if config.batched:
        sizes[0] |= {"maximum": config.max_batch_size}
    return {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}


def _nested(config: ServingConfig, spec: TensorSpec, *, counted: bool = True) -> Json:
    """Lists nested like the shape; `counted` with the limits of a request, else of any length where the shape leaves it open."""
    schema = _element(spec.datatype)
    open_axes = _open_axes(config, spec)
    for axis, size in reversed(list(enumerate(spec.shape))):
        limits = {"minItems": size, "maxItems": size} if size > 0 else {"minItems": 1} if counted else {}
        if counted and config.batched and axis == 0:
            limits["maxItems"] = config.max_batch_size
        if counted and axis in open_axes:
            limits = {"minItems": open_axes[axis].min, "maxItems": open_axes[axis].max}
        schema = {"type": "array", "items": schema, **limits}
    return schema


def _open_axes(config: ServingConfig, spec: TensorSpec) -> dict[int, Dimension]:
    """By axis of an input, what a request may choose."""
    return {axis: dimension for dimension in config.dimensions for index, axis in dimension.axes if config.inputs[index] is spec}


def _element(datatype: str) -> Json:
    if datatype in ("BOOL", "BYTES"):
        return {"type": "boolean" if datatype == "BOOL" else "string"}
    if datatype == "FP32":
        return {"type": "number", "exclusiveMinimum": -FP32_END, "exclusiveMaximum": FP32_END}
    if NUMPY[datatype].kind == "f":
        return {"type": "number"}
    limits = np.iinfo(NUMPY[datatype])
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def _metadata(config: ServingConfig, platform: str) -> Json:
    tensor = _object(name={"type": "string"}, datatype={"type": "string"}, shape=_list({"type": "integer"}))
    tensors = _list(tensor)
    return _object(name={"const": config.name}, versions=_list({"type": "string"}), platform={"const": platform}, inputs=tensors, outputs=tensors)


def _object(**properties: Json) -> Json:
    """An object that has all of `properties`."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def _one_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"oneOf": schemas}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _header_ref(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def _response_ref(status: int) -> Json:
    return {"$ref": f"#/components/responses/{status}"}


def _key(config: ServingConfig, *, version: bool = True) -> str:
    """Begins the names of a version's schemas, of the characters that OpenAPI allows there."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{config.name}_{config.version}" if version else config.name)


def _has_fp16(config: ServingConfig) -> bool:
    """Whether the plain form is impossible: FP16 has no form in JSON."""
    return any(spec.datatype == "FP16" for spec in config.inputs + config.outputs)
