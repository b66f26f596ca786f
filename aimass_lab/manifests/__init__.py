"""Reads manifests of Kubernetes, of what runs on it, and of compose, and says what is wrong with them, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import Finding, ServingSpec
from .objects import Objects
from .rules.base import RULES
from .schema import Schemas

__all__ = ["Schemas", "is_manifest", "lint_manifests"]


def is_manifest(document: Any) -> bool:
    """Whether a parsed document is something that the rules know how to look at."""
    if not isinstance(document, dict):
        return False
    of_cluster = isinstance(document.get("apiVersion"), str) and isinstance(document.get("kind"), str)
    return of_cluster or isinstance(document.get("services"), dict) or (isinstance(document.get("groups"), list) and "kind" not in document)


def lint_manifests(files: Mapping[str, list[Any]], *, spec: ServingSpec | None = None, schemas: Schemas | None = None) -> tuple[Finding, ...]:
    """Check documents by their schemas and by the rules.

    Args:
        files: File name -> parsed documents; they are looked at together, as what one refers to may stand in another.
        spec: What they were made from, where that is known: limits are then held against what was measured.
        schemas: Those of custom resources too; only the shipped ones if not given.
    """
    schemas = schemas or Schemas()
    objects = Objects.of(files)
    found = [finding for item in objects.every if item.kind for finding in schemas.check(item)]
    for name in RULES:
        found += RULES[name](objects, spec)
    return tuple(found)
