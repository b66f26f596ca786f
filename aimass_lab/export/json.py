"""The spec itself, as JSON."""

from __future__ import annotations

from ..records import ServingSpec, to_json
from .base import EXPORTERS, checked

SPEC_FILE = "aimass-spec.json"


@EXPORTERS.register("json")
@checked
def export(spec: ServingSpec) -> dict[str, str]:
    """The record, all numbers with their provenance."""
    return {SPEC_FILE: to_json(spec) + "\n"}
