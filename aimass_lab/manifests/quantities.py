"""Quantities as Kubernetes and compose write them."""

from __future__ import annotations

import re
from typing import Any

_SUFFIX = {"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SUFFIX |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?)")
_COMPOSE = re.compile(r"(\d+)(b|k|kb|m|mb|g|gb)?", re.IGNORECASE)
_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def parse_quantity(value: Any) -> float | None:
    """Kubernetes' resource quantity (``"1500m"``, ``"2Gi"``, ``4``) as a number; None for what it would refuse."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    return float(match[1] + (match[2] or "")) * _SUFFIX[match[3] or ""]


def parse_size(value: Any) -> float | None:
    """Compose's size in bytes (``"700M"`` is 700 MiB); None for what it would refuse."""
    match = _COMPOSE.fullmatch(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if match is None:
        return None
    return float(match[1]) * 1024.0 ** " kmg".index((match[2] or "b")[0].lower().replace("b", " "))


def parse_span(value: Any) -> float | None:
    """A duration such as ``"1m30s"`` in seconds; None for anything else."""
    match = _SPAN.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
