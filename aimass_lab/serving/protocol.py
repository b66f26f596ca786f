"""The REST body of the Open Inference Protocol v2: JSON, JSON followed by binary tensors, or one raw tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from .config import ServingConfig, TensorSpec
from .errors import bad
from .tensors import NUMPY, InferRequest, Tensor, check_datatype, check_shape, find_spec, from_raw, from_values, make_request

SERVER_NAME = "aimass_serve"
SERVER_VERSION = "1"
EXTENSIONS = ["binary_tensor_data", "model_repository", "promises", "sample"]
HEADER_LENGTH = "inference-header-content-length"
RARE = 8
"""Times that a letter may come in the names of a body that is numbers otherwise."""
UNSUPPORTED = ("shared_memory_region", "classification", "sequence_id")
"""Parameters of other servers' extensions that change what an answer means, so ignoring them would be wrong."""


def parse_infer(config: ServingConfig, body: bytes, header_length: str | None) -> InferRequest:
    """Read and check the body of an inference request.

    Args:
        config: The model's signature and limits.
        body: The whole body.
        header_length: The `Inference-Header-Content-Length` header, None where there is none.

    Raises:
        RequestError: 400, with what was wrong.
    """
    if not body:
        raise bad("the body is empty")
    length = _header_length(header_length, len(body))
    if length == 0:
        return _raw_request(config, body)
    document = parse_object(body if length is None else body[:length])
    tail = memoryview(body)[len(body) if length is None else length :]
    may_hold_bools = holds_bools(body)
    parameters = _parameters(document.get("parameters"), "request")
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise bad(f"id must be a string, got {repr(request_id)[:80]}")
    entries = document.get("inputs")
    if not isinstance(entries, list):
        raise bad("inputs is missing, or not a list")
    inputs = []
    for entry in entries:
        tensor, tail = _input(config, entry, tail, has_tail=length is not None, may_hold_bools=may_hold_bools)
        inputs.append(tensor)
    if len(tail):
        raise bad(f"the body has {len(tail)} bytes more than its JSON header and its binary tensors")
    outputs = _outputs(config, document.get("outputs"), parameters)
    return make_request(config, id=request_id, inputs=inputs, outputs=outputs, parameters=parameters)


def parse_index(body: bytes) -> bool:
    """Whether a request for the repository's index wants only what is ready; its body may be empty, as Triton and its clients have it.

    Raises:
        RequestError: 400, with what was wrong.
    """
    return _flag(parse_object(body), "ready", False) if body else False


def parse_change(body: bytes) -> None:
    """Check the body of a request to load or unload a model; it may be empty.

    Raises:
        RequestError: 400, with what was wrong.
    """
    if body:
        check_change(_parameters(parse_object(body).get("parameters"), "request"))


def check_change(parameters: Mapping[str, Any]) -> None:
    """Refuse to load or unload otherwise than a bundle says: with another configuration, files from the request, or what depends on it.

    Raises:
        RequestError: 400.
    """
    if wished := [name for name, value in parameters.items() if value]:
        raise bad(f"parameter {wished[0][:80]!r}: a model is loaded and unloaded as its bundle says, and not otherwise")


def parse_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        RequestError: 400, naming the offset of the mistake.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(document, dict):
        raise bad(f"the body must be a JSON object, not {type(document).__name__}")
    return document


def holds_bools(body: bytes) -> bool:
    """Whether `true` or `false` stand somewhere in JSON, texts included: where neither does, no element has to be looked at for it.

    Told by letters that numbers have not, which the C library finds at many times the pace of whole words.
    """
    return _holds(body, b"true", 2) or _holds(body, b"false", 2)


def _holds(body: bytes, word: bytes, rare: int) -> bool:
    """Whether a word is in the body; `rare` is the place of the letter to look for."""
    letter = word[rare : rare + 1]
    place = body.find(letter)
    for _ in range(RARE):
        if place < 0:
            return False
        if body.startswith(word, place - rare):
            return True
        place = body.find(letter, place + 1)
    return word in body  # it was not rare


