"""Frames between the processes of a server: lengths, a JSON header, then tensors at 64-byte steps."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import orjson

from .tensors import Buffer

LENGTHS = struct.Struct("<IQ")
STEP = 64
"""Tensors start at multiples of this, so that a worker can use them where they lie."""


def padding(num_bytes: int) -> bytes:
    """What to add after `num_bytes` to reach the next step."""
    return bytes(-num_bytes % STEP)


def pack(header: dict[str, Any], parts: list[Buffer]) -> list[Buffer]:
    """The pieces of a frame, to be sent one after the other."""
    encoded = orjson.dumps(header)
    return [LENGTHS.pack(len(encoded), sum(map(len, parts))), encoded, *parts]


class FrameReader:
    """Puts frames together from the pieces in which a stream socket delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """Yield every frame that is now complete: header and payload."""
        self._buffer += data
        while len(self._buffer) >= LENGTHS.size:
            header_length, payload_length = LENGTHS.unpack_from(self._buffer)
            start, end = LENGTHS.size + header_length, LENGTHS.size + header_length + payload_length
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[:end])
            del self._buffer[:end]
            yield orjson.loads(frame[LENGTHS.size : start]), memoryview(frame)[start:]
