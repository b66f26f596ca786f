"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...records import Finding, ServingSpec
from ...registry import Registry
from ..objects import Objects

Rule = Callable[[Objects, "ServingSpec | None"], Iterator[Finding]]
"""All objects that are checked together, and the spec they were made from where it is known, to what is wrong with them."""

RULES: Registry[Rule] = Registry("rule", "aimass_lab.manifests.rules")
