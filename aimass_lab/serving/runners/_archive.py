"""Looks through the zip archives that torch writes, without loading them: which members there are, and what their pickles ask for."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import BundleError

FORMALITIES = (r"version", r"\.data/version", r"byteorder", r"archive_version", r"\.data/serialization_id", r"\.format_version", r"\.storage_alignment")
"""Members that every archive of torch may have; they hold a few characters each."""
MAX_SMALL_BYTES = 2**28
"""Of a member that is read as a whole to be looked at: graphs and code, not weights."""
MAX_RATIO = 200
"""More is no model, but a bomb; torch stores uncompressed."""


class Archive:
    """An archive whose every member has a name that its format knows.

    Args:
        path: The file.
        known: Regular expressions of member names, without the folder that all of them lie in.

    Raises:
        BundleError: it is no such archive, has two members of one name, or one that its format does not know.
    """

    def __init__(self, path: Path, known: Sequence[str]) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"{path.name} is not an archive of torch: {error}") from None
        roots = {member.filename.partition("/")[0] for member in members}
        if len(roots) != 1:
            raise BundleError(f"{path.name} is not an archive of torch: its members lie in {len(roots)} folders")
        self._root = roots.pop()
        self.members = [member.filename[len(self._root) + 1 :] for member in members]
        if len(set(self.members)) != len(self.members):
            raise BundleError(f"{path.name} holds two members of one name, of which a loader may read another one than was looked at")
        for name, member in zip(self.members, members, strict=True):
            if not any(re.fullmatch(pattern, name) for pattern in (*known, *FORMALITIES)) or ".." in name:
                raise BundleError(f"{path.name} holds {name!r}, which a file of this format has no use for")
            if member.file_size > MAX_RATIO * max(member.compress_size, 1):
                raise BundleError(f"{path.name}: {name!r} would grow to {member.file_size / 2**20:.0f} MiB as it is read")

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            BundleError: it is damaged, or too large to be what its name says.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                member = archive.getinfo(f"{self._root}/{name}")
                if member.file_size > MAX_SMALL_BYTES:
                    raise BundleError(f"{self.path.name}: {name!r} takes {member.file_size / 2**20:.0f} MiB, which is more than it can need")
                return archive.read(member)
        except (KeyError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise BundleError(f"{self.path.name}: {name!r} cannot be read: {error}") from None


def check_pickle(data: bytes, allowed: Sequence[str], where: str) -> None:
    """Go through the instructions of a pickle without following them.

    Args:
        data: The pickle.
        allowed: Regular expressions of ``module.name`` that it may ask for.
        where: For the message.

    Raises:
        BundleError: it asks for something else, by a way that hides what, or is no pickle.
    """
    texts: list[str] = []
    memo: dict[int, str] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID"):
                raise BundleError(f"{where} builds objects in a way that models need not ({opcode.name})")
            if opcode.name == "GLOBAL":
                _check_global(str(argument).replace(" ", "."), allowed, where)
            elif opcode.name == "STACK_GLOBAL":
                _check_global(".".join(texts[-2:]), allowed, where)
            elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                memo[len(memo) if argument is None else int(str(argument))] = texts[-1] if texts else ""
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                texts.append(memo.get(int(str(argument)), ""))
            elif isinstance(argument, str):
                texts.append(argument)
    except BundleError:
        raise
    except Exception as error:  # pickletools raises whatever its reading of garbage leads to
        raise BundleError(f"{where} is not a pickle: {error}") from None


def _check_global(name: str, allowed: Sequence[str], where: str) -> None:
    if not any(re.fullmatch(pattern, name) for pattern in allowed):
        raise BundleError(f"{where} would call {name!r} as it is loaded, which a model has no use for")
