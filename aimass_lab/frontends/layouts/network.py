"""How network demand is shown."""

from __future__ import annotations

from ...headlines import headline
from ...records import NetworkDemand, Traffic
from ..page import Cell, Page, Table, share
from .base import lay_out, notes_of


@lay_out.register
def _(record: NetworkDemand) -> Page:
    full = record.requests_per_s is not None and all(f.link_share is not None and f.link_share.value > 1 for f in record.forms)
    return Page(
        title=f"Network demand of {record.model.name}",
        headline=headline(record),
        tone="bad" if full else "plain",
        facts=(
            ("link, one direction", record.link_bytes_per_s),
            ("request rate", record.requests_per_s),
            ("price of egress", record.egress_price),
            ("host to device, a call", record.host_to_device_bytes),
            ("takes", record.host_to_device_time),
            ("device to host, a call", record.device_to_host_bytes),
            ("takes", record.device_to_host_time),
            ("weights", record.weight_bytes),
            ("download of the weights", record.weights_time),
            ("container image", record.image_bytes),
            ("pull of the image", record.image_time),
            ("keys and values of a request", record.kv_transfer_bytes),
            *((("a step, one rank sends", record.step_bytes), ("communication of a step", record.step_time)) if record.ranks > 1 else ()),
        ),
        tables=(_bytes(record), _codecs(record), *((_load(record),) if record.requests_per_s else ()), *_traffic(record)),
        notes=notes_of(record.notes),
    )


def _bytes(record: NetworkDemand) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (f.form, f.request_bytes, f.response_bytes, f.request_wire_bytes, f.response_wire_bytes, f.saturating_rate) for f in record.forms
    ]
    columns = ("form", "request", "response", "request on the wire", "response on the wire", "link full at")
    return Table(title="One item's message, by form", columns=columns, rows=tuple(rows))


def _codecs(record: NetworkDemand) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (f.form, f.write_request_time, f.read_request_time, f.write_response_time, f.read_response_time, f.codec_bytes_per_s)
        for f in record.forms
        if f.write_request_time is not None
    ]
    columns = ("form", "client writes", "server reads", "server writes", "client reads", "grows by")
    return Table(title="CPU time to write and read it, measured here", columns=columns, rows=tuple(rows))


def _load(record: NetworkDemand) -> Table:
    rows: list[tuple[Cell, ...]] = [(f.form, f.received_bytes_per_s, f.sent_bytes_per_s, share(f.link_share), f.egress_cost) for f in record.forms]
    return Table(title="At the request rate", columns=("form", "in", "out", "share of the link", "egress"), rows=tuple(rows))


def _traffic(record: NetworkDemand) -> list[Table]:
    rollout = Table(
        title=f"Weights to {record.replicas} replica{'s' if record.replicas > 1 else ''}",
        columns=("way", "busiest machine sends", "until the last has them"),
        rows=tuple((t.kind, t.bytes, t.time) for t in record.rollouts),
    )
    if not record.step:
        return [rollout]
    columns = ("what", "collective", "calls", "one rank sends", "takes")
    return [rollout, Table(title=f"A training step, {record.strategy} on {record.ranks} ranks", columns=columns, rows=tuple(map(_row, record.step)))]


def _row(traffic: Traffic) -> tuple[Cell, ...]:
    return traffic.name, traffic.kind, traffic.calls, traffic.bytes, traffic.time
