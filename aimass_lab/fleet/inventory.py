"""The fleet: which nodes there are, read from a user's table or made from names of the device catalogue."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..devices import Device, Kind, load_devices
from ..errors import InputError, UnknownNameError, reason_of
from ..options import read_tables
from ..records import Number
from ..units import format_bytes, parse_bytes, parse_seconds
from .problem import WHOLE, Quota, Resource
from .shares import Share, read_share

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOOT = Number(value=120, unit="s", source="assumed", method="no boot time given")

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Amount = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _NodeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[nodes.NAME]``, as it is written."""

    device: str | None = None
    """Name of the device catalogue, or an attached device; the node's own name if not given."""
    kind: Kind | None = None
    """Of a device that no catalogue has, such as fpga: then `latency` says what it does."""
    devices: Annotated[int, msgspec.Meta(ge=1)] = 1
    device_memory: float | str | None = None
    """Of one device; the catalogue's if not given."""
    cores: _Positive | None = None
    memory: float | str | None = None
    price: _Amount | None = None
    count: _Count | None = None
    boot: float | str | None = None
    shares: tuple[str, ...] = (WHOLE,)
    latency: dict[str, dict[str, float | str]] = {}
    """By model: batch size -> latency, where the user knows better than any estimate."""


class _TenantTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[tenants.NAME]``, as it is written."""

    models: tuple[str, ...] = ()
    weight: _Positive = 1.0
    replicas: _Amount | None = None
    devices: _Amount | None = None
    cores: _Amount | None = None
    memory: float | str | None = None


class _FleetFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nodes: dict[str, _NodeTable] = {}
    tenants: dict[str, _TenantTable] = {}


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """One type of node, with the source of each figure; None: unknown, or without a limit."""

    name: str
    device: str
    """What latencies are asked for: an attached device or one of the catalogue."""
    on_processor: bool
    """Replicas compute on the node's cores and need no device."""
    devices: int
    """Accelerators in one node; 0 where replicas compute on its cores."""
    cores: Number | None = None
    memory: Number | None = None
    device_memory: Number | None = None
    price: Number | None = None
    count: int | None = None
    boot: Number
    shares: tuple[Share, ...]
    latency: dict[str, dict[int, float]]
    """By model: seconds by batch size, as the user gave them."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All there is."""

    kinds: tuple[NodeKind, ...]
    tenants: dict[str, str]
    """Model -> tenant."""
    weights: dict[str, float]
    """Tenant -> weight."""
    quotas: tuple[Quota, ...]


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What is known of this machine, for nodes of its own kind."""

    device: str
    """torch's name: ``"cpu"``, ``"cuda:0"``."""
    cores: float
    memory: float
    """Bytes that a process may use on the device."""


def read_fleet(
    path: Path | None, attached: Attached, *, nodes: Sequence[str] = (), counts: Mapping[str, int] | None = None, prices: Mapping[str, float] | None = None
) -> Fleet:
    """Put the fleet together.

    Args:
        path: A TOML file with a table ``[nodes.NAME]`` for each type of node and ``[tenants.NAME]`` for each tenant.
        attached: This machine.
        nodes: Further types, each a name of the device catalogue or an attached device: nodes of one device.
        counts: Most nodes by type; goes before the file's.
        prices: USD per hour and node by type; goes before the file's, and the file's before the device catalogue's.

    Raises:
        InputError: the file cannot be read, a field is unknown or out of range, or there is no node at all.
        UnknownNameError: there is no such device.
    """
    written = _read(path) if path else _FleetFile()
    tables = {**written.nodes, **{name: _NodeTable() for name in nodes if name not in written.nodes}}
    if not tables:
        tables = {attached.device: _NodeTable()}
    for option, names in (("count", counts or {}), ("price", prices or {})):
        for name in names:
            if name not in tables:
                raise InputError(f"there is a {option} for {name!r}, which is no type of node here", help=f"types: {', '.join(tables)}")
    kinds = tuple(_kind(name, table, attached, (counts or {}).get(name), (prices or {}).get(name)) for name, table in tables.items())
    tenants = {model: tenant for tenant, table in written.tenants.items() for model in table.models}
    quotas = tuple(quota for tenant, table in written.tenants.items() for quota in _quotas(tenant, table))
    return Fleet(kinds=kinds, tenants=tenants, weights={name: table.weight for name, table in written.tenants.items()}, quotas=quotas)


