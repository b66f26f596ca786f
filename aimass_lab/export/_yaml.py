"""Writes YAML with a comment beside each value, which no YAML library does from plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_ONE_LINE = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]")


@dataclass(frozen=True)
class Said:
    """A value with the comment that stands behind it on its line."""

    value: str | int | float | bool
    comment: str


def plain(value: Any) -> Any:
    """Return the data without the comments: what a YAML parser makes of `dump`'s text."""
    if isinstance(value, Said):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def dump(document: Mapping[str, Any], header: Sequence[str] = ()) -> str:
    """Write one document.

    Args:
        document: Mappings, lists, strings, numbers and booleans, or these in `Said`.
        header: Comment lines at the top.
    """
    lines = [f"# {_comment(line)}" for line in header]
    return "\n".join([*lines, *_mapping(document, 0)]) + "\n"


def _mapping(items: Mapping[str, Any], depth: int) -> list[str]:
    lines: list[str] = []
    for key, value in items.items():
        lines += _entry(f"{'  ' * depth}{_scalar(key)}:", value, depth)
    return lines


def _entry(head: str, value: Any, depth: int) -> list[str]:
    """One key with its value, on this line or below it."""
    if isinstance(value, Said):
        return [f"{head} {_scalar(value.value)}  # {_comment(value.comment)}"]
    if isinstance(value, Mapping) and value:
        return [head, *_mapping(value, depth + 1)]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [head, *_sequence(value, depth + 1)]
    if isinstance(value, str) and _is_block(value):
        return [f"{head} |-", *(f"{'  ' * (depth + 1)}{line}" for line in value.split("\n"))]
    return [f"{head} {_scalar(value)}"]


def _sequence(items: Sequence[Any], depth: int) -> list[str]:
    lines: list[str] = []
    for item in items:
        if isinstance(item, Mapping) and item:
            first, *rest = _mapping(item, depth + 1)
            lines += [f"{'  ' * depth}- {first.lstrip()}", *rest]
        else:
            lines += _entry(f"{'  ' * depth}-", item, depth)
    return lines


def _is_block(text: str) -> bool:
    """Whether a literal block gives the text back exactly."""
    lines = text.split("\n")
    return len(lines) > 1 and lines[0][:1] not in ("", " ") and lines[-1] != "" and not any(_ONE_LINE.search(line) for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if re.fullmatch(r"-?\d+\.\d+", repr(value)) else f"{value:.12f}"  # YAML reads 1e-05 as text
    if isinstance(value, str):
        safe = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED
        return value if safe else _quoted(value)
    if isinstance(value, (Mapping, Sequence)):
        return "{}" if isinstance(value, Mapping) else "[]"
    raise TypeError(f"{value!r} has no place in a manifest")


def _quoted(text: str) -> str:
    """Single quotes where they spare escapes, else JSON's quoting, which YAML shares but for rare controls."""
    if '"' in text and not _ONE_LINE.search(text):
        return "'" + text.replace("'", "''") + "'"
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text, ensure_ascii=False))


def _comment(text: str) -> str:
    return " ".join(_ONE_LINE.sub(" ", text).split())
