"""Shows traces in TensorBoard, with torch's profiler plugin, from a child process that listens on this machine only."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import InputError, MissingPackageError, UnsupportedError
from .traces_file import shown_by_plugin

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0


class TensorBoard:
    """A running TensorBoard; a context manager that stops it. It also stops when this process ends."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.folder = folder
        """Where it looks for traces, and goes on looking."""
        self._process = process
        self._log = log
        self.url = ""
        """``http://127.0.0.1:PORT/#pytorch_profiler``"""

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it answers still."""
        return self._process.poll() is None

    @property
    def magic(self) -> str:
        """The line that shows the same folder inside a notebook, after ``%load_ext tensorboard``."""
        return f"%tensorboard --logdir {self.folder}"

    def stop(self) -> None:
        """End it and every process that it started."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()  # the end of its standard input is its sign to end
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _repr_html_(self) -> str:
        return f'TensorBoard of <code>{self.folder}</code>: <a href="{self.url}" target="_blank">{self.url}</a>'

    def __repr__(self) -> str:
        return f"TensorBoard of {self.folder} at {self.url}"

    def __enter__(self) -> TensorBoard:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End it."""
        self.stop()


def open_tensorboard(folder: Path | str, *, timeout_s: float = START_TIMEOUT_S) -> TensorBoard:
    """Start TensorBoard on a folder of traces, and wait until it answers.

    It reads traces in the background: a large one appears some seconds later.

    Args:
        folder: The folder, or one trace in it: ``TraceSummary.path``.
        timeout_s: How long the start may take.

    Raises:
        InputError: there is no trace that the plugin would show.
        MissingPackageError: TensorBoard or the plugin is not installed.
        UnsupportedError: it ended instead, with what it said, or was not ready in time.
    """
    for package, module in (("tensorboard", "tensorboard"), ("torch-tb-profiler", "torch_tb_profiler")):
        if find_spec(module) is None:
            raise MissingPackageError(package, "showing traces in TensorBoard")
    where = Path(folder).expanduser().resolve()
    where = where.parent if where.is_file() else where
    if not where.is_dir() or not any(shown_by_plugin(path) for path in where.rglob("*")):
        raise InputError(f"there is no trace in {str(folder)!r} that TensorBoard would show", help="their names end in .pt.trace.json.gz")
    log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the child
    command = [sys.executable, "-m", f"{__package__}.traces_plugin", str(where)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    board = TensorBoard(where, process, log)
    try:
        words = _first_line(process, timeout_s).split()
        if words[:1] != ["ready"]:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()
            raise UnsupportedError(f"TensorBoard ended: {said[-1] if said else 'it said nothing'}")
    except BaseException:
        board.stop()
        raise
    board.url = f"{words[1].rstrip('/')}/#pytorch_profiler"
    return board


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise UnsupportedError(f"TensorBoard was not ready within {timeout_s:g} s")
    return process.stdout.readline().decode()
