"""Checks a resource spec, or manifests, without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..records import Check, JobPlan, ServingSpec
from ..spec import errors_of, is_spec, lint_spec, read_documents, read_spec, spec_from_data
from ._manifests import carried_by, check_folder, check_manifest_file, read_definitions


def check_spec_path(path: Path, definitions: Sequence[str] = ()) -> Check:
    """Check a spec, manifests that were exported from one, or manifests of somebody else.

    Args:
        path: A spec's file, a manifest, a compose file, or a folder of manifests.
        definitions: Files or folders of CustomResourceDefinitions that objects are checked by as well.

    Raises:
        SpecError: there is nothing of the kind, or it cannot be read.
    """
    schemas = read_definitions(definitions)
    if path.is_dir():
        findings = check_folder(path, schemas)
    elif is_spec(read_documents(path)):
        findings = lint_spec(read_spec(path))
    else:
        findings = check_manifest_file(path, schemas)
    return Check(subject=str(path), passed=not errors_of(findings), findings=findings)


def find_spec(path: Path) -> ServingSpec | JobPlan | None:
    """The spec in a file, or what the manifests of a folder carry; None where there is none.

    Raises:
        SpecError: a file cannot be read.
    """
    if not path.is_dir() and is_spec(documents := read_documents(path)):
        return spec_from_data(documents[0], str(path))
    return carried_by(path)
