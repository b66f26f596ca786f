"""Reads what a person opens from the file browser: a saved record, a resource spec, a bundle."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from jupyter_core.utils import ensure_async
from jupyter_server.utils import ApiPath, to_os_path
from tornado.web import HTTPError

from ..bundle import is_bundle, read_bundle
from ..bundle.folder import MANIFEST, check_hashes
from ..errors import InputError
from ..records import Note, Record, any_from_json

KINDS = "a record that a verb printed with --json, the spec.json of a bundle, or a bundle's folder"


async def read_document(contents: Any, path: str) -> Record:
    """The record in a file of Jupyter's contents, or the bundle in a folder of it.

    Args:
        contents: The server's contents manager.
        path: As the file browser names it.

    Raises:
        InputError: there is no such file, or it is nothing of ours.
        BundleError: it is a bundle that cannot be read.
    """
    folder = await asyncio.to_thread(_bundle_folder, contents, path)
    if folder is not None:
        return await asyncio.to_thread(_bundle, folder)
    try:
        model = await ensure_async(contents.get(path, type="file", format="text"))
    except HTTPError as error:
        raise InputError(f"{path} cannot be opened: {error.log_message or error.reason}", help=f"open {KINDS}") from error
    try:
        return any_from_json(model["content"])
    except msgspec.ValidationError as error:
        raise InputError(f"{path} holds nothing that AIMass Lab wrote: {error}", help=f"open {KINDS}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is not JSON: {error}", help=f"open {KINDS}") from error


def _bundle_folder(contents: Any, path: str) -> Path | None:
    """The folder of the bundle that `path` or its manifest names; None for anything else, and where contents are no files on this disk."""
    root = getattr(contents, "root_dir", None)
    if not root:
        return None
    target = Path(to_os_path(ApiPath(path), root)).resolve()
    folder = target.parent if target.name == MANIFEST else target
    inside = folder.is_relative_to(Path(root).resolve())
    return folder if inside and is_bundle(folder) else None


def _bundle(folder: Path) -> Record:
    """What the bundle says of itself, with what is no longer as it was written."""
    bundle = read_bundle(folder)
    found = check_hashes(folder)
    notes = tuple(Note(code=finding.code, text=f"{finding.path}: {finding.text}") for finding in found)
    whole = Note(code="hashes", text=f"every one of the {bundle.num_files} files is as it was written")
    return msgspec.structs.replace(bundle, notes=(*bundle.notes, *(notes or (whole,))))
