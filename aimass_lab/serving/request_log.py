"""One JSON line for each request, to a file that is rotated; never a tensor and never a token."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import sys
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson

from .errors import ServerError

logger = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20
"""Of one file."""
KEPT_FILES = 5
"""Besides the one that is written."""
MAX_TEXT = 200
"""Characters of an error or a path."""
REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""What a client may call its request: visible ASCII."""


def request_id(given: str | None) -> str:
    """The client's own name of its request where it has a usable one, else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


class RequestLog:
    """Writes what became of each request.

    Args:
        path: The file; ``-`` is standard error; None: nothing is written.

    Raises:
        ServerError: the file cannot be written.
    """

    what = "request log"
    """What messages call the file."""

    def __init__(self, path: str | None) -> None:
        self._handler: logging.Handler | None = None
        if path == "-":
            self._handler = logging.StreamHandler(sys.stderr)
        elif path is not None:
            try:
                self._handler = _Rotating(self.what, Path(path))
            except OSError as error:
                raise ServerError(f"cannot write the {self.what} {path}: {error.strerror or error}") from None
        if self._handler is not None:
            self._handler.setFormatter(logging.Formatter("%(message)s"))

    def __bool__(self) -> bool:
        """Whether anything is written."""
        return self._handler is not None

    def write(self, **fields: Any) -> None:
        """Write one line; texts are cut to a bounded length, and JSON leaves no character that could begin another line."""
        if self._handler is None:
            return
        told = {key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in fields.items() if value is not None}
        line = orjson.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **told}).decode()
        self._handler.handle(logging.LogRecord("requests", logging.INFO, "", 0, line, (), None))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take before
                self._handler.close()


class _Rotating(RotatingFileHandler):
    """Goes on without writing where the disk is full; says so once."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
        self._what = what
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell the first failure, and answer requests all the same."""
        if not self._told:
            self._told = True
            logger.warning("the %s cannot be written any more: %s", self._what, sys.exc_info()[1])
