"""Puts what an exporter made into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError, reason_of
from ..places import why_not_there
from ..spec import write_text

_OURS = "aimass.dev/"


def check_folder(folder: Path) -> None:
    """Refuse a folder that no file can be written into, before the time that a plan takes.

    Raises:
        InputError: so it is.
    """
    if why := why_not_there(folder):
        raise _unwritten(folder, why)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` (relative path -> text) into `folder`; files of an earlier export are replaced.

    Raises:
        InputError: the folder is a file, a file of somebody else is in the way, or the disk refuses.
    """
    check_folder(folder)
    try:
        for path in (folder / name for name in files):
            if path.exists() and _OURS not in path.read_text(encoding="utf-8", errors="replace"):
                raise InputError(f"{path} exists and is not from an export", help="choose another folder, or move the file away")
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise _unwritten(folder, reason_of(error)) from error


def _unwritten(folder: Path, why: str) -> InputError:
    return InputError(f"cannot write into {folder}: {why}", help="choose a folder that can be written")
