"""The model card is audited: every number on it against the file and place that it names, and every number of those files is on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aimass_lab.bundle import writer
from aimass_lab.bundle.card import HEAD, model_card
from aimass_lab.workload import Workload

SCALES = {
    "ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "k": 1e3, "M": 1e6, "G": 1e9, "": 1,
    "item": 1, "request": 1, "replica": 1, "core": 1, "device": 1,
}  # fmt: skip
NUMERIC = ("promises.json", "runtimes.json", "spec.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is not started, which is what takes time; what it promises then is estimated, assumed and asked for."""
    folder = tmp_path_factory.mktemp("card") / "bundle"
    workload = Workload(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MEASURE_BUDGET_S", 0.2)
        writer.write_bundle(folder, workload, rate=30, latency_p99_s=1.0, max_batch_size=4, threads=1, calibrate=False, format="onnx")
    return folder


def resolve(folder: Path, place: str) -> Any:
    name, pointer = place.split("#")
    value = json.loads((folder / name).read_text())
    for key in pointer.split("/")[1:]:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def quantity(text: str) -> float:
    """``"12.3 ms"`` -> 0.0123, by nothing of the package."""
    number, unit = re.fullmatch(r"(-?[\d.,]+(?:e-?\d+)?) ?(.*)", text).groups()  # type: ignore[union-attr]
    prefix, noun = re.fullmatch(r"(?:([kMG]) )?(.*)", unit.partition("/")[0]).groups()  # type: ignore[union-attr]
    return float(number.replace(",", "")) * SCALES[prefix or ""] * SCALES[noun if noun in SCALES else noun.removesuffix("s")]


def tables(card: str) -> Iterator[dict[str, str]]:
    head: list[str] = []
    for line in card.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            head = []
        elif not head:
            head = cells
        elif set(cells) != {"---"}:
            yield dict(zip(head, cells, strict=True))


def stored_numbers(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        if {"value", "unit", "source"} <= set(value):
            yield place
            return
        for key, inner in value.items():
            yield from stored_numbers(inner, f"{place}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from stored_numbers(inner, f"{place}/{index}")


def audit(folder: Path, card: str) -> None:
    """Fail where the card and the files differ."""
    rows = list(tables(card))
    places = {row["place"].strip("`") for row in rows}
    stored = {place for name in NUMERIC for place in stored_numbers(json.loads((folder / name).read_text()), f"{name}#")}
    assert len(places) == len(rows)
    assert stored <= places, "a number of a file is not on the card"
    for row in rows:
        found = resolve(folder, row["place"].strip("`"))
        if "source" not in row:
            assert row["value"] == (found if isinstance(found, str) else json.dumps(found)), row
            continue
        assert row["place"].strip("`") in stored, row
        assert quantity(row["value"]) == pytest.approx(found["value"], rel=6e-3), row
        assert row["source"] == found["source"] + (f" from {found['trust']}" if found.get("trust") else ""), row
        assert row["how it was found"] == " ".join(found["method"].split()), row
        assert row["n"] == str(found.get("n", "")), row
        assert (row["environment"], row["quality"]) == (found.get("environment", ""), found.get("quality", "ok")), row
        if found.get("interval") is None:
            assert row["spread"] == "", row
        else:
            low, high, kind = re.fullmatch(r"(.*) to (.*) \((.*)\)", row["spread"]).groups()  # type: ignore[union-attr]
            assert [quantity(low), quantity(high)] == pytest.approx(found["interval"], rel=6e-3), row
            assert kind == (found.get("interval_kind") or "of what kind, it does not say"), row
    rest = "\n".join(line for line in card.splitlines() if not line.startswith("|"))
    for line in re.findall(r"^- .*", rest, re.M):
        text, place = re.fullmatch(r"- (.*) \(`(.*)`\)", line).groups()  # type: ignore[union-attr]
        note = resolve(folder, place)
        assert text == f"{note['code']}: {note['text']}"
        rest = rest.replace(line, "")
    assert not re.search(r"\d", rest), "a number stands outside the tables"


def test_every_number_on_the_card_is_the_one_of_its_place(folder: Path) -> None:
    card = (folder / "MODEL_CARD.md").read_text()
    audit(folder, card)
    rows = {row["place"].strip("`"): row for row in tables(card)}
    assert len(rows) > 30
    assert {row["source"] for row in rows.values() if "source" in row} >= {"measured", "user", "assumed", "estimated"}
    assert "missing:calibration" in card


@pytest.mark.parametrize("what", ["value", "source", "method", "dropped", "added"])
def test_the_audit_finds_what_is_wrong(folder: Path, what: str) -> None:
    card = (folder / "MODEL_CARD.md").read_text()
    row = next(line for line in card.splitlines() if "`promises.json#/promises/2/limit`" in line)
    cells = row.split(" | ")
    changed = {
        "value": card.replace(row, row.replace(cells[1], "1.02 s")), "source": card.replace(row, row.replace(cells[2], "measured")),
        "method": card.replace(row, row.replace(cells[3], "a guess")), "dropped": card.replace(f"{row}\n", ""), "added": f"{card}\nIt is 3 times faster.\n",
    }[what]  # fmt: skip
    assert changed != card
    with pytest.raises(AssertionError):
        audit(folder, changed)


def test_the_card_is_made_of_the_files(folder: Path) -> None:
    assert model_card(folder) == (folder / "MODEL_CARD.md").read_text()
    assert not re.search(r"\d", HEAD)
