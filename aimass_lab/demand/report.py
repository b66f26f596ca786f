"""Turns parts of memory into the numbers of a record: a ledger that adds up, its total, and where the peak is."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import MemoryPart, Number, PeakPlace, derived
from ..tracing.rows import Row
from .memory import Part, number_of


def ledger(parts: Sequence[Part], *, measured: bool) -> tuple[MemoryPart, ...]:
    """The parts in whole bytes; those of which there is and can be nothing are left out."""
    return tuple(MemoryPart(name=part.name, bytes=number_of(part, measured=measured)) for part in parts if part.most > 0)


def total_of(parts: Sequence[MemoryPart]) -> Number:
    """The sum of a ledger, exactly, with the sums of the ends of the parts' bands."""
    value = sum(part.bytes.value for part in parts)
    ends = [part.bytes.ends for part in parts]
    least, most = (sum(end) for end in zip(*ends, strict=True)) if ends else (0, 0)
    return derived(
        value, "B", "sum of the ledger", [(part.name, part.bytes) for part in parts],
        interval=(least, most), interval_kind="sums of the parts' bands",
    )  # fmt: skip


def place_of(row: Row | None) -> PeakPlace | None:
    """Where the highest moment is."""
    if row is None:
        return None
    return PeakPlace(operator=row.op, module=row.scope[-1] if row.scope else "", source=row.source, phase=row.phase)
