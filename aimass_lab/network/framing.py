"""What carries a message: HTTP heads, gRPC's frames, TLS records, TCP/IP segments and Ethernet frames, by their specifications."""

from __future__ import annotations

import math
from dataclasses import dataclass

MTU = 1500
"""Bytes of an IP packet on Ethernet (RFC 894); jumbo frames carry 9000."""
IP_TCP = 20 + 20 + 12
"""IPv4 header (RFC 791), TCP header (RFC 9293) and its timestamps (RFC 7323), which Linux sends by default."""
ETHERNET = 14 + 4 + 8 + 12
"""Header, check sequence, preamble and gap of an Ethernet frame (IEEE 802.3): what a link of a given rate also carries."""
TLS_RECORD, TLS_EXTRA = 2**14, 5 + 1 + 16
"""Bytes in one TLS 1.3 record, and what it adds: header, content type, authentication tag (RFC 8446 §5.2)."""
SEGMENTS_PER_ACK = 2
"""At least every second full segment is acknowledged (RFC 9293 §3.8.6.3)."""

H2_FRAME, H2_MAX_FRAME, GRPC_PREFIX = 9, 2**14, 5
"""HTTP/2 frame header and the largest frame a peer may send unasked (RFC 9113 §4.1, §6.5.2); flag and length before a gRPC message."""
GRPC_REQUEST_FRAMES, GRPC_RESPONSE_FRAMES = (43, 43, 95), (50, 37, 95)
"""Header, trailer and window-update frames of one call on a kept connection: usual, fewest, most. Counted on gRPC's
C core 1.85 between a Python client and our server; the most holds its ping pairs, which it sends while it learns the
bandwidth. The first call of a connection takes about 300 B more, once."""

DATE = "Thu, 01 Jan 1970 00:00:00 GMT"


@dataclass(frozen=True)
class Framed:
    """Bytes of one message on the wire, headers of all layers included."""

    sent: int
    """In the message's own direction, as IP packets."""
    line: int
    """The same as Ethernet frames: what takes up the link."""
    acknowledged: int
    """Against it: bare acknowledgements, as Ethernet frames."""


def http_request_head(path: str, host: str, body_bytes: int, header_length: int | None = None) -> int:
    """Bytes before the body of a POST as Python's ``http.client`` writes it (RFC 9112 §2-3).

    Args:
        path: Of the address.
        host: Name and port of the server.
        body_bytes: Of the body.
        header_length: JSON bytes in a body with binary tensors; None without such.
    """
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity", f"Content-Length: {body_bytes}"]
    if header_length is not None:
        lines.append(f"inference-header-content-length: {header_length}")
    return len("\r\n".join([*lines, "", ""]))


REQUEST_ID_LENGTH = 16
"""Of the name that our server gives a request whose client gave it none."""


def http_response_head(body_bytes: int, header_length: int | None = None) -> int:
    """Bytes before the body of an answer as our own server writes it; arguments as for the request."""
    kind = "application/json" if header_length is None else "application/octet-stream"
    lines = ["HTTP/1.1 200 OK", f"date: {DATE}", f"content-type: {kind}", f"content-length: {body_bytes}"]
    if header_length is not None:
        lines.append(f"inference-header-content-length: {header_length}")
    lines.append(f"x-request-id: {'0' * REQUEST_ID_LENGTH}")
    return len("\r\n".join([*lines, "", ""]))


def grpc_data(message_bytes: int) -> int:
    """Bytes of the DATA frames that carry one gRPC message (gRPC over HTTP2, Length-Prefixed-Message)."""
    content = message_bytes + GRPC_PREFIX
    return content + H2_FRAME * math.ceil(content / H2_MAX_FRAME)


def tls_bytes(content: int) -> int:
    """Bytes of `content` in full TLS 1.3 records."""
    return content + TLS_EXTRA * math.ceil(content / TLS_RECORD)


def on_the_wire(content: int, *, tls: bool = True, mtu: int = MTU) -> Framed:
    """Bytes of one message's `content` once TLS, TCP/IP and Ethernet have added theirs; handshakes and losses left out.

    Args:
        content: Head and body, or frames, as the application writes them.
        tls: Encrypted.
        mtu: Bytes of the largest IP packet.
    """
    stream = tls_bytes(content) if tls else content
    segments = math.ceil(stream / (mtu - IP_TCP))
    acks = math.ceil(segments / SEGMENTS_PER_ACK)
    sent = stream + IP_TCP * segments
    return Framed(sent=sent, line=sent + ETHERNET * segments, acknowledged=acks * (IP_TCP + ETHERNET))
