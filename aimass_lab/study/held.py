"""The copies that a study holds, as a record: what each takes, and what its newest trial said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..records import HeldVariant, HeldVariants, Number, Record, TrialResult

if TYPE_CHECKING:
    from ..trial import Variant


def held_variants(model: str, variants: Iterable[Variant], results: Sequence[Record]) -> HeldVariants:
    """List `variants`.

    Args:
        model: Name of the model that they were made of.
        variants: The copies, oldest first.
        results: What the study found so far, oldest first.
    """
    verdicts = {r.setting.recipe.name: r.verdict for r in results if isinstance(r, TrialResult)}
    items = tuple(
        HeldVariant(
            name=v.name,
            recipe=v.recipe,
            memory=_bytes(v.size_bytes, "bytes of the copy's parameters and buffers"),
            apply_time=Number(value=v.apply_time_s, unit="s", source="measured", method="copying the model and changing the copy, once", n=1),
            verdict=verdicts.get(v.name),
        )
        for v in variants
    )
    return HeldVariants(model=model, items=items, memory=_bytes(sum(int(i.memory.value) for i in items), "sum over the copies"))


def _bytes(value: int, method: str) -> Number:
    return Number(value=value, unit="B", source="measured", method=method)
