"""Reads devices.toml, the catalogue of devices, and the user's own additions to it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from .errors import InputError, UnknownNameError, reason_of
from .options import read_table
from .records import BatchPoint, Number, Unit, derived
from .units import parse_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOGUE = Path(__file__).with_name("devices.toml")
ENVIRONMENT_VARIABLE = "AIMASS_DEVICES"

Precision = Literal["float32", "tf32", "float16", "bfloat16", "float8", "int8"]
Kind = Literal["cpu", "gpu", "fpga", "other"]
Isa = Literal["neon", "avx2", "avx512-1fma", "avx512", "amx"]
_Figure = Literal[
    "memory_bytes", "memory_bytes_per_s", "flops_per_s", "link_bytes_per_s", "pcie_bytes_per_s", "tdp_w",
    "num_multiprocessors", "clock_hz", "cache_bytes", "num_cores",
]  # fmt: skip
_UNITS: dict[_Figure, Unit] = {
    "memory_bytes": "B",
    "memory_bytes_per_s": "B/s",
    "link_bytes_per_s": "B/s",
    "pcie_bytes_per_s": "B/s",
    "tdp_w": "W",
    "num_multiprocessors": "core",
    "clock_hz": "Hz",
    "cache_bytes": "B",
    "num_cores": "core",
}
FLOPS_PER_CYCLE: dict[Isa, dict[Precision, int]] = {
    "neon": {"float32": 16},
    "avx2": {"float32": 32},
    "avx512-1fma": {"float32": 32},
    "avx512": {"float32": 64},
    "amx": {"float32": 64, "bfloat16": 1024, "int8": 2048},
}
"""FLOP that one core does in a cycle: lanes times fused multiply-add units times 2; AMX as Intel's optimisation manual states it."""
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
    num_multiprocessors: Number | None = None
    """Of a GPU; what its tiles of work are dealt out to."""
    clock_hz: Number | None = None
    """The boost clock."""
    cache_bytes: Number | None = None
    """The cache that all multiprocessors share."""
    compute_capability: str | None = None
    """NVIDIA's word for a generation: ``"9.0"``."""
    driver_names: tuple[str, ...] = ()
    """Beginnings of the names by which the driver calls it."""
    num_cores: Number | None = None
    """Of a processor."""
    isa: Isa | None = None
    """Of a processor: its widest vector instructions."""
    mig_slices: Literal[4, 7] | None = None
    """Of a GPU with MIG: most instances that it can be cut into."""
    resource: str | None = None
    """Name under which a cluster offers it, as its vendor's device plugin says: ``"nvidia.com/gpu"``."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes of a cluster that have it."""
    latency_s: dict[str, dict[int, float]] = {}
    """By model: seconds of a call by batch size, where the user knows them. A variant is named after model and recipe: ``"net int8_dynamic"``."""

    def ladder(self, variant: str) -> tuple[BatchPoint, ...]:
        """The given latencies of a model or variant by batch size; empty where none are."""
        return given_ladder(self.latency_s.get(variant, {}), f"given for {self.name}")


def given_ladder(latency_s: Mapping[int, float], method: str) -> tuple[BatchPoint, ...]:
    """What the user says a call takes, as latencies by batch size; all percentiles are the same.

    Args:
        latency_s: Batch size -> seconds.
        method: Where the numbers come from, in words.
    """

    def point(size: int, seconds: float) -> BatchPoint:
        number = Number(value=seconds, unit="s", source="user", method=method)
        throughput = derived(size / seconds, "item/s", "items over latency", [("latency", number)])
        return BatchPoint(batch_size=size, latency_p50=number, latency_p95=number, latency_p99=number, throughput=throughput)

    return tuple(point(size, seconds) for size, seconds in sorted(latency_s.items()))


def resource_name(device: str, attached: str = "") -> str | None:
    """The name under which a cluster offers a device; None where nothing says so.

    Args:
        device: Of the catalogue, or torch's name of an attached one.
        attached: What the driver calls the attached device.
    """
    entry = load_devices().get(device)
    if entry is not None and entry.resource is not None:
        return entry.resource
    if entry is not None and entry.kind != "gpu":
        return None
    title = entry.title if entry is not None else attached
    vendors = {"AMD ": "amd.com/gpu", "Intel ": None}  # Intel's accelerators have a name each
    return next((name for vendor, name in vendors.items() if title.startswith(vendor)), "nvidia.com/gpu")


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
    num_multiprocessors: _Positive | None = None
    clock_hz: _Positive | None = None
    cache_bytes: _Positive | None = None
    compute_capability: str | None = None
    driver_names: tuple[str, ...] = ()
    num_cores: _Positive | None = None
    isa: Isa | None = None
    mig_slices: Literal[4, 7] | None = None
    resource: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")] | None = None
    node_selector: dict[str, str] = {}
    latency: dict[str, dict[str, float | str]] = {}
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
    """Return one entry of the catalogue, by its key or by the name that the driver of such a device reports.

    Raises:
        UnknownNameError: there is no such device; the message lists those there are.
        InputError: as `load_devices`.
    """
    devices = load_devices(extra)
    if name in devices:
        return devices[name]
    reported = find_by_driver_name(name, extra=extra)
    if reported is None:
        raise UnknownNameError("device", name, devices)
    return reported