def read_quota(tenant: str, text: str) -> tuple[Quota, ...]:
    """Read ``"devices:2,cores:16,memory:64GB,replicas:4"``.

    Raises:
        InputError: it is not of that form.
    """
    fields: dict[str, Any] = {}
    for part in text.split(","):
        resource, colon, amount = part.partition(":")
        if not colon or resource.strip() not in ("replicas", "devices", "cores", "memory"):
            raise InputError(f"quota {tenant}={text}: {part!r} is no quota", help="for example devices:2,cores:16,memory:64GB,replicas:4")
        fields[resource.strip()] = amount.strip()
    try:
        table = msgspec.convert({name: amount if name == "memory" else float(amount) for name, amount in fields.items()}, _TenantTable)
    except (ValueError, msgspec.ValidationError):
        raise InputError(f"quota {tenant}={text}: an amount is not a number above 0", help="for example devices:2,cores:16,memory:64GB,replicas:4") from None
    return _quotas(tenant, table)


def _quotas(tenant: str, table: _TenantTable) -> tuple[Quota, ...]:
    limits: dict[Resource, float | None] = {
        "replicas": table.replicas,
        "devices": table.devices,
        "cores": table.cores,
        "memory": None if table.memory is None else parse_bytes(table.memory),
    }
    return tuple(Quota(tenant=tenant, resource=resource, limit=limit) for resource, limit in limits.items() if limit is not None)


def _read(path: Path) -> _FleetFile:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        help = "it is a TOML file with a table [nodes.NAME] for each type of node"
        raise InputError(f"cannot read the fleet {path}: {reason_of(error)}", help=help) from error
    fields = f"fields of a node: {', '.join(_NodeTable.__struct_fields__)}; of a tenant: {', '.join(_TenantTable.__struct_fields__)}"
    return read_tables(tables, _FleetFile, {"nodes": _NodeTable, "tenants": _TenantTable}, str(path), help=fields)


def _given(value: float, unit: Any) -> Number:
    return Number(value=value, unit=unit, source="user", method="given for this type of node")


def _kind(name: str, table: _NodeTable, attached: Attached, count: int | None, price: float | None) -> NodeKind:
    device = table.device or name
    attached_name = device.partition(":")[0] in ("cpu", "cuda")
    entry = None if attached_name or table.kind is not None else _entry(device)
    processor = device == "cpu" or "cpu" in (table.kind, entry and entry.kind)
    cores = _given(table.cores, "core") if table.cores is not None else None
    memory = None if table.memory is None else _given(parse_bytes(table.memory), "B")
    if device == "cpu":
        here = "of this machine, which such a node is taken to be like"
        cores = cores or Number(value=attached.cores, unit="core", source="measured", method=f"cores {here}")
        if attached.device == "cpu":
            memory = memory or Number(value=attached.memory, unit="B", source="measured", method=f"memory {here}")
    if processor and cores is None:
        cores = entry.num_cores if entry else None
        if cores is None:
            raise InputError(f"how many cores a node {name!r} has is not known", help="give them: cores = 8")
    shares = tuple(read_share(text, entry) for text in table.shares)
    if processor and any(share.kind != WHOLE for share in shares):
        raise InputError(f"node {name!r}: replicas on a processor share its cores and memory; {', '.join(table.shares)} is for accelerators")
    paid = price if price is not None else table.price
    return NodeKind(
        name=name,
        device=device,
        on_processor=processor,
        devices=0 if processor else table.devices,
        cores=cores,
        memory=memory,
        device_memory=None if processor else _device_memory(device, entry, table, attached),
        price=_given(paid, "USD/h") if paid is not None else _catalogue_price(entry, table.devices),
        count=count if count is not None else table.count,
        boot=BOOT if table.boot is None else _given(parse_seconds(table.boot), "s"),
        shares=shares,
        latency={
            **(entry.latency_s if entry else {}),
            **{model: {_whole(name, size): parse_seconds(text) for size, text in sizes.items()} for model, sizes in table.latency.items()},
        },
    )


def _entry(device: str) -> Device:
    devices = load_devices()
    if device not in devices:
        raise UnknownNameError("device", device, [*devices, "cuda:0"])
    return devices[device]


def _catalogue_price(entry: Device | None, devices: int) -> Number | None:
    price = entry.price_usd_per_h if entry else None
    return None if price is None else Number(value=devices * price.value, unit="USD/h", source="user", method=f"{devices} x {price.method}")


def _device_memory(device: str, entry: Device | None, table: _NodeTable, attached: Attached) -> Number | None:
    if table.device_memory is not None:
        return _given(parse_bytes(table.device_memory), "B")
    if entry is not None or table.kind is not None:
        return entry.memory_bytes if entry else None
    if device != attached.device:
        raise InputError(f"{device!r} is not what the model is on ({attached.device})", help="name a device of the catalogue, or move the model there")
    return Number(value=attached.memory, unit="B", source="measured", method=f"what a process may use: {format_bytes(attached.memory)}")


def _whole(node: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"node {node!r}: {text!r} is no batch size", help='latency = { mynet = { "1" = "2ms", "8" = "9ms" } }')
    return int(text)
