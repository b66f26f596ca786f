"""What was measured so far, as JSON files beside this one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
import kept  # noqa: E402  # it lies one folder above

_kept = kept.Results(HERE / "results")
load, keep, add, extend = _kept.load, _kept.keep, _kept.add, _kept.extend


def facts() -> dict[str, Any]:
    """Machine and versions that what is measured now holds for."""
    return kept.facts(("torch", "onnxruntime", "numpy", "uvicorn", "uvloop", "httptools", "orjson"))
