"""Starts a bundle's own server in a child process and waits until it is ready."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from .errors import ServerError

START_TIMEOUT_S = 600.0
FOR_CALLERS = ("AIMASS_TOKEN", "AIMASS_AMQP")
"""Variables of the environment that open a server to others."""


class Server:
    """A running server; a context manager that stops it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.folder = folder
        """The bundle."""
        self._process = process
        self._log = log
        self._last_words = ""
        self.url = ""
        """``http://127.0.0.1:PORT``"""
        self.grpc_address: str | None = None
        """``127.0.0.1:PORT``; None without gRPC."""
        self.startup_s = 0.0
        """From starting the process to its word that it is ready."""

    @property
    def pid(self) -> int:
        """Of the process that has the queues, the parent of all others."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """What it wrote to standard error so far, or until it was stopped."""
        if self._log.closed:
            return self._last_words
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def wait(self) -> int:
        """Wait until it ends by itself.

        Returns:
            Its exit code.
        """
        return self._process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        """Let it finish what it accepted and end; kill it when that takes too long.

        Returns:
            Its exit code.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._last_words = self.log
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def __enter__(self) -> Server:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the server."""
        self.stop()


def start(
    folder: Path | str,
    *,
    port: int = 0,
    grpc_port: int | None = 0,
    python: str | None = None,
    arguments: tuple[str, ...] = (),
    private: bool = False,
    timeout_s: float = START_TIMEOUT_S,
) -> Server:
    """Run ``run.py serve`` of a bundle and wait until it is ready.

    Args:
        folder: The bundle.
        port: For HTTP; 0: a free one.
        grpc_port: For gRPC; 0: a free one; None: no gRPC.
        python: The interpreter; None: this one.
        arguments: Further arguments of ``serve``.
        private: Whether only whoever starts it asks it: then the token, the queue and the collector of traces that the environment names are not for it.
        timeout_s: How long it may take to get ready.

    Raises:
        ServerError: it ended instead, with what it said, or did not get ready in time.
    """
    folder = Path(folder).resolve()
    log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
    ports = ["--port", str(port), "--grpc-port", "none" if grpc_port is None else str(grpc_port)]
    command = [python or sys.executable, str(folder / "run.py"), "serve", *ports, "--until-stdin-closes", *arguments]
    environment = os.environ.copy()
    if private:
        environment = {name: value for name, value in environment.items() if name not in FOR_CALLERS} | {"OTEL_SDK_DISABLED": "true"}
    began = time.monotonic()
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environment)
    except OSError as error:
        log.close()
        raise ServerError(f"cannot run {command[0]}: {error.strerror}") from None
    server = Server(folder, process, log)
    try:
        line = _first_line(process, timeout_s)
    except BaseException:
        process.kill()
        server.stop()
        raise
    words = line.split()
    if words[:1] != ["ready"]:
        code, said = server.stop(), server.log.strip().splitlines()
        last = said[-1].removeprefix("error: ") if said else "it said nothing"
        raise ServerError(f"the server of {folder} ended with code {code}: {last}")
    server.startup_s = time.monotonic() - began
    server.url = words[1]
    server.grpc_address = words[3] if len(words) > 3 else None
    return server


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    """The first line of standard output; empty when there is none."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            raise ServerError(f"the server was not ready within {timeout_s:g} s")
    return process.stdout.readline().decode()