def find_by_driver_name(reported: str, memory_bytes: float | None = None, extra: Path | None = None) -> Device | None:
    """Return the entry of the device that a driver calls `reported`, or None.

    Drivers say more than a catalogue's name does: ``"NVIDIA H100 80GB HBM3"`` is ``h100-sxm``. The longest of the
    `Device.driver_names` that `reported` begins with wins; among equals the one nearest in memory.

    Args:
        reported: The driver's name.
        memory_bytes: The driver's memory size, which is up to a tenth below the vendor's figure or above it.
        extra: As for `load_devices`.

    Raises:
        InputError: as `load_devices`.
    """
    found = [(len(name), device) for device in load_devices(extra).values() for name in device.driver_names if _begins(reported, name)]

    def distance(device: Device) -> float:
        if memory_bytes is None or device.memory_bytes is None:
            return 0.0
        return abs(math.log(memory_bytes / device.memory_bytes.value))

    near = [(length, device) for length, device in found if distance(device) < math.log(1.15)]
    return max(near, key=lambda pair: (pair[0], -distance(pair[1])))[1] if near else None


_OTHER_CARDS = frozenset({"ti", "super", "laptop", "max-q", "mobile", "d", "nvl"})


def _begins(reported: str, name: str) -> bool:
    # "NVIDIA A10" is not "NVIDIA A100", and an RTX 3090 Ti is another card than an RTX 3090
    rest = reported.lower().removeprefix(name.lower())
    return rest != reported.lower() and not rest[:1].isalnum() and not _OTHER_CARDS & set(rest.split())


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
        raise InputError(f"cannot read the device catalogue {path}: {reason_of(error)}", help="it is a TOML file with one table a device") from error
    return {name: _entry(name, table, path) for name, table in tables.items()}


def _entry(name: str, table: Any, path: Path) -> _Entry:
    return read_table(table, _Entry, f"{path}: device [{name}]", help=f"fields of a device: {', '.join(_Entry.__struct_fields__)}")


def _overlay(base: Device | None, name: str, entry: _Entry, path: Path) -> Device:
    """Lay `entry` over `base`, figure by figure."""
    kind = entry.kind or (base.kind if base else None)
    if kind is None:
        raise InputError(f"{path}: device [{name}] has no kind", help=f"add kind = {' or '.join(repr(word) for word in get_args(Kind))}")
    fields: dict[str, Any] = {} if base is None else {field: getattr(base, field) for field in base.__struct_fields__}
    fields |= {"name": name, "kind": kind, "title": entry.title or fields.get("title", name)}
    for figure, unit in _UNITS.items():
        value = getattr(entry, figure)
        if value is not None:
            fields[figure] = _number(value, unit, figure, name, entry, path)
    fields |= {
        word: value for word in ("compute_capability", "driver_names", "isa", "mig_slices", "resource", "node_selector") if (value := getattr(entry, word))
    }
    if entry.latency:
        fields["latency_s"] = {**fields.get("latency_s", {}), **{model: _latencies(name, sizes, path) for model, sizes in entry.latency.items()}}
    peaks = {dtype: _number(value, "FLOP/s", "flops_per_s", name, entry, path) for dtype, value in entry.flops_per_s.items()}
    fields["flops_per_s"] = {**_peaks_of_cores(fields), **fields.get("flops_per_s", {}), **peaks}
    if entry.price_usd_per_h is not None:
        fields["price_usd_per_h"] = Number(value=entry.price_usd_per_h, unit="USD/h", source="user", method=f"price given in {path.name}")
    return Device(**fields)


def _latencies(device: str, sizes: Mapping[str, float | str], path: Path) -> dict[int, float]:
    """Read ``{ "1" = "2ms", "8" = "9ms" }``."""
    wrong = [size for size in sizes if not size.isdigit() or int(size) < 1]
    if wrong:
        raise InputError(f"{path}: device [{device}]: {wrong[0]!r} is no batch size", help='latency = { net = { "1" = "2ms", "8" = "9ms" } }')
    return {int(size): parse_seconds(text) for size, text in sizes.items()}


def _peaks_of_cores(fields: dict[str, Any]) -> dict[Precision, Number]:
    """Peaks of a processor by its cores, clock and instructions; nothing where one of them is missing."""
    cores, clock, isa = fields.get("num_cores"), fields.get("clock_hz"), fields.get("isa")
    if cores is None or clock is None or isa is None:
        return {}
    inputs = [("num_cores", cores), ("clock_hz", clock)]
    return {
        dtype: derived(cores.value * clock.value * per_cycle, "FLOP/s", f"cores times clock times {per_cycle} FLOP a cycle ({isa})", inputs)
        for dtype, per_cycle in FLOPS_PER_CYCLE[cast(Isa, isa)].items()
    }


def _number(value: float, unit: Unit, figure: _Figure, name: str, entry: _Entry, path: Path) -> Number:
    """A cited figure is the datasheet's; in a user's own file an uncited one is the user's."""
    source = entry.sources.get(figure, entry.source)
    if source is None and path == CATALOGUE:
        raise InputError(f"{path}: device [{name}] gives {figure} without a source", help="cite it, or leave the figure out")
    whole = int(value) if unit == "B" else value
    if source is None:
        return Number(value=whole, unit=unit, source="user", method=f"given in {path.name}")
    return Number(value=whole, unit=unit, source="datasheet", method=source)
