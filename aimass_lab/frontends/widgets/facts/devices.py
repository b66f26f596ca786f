"""The devices of the catalogue."""

from __future__ import annotations

from ....devices import load_devices
from ....study import StudyState
from .base import FACTS


@FACTS.register("devices")
def devices(study: StudyState) -> list[str]:
    """Their names."""
    return sorted(load_devices())
