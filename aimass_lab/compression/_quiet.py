"""Silences exactly those alarms of torch and torchao that tell a user nothing."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

HARMLESS = ("Failed to load ", "%s is an Enum subclass and is now natively supported")
"""Starts of log messages at torchao's import: CUDA extensions that a CPU cannot load, and a deprecation between it and torch."""


def import_quietly(name: str) -> ModuleType:
    """Import a module of torch or torchao without its alarms about things that are not needed here."""
    with quiet():
        return importlib.import_module(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep harmless alarms of torch and torchao quiet: for a first import or a first compilation."""

    def tells_something(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(HARMLESS)

    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    for logger in loggers:
        logger.addFilter(tells_something)
    try:
        with warnings.catch_warnings():
            # torch's own modules still use what it deprecates
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.script\w*` is deprecated", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=r"\w+ does not implement _stable_hash_for_caching", category=UserWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(tells_something)
