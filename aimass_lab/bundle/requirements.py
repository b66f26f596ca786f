"""Pins what a bundle needs to run: the versions installed here, with everything they need in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from ..errors import MissingPackageError

RUNTIME = ("numpy", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf", "orjson", "prometheus_client", "psutil")
"""Distributions that the server imports, whatever the format of its model."""
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
"""Where torch's builds for the processor alone lie, which PyPI does not have."""

Hashes = Mapping[str, Sequence[str]]
"""By requirement: ``sha256:<hex>`` of every file."""

EXTRAS = {
    "rabbitmq": ("aio-pika",),
    "reflection": ("grpcio-reflection",),
    "tracing": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
}
"""What some ways of running it need besides, each in a file of its own: ``requirements-rabbitmq.txt``."""


def extra_requirements(extra: str) -> tuple[str, ...]:
    """As `pinned_requirements`, of what an extra needs besides; where it is not installed here, by name only, for no version is known to work."""
    known = pinned_requirements()
    try:
        return tuple(line for line in pinned_requirements((*RUNTIME, *EXTRAS[extra])) if line not in known)
    except MissingPackageError:
        return EXTRAS[extra]


def pinned_requirements(runs_on: tuple[str, ...] = ("onnxruntime",)) -> tuple[str, ...]:
    """``name==version`` of what the server and the runtime of its model need, and of all they require on this platform, sorted.

    Args:
        runs_on: Distributions of the runtime.

    Raises:
        MissingPackageError: one of them is not installed here, so that no version is known to work.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    waiting = [*RUNTIME, *runs_on]
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


def is_from_cpu_index(requirement: str) -> bool:
    """Whether it is one of torch's builds for the processor alone."""
    return requirement.endswith("+cpu")


def is_pinned(requirement: str) -> bool:
    """Whether it names a version."""
    return "==" in requirement


def requirements_text(requirements: Sequence[str], hashes: Hashes | None) -> str:
    """The content of ``requirements.txt``.

    Args:
        requirements: ``name==version``.
        hashes: Of the files that may be installed, with which pip accepts no others; None: nobody asked the index for them.
    """
    index = [f"--extra-index-url {CPU_WHEELS}"] if any(map(is_from_cpu_index, requirements)) else []
    if not all(map(is_pinned, requirements)):
        said = "# Without versions and hashes: these packages were not installed where the bundle was written."
    elif hashes is None:
        said = "# Without hashes, which only the package index has: a bundle that is written with --hashes has them."
    else:
        said = "# With the hash of every file that the package index has of these versions; pip refuses any other."
        requirements = [" \\\n    ".join([line, *(f"--hash={digest}" for digest in hashes[line])]) for line in requirements]
    return "\n".join([said, *index, *requirements]) + "\n"
