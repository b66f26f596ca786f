"""A bundle's folder on disk: written whole or not at all, every file hashed, read back without running anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..errors import BundleError, reason_of
from ..places import why_not_there
from ..records import Bundle, Dimension, Finding, Note, Number, Promise, RuntimeTrial, ServingSpec, SizePoint, derived, from_json
from ..units import format_bytes

SCHEMA = 1
MANIFEST = "manifest.json"
RUNTIMES = "runtimes.json"
PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".pt2", ".joblib", ".dill", ".ckpt", ".bin"})
"""Suffixes of files that may run code when they are loaded; a bundle holds none but the model itself, which its runner looks through before."""
CACHE = "__pycache__"
CHECKPOINTS = ".ipynb_checkpoints"
"""Where Jupyter keeps copies of files that were opened in it, as a bundle's are to look at them; nothing of a bundle reads them."""
VENV = ".venv"
"""Where the bundle's README puts what it needs. No import of the bundle's finds anything there: no package has a dot in its name."""


@contextlib.contextmanager
def new_folder(folder: Path, *, needed_bytes: int, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    Args:
        folder: Where the result goes; it must not exist, or be empty.
        needed_bytes: Space that the block is going to take.
        force: Let it replace a bundle that is already there, and nothing else.

    Raises:
        BundleError: there is something else already, or the disk is full or may not be written.
    """
    check_free(folder, force=force)
    made = [p for p in (folder.parent, *folder.parent.parents) if not p.exists()]
    temporary: Path | None = None
    try:
        _check_space(folder, made, needed_bytes)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
        yield temporary
        _put(temporary, folder)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError) and not isinstance(error, BundleError):
            raise _disk_error(folder, error) from error
        raise


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse to overwrite.

    Raises:
        BundleError: `folder` exists and is not empty, and is no bundle that `force` allows to replace; or this process works in it, or no folder can
            be there or have that name.
    """
    if why := why_not_there(folder.parent):
        raise _unwritten(folder, why)
    try:
        there = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _disk_error(folder, error) from error
    if not folder.is_dir():
        what = "a link to nothing" if stat.S_ISLNK(there.st_mode) and not folder.exists() else "a file"
        raise BundleError(f"will not overwrite {folder}: it is {what}", help="name a folder that does not exist yet")
    if Path.cwd().is_relative_to(folder.resolve()):  # whoever works in a folder that is replaced works nowhere
        raise BundleError(f"will not replace {folder.resolve()}: this process works in it", help="name a folder that does not exist yet")
    if not any(folder.iterdir()):
        return
    if not force:
        raise BundleError(f"will not overwrite {folder}: it is not empty", help="name another folder, or replace the bundle there with force=True (--force)")
    try:
        read_manifest(folder)
    except BundleError as error:
        raise BundleError(f"will not overwrite {folder}: it is not a bundle ({error.message})", help="name another folder") from None


def _check_space(folder: Path, made: list[Path], needed_bytes: int) -> None:
    free = shutil.disk_usage(made[-1].parent if made else folder.parent).free
    if free < needed_bytes:
        raise BundleError(
            f"the bundle needs about {format_bytes(needed_bytes)}, and {format_bytes(free)} are free on the disk of {folder}",
            help="free some space, or name a folder on another disk",
        )


def _put(temporary: Path, folder: Path) -> None:
    """Rename into place; what was there is put back if that fails."""
    if not folder.exists():
        os.replace(temporary, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _disk_error(folder: Path, error: OSError) -> BundleError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleError(f"the disk of {folder} is full; nothing was left behind", help="free some space, or name a folder on another disk")
    return _unwritten(folder, reason_of(error))


def _unwritten(folder: Path, why: str) -> BundleError:
    return BundleError(f"cannot write {folder}: {why}", help="name a folder that you may write to")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document that people can read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_manifest(folder: Path, *, kept: Collection[Path] = ()) -> None:
    """Write `manifest.json`, with the hash of every other file and what `serving.json` is called; caches of compiled code are removed.

    Args:
        folder: Of the bundle.
        kept: Files that nobody has written since the manifest that is there, whose hashes stand in it: a large model takes seconds to read.
    """
    for cache in list(folder.rglob(CACHE)):
        shutil.rmtree(cache)
    known = read_manifest(folder)["files"] if kept else {}
    files = {path.relative_to(folder).as_posix(): path for path in bundle_files(folder)}
    hashes = {name: known[name] if path in kept else file_hash(path) for name, path in files.items()}
    serving = _read_json(folder / "serving.json")
    write_json(folder / MANIFEST, {"schema": SCHEMA, "name": serving["name"], "version": serving["version"], "files": hashes})


def bundle_files(folder: Path) -> list[Path]:
    """Every file of the bundle but the manifest, Python's own caches, Jupyter's copies and the environment that its README has made."""
    found = (path for path in _within(folder) if path.is_file() and not {CACHE, CHECKPOINTS} & {*path.relative_to(folder).parts})
    return sorted(path for path in found if path != folder / MANIFEST)


def _within(folder: Path) -> Iterator[Path]:
    """Whatever lies in the folder and below, but for the environment."""
    for path in folder.iterdir():
        if path.name != VENV:
            yield path
            yield from path.rglob("*") if path.is_dir() and not path.is_symlink() else ()


def file_hash(path: Path) -> str:
    """``sha256:<hex>`` of the content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check `manifest.json`.

    Raises:
        BundleError: there is none, or it is not one of ours.
    """
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("schema") != SCHEMA or not isinstance(manifest.get("name"), str) or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{folder / MANIFEST} is not the manifest of a bundle that this version reads (schema {SCHEMA})")
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", help="a bundle is the folder that the verb bundle wrote") from None
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_bundle(folder: str | Path) -> Bundle:
    """Read what a bundle says about itself; `check_hashes` tells whether it is still as it was written.

    Raises:
        BundleError: the folder is no bundle, or a file that describes it is missing or malformed.
    """
    folder = Path(folder).expanduser().resolve()
    manifest, serving, promised = read_manifest(folder), _read_json(folder / "serving.json"), _read_json(folder / "promises.json")
    try:
        spec = from_json((folder / "spec.json").read_bytes(), ServingSpec)
        promises = msgspec.convert(promised["promises"], tuple[Promise, ...])
        notes = msgspec.convert(promised.get("notes", []), tuple[Note, ...])
        model_format = msgspec.convert(serving["format"], str)
        measured = _read_json(folder / RUNTIMES)
        runtimes = msgspec.convert(measured["runtimes"], tuple[RuntimeTrial, ...])
        sizes = msgspec.convert(measured["sizes"], tuple[SizePoint, ...])
        dimensions = msgspec.convert(serving.get("dimensions", []), tuple[Dimension, ...])
    except (msgspec.ValidationError, msgspec.DecodeError, KeyError) as error:
        raise BundleError(f"{folder} cannot be read as a bundle: {error}") from error
    except OSError as error:
        raise BundleError(f"cannot read {folder / 'spec.json'}: {error.strerror}") from error
    files = [*bundle_files(folder), folder / MANIFEST]
    return Bundle(
        folder=str(folder),
        name=manifest["name"],
        version=str(manifest["version"]),
        model=spec.model,
        format=model_format,
        size_bytes=Number(value=sum(p.stat().st_size for p in files), unit="B", source="measured", method=f"sum of {len(files)} files", n=len(files)),
        num_files=len(files),
        runtimes=runtimes,
        dimensions=dimensions,
        sizes=sizes,
        promises=promises,
        digest=file_hash(folder / MANIFEST),
        notes=notes,
    )


def promised_rate(folder: str | Path) -> Number:
    """Requests per second of one replica under which a bundle's promises hold.

    Raises:
        BundleError: the folder is no bundle, or says no rate.
    """
    path = Path(folder).expanduser().resolve()
    try:
        rate = _read_json(path / "promises.json")["scenario"]["requests_per_s"]
        spec = from_json((path / "spec.json").read_bytes(), ServingSpec)
        return derived(rate, "request/s", "the rate that the bundle promises", [("requests_per_s", spec.requests_per_s)])
    except (OSError, KeyError, TypeError, msgspec.ValidationError, msgspec.DecodeError) as error:
        raise BundleError(f"{path} does not say which rate it promises: {error}", help="give the rate: --rate 400 --p99 50ms") from error


def check_hashes(folder: str | Path) -> tuple[Finding, ...]:
    """Compare every file with the manifest.

    Returns:
        What is missing, altered, foreign or able to run code when loaded; nothing when all is as it was written.

    Raises:
        BundleError: there is no manifest to compare with.
    """
    folder = Path(folder).expanduser().resolve()
    files = read_manifest(folder)["files"]
    model_file = _model_file(folder)
    findings = [finding for name, expected in files.items() for finding in _check_file(folder, name, expected, is_model=name == model_file)]
    for path in bundle_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            findings.append(Finding(code="E-FOREIGN-FILE", path=name, text="the manifest does not name this file: it was added later"))
    for cache in sorted(path for path in _within(folder) if path.name == CACHE):
        text = "Python's cache of compiled code: no hash covers it, and it runs in place of the source; delete it"
        findings.append(Finding(code="W-CACHE", path=cache.relative_to(folder).as_posix(), text=text))
    return tuple(findings)


def is_error(finding: Finding) -> bool:
    """Whether a finding is an error, not a warning."""
    return finding.code.startswith("E-")


def _model_file(folder: Path) -> str | None:
    try:
        return str(_read_json(folder / "serving.json").get("model_file"))
    except BundleError:
        return None  # which is a finding of its own: the manifest names the file


def _check_file(folder: Path, name: str, expected: str, *, is_model: bool) -> list[Finding]:
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder):
        return [Finding(code="E-OUTSIDE", path=name, text="the manifest names a file outside the bundle")]
    if path.suffix.lower() in PICKLES and not is_model:
        return [Finding(code="E-PICKLE", path=name, text="files of this kind can run code when they are loaded")]
    if not path.is_file():
        return [Finding(code="E-MISSING", path=name, text="the file is missing")]
    if file_hash(path) != expected:
        return [Finding(code="E-ALTERED", path=name, text="the file was altered: its hash is not the one in the manifest")]
    return []
