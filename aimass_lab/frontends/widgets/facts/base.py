"""Facts: what a view of the panel needs besides records, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....registry import Registry
from ....study import StudyState

Fact = Callable[[StudyState], Any]
"""Gives what JSON can carry; asked after every cell and every job, so what is dear is kept. A view names the facts that it needs."""

FACTS: Registry[Fact] = Registry("fact", "aimass_lab.frontends.widgets.facts")
