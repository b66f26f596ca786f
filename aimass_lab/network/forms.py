"""Each form of a request and its response: bytes, bytes on the wire, time to write and read, load on a link, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..records import MessageForm, Note, Number, derived
from .framing import GRPC_REQUEST_FRAMES, GRPC_RESPONSE_FRAMES, Framed, grpc_data, http_request_head, http_response_head, on_the_wire
from .payload import Part, Sizes, forms, sample_values
from .serialisation import Codec, growth, measure_codec

HOST = "localhost:8000"
TIMED_ELEMENTS = 200_000
"""Messages with more elements are timed up to here, and the time is scaled."""
GROWN_ITEMS = 16

Codecs = Callable[[str, Sequence[Part], Sequence[Part]], "dict[str, Codec | str]"]
"""From the service's name and the tensors of a request and a response to a codec of each form, or why there is none."""
Times = tuple[Number, Number, Number, Number, Number | None]


@dataclass(frozen=True)
class LoadOnLink:
    """How often messages come, over what, at which price."""

    requests_per_s: Number | None
    link: Number
    egress_price: Number | None


def make_forms(
    name: str, parts: tuple[Sequence[Part], Sequence[Part]], sizes: tuple[Sizes, Sizes], load: LoadOnLink, codecs: Codecs | None, budget_s: float
) -> tuple[tuple[MessageForm, ...], tuple[Note, ...]]:
    """All forms, and what is missing.

    Args:
        name: Of the served model.
        parts: Tensors of the request and of the response, one item.
        sizes: Bodies of the request and of the response.
        load: Rate, link and price.
        codecs: Makes what is timed; None: nothing is.
        budget_s: For timing.
    """
    times, notes = _times(name, parts, codecs, budget_s)
    made = []
    for (form, request), (_, response) in zip(forms(sizes[0]), forms(sizes[1]), strict=True):
        raw = [sum(part.raw_bytes for part in side) for side in parts]
        frames = [_frame(form, name, body, raw[i], is_request=i == 0) for i, body in enumerate((request, response))]
        made.append(_form(form, request, response, frames, load, times.get(form)))
    return tuple(made), tuple(notes)


# --- bytes on the wire -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Wire:
    """A message at its expected size, and at both ends of its band."""

    expected: Framed
    low: Framed
    high: Framed
    how: str


def _frame(form: str, name: str, body: Number, raw_bytes: int, *, is_request: bool) -> _Wire:
    low, high = body.ends
    if form == "grpc":
        usual, fewest, most = GRPC_REQUEST_FRAMES if is_request else GRPC_RESPONSE_FRAMES
        contents = [grpc_data(round(size)) + extra for size, extra in ((body.value, usual), (low, fewest), (high, most))]
        how = "body, gRPC and HTTP/2 frames of a kept connection"
    else:
        contents = [_http(form, name, round(size), raw_bytes, is_request=is_request) for size in (body.value, low, high)]
        how = "body, HTTP head"
    expected, low_end, high_end = (on_the_wire(content) for content in contents)
    return _Wire(expected, low_end, high_end, f"{how}, TLS 1.3, TCP/IPv4, Ethernet; handshakes and losses left out")


def _http(form: str, name: str, body: int, raw_bytes: int, *, is_request: bool) -> int:
    header_length = body - raw_bytes if form == "binary" else None
    if is_request:
        return body + http_request_head(f"/v2/models/{name}/infer", HOST, body, header_length)
    return body + http_response_head(body, header_length)


def _wire_number(wire: _Wire, body: Number, name: str) -> Number:
    ends = (min(wire.low.line, wire.expected.line), max(wire.high.line, wire.expected.line))
    spread = ends if ends[0] < ends[1] else None
    return derived(
        wire.expected.line, "B", wire.how, [(name, body)], interval=spread, interval_kind="from the body's band and the frames that vary" if spread else None
    )


# --- load and cost ---------------------------------------------------------------------------


def _form(form: str, request: Number, response: Number, frames: Sequence[_Wire], load: LoadOnLink, times: Times | None) -> MessageForm:
    there, back = frames
    wires = (_wire_number(there, request, "request_bytes"), _wire_number(back, response, "response_bytes"))
    received = _per_request(there, back, "received", wires)
    sent = _per_request(back, there, "sent", wires)
    busier = max(received, sent, key=lambda n: n.value)
    link, rate = load.link, load.requests_per_s
    low, high = busier.ends
    saturating = derived(
        link.value / busier.value, "request/s", "the link's rate over the bytes of its busier direction", [("link_bytes_per_s", link), ("bytes", busier)],
        interval=(link.value / high, link.value / low), interval_kind="from the bytes' band",
    )  # fmt: skip
    rates = [None if rate is None else _times_rate(n, rate) for n in (received, sent)]
    share = None if rate is None else derived(
        rate.value * busier.value / link.value, "ratio", "busier direction over the link's rate", [("requests_per_s", rate), ("link_bytes_per_s", link)],
        interval=(rate.value * low / link.value, rate.value * high / link.value), interval_kind="from the bytes' band",
    )  # fmt: skip
    write_request, read_request, write_response, read_response, codec_rate = times or (None,) * 5
    return MessageForm(
        form=form,
        request_bytes=request,
        response_bytes=response,
        request_wire_bytes=wires[0],
        response_wire_bytes=wires[1],
        write_request_time=write_request,
        read_request_time=read_request,
        write_response_time=write_response,
        read_response_time=read_response,
        codec_bytes_per_s=codec_rate,
        received_bytes_per_s=rates[0],
        sent_bytes_per_s=rates[1],
        link_share=share,
        saturating_rate=saturating,
        egress_cost=_egress(back, load, wires[1]),
    )


