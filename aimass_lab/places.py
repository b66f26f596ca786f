"""Whether something can be written at a path, asked before the work whose result would be lost."""

from __future__ import annotations

import os
from pathlib import Path


def why_not_there(folder: Path) -> str | None:
    """What keeps files out of `folder`, which need not exist yet; None where nothing is in the way that can be seen without trying."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written to"
