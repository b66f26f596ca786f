"""What benchmarks share: figures kept as JSON files beside them, a clock, the machine they hold for, and environments for other tools."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Results:
    """JSON files in one folder, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.RLock()

    def load(self, name: str) -> dict[str, Any]:
        """What stands in one file; nothing if it is not there."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Write one file."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(_rounded(found), indent=1, sort_keys=True) + "\n")
        unfinished.replace(path)

    def add(self, name: str, *keys: str, found: Any) -> None:
        """Put one thing into a file that others are writing to as well: below `keys`, one inside the other."""
        with self._writing:
            content = self.load(name)
            _place(content, keys[:-1])[keys[-1]] = found
            self.keep(name, content)

    def extend(self, name: str, *keys: str, found: list[Any]) -> None:
        """Put some things at the end of a list in a file that others are writing to as well."""
        with self._writing:
            content = self.load(name)
            _place(content, keys[:-1]).setdefault(keys[-1], []).extend(found)
            self.keep(name, content)


def _place(content: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    for key in keys:
        content = content.setdefault(key, {})
    return content


def _rounded(value: Any) -> Any:
    """Six significant digits are enough to read, and keep differences between two runs of this file short."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Clock:
    """Tells whether there is time for another measurement."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.perf_counter() + 60 * minutes

    @property
    def up(self) -> bool:
        return self._end is not None and time.perf_counter() > self._end


def facts(packages: Sequence[str]) -> dict[str, Any]:
    """Machine and versions that what is measured now holds for; no names of hosts."""
    import datetime
    import importlib.metadata

    import torch

    from aimass_lab.compression._processor import processor_flags
    from aimass_lab.environment import read_environment

    here = read_environment(torch.device("cpu"))
    telling = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
    return {
        "date": str(datetime.date.today()), "processor": here.device_name, "cores": here.cpu_cores, "memory_bytes": here.memory_bytes, "python": here.python,
        "instructions": [flag for flag in telling if flag in (processor_flags() or ())],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }  # fmt: skip


def table(header: list[str], body: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *("| " + " | ".join(row) + " |" for row in body)])


# --- environments --------------------------------------------------------------------------------


def environments(path: Path) -> dict[str, list[str]]:
    """Environment -> what pip is asked for, from a file with lines ``# environment: NAME``."""
    found: dict[str, list[str]] = {}
    wanted: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("# environment: "):
            wanted = found.setdefault(line.removeprefix("# environment: ").split()[0], [])
        elif line and not line.startswith("#"):
            wanted.append(line)
    return found


def new_environment(folder: Path, packages: Sequence[str]) -> list[str]:
    """Make an environment in a folder outside the project, unless it is there.

    Args:
        folder: Where.
        packages: What keeps the version that it has in the environment that this runs in; torch is installed there first, so that pip does not choose
            a build of another size.

    Returns:
        The command of its pip, up to what is to be installed.

    Raises:
        CalledProcessError: it could not be made.
    """
    import importlib.metadata

    python, constraint = folder / "bin" / "python", folder / "kept.txt"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    constraint.write_text("".join(f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in packages))
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", str(constraint)]
    subprocess.run([*pip, *packages], check=True)
    return pip


def pip_failure(stderr: str) -> str:
    """The line that tells why pip installed nothing."""
    return "does not install: " + next((line for line in stderr.splitlines() if line.startswith("ERROR")), "no cause given")[:300]
