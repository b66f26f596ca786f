"""How records are shown: one page each, laid out once for every medium."""

from __future__ import annotations

import importlib
import pkgutil

from .base import lay_out

__all__ = ["lay_out"]

# Every file registers its layouts when it is read, so that a new kind of record is a new file.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
