"""Pins what a bundle needs to run: the versions installed here, with everything they need in turn."""

from __future__ import annotations

from importlib import metadata

from ..errors import MissingPackageError

RUNTIME = ("numpy", "onnxruntime", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf", "orjson", "prometheus_client", "psutil")
"""Distributions that the server imports."""


def pinned_requirements(roots: tuple[str, ...] = RUNTIME) -> tuple[str, ...]:
    """``name==version`` of `roots` and of all they require on this platform, sorted.

    Raises:
        MissingPackageError: one of them is not installed here, so that no version is known to work.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        key = canonicalize_name(name)
        if key in versions:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise MissingPackageError(name, "a bundle") from None
        versions[key] = distribution.version
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return tuple(f"{name}=={version}" for name, version in sorted(versions.items()))
