"""Writes a small picture as PNG (W3C, third edition, 2025): 8 bits a channel, no filter."""

from __future__ import annotations

import base64
import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 3: 2}
"""Greyscale and RGB, by the number of channels."""


def png_uri(rows: list[bytes], width: int, channels: int) -> str:
    """A picture as a ``data:`` address.

    Args:
        rows: From the top; each has `width` times `channels` bytes.
        width: Pixels of a row.
        channels: 1 or 3.
    """
    header = struct.pack(">2I5B", width, len(rows), 8, COLOUR_TYPES[channels], 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    file = SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
