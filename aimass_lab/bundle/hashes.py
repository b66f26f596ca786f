"""Asks the package index which files belong to the pinned versions: their hashes go into a bundle's requirements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ..errors import BundleError, MissingPackageError
from .requirements import CPU_WHEELS, Hashes, is_from_cpu_index

TIMEOUT_S = 120.0


def fetch_hashes(requirements: Sequence[str]) -> Hashes:
    """The hashes of every file of every version, for whatever system will install them, by requirement.

    The index is the one that uv is set up for. What is installed here tells nothing of them: its records have hashes of what was unpacked.

    Args:
        requirements: ``name==version``.

    Raises:
        MissingPackageError: uv is not installed.
        BundleError: the index cannot be reached, or does not have a version.
    """
    try:
        from uv import find_uv_bin
    except ImportError:
        raise MissingPackageError("uv", "asking the package index for hashes") from None
    command = [find_uv_bin(), "pip", "compile", "-", "--generate-hashes", "--no-deps", "--no-header", "--no-annotate", "--quiet", "--python", sys.executable]
    if any(map(is_from_cpu_index, requirements)):
        command += ["--extra-index-url", CPU_WHEELS, "--index-strategy", "unsafe-best-match"]  # versions are pinned, so it does not matter who else has some
    try:
        done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BundleError(f"the package index gave no hashes within {TIMEOUT_S:.0f} s", help="write the bundle without hashes") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise BundleError(f"the package index gives no hashes: {said}", help="write the bundle without hashes, or where the index can be reached")
    found: dict[str, tuple[str, ...]] = {}
    for line in done.stdout.replace("\\\n", " ").splitlines():
        requirement, *options = line.split()
        found[requirement] = tuple(option.removeprefix("--hash=") for option in options)
    if missing := [requirement for requirement in requirements if not found.get(requirement)]:
        raise BundleError(f"the package index gives no hashes of {missing[0]}", help="write the bundle without hashes")
    return found
