"""What a model puts on networks and buses: requests, copies, roll-outs, and traffic between devices."""

from __future__ import annotations

import msgspec

from .model import ModelInfo
from .number import Note, Number, Record


class MessageForm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to write a request and its response, one item in each."""

    form: str
    """``"json"``, ``"binary"``, ``"grpc"`` of the Open Inference Protocol v2; ``"json, base64"`` as other services take it."""
    request_bytes: Number
    """The body alone."""
    response_bytes: Number
    request_wire_bytes: Number
    """With heads or frames, TLS, TCP/IP and Ethernet: what takes up the link."""
    response_wire_bytes: Number
    write_request_time: Number | None = None
    """CPU time at the client."""
    read_request_time: Number | None = None
    """CPU time at the server, its checks included."""
    write_response_time: Number | None = None
    read_response_time: Number | None = None
    codec_bytes_per_s: Number | None = None
    """By how much the four together grow: body bytes over CPU time."""
    received_bytes_per_s: Number | None = None
    """By the service at the request rate."""
    sent_bytes_per_s: Number | None = None
    link_share: Number | None = None
    """Of the busier direction of the link."""
    saturating_rate: Number
    """Requests at which the busier direction of the link is full."""
    egress_cost: Number | None = None
    """Of the bytes sent, at the user's price."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes on one rank's link, or one way to spread weights."""

    name: str
    kind: str
    """``"all-reduce"``, ``"all-gather"``, ``"send"`` ...; of a roll-out: who sends to whom."""
    calls: int
    """How often a step waits for it."""
    bytes: Number
    """Sent by one rank; of a roll-out by the busiest machine."""
    time: Number | None = None
    """One call after another, nothing hidden behind computation."""


class NetworkDemand(Record, frozen=True, kw_only=True, tag="network_demand"):
    """What a model asks of networks and buses; nothing was sent."""

    model: ModelInfo
    batch_size: int
    """Items per call in copies and steps; messages carry one."""
    device: str
    requests_per_s: Number | None = None
    link_bytes_per_s: Number
    """One direction of a machine's network link."""
    forms: tuple[MessageForm, ...]
    host_to_device_bytes: Number
    """Inputs of one call."""
    device_to_host_bytes: Number
    host_to_device_time: Number | None = None
    device_to_host_time: Number | None = None
    egress_price: Number | None = None
    weight_bytes: Number
    image_bytes: Number | None = None
    """The bundle's container image, uncompressed, weights in."""
    weights_time: Number
    """One download of the weights."""
    image_time: Number | None = None
    replicas: int
    rollouts: tuple[Traffic, ...]
    strategy: str
    """How several devices share the work: ``"none"``, ``"ddp"``, ``"zero3"`` ..."""
    ranks: int
    step: tuple[Traffic, ...]
    """Of one training step, on one rank."""
    step_bytes: Number | None = None
    step_time: Number | None = None
    kv_transfer_bytes: Number | None = None
    """Keys and values of one request of this length, from a prefill server to a decode server."""
    notes: tuple[Note, ...] = ()
