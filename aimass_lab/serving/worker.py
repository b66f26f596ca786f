"""The model worker: a process that holds one model, reads batches from a socket and writes the outputs back."""

from __future__ import annotations

import itertools
import socket
import struct
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

AT_ONCE_BYTES = 64 * 2**10
"""Of a frame are asked for before its lengths are known."""
TIMEVAL = struct.Struct("@ll")
"""Seconds and microseconds, as the system's calls take them."""


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
    frames = _Frames(connection)
    while (frame := frames.next()) is not None:
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
        Header ``{"requests": [{"shapes", "sizes"} or {"error"}], "finite": whether all outputs are}`` and the outputs, request by request.
    """
    inputs = _decode_inputs(config, header, payload)
    items: list[int] = header["items"]
    try:
        return _reply(config, items, inputs, _run(runner, config, inputs, sum(items)))
    except Exception as error:
        if len(items) == 1:
            return {"requests": [{"error": _describe(error)}], "finite": False}, []
    replies, parts = [], []
    for start, count in zip(itertools.accumulate(items, initial=0), items, strict=False):
        rows = [array[start : start + count] for array in inputs]
        try:
            one, some = _reply(config, [count], rows, _run(runner, config, rows, count))
        except Exception as error:
            one, some = {"requests": [{"error": _describe(error)}]}, []
        replies += one["requests"]
        parts += some
    return {"requests": replies, "finite": False}, parts


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
    finite = all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in outputs)
    replies: list[dict[str, Any]] = []
    parts: list[Buffer] = []
    for start, count in zip(itertools.accumulate(items, initial=0), items, strict=False):
        rows = [array[start : start + count] if config.batched else array for array in outputs]
        if not finite and (error := _nan_error(config, [a[start : start + count] if config.batched else a for a in inputs], rows)):
            replies.append({"error": error})
            continue
        encoded = [encode(spec.datatype, array) for spec, array in zip(config.outputs, rows, strict=True)]
        replies.append({"shapes": [array.shape for array in rows], "sizes": [len(part) for part in encoded]})
        parts += encoded
    return {"requests": replies, "finite": finite}, parts


def _has_nan(array: Array) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _nan_error(config: ServingConfig, inputs: list[Array], outputs: list[Array]) -> str | None:
    """A NaN that the model made of good numbers is its failure; one made of a NaN or infinity is the client's wish."""
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in inputs):
        return None
    names = [spec.name for spec, array in zip(config.outputs, outputs, strict=True) if _has_nan(array)]
    return f"the model failed: output {names[0]!r} holds NaN" if names else None


class _Frames:
    """Reads frames from a socket, a small one in one piece."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._begin = memoryview(bytearray(AT_ONCE_BYTES))
        self._is_tidy = False
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEVAL.pack(int(IDLE_S), int(IDLE_S % 1 * 1e6)))

    def next(self) -> tuple[dict[str, Any], memoryview] | None:
        """The next frame; None when the server closed the connection.

        What the last batch took is given back when this one is long in coming.
        """
        received = self._receive(self._begin)
        while 0 < received < LENGTHS.size:
            more = self._receive(self._begin[received:])
            received = received + more if more else 0
        if not received:
            return None
        self._is_tidy = False
        header_length, payload_length = LENGTHS.unpack_from(self._begin)
        begin = self._begin[LENGTHS.size : received]
        header, payload = (np.empty(length, np.uint8).data if length else memoryview(bytearray()) for length in (header_length, payload_length))
        for view in (header, payload):
            count = min(len(view), len(begin))
            view[:count], begin = begin[:count], begin[count:]
            if not self._fill(view[count:]):
                return None
        assert not begin, "a batch before the last one was answered"
        return orjson.loads(header), payload

    def _fill(self, view: memoryview) -> bool:
        """Read until it is full; False when the server closed the connection before."""
        while len(view):
            if not (received := self._receive(view)):
                return False
            view = view[received:]
        return True

    def _receive(self, view: memoryview) -> int:
        """How many bytes came; 0 when the server closed the connection."""
        while True:
            try:
                return self._connection.recv_into(view)
            except BlockingIOError:
                if not self._is_tidy:
                    give_back()
                    self._is_tidy = True


def _send(connection: socket.socket, header: dict[str, Any], parts: list[Buffer]) -> None:
    try:
        connection.sendall(b"".join(pack(header, parts)))
    except BrokenPipeError:
        sys.exit(0)  # the server is gone, and with it the one who asked
