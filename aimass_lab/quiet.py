"""Silences exactly those alarms of torch and torchao that tell a user nothing."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

HARMLESS = ("Failed to load ", "%s is an Enum subclass and is now natively supported")
"""Starts of log messages at torchao's import: CUDA extensions that a CPU cannot load, and a deprecation between it and torch."""
LOGGERS = ("torchao", "torch.utils._pytree")
EXPORTERS = (
    "torch.onnx", "torch.export", "torch._export", "torch.fx", "torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch.utils._pytree", "onnxscript",
    "onnx_ir",
)  # fmt: skip


def import_quietly(name: str) -> ModuleType:
    """Import a module of torch or torchao without its alarms about things that are not needed here."""
    with quiet():
        return importlib.import_module(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep harmless alarms of torch and torchao quiet: for a first import or a first compilation."""
    with quiet_logs(), warnings.catch_warnings():
        # torch's own modules still use what it deprecates
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script\w*` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"\w+ does not implement _stable_hash_for_caching", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"To copy construct from a tensor", category=UserWarning)
        yield


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep the log messages quiet, and leave warnings as they are: while somebody else's code imports torchao."""
    muted_before = _tells_something in logging.getLogger(LOGGERS[0]).filters
    mute()
    try:
        yield
    finally:
        if not muted_before:
            unmute()


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep the remarks of torch's exporters to their own developers from the user, printed ones included."""
    loggers = [logging.getLogger(name) for name in EXPORTERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep torch from logging, with its traceback, what an operator on shapes alone raises: whoever calls it gets the error itself."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def mute() -> None:
    """Silence the log messages until `unmute`: transformers imports torchao wherever we installed it, and logs its alarms."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_tells_something)


def unmute() -> None:
    """Undo `mute`."""
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(HARMLESS)
