"""The web page at `/`, and what it shows of a model besides the protocol: stored samples and the bundle's promises."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import orjson

from .config import TensorSpec, describe_dimension, load_vectors, read_json
from .errors import bad
from .protocol import nested, values_of
from .service import ENSEMBLE, Servable
from .tensors import Array, Tensor, encode

PAGE = Path(__file__).with_name("page.html")


@functools.cache
def page() -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the page; it may run its own script, named by its hash, and ask this server, and nothing else."""
    text = PAGE.read_text(encoding="utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-type": "text/html; charset=utf-8", "content-security-policy": policy, "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer", "cache-control": "no-cache", "vary": "Accept",
    }  # fmt: skip
    return [(name.encode(), value.encode()) for name, value in headers.items()], text.encode()


def _hash(text: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def stored_sample(model: Servable, query: bytes) -> bytes:
    """One stored sample in JSON: inputs as a request has them, the outputs of the original model, and which sizes a request may choose.

    Args:
        model: Whose bundle holds it.
        query: Of the address: ``index=NUMBER``, from 0; the first where there is none.

    Raises:
        RequestError: 400, there is no such sample, or JSON cannot hold it.
        BundleError: the vectors cannot be read.
    """
    config = model.config
    inputs, outputs = load_vectors(model.folder, config)
    count = len(inputs[0]) if config.batched else 1
    found = re.fullmatch(rb"(?:index=([0-9]{1,9}))?", query)
    index = int(found[1] or 0) if found else count
    if index >= count:
        raise bad(f"the query {query[:80].decode('latin-1')!r} names no stored sample; index=NUMBER does, from 0 to {count - 1}")
    part: Any = slice(index, index + 1) if config.batched else ...
    pairs = {key: zip(specs, arrays, strict=True) for key, specs, arrays in (("inputs", config.inputs, inputs), ("outputs", config.outputs, outputs))}
    tensors = {key: [_entry(spec, array[part]) for spec, array in pair] for key, pair in pairs.items()}
    if model.platform == ENSEMBLE:  # the samples are a member's, and so would the outputs be
        tensors["outputs"] = []
    sizes = [describe_dimension(config, dimension) for dimension in config.dimensions]
    return orjson.dumps({"index": index, "count": count, "sizes": sizes, **tensors}, option=orjson.OPT_SERIALIZE_NUMPY)


def _entry(spec: TensorSpec, array: Array) -> dict[str, Any]:
    if spec.datatype == "FP16":
        raise bad(f"{spec.name!r} is FP16, which has no JSON form")
    tensor = Tensor(spec, array.shape, encode(spec.datatype, array))
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": nested(values_of(tensor), array.shape)}


def promises(model: Servable) -> bytes:
    """The bundle's `promises.json`: limits, each with where it comes from, and the load under which they hold.

    Raises:
        BundleError: the file cannot be read.
    """
    if model.platform == ENSEMBLE:  # its members promise, each for itself
        return orjson.dumps({"scenario": None, "promises": [], "notes": []})
    found = read_json(model.folder / "promises.json")
    return orjson.dumps({key: found.get(key) for key in ("scenario", "promises", "notes")})
