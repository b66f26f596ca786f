"""A bundle's model card, made of its own files: every number in them, where it comes from, and the place where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..records import Number
from ..units import format_count, format_quantity
from .folder import RUNTIMES

NUMBERED = {"promises.json": "What it promises", RUNTIMES: "What was measured without the server", "spec.json": "What it needs"}
"""Files with numbers, and what they tell."""
FACTS = {
    "name": "serving.json#/name", "version": "serving.json#/version", "class": "spec.json#/model/type", "model's digest": "spec.json#/model/digest",
    "dtype": "spec.json#/model/dtype", "parameters": "spec.json#/model/num_parameters", "bytes of weights": "spec.json#/model/weight_bytes",
    "recipe": "spec.json#/recipe/steps", "seed of the recipe": "spec.json#/recipe/seed", "format": "serving.json#/format", "inputs": "serving.json#/inputs",
    "outputs": "serving.json#/outputs", "threads of a worker": "serving.json#/threads_per_worker", "why so many": f"{RUNTIMES}#/threads/because",
    "load of the proof": "promises.json#/scenario",
}  # fmt: skip
"""What was read or counted, and neither measured nor predicted."""
HEAD = """# Model card

Every entry stands in a file of this bundle, at the place that its row names: the file, and a JSON pointer into it. A number says whether it was measured or
computed, how, how far it spread, over how many observations, and in which environment (its digest).

## What it is for

Nobody said here: what the model was made for and what not, the data that it was trained and judged on, for whom it works less well, and who answers for it, are
its maker's to tell, and nothing in a bundle can measure them. What can be measured is below; fidelity compares with the original model, not with the truth.
"""


@dataclass(frozen=True)
class Entry:
    """A number, what it is of, and where it stands."""

    what: str
    number: Number
    place: str


def model_card(folder: Path) -> str:
    """The card of the bundle in `folder`, whose JSON files are written.

    Raises:
        OSError: one of them cannot be read.
    """
    files = {name: json.loads((folder / name).read_bytes()) for name in (*NUMBERED, "serving.json")}
    sections = [HEAD, "## What it is\n", _table(("what", "value", "place"), [(what, _fact(files, place), place) for what, place in FACTS.items()])]
    for name, title in NUMBERED.items():
        rows = [_row(entry) for entry in _numbers(files[name], f"{name}#", [])]
        sections += [f"## {title}\n", _table(("what", "value", "source", "how it was found", "spread", "n", "environment", "quality", "place"), rows)]
    doubts = [f"- {note['code']}: {note['text']} (`{name}#/notes/{i}`)" for name in NUMBERED for i, note in enumerate(files[name].get("notes") or ())]
    if doubts:
        sections += ["## Doubts\n", "\n".join(doubts) + "\n"]
    return "\n".join(sections)


def _fact(files: Mapping[str, Any], place: str) -> str:
    name, _, pointer = place.partition("#")
    value = files[name]
    for key in pointer.strip("/").split("/"):
        value = value[key]
    return value if isinstance(value, str) else json.dumps(value)


def _numbers(value: Any, place: str, words: list[str]) -> Iterator[Entry]:
    """Every `Number` in a JSON document, in its order."""
    if isinstance(value, dict) and {"value", "unit", "source", "method"} <= set(value):
        yield Entry(" ".join(words), msgspec.convert(value, Number), place)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{place}/{key}", [*words, key])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{place}/{index}", [*words[:-1], _called(inner, index)])


def _called(item: Any, index: int) -> str:
    """What people call an item of a list."""
    if isinstance(item, dict):
        if "batch_size" in item:
            return f"at batch size {item['batch_size']}"
        if "threads" in item:
            return f"with {format_count(item['threads'], 'thread')}"
        return str(item.get("name") or item.get("format") or index)
    return str(index)


def _row(entry: Entry) -> tuple[str, ...]:
    number = entry.number
    source = number.source if number.trust is None else f"{number.source} from {number.trust}"
    spread = ""
    if number.interval is not None:
        low, high = (format_quantity(end, number.unit) for end in number.interval)
        spread = f"{low} to {high} ({number.interval_kind or 'of what kind, it does not say'})"
    value = format_quantity(number.value, number.unit)
    return entry.what, value, source, number.method, spread, str(number.n or ""), number.environment or "", number.quality, entry.place


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *((*row[:-1], f"`{row[-1]}`") for row in rows)]
    return "\n".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines) + "\n"
