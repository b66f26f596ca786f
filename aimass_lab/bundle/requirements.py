"""Pins what a bundle needs to run: the versions installed here, with everything they need in turn."""

from __future__ import annotations

from importlib import metadata

from ..errors import MissingPackageError

RUNTIME = ("numpy", "onnxruntime", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf", "orjson", "prometheus_client", "psutil")
"""Distributions that the server imports."""

EXTRAS = {"rabbitmq": ("aio-pika",)}
"""What some ways of running it need besides, each in a file of its own: ``requirements-rabbitmq.txt``."""


def extra_requirements(extra: str) -> tuple[str, ...]:
    """As `pinned_requirements`, of what an extra needs besides; where it is not installed here, by name only, for no version is known to work."""
    known = pinned_requirements()
    try:
        return tuple(line for line in pinned_requirements((*RUNTIME, *EXTRAS[extra])) if line not in known)
    except MissingPackageError:
        return EXTRAS[extra]


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
