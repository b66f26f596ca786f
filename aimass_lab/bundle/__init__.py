"""Writes, reads and proves serving bundles: folders that serve a model without this package and keep their own promises."""

from __future__ import annotations

from .folder import check_free, check_hashes, promised_rate, read_bundle
from .proof import is_bundle, require_bundle, verify_bundle
from .writer import write_bundle

__all__ = ["check_free", "check_hashes", "is_bundle", "promised_rate", "read_bundle", "require_bundle", "verify_bundle", "write_bundle"]
