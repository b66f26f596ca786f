"""Checks a resource spec, or the manifests that were made from one, without a cluster."""

from __future__ import annotations

from pathlib import Path

from ..records import Check
from ..spec import errors_of, is_spec, lint_spec, read_documents, read_spec
from ._manifests import check_folder, check_manifest_file


def check_spec_path(path: Path) -> Check:
    """Check a spec, or manifests that were exported from one.

    Args:
        path: A spec's file, a manifest, or the folder of an export.

    Raises:
        SpecError: there is neither, or it cannot be read.
    """
    if path.is_dir():
        findings = check_folder(path)
    elif is_spec(read_documents(path)):
        findings = lint_spec(read_spec(path))
    else:
        findings = check_manifest_file(path)
    return Check(subject=str(path), passed=not errors_of(findings), findings=findings)
