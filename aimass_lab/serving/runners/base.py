"""What the worker asks of a model format."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from ..config import ServingConfig
from ..errors import BundleError

Array = np.ndarray[Any, Any]


class Runner(Protocol):
    """A loaded model."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute all outputs, in the order of the signature; whatever it raises fails the requests of that batch only."""


class Format(Protocol):
    """A module of this package."""

    PLATFORM: str
    """What the protocol's metadata calls it: ``"onnx_onnxv1"``."""
    DEVICES: tuple[str, ...]
    """Kinds of devices that it computes on, where that is more than the processor."""

    def load(self, path: Path, config: ServingConfig) -> Runner:
        """Load the model file.

        Raises:
            BundleError: the file is not safe to load, not readable, or not of the signature in the config.
        """


def known_formats() -> list[str]:
    """Names of the formats there are."""
    package = importlib.import_module(__package__)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base" and not module.name.startswith("_"))


def find_format(name: str) -> Format:
    """The format called `name`; its library is not imported before `load`.

    Raises:
        BundleError: there is none.
    """
    if name not in known_formats():
        raise BundleError(f"no runner for the format {name!r}; there are: {', '.join(known_formats())}")
    return cast(Format, importlib.import_module(f"{__package__}.{name}"))
