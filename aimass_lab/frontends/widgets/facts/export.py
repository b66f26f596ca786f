"""What the newest spec comes to in the format that it was made for: its files, and what a check finds in them."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from ....records import ServingSpec, from_json, to_json
from ....study import StudyState
from .base import FACTS

SPECS_KEPT = 4


@FACTS.register("export")
def export(study: StudyState) -> dict[str, Any] | None:
    """Files as texts, and findings; None where there is no spec."""
    spec = next((record for record in reversed(study.results) if isinstance(record, ServingSpec)), None)
    return None if spec is None else _written(to_json(spec))


@lru_cache(SPECS_KEPT)
def _written(spec_json: str) -> dict[str, Any]:
    """Checked as a user would, on files: what is told here is what ``aimass check FOLDER`` tells."""
    from ....errors import SpecError
    from ....export import check_spec_path, read_exporter
    from ....export.files import write_files
    from ....spec import lint_spec

    spec = from_json(spec_json.encode(), ServingSpec)
    findings, files, why = lint_spec(spec), {}, None
    try:
        files = read_exporter(spec.export_format).export(spec)
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), files)
            findings = check_spec_path(Path(folder)).findings
    except SpecError as error:  # an error in the spec; or files that hold no manifest, such as a model repository's
        why = None if files else str(error)
    return {"files": files, "findings": json.loads(msgspec.json.encode(findings)), "why": why}
