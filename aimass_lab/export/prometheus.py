"""Alert rules as a file for Prometheus itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import ServingSpec, to_json
from ._alerts import groups
from ._yaml import dump
from .base import EXPORTERS, Exporter
from .json import SPEC_FILE


@EXPORTERS.register("prometheus")
@dataclass(frozen=True, kw_only=True)
class Prometheus(Exporter):
    """A file for ``rule_files``; for the Prometheus operator there is ``kubernetes(alerts=true)``."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """The rules, and the spec that they were made from."""
        lines = [
            f"made from the resource spec aimass.dev/v1 of {spec.name}",
            f"the job that scrapes the servers is called {spec.name}, and shows them their token",
        ]
        return {"alerts.yaml": dump({"groups": groups(spec)}, lines), SPEC_FILE: to_json(spec) + "\n"}
