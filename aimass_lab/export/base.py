"""What an exporter is."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..errors import SpecError
from ..records import Number, ServingSpec, from_json, to_json
from ..registry import Registry
from ..spec import errors_of, lint_spec

Exporter = Callable[[ServingSpec], dict[str, str]]
"""Spec in, relative path -> text out; touches no disk.

Raises:
    SpecError: the spec has an error, so that nothing may be made from it.
"""

EXPORTERS: Registry[Exporter] = Registry("exporter", "aimass_lab.export")


def checked(export: Exporter) -> Exporter:
    """Let `export` see only specs without errors."""

    @functools.wraps(export)
    def refuse_errors(spec: ServingSpec) -> dict[str, str]:
        found = errors_of(lint_spec(spec))
        if found:
            raise SpecError(
                f"nothing is exported from a spec with errors: {found[0].code} at {found[0].path}: {found[0].text}",
                help=f"{len(found)} error{'s' if len(found) > 1 else ''} in all; aimass check lists them",
            )
        # As a reader of its JSON will see it, where whole numbers may have become floats: else the export of what was read back differs.
        return export(from_json(to_json(spec), ServingSpec))

    return refuse_errors


def provenance(number: Number) -> str:
    """Where a number comes from, in one line: ``"measured: median of 31 calls"``."""
    source = f"derived (weakest input: {number.trust})" if number.source == "derived" else number.source
    doubt = "" if number.quality == "ok" else f" [{number.quality}]"
    return f"{source}: {number.method}{doubt}"
