"""Lets a bundle prove itself: its own `run.py`, in a process of its own, starts the server and measures every promise."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from ..errors import BundleError
from ..records import Check, Promise
from .folder import MANIFEST, check_hashes, is_error, read_bundle, read_manifest

Progress = Callable[[float, str], None]
VERDICTS = {0: True, 1: False, 5: None}
"""Exit codes of a proof that came to its end, and what they say; one that breaks down ends with 1, too, but after no such record."""
WRONG_ARGUMENTS = 2
LOOK_EVERY_S = 0.1


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


def verify_bundle(
    folder: str | Path, *, duration_s: float | None = None, progress: Progress | None = None, seen: Callable[[Check], None] | None = None
) -> Check:
    """Measure every promise of a bundle.

    Nothing of a folder that was altered is run: the check then fails with what was found.

    Args:
        folder: Of the bundle.
        duration_s: Seconds of load; as promised if not given.
        progress: Called with the share done and what is being done.
        seen: Given the check as far as it is, whenever more is known; a promise that is not judged yet has `passed` None.

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

    def completed(check: Check) -> Check:
        return msgspec.structs.replace(check, subject=str(folder), findings=findings + check.findings)

    check = run_proof(path, duration_s=duration_s, progress=say, seen=None if seen is None else lambda so_far: seen(completed(so_far)))
    say(1.0, "done")
    return completed(check)


def run_proof(folder: Path, *, duration_s: float | None = None, progress: Progress | None = None, seen: Callable[[Check], None] | None = None) -> Check:
    """Run ``run.py verify`` of the bundle with this interpreter.

    Args:
        folder: Of the bundle.
        duration_s: Seconds of load; as promised if not given.
        progress: Called with the share done and what is being done.
        seen: Given the record as far as it is, whenever more is known.

    Raises:
        BundleError: it printed no record.
    """
    command = [sys.executable, "-B", str(folder / "run.py"), "verify", "--follow"]
    if duration_s is not None:
        command += ["--duration", str(duration_s)]
    last: Check | None = None
    steps = 0
    with tempfile.TemporaryFile() as said:  # a file, because nobody would empty a pipe meanwhile
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, cwd=folder.parent)
        try:
            for line in _lines(process):
                value = json.loads(line)
                if "step" in value:
                    steps += 1
                    if progress is not None:
                        progress(steps / (steps + 2), value["step"])
                    continue
                last = msgspec.convert(value, Check)
                if seen is not None:
                    seen(last)
            process.wait()
        except (ValueError, msgspec.ValidationError) as error:
            raise _no_record(folder, said, str(error)) from None
        finally:
            if process.poll() is None:
                process.terminate()  # the server that it started ends with it
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        code = process.returncode
        if last is None or code not in VERDICTS or VERDICTS[code] is not last.passed:
            older = "it was written by another version: write it again, or run its own proof, python run.py verify" if code == WRONG_ARGUMENTS else None
            raise _no_record(folder, said, f"it ended with code {code}", older)
    return last


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What it prints, line by line; meanwhile Python runs now and then, without which another thread could not stop this one."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(LOOK_EVERY_S):
                continue
            piece = os.read(process.stdout.fileno(), 2**16)
            if not piece:
                return
            *lines, pending = (pending + piece).split(b"\n")
            yield from lines


def _no_record(folder: Path, said: IO[bytes], why: str, help: str | None = None) -> BundleError:
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return BundleError(f"the proof of {folder} does not run: {lines[-1] if lines else why}", help=help)
