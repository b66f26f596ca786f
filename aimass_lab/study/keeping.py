"""Keeping what a verb found: in the study, its store and the ledger, or in none of them, whatever breaks in."""

from __future__ import annotations

import contextlib
from typing import TypeVar

from ..errors import StoreError
from ..interrupts import keep_whole
from ..records import ModelInfo, Record
from ..store import Store

R = TypeVar("R", bound=Record)

keep_whole(__file__)  # work beside the notebook that was broken off in here would be done again, and be there twice


def keep(record: R, verb: str, *, model: ModelInfo, technique: str, results: list[Record], store: Store) -> R:
    """Append a record to `results`, and write it to the store.

    Args:
        record: What was found.
        verb: What found it.
        model: Of what.
        technique: Of which copy.
        results: Where the study keeps them.
        store: Where they outlive it.

    Returns:
        The record, with what the ledger says of it.
    """
    from ..prediction.bookkeeping import through_ledger

    with contextlib.suppress(StoreError):  # `remember` warns of the same store
        record = through_ledger(record, store, digest=model.digest, technique=technique)
    results.append(record)
    store.remember(verb, record, model=model.name, model_digest=model.digest)
    return record
