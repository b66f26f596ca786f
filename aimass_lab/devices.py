"""Reads devices.toml, the catalogue of devices, and the user's own additions to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .errors import InputError, UnknownNameError
from .records import Number, Unit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOGUE = Path(__file__).with_name("devices.toml")
ENVIRONMENT_VARIABLE = "AIMASS_DEVICES"

Precision = Literal["float32", "tf32", "float16", "bfloat16", "float8", "int8"]
Kind = Literal["cpu", "gpu"]
_Figure = Literal["memory_bytes", "memory_bytes_per_s", "flops_per_s", "link_bytes_per_s", "pcie_bytes_per_s", "tdp_w"]
_UNITS: dict[_Figure, Unit] = {
    "memory_bytes": "B",
    "memory_bytes_per_s": "B/s",
    "link_bytes_per_s": "B/s",
    "pcie_bytes_per_s": "B/s",
    "tdp_w": "W",
}
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Price = Annotated[float, msgspec.Meta(ge=0)]


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the catalogue; None, or a precision that is missing, means unknown."""

    name: str
    """Its key in the catalogue: ``"l4"``."""
    title: str
    kind: Kind
    memory_bytes: Number | None = None
    memory_bytes_per_s: Number | None = None
    flops_per_s: dict[Precision, Number] = {}
    """Dense peak by precision; 16-bit figures accumulate in 32 bits."""
    link_bytes_per_s: Number | None = None
    """To other devices of its kind, both directions together."""
    pcie_bytes_per_s: Number | None = None
    """To the host, both directions together."""
    tdp_w: Number | None = None
    price_usd_per_h: Number | None = None
    """Given by the user; the catalogue that ships has no prices."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of a catalogue file, as it is written."""

    title: str | None = None
    kind: Kind | None = None
    memory_bytes: _Positive | None = None
    memory_bytes_per_s: _Positive | None = None
    flops_per_s: dict[Precision, _Positive] = {}
    link_bytes_per_s: _Positive | None = None
    pcie_bytes_per_s: _Positive | None = None
    tdp_w: _Positive | None = None
    price_usd_per_h: _Price | None = None
    source: str | None = None
    sources: dict[_Figure, str] = {}


def load_devices(extra: Path | None = None) -> dict[str, Device]:
    """Return the catalogue by name, with the user's additions over it.

    Args:
        extra: A TOML file in the form of the catalogue. None: the file that the environment
            variable ``AIMASS_DEVICES`` names, else ``devices.toml`` in the user's
            configuration folder, where there is one. A table may add a device, or replace
            single figures (or add ``price_usd_per_h``) of one that ships.

    Raises:
        InputError: a file cannot be read, is no TOML, or has a field that is unknown or
            out of range; the message has the file and the field.
    """
    devices = _merge({}, CATALOGUE)
    path = extra or _user_file()
    return _merge(devices, path) if path else devices


def get_device(name: str, extra: Path | None = None) -> Device:
    """Return one entry of the catalogue.

    Raises:
        UnknownNameError: there is no such device; the message lists those there are.
        InputError: as `load_devices`.
    """
    devices = load_devices(extra)
    if name not in devices:
        raise UnknownNameError("device", name, devices)
    return devices[name]


def _user_file() -> Path | None:
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named)
    from platformdirs import user_config_path

    path = user_config_path("aimass_lab") / "devices.toml"
    return path if path.is_file() else None


def _merge(devices: dict[str, Device], path: Path) -> dict[str, Device]:
    merged = dict(devices)
    for name, entry in _read(path).items():
        merged[name] = _overlay(merged.get(name), name, entry, path)
    return merged


def _read(path: Path) -> dict[str, _Entry]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the device catalogue {path}: {error}", help="it is a TOML file with one table a device") from error
    return {name: _entry(name, table, path) for name, table in tables.items()}


def _entry(name: str, table: Any, path: Path) -> _Entry:
    try:
        return msgspec.convert(table, _Entry)
    except msgspec.ValidationError as error:
        known = ", ".join(_Entry.__struct_fields__)
        raise InputError(f"{path}: device [{name}]: {error}", help=f"fields of a device: {known}") from error


def _overlay(base: Device | None, name: str, entry: _Entry, path: Path) -> Device:
    """Lay `entry` over `base`, figure by figure."""
    kind = entry.kind or (base.kind if base else None)
    if kind is None:
        raise InputError(f"{path}: device [{name}] has no kind", help='add kind = "gpu" or kind = "cpu"')
    fields: dict[str, Any] = {} if base is None else {field: getattr(base, field) for field in base.__struct_fields__}
    fields |= {"name": name, "kind": kind, "title": entry.title or fields.get("title", name)}
    for figure, unit in _UNITS.items():
        value = getattr(entry, figure)
        if value is not None:
            fields[figure] = _number(value, unit, figure, name, entry, path)
    peaks = {dtype: _number(value, "FLOP/s", "flops_per_s", name, entry, path) for dtype, value in entry.flops_per_s.items()}
    fields["flops_per_s"] = {**fields.get("flops_per_s", {}), **peaks}
    if entry.price_usd_per_h is not None:
        fields["price_usd_per_h"] = Number(value=entry.price_usd_per_h, unit="USD/h", source="user", method=f"price given in {path.name}")
    return Device(**fields)


def _number(value: float, unit: Unit, figure: _Figure, name: str, entry: _Entry, path: Path) -> Number:
    """A cited figure is the datasheet's; in a user's own file an uncited one is the user's."""
    source = entry.sources.get(figure, entry.source)
    if source is None and path == CATALOGUE:
        raise InputError(f"{path}: device [{name}] gives {figure} without a source", help="cite it, or leave the figure out")
    whole = int(value) if unit == "B" else value
    if source is None:
        return Number(value=whole, unit=unit, source="user", method=f"given in {path.name}")
    return Number(value=whole, unit=unit, source="datasheet", method=source)