def _header_length(text: str | None, num_bytes: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > num_bytes:
        raise bad(f"Inference-Header-Content-Length is {text[:80]!r}; it must be a number from 0 to the body's length, {num_bytes}")
    return int(text)


def _parameters(raw: Any, where: str) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise bad(f"parameters of {where} must be an object")
    for name, value in raw.items():
        if not isinstance(value, (str, int, float, bool)):
            raise bad(f"parameter {name[:80]!r} of {where} must be a string, number or boolean")
        if name in UNSUPPORTED:
            raise bad(f"parameter {name!r} of {where} belongs to an extension that this server does not have")
    return raw


def _input(config: ServingConfig, entry: Any, tail: memoryview, *, has_tail: bool, may_hold_bools: bool) -> tuple[Tensor, memoryview]:
    """One entry of `inputs`, and what remains of the binary data after it."""
    if not isinstance(entry, dict):
        raise bad("each of inputs must be an object")
    spec = config.inputs[find_spec(config.inputs, entry.get("name"), "input")]
    check_datatype(spec, entry.get("datatype"))
    shape = check_shape(spec, entry.get("shape"))
    parameters = _parameters(entry.get("parameters"), f"input {spec.name!r}")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise bad(f"input {spec.name!r} has neither data nor binary_data_size")
        return from_values(spec, shape, entry["data"], may_hold_bools=may_hold_bools), tail
    if "data" in entry:
        raise bad(f"input {spec.name!r} has both data and binary_data_size")
    if not has_tail:
        raise bad(f"input {spec.name!r} has binary_data_size, but the header Inference-Header-Content-Length is missing")
    if type(size) is not int or not 0 <= size <= len(tail):
        raise bad(f"input {spec.name!r}: binary_data_size is {repr(size)[:80]}, and {len(tail)} bytes of binary data are left")
    return from_raw(spec, shape, tail[:size]), tail[size:]


def _outputs(config: ServingConfig, raw: Any, parameters: dict[str, Any]) -> list[tuple[int, bool]]:
    binary = _flag(parameters, "binary_data_output", False)
    if raw is None or raw == []:
        outputs = [(index, binary) for index in range(len(config.outputs))]
    elif not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise bad("outputs must be a list of objects")
    else:
        outputs = []
        for entry in raw:
            index = find_spec(config.outputs, entry.get("name"), "output")
            own = _parameters(entry.get("parameters"), f"output {entry['name']!r}")
            outputs.append((index, _flag(own, "binary_data", binary)))
    return check_outputs(config, outputs)


def check_outputs(config: ServingConfig, outputs: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """Refuse an output asked for twice, and FP16 in JSON, which has no such form."""
    if len({index for index, _ in outputs}) != len(outputs):
        raise bad("an output is asked for twice")
    for index, binary in outputs:
        if config.outputs[index].datatype == "FP16" and not binary:
            raise bad(f"output {config.outputs[index].name!r} is FP16, which has no JSON form; ask for it with binary_data")
    return outputs


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad(f"parameter {name} must be true or false, got {repr(value)[:80]}")
    return value


def _raw_request(config: ServingConfig, body: bytes) -> InferRequest:
    """A body that is nothing but the one input's bytes, as a batch of one."""
    if len(config.inputs) != 1:
        raise bad(f"a raw body needs a model with one input; this one has {len(config.inputs)}")
    spec = config.inputs[0]
    shape = [1, *spec.shape[1:]] if config.batched else list(spec.shape)
    if -1 in shape:
        fixed = 1
        for size in shape:
            fixed *= abs(size)
        itemsize = item_size(spec)
        if shape.count(-1) > 1 or len(body) % (fixed * itemsize):
            raise bad(f"the shape of a raw body of {len(body)} bytes cannot be told from the model's {list(spec.shape)}")
        shape[shape.index(-1)] = len(body) // (fixed * itemsize)
    outputs = [(index, True) for index in range(len(config.outputs))]
    tensor = from_raw(spec, check_shape(spec, shape), body)
    return make_request(config, id="", inputs=[tensor], outputs=outputs, parameters={})


def item_size(spec: TensorSpec) -> int:
    """Bytes of one element.

    Raises:
        RequestError: 400 for BYTES, whose elements have no fixed size.
    """
    if spec.datatype == "BYTES":
        raise bad("a raw body cannot hold BYTES of variable shape")
    return NUMPY[spec.datatype].itemsize


def values_of(tensor: Tensor) -> Any:
    """The elements, shaped, in a form that `orjson` writes.

    Raises:
        RequestError: 400, an element that JSON cannot hold, and that binary data can.
    """
    array = tensor.array()
    if tensor.spec.datatype == "BYTES":
        try:
            return [element.decode() for element in array.ravel().tolist()]
        except UnicodeDecodeError:
            raise bad(f"output {tensor.spec.name!r} is not text; ask for it with binary_data") from None
    if array.dtype.kind == "f" and not tensor.is_finite and not np.isfinite(array).all():
        raise bad(f"output {tensor.spec.name!r} is not finite, which JSON cannot hold; ask for it with binary_data")
    return array if array.flags.aligned else array.copy()


def encode_infer(config: ServingConfig, request: InferRequest, outputs: list[Tensor]) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer, with the outputs in the order the request asked for.

    Raises:
        RequestError: 400, an output that JSON cannot hold was asked for in JSON.
    """
    entries, tail = [], []
    for index, binary in request.outputs:
        tensor = outputs[index]
        entry: dict[str, Any] = {"name": tensor.spec.name, "datatype": tensor.spec.datatype, "shape": tensor.shape}
        if binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            tail.append(tensor.data)
        else:
            values = values_of(tensor)
            entry["data"] = values if isinstance(values, list) else values.reshape(-1)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": config.name, "model_version": config.version, "outputs": entries}
    if request.id:
        document["id"] = request.id
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return [(b"content-type", b"application/json")], header
    headers = [(b"content-type", b"application/octet-stream"), (HEADER_LENGTH.encode(), str(len(header)).encode())]
    return headers, b"".join([header, *tail])


def parse_predict(config: ServingConfig, body: bytes) -> InferRequest:
    """Read the plain form for people: ``{"inputs": {name: values}}``, or only the values where there is one input.

    Raises:
        RequestError: 400, with what was wrong.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    values = document.get("inputs") if isinstance(document, dict) else document
    if isinstance(values, list) and len(config.inputs) == 1:
        values = {config.inputs[0].name: values}
    if not isinstance(values, dict):
        names = ", ".join(repr(spec.name) for spec in config.inputs)
        raise bad(f"send {{'inputs': {{name: nested list}}}}; the inputs are {names}")
    inputs, may_hold_bools = [], holds_bools(body)
    for name, nested in values.items():
        spec = config.inputs[find_spec(config.inputs, name, "input")]
        inputs.append(from_values(spec, check_shape(spec, _nesting(nested)), nested, may_hold_bools=may_hold_bools))
    outputs: list[tuple[int, bool]] = [(index, False) for index in range(len(config.outputs))]
    return make_request(config, id="", inputs=inputs, outputs=check_outputs(config, outputs), parameters={})


def _nesting(values: Any) -> list[int]:
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        if not values:
            break
        values = values[0]
    return shape


def encode_predict(outputs: list[Tensor]) -> bytes:
    """``{"outputs": {name: nested list}}``."""
    shaped = {tensor.spec.name: nested(values_of(tensor), tensor.shape) for tensor in outputs}
    return orjson.dumps({"outputs": shaped}, option=orjson.OPT_SERIALIZE_NUMPY)


def nested(values: Any, shape: tuple[int, ...]) -> Any:
    """An array as it is; a flat list of texts nested like `shape`."""
    return values if not isinstance(values, list) else np.array(values, object).reshape(shape).tolist()


def server_metadata() -> dict[str, Any]:
    """Answer of ``GET /v2``."""
    return {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS}


def model_metadata(config: ServingConfig, platform: str, versions: list[str]) -> dict[str, Any]:
    """Answer of ``GET /v2/models/{name}``; `versions` are those that may be asked for."""
    return {"name": config.name, "versions": versions, "platform": platform} | {
        key: [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
        for key, specs in (("inputs", config.inputs), ("outputs", config.outputs))
    }


def error_body(text: str) -> bytes:
    """``{"error": text}``, whatever characters the text holds."""
    return orjson.dumps({"error": text.encode("utf-8", "replace").decode()})
