"""A package compiled by AOTInductor (.pt2): native code, so what is checked is that it is one, and that it is for this processor and this torch."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import ServingConfig
from ..errors import BundleError
from ._archive import Archive
from ._torch import TorchRunner, require

PLATFORM = "pytorch_aotinductor"

FOLDER = r"data/aotinductor/model/"
MEMBERS = (r"archive_format", FOLDER + r"[\w.]+\.so", FOLDER + r"[\w.]+_metadata\.json", FOLDER + r"custom_objs_config\.json")
INSTRUCTIONS = "AIMASS_INSTRUCTIONS"
"""Key of the metadata: instruction sets, in the words of /proc/cpuinfo."""
ELF = b"\x7fELF"


def load(path: Path, config: ServingConfig) -> TorchRunner:
    """Check what the package is for, and load it.

    Raises:
        BundleError: it is for another processor or another torch, holds more than a library, or does not load.
    """
    torch: Any = require("torch", "aot_inductor")
    check(path, processor_flags(), torch.__version__)
    try:
        import torch._inductor as inductor

        with _unpacked_for_now():
            package = inductor.aoti_load_package(str(path))
    except Exception as error:
        raise BundleError(f"{path.name} does not load in torch {torch.__version__} (it needs a /tmp that programs may run from): {str(error)[:400]}") from None
    return TorchRunner(package, config)


@contextlib.contextmanager
def _unpacked_for_now() -> Iterator[None]:
    """Let torch unpack to a folder that goes as soon as the library is mapped: torch removes its own as the model goes, and a killed worker's would stay."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="aimass-") as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def processor_flags() -> frozenset[str] | None:
    """Instruction sets of this processor in the kernel's words; None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), None)
    return None if found is None else frozenset(found.split())


def check(path: Path, flags: frozenset[str] | None, torch_version: str) -> None:
    """Compare the package with the machine.

    Args:
        path: The package.
        flags: What the processor can do; None: unknown, which is no reason to refuse.
        torch_version: Of the torch that is to load it.

    Raises:
        BundleError: with exactly what is missing here.
    """
    archive = Archive(path, MEMBERS)
    libraries = [name for name in archive.members if name.endswith(".so")]
    if len(libraries) != 1:
        raise BundleError(f"{path.name} holds {len(libraries)} shared libraries; a package has one")
    if not archive.read(libraries[0]).startswith(ELF):
        raise BundleError(f"{path.name}: {libraries[0]!r} is no shared library of Linux")
    metadata = _metadata(archive)
    again = 'write the bundle again on a machine like this one (aimass bundle ... --format aot_inductor), or as "onnx", which runs anywhere'
    machine = metadata.get("AOTI_MACHINE", "")
    if machine != platform.machine():
        raise BundleError(f"{path.name} was compiled for {machine or 'an unnamed machine'}, and this one is {platform.machine()}: {again}")
    lacking = sorted(set(metadata.get(INSTRUCTIONS, "").split()) - flags) if flags is not None else []
    if lacking:
        raise BundleError(f"{path.name} was compiled for processors with {', '.join(lacking)}, which this one lacks: {again}")
    made_with = metadata.get("AIMASS_TORCH", "")
    if made_with and made_with != torch_version:
        raise BundleError(f"{path.name} was compiled for torch {made_with}, and torch {torch_version} is installed: pip install -r requirements.txt")


def _metadata(archive: Archive) -> dict[str, str]:
    for name in archive.members:
        if name.endswith("_metadata.json"):
            try:
                value = json.loads(archive.read(name))
            except ValueError as error:
                raise BundleError(f"{archive.path.name}: {name!r} is not JSON: {error}") from None
            if isinstance(value, dict):
                return {str(key): str(item) for key, item in value.items()}
    raise BundleError(f"{archive.path.name} does not say what it was compiled for")
