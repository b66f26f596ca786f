"""Which device each model worker computes on, and how a worker sees no other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import BundleError, ServerError

CPU = "cpu"
_NAMES = re.compile(r"cpu|cuda:[0-9]{1,3}")


def parse_devices(text: str) -> tuple[str, ...]:
    """``"cuda:0,cuda:1"`` -> one name a worker.

    Raises:
        ServerError: a name that is none.
    """
    names = tuple(name.strip() for name in text.split(","))
    if wrong := [name for name in names if not _NAMES.fullmatch(name)]:
        raise ServerError(f"{wrong[0]!r} is no device: name cpu or cuda:NUMBER for each worker, such as cuda:0,cuda:1")
    return names


def device_of(devices: Sequence[str], place: int) -> str:
    """Where the worker of a place computes; they take turns where there are more workers than devices."""
    return devices[place % len(devices)]


def device_environment(device: str) -> dict[str, str]:
    """What a worker's process gets so that its device is the only one that it sees, as number 0."""
    return {"CUDA_VISIBLE_DEVICES": device.partition(":")[2]}


def require_kind(format: str, kinds: Sequence[str], device: str) -> str:
    """``"cuda"`` of ``"cuda:1"``, for a format that computes there.

    Raises:
        BundleError: it does not.
    """
    kind = device.partition(":")[0]
    if kind not in kinds:
        raise BundleError(f"a bundle in the format {format} computes on {', '.join(kinds)}, not on {device}; write it with --format onnx for that")
    return kind