def _per_request(own: _Wire, other: _Wire, way: str, wires: tuple[Number, Number]) -> Number:
    """Bytes in one direction a request: a message, and the acknowledgements of the message against it."""
    value, low, high = ((a.line + b.acknowledged) for a, b in ((own.expected, other.expected), (own.low, other.low), (own.high, other.high)))
    inputs = [("request_wire_bytes", wires[0]), ("response_wire_bytes", wires[1])]
    band = (min(low, value), max(high, value))
    return derived(value, "B", f"{way} a request, with acknowledgements", inputs, interval=band, interval_kind="from the bytes' band")


def _times_rate(per_request: Number, rate: Number) -> Number:
    low, high = per_request.ends
    return derived(
        per_request.value * rate.value, "B/s", f"{per_request.method}, times the rate", [("requests_per_s", rate), ("bytes", per_request)],
        interval=(low * rate.value, high * rate.value), interval_kind="from the bytes' band",
    )  # fmt: skip


def _egress(back: _Wire, load: LoadOnLink, wire: Number) -> Number | None:
    """USD an hour for what leaves; providers bill IP packets, not Ethernet's framing."""
    rate, price = load.requests_per_s, load.egress_price
    if rate is None or price is None:
        return None
    value, low, high = (framed.sent * rate.value * 3600 / 1e9 * price.value for framed in (back.expected, back.low, back.high))
    return derived(
        value, "USD/h", "response bytes as IP packets, times rate and price",
        [("response_wire_bytes", wire), ("requests_per_s", rate), ("egress_price", price)],
        interval=(min(low, value), max(high, value)), interval_kind="from the bytes' band",
    )  # fmt: skip


# --- time to write and read ------------------------------------------------------------------


def _times(name: str, parts: tuple[Sequence[Part], Sequence[Part]], codecs: Codecs | None, budget_s: float) -> tuple[dict[str, Times], list[Note]]:
    if codecs is None:
        return {}, [Note(code="missing:serialisation", text="times to write and read messages were not measured here")]
    import torch

    from ..environment import read_environment

    environment = read_environment(torch.device("cpu")).id
    count = sum(math.prod(part.shape) for side in parts for part in side)
    timed = tuple([_resized(part, min(1.0, TIMED_ELEMENTS / max(count, 1))) for part in side] for side in parts)
    grown = max(1, min(GROWN_ITEMS, TIMED_ELEMENTS // max(count, 1)))
    # A message that is already long grows from a quarter of itself instead.
    other = tuple([_resized(part, float(grown) if grown > 1 else 0.25) for part in side] for side in timed)
    made, others = codecs(name, *timed), codecs(name, *other)
    found: dict[str, Times] = {}
    notes = []
    for form, codec in made.items():
        other_codec = others[form]
        if isinstance(codec, str) or isinstance(other_codec, str):
            why = codec if isinstance(codec, str) else other_codec
            notes.append(Note(code=f"missing:serialisation:{form}", text=f"not measured: {why}"))
            continue
        pairs = [(c, measure_codec(c, budget_s=budget_s / (2 * len(made)), environment=environment)) for c in (codec, other_codec)]
        small, large = pairs if grown > 1 else pairs[::-1]
        times = [_scaled(t, count) for t in pairs[0][1]]
        found[form] = (times[0], times[1], times[2], times[3], growth(small[0], large[0], small[1], large[1]))
    return found, notes


def _resized(part: Part, factor: float) -> Part:
    """The same tensor with `factor` times as many elements, laid out flat; itself where nothing changes."""
    if factor == 1.0:
        return part
    count = math.prod(part.shape)
    wanted = max(1, round(count * factor)) if count else 0
    values = sample_values(part).flatten()
    return replace(part, shape=(wanted,), values=values.repeat(math.ceil(wanted / count))[:wanted] if count else values)


def _scaled(number: Number, count: int) -> Number:
    if count <= TIMED_ELEMENTS:
        return number
    factor = count / TIMED_ELEMENTS
    low, high = number.ends
    return derived(
        number.value * factor, "s", f"{number.method}, scaled from {TIMED_ELEMENTS} of {count} elements", [("timed", number)],
        interval=(0.7 * low * factor, 1.5 * high * factor), interval_kind="95 % interval of the median, widened for the scaling",
    )  # fmt: skip
