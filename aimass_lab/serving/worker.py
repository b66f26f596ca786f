"""The model worker: a process that holds one model, reads batches from a socket and writes the outputs back."""

from __future__ import annotations

import itertools
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .child import die_with
from .config import ServingConfig, load_config
from .devices import CPU, require_kind
from .errors import BundleError
from .frames import LENGTHS, pack, padding
from .heap import IDLE_S, give_back
from .runners.base import Array, Runner, find_format
from .tensors import Buffer, decode, encode


def main(bundle: str, descriptor: int, parent: int, device: str) -> None:
    """Load the model of the bundle, say so, and serve until the other end of the socket closes.

    Args:
        bundle: The bundle's folder.
        descriptor: The inherited socket to the server.
        parent: The server's process id.
        device: Where the model computes; the process sees no other.
    """
    die_with(parent)
    connection = socket.socket(fileno=descriptor)
    try:
        config = load_config(Path(bundle))
        format = find_format(config.format)
        config = replace(config, device=require_kind(config.format, getattr(format, "DEVICES", (CPU,)), device))
        runner = format.load(Path(bundle) / config.model_file, config)
    except BundleError as error:
        _send(connection, {"error": str(error)}, [])
        return
    _send(connection, {"ready": True}, [])
    while (frame := _next(connection)) is not None:
        began = time.monotonic()
        header, parts = answer(runner, config, *frame)
        _send(connection, header | {"computed": [began, time.monotonic()]}, parts)


def answer(runner: Runner, config: ServingConfig, header: dict[str, Any], payload: memoryview) -> tuple[dict[str, Any], list[Buffer]]:
    """Run one batch; where it fails, run its requests one by one, so that only the culprit fails.

    Args:
        runner: The model.
        config: Its signature.
        header: ``{"items": [rows of each request], "shapes": [shape of each input]}``.
        payload: The inputs, each padded to the next step.

    Returns:
        Header ``{"requests": [{"shapes", "sizes"} or {"error"}]}`` and the outputs, request by request.
    """
    inputs = _decode_inputs(config, header, payload)
    items: list[int] = header["items"]
    try:
        return _reply(config, items, inputs, _run(runner, config, inputs, sum(items)))
    except Exception as error:
        if len(items) == 1:
            return {"requests": [{"error": _describe(error)}]}, []
    replies, parts = [], []
    for start, count in zip(itertools.accumulate(items, initial=0), items, strict=False):
        rows = [array[start : start + count] for array in inputs]
        try:
            one, some = _reply(config, [count], rows, _run(runner, config, rows, count))
        except Exception as error:
            one, some = {"requests": [{"error": _describe(error)}]}, []
        replies += one["requests"]
        parts += some
    return {"requests": replies}, parts


def _describe(error: Exception) -> str:
    return f"the model failed: {type(error).__name__}: {str(error)[:500]}"


def _decode_inputs(config: ServingConfig, header: dict[str, Any], payload: memoryview) -> list[Array]:
    arrays, position = [], 0
    for spec, shape, size in zip(config.inputs, header["shapes"], header["sizes"], strict=True):
        arrays.append(decode(spec.datatype, shape, payload[position : position + size]))
        position += size + len(padding(size))
    return arrays


def _run(runner: Runner, config: ServingConfig, inputs: Sequence[Array], items: int) -> list[Array]:
    """The outputs, after checking that they are what the signature says.

    Raises:
        ValueError: another number of outputs, or an output of another shape.
    """
    outputs = runner.run(inputs)
    if len(outputs) != len(config.outputs):
        raise ValueError(f"{len(outputs)} outputs instead of {len(config.outputs)}")
    for spec, array in zip(config.outputs, outputs, strict=True):
        wanted = (items, *spec.shape[1:]) if config.batched else spec.shape
        if len(wanted) != array.ndim or any(want not in (-1, got) for want, got in zip(wanted, array.shape, strict=True)):
            raise ValueError(f"output {spec.name!r} has shape {list(array.shape)} instead of {list(wanted)}")
    return outputs


def _reply(config: ServingConfig, items: list[int], inputs: list[Array], outputs: list[Array]) -> tuple[dict[str, Any], list[Buffer]]:
    suspect = any(_has_nan(array) for array in outputs)
    replies: list[dict[str, Any]] = []
    parts: list[Buffer] = []
    for start, count in zip(itertools.accumulate(items, initial=0), items, strict=False):
        rows = [array[start : start + count] if config.batched else array for array in outputs]
        if suspect and (error := _nan_error(config, [a[start : start + count] if config.batched else a for a in inputs], rows)):
            replies.append({"error": error})
            continue
        encoded = [encode(spec.datatype, array) for spec, array in zip(config.outputs, rows, strict=True)]
        replies.append({"shapes": [array.shape for array in rows], "sizes": [len(part) for part in encoded]})
        parts += encoded
    return {"requests": replies}, parts


def _has_nan(array: Array) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _nan_error(config: ServingConfig, inputs: list[Array], outputs: list[Array]) -> str | None:
    """A NaN that the model made of good numbers is its failure; one made of a NaN or infinity is the client's wish."""
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in inputs):
        return None
    names = [spec.name for spec, array in zip(config.outputs, outputs, strict=True) if _has_nan(array)]
    return f"the model failed: output {names[0]!r} holds NaN" if names else None


def _next(connection: socket.socket) -> tuple[dict[str, Any], memoryview] | None:
    """As `_receive`; what the last batch took is given back when the next one is long in coming."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    if not waiting.poll(IDLE_S * 1e3):
        give_back()
    return _receive(connection)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], memoryview] | None:
    """The next frame; None when the server closed the connection."""
    lengths = _read(connection, LENGTHS.size)
    if lengths is None:
        return None
    header_length, payload_length = LENGTHS.unpack(lengths)
    header, payload = _read(connection, header_length), _read(connection, payload_length)
    if header is None or payload is None:
        return None
    return orjson.loads(header), payload


def _read(connection: socket.socket, count: int) -> memoryview | None:
    view = np.empty(count, np.uint8).data if count else memoryview(b"")
    position = 0
    while position < count:
        received = connection.recv_into(view[position:])
        if not received:
            return None
        position += received
    return view


def _send(connection: socket.socket, header: dict[str, Any], parts: list[Buffer]) -> None:
    try:
        connection.sendall(b"".join(pack(header, parts)))
    except BrokenPipeError:
        sys.exit(0)  # the server is gone, and with it the one who asked
