"""Puts what an exporter made into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..spec import write_text

_OURS = "aimass.dev/"


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` (relative path -> text) into `folder`; files of an earlier export are replaced.

    Raises:
        InputError: the folder is a file, a file of somebody else is in the way, or the disk refuses.
    """
    for name in files:
        path = folder / name
        if path.exists() and _OURS not in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{path} exists and is not from an export", help="choose another folder, or move the file away")
    try:
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}", help="choose a folder that can be written") from error
