"""Lets a bundle prove itself: its own `run.py`, in a process of its own, starts the server and measures every promise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..errors import BundleError
from ..records import Check, Promise
from .folder import MANIFEST, check_hashes, is_error, read_bundle, read_manifest


def is_bundle(folder: str | Path) -> bool:
    """Whether this is the folder of a bundle, be it still as it was written or not."""
    return (Path(folder).expanduser() / MANIFEST).is_file()


def require_bundle(folder: str | Path) -> Path:
    """The folder of a bundle whose every file is as it was written.

    Raises:
        BundleError: it is no bundle, or a file is missing, altered or was added.
    """
    path = Path(folder).expanduser().resolve()
    read_manifest(path)
    if findings := [finding for finding in check_hashes(path) if is_error(finding)]:
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise BundleError(f"{path} is not as it was written: {findings[0].path}: {findings[0].text}{more}", help="write it again, or fetch it again")
    return path


def verify_bundle(folder: str | Path, *, duration_s: float | None = None, progress: Callable[[float, str], None] | None = None) -> Check:
    """Measure every promise of a bundle.

    Nothing of a folder that was altered is run: the check then fails with what was found.

    Args:
        folder: Of the bundle.
        duration_s: Seconds of load; as promised if not given.
        progress: Called with the share done and what is being done.

    Raises:
        BundleError: it is no bundle, or its proof does not run at all.
    """
    say = progress or (lambda share, text: None)
    path = Path(folder).expanduser().resolve()
    say(0.0, "checking hashes")
    bundle = read_bundle(path)
    findings = check_hashes(path)
    if any(map(is_error, findings)):
        promises = tuple(Promise(name=p.name, relation=p.relation, limit=p.limit, passed=False) for p in bundle.promises)
        return Check(subject=str(folder), passed=False, promises=promises, findings=findings)
    say(0.1, "starting it and measuring every promise")
    check = run_proof(path, duration_s=duration_s)
    say(1.0, "done")
    return msgspec.structs.replace(check, subject=str(folder), findings=findings + check.findings)


def run_proof(folder: Path, *, duration_s: float | None = None) -> Check:
    """Run ``run.py verify`` of the bundle with this interpreter.

    Raises:
        BundleError: it printed no record.
    """
    command = [sys.executable, "-B", str(folder / "run.py"), "verify", "--json"]
    if duration_s is not None:
        command += ["--duration", str(duration_s)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder.parent)
    try:
        printed, said = process.communicate()
    except BaseException:
        process.terminate()  # the server that it started ends with it
        process.wait()
        raise
    try:
        return msgspec.convert(json.loads(printed), Check)
    except (ValueError, msgspec.ValidationError) as error:
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        raise BundleError(f"the proof of {folder} does not run: {lines[-1] if lines else error}") from None
