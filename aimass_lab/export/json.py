"""The spec itself, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import ServingSpec, to_json
from .base import EXPORTERS, Exporter

SPEC_FILE = "aimass-spec.json"


@EXPORTERS.register("json")
@dataclass(frozen=True, kw_only=True)
class Json(Exporter):
    """The record, all numbers with their provenance."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """One file."""
        return {SPEC_FILE: to_json(spec) + "\n"}
