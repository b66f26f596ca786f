"""The messages of our own server, written and read by its own code, so that their bytes and times are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingPackageError
from .network.payload import Part, sample_values
from .network.serialisation import Codec
from .records import Number

if TYPE_CHECKING:
    import numpy as np

    from .serving.config import ServingConfig

BASE_IMAGE_BYTES = (130_000_000, 100_000_000, 180_000_000)
"""Of a slim Python image, uncompressed: assumed, smallest and largest of the releases of the last years."""


def server_codecs(name: str, inputs: Sequence[Part], outputs: Sequence[Part]) -> dict[str, Codec | str]:
    """A codec of each form, or why there is none.

    Args:
        name: Of the served model.
        inputs: Tensors of the request.
        outputs: Tensors of the response.
    """
    from .serving.config import ServingConfig, TensorSpec
    from .serving.errors import RequestError
    from .serving.tensors import NUMPY

    unknown = sorted({part.datatype for part in (*inputs, *outputs)} - set(NUMPY))
    if unknown:
        return dict.fromkeys(FORMS, f"our server has no tensors of {', '.join(unknown)}")
    specs = [tuple(TensorSpec(p.name, p.datatype, tuple(p.shape)) for p in parts) for parts in (inputs, outputs)]
    config = ServingConfig(
        schema=1, name=name, version="1", format="onnx", model_file="", inputs=specs[0], outputs=specs[1], batched=False
    )  # fmt: skip
    arrays = [[sample_values(part).numpy() for part in parts] for parts in (inputs, outputs)]
    made: dict[str, Codec | str] = {}
    for form, make in FORMS.items():
        try:
            made[form] = make(config, arrays[0], arrays[1])
        except RequestError as error:
            made[form] = error.text
    return made


def _json(config: ServingConfig, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Codec:
    import json

    def write() -> bytes:
        entries = [
            {"name": s.name, "shape": list(a.shape), "datatype": s.datatype, "data": a.reshape(-1).tolist()} for s, a in zip(config.inputs, inputs, strict=True)
        ]
        return json.dumps({"inputs": entries}, separators=(",", ":")).encode()

    def read(answer: bytes) -> Any:
        import numpy as np

        from .serving.tensors import NUMPY

        return [np.array(entry["data"], NUMPY[entry["datatype"]]).reshape(entry["shape"]) for entry in json.loads(answer)["outputs"]]

    return _rest("json", config, outputs, lambda: (None, write()), lambda length, answer: read(answer))


def _binary(config: ServingConfig, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Codec:
    from .serving.load import infer_body

    def read(length: str | None, answer: bytes) -> Any:
        import json

        from .serving.tensors import decode

        end = int(length or 0)
        tensors = []
        for entry in json.loads(answer[:end])["outputs"]:
            size = entry["parameters"]["binary_data_size"]
            tensors.append(decode(entry["datatype"], entry["shape"], memoryview(answer)[end : end + size]))
            end += size
        return tensors

    def write() -> tuple[str | None, bytes]:
        length, body = infer_body(config, inputs)
        return str(length), body

    return _rest("binary", config, outputs, write, read)


def _rest(
    form: str,
    config: ServingConfig,
    outputs: list[np.ndarray],
    write: Callable[[], tuple[str | None, bytes]],
    read: Callable[[str | None, bytes], Any],
) -> Codec:
    from .serving.protocol import HEADER_LENGTH, encode_infer, parse_infer
    from .serving.tensors import Tensor, encode

    def answer() -> tuple[list[tuple[bytes, bytes]], bytes]:
        tensors = [Tensor(s, tuple(a.shape), encode(s.datatype, a)) for s, a in zip(config.outputs, outputs, strict=True)]
        return encode_infer(config, request, tensors)

    length, body = write()
    request = parse_infer(config, body, length)
    headers, response = answer()
    answer_length = dict(headers).get(HEADER_LENGTH.encode())
    text = None if answer_length is None else answer_length.decode()
    return Codec(form, write, lambda: parse_infer(config, body, length), answer, lambda: read(text, response), len(body), len(response))


def _grpc(config: ServingConfig, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Codec:
    from .serving.grpc_app import make_response, parse_request
    from .serving.grpc_messages import ModelInferRequest, ModelInferResponse
    from .serving.tensors import Tensor, decode, encode

    def write() -> bytes:
        message = ModelInferRequest(model_name=config.name)
        for spec, array in zip(config.inputs, inputs, strict=True):
            message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            message.raw_input_contents.append(bytes(encode(spec.datatype, array)))
        return message.SerializeToString()

    def answer() -> bytes:
        tensors = [Tensor(s, tuple(a.shape), encode(s.datatype, a)) for s, a in zip(config.outputs, outputs, strict=True)]
        return make_response(config, request, tensors, raw=True).SerializeToString()

    def read() -> Any:
        message = ModelInferResponse.FromString(response)
        return [decode(o.datatype, list(o.shape), raw) for o, raw in zip(message.outputs, message.raw_output_contents, strict=True)]

    body = write()
    request = parse_request(config, ModelInferRequest.FromString(body))
    response = answer()
    return Codec("grpc", write, lambda: parse_request(config, ModelInferRequest.FromString(body)), answer, read, len(body), len(response))


FORMS: dict[str, Callable[[ServingConfig, list[np.ndarray], list[np.ndarray]], Codec]] = {"json": _json, "binary": _binary, "grpc": _grpc}


def runtime_bytes() -> Number | None:
    """What a bundle's container image holds beside the weights, uncompressed; None where a package it needs is not installed here."""
    from importlib import metadata

    from .bundle.requirements import pinned_requirements

    try:
        names = [line.partition("==")[0] for line in pinned_requirements()]
    except MissingPackageError:
        return None
    files = [file for name in names for file in metadata.distribution(name).files or () if file.suffix != ".pyc"]
    packages = sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
    base, low, high = BASE_IMAGE_BYTES
    return Number(
        value=packages + base, unit="B", source="estimated",
        method=f"the bundle's {len(names)} packages as installed here, {packages / 1e6:.0f} MB, and a slim Python image of {base / 1e6:.0f} MB",
        # A registry sends layers compressed: wheels and system files shrink to about 0.35 of their size.
        interval=(0.3 * (packages + low), packages + high), interval_kind="from compressed layers to a larger base image",
    )  # fmt: skip
