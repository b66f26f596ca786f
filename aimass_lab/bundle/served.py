"""Finds the bundles that are being served on this machine by this user, whoever started them, and stops one."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import ssl
from pathlib import Path

import psutil

from ..errors import BundleError
from ..records import Service
from .proof import is_bundle

STOP_TIMEOUT_S = 60.0
"""A server finishes what it accepted; see `serving.launch.Server.stop`."""
_PROBE_TIMEOUT_S = 0.5


class ServedBundles:
    """Looks for running ``run.py serve``; what was found out about a process is remembered while it lives."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, float], Service] = {}

    def find(self) -> tuple[Service, ...]:
        """Those that answer by now, by process number."""
        seen: dict[tuple[int, float], Service] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                folder = _folder_served(process)
                if folder is None:
                    continue
                key = (process.pid, process.create_time())
                service = self._known.get(key) or _describe(process, folder)
                if service is not None:
                    seen[key] = service
        self._known = seen
        return tuple(sorted(seen.values(), key=lambda service: service.pid))

    def stop(self, pid: int, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Let one finish what it accepted, and end; kill it when that takes too long.

        Raises:
            BundleError: no bundle is served by that process.
        """
        try:
            process = psutil.Process(pid)
            if _folder_served(process) is None:
                raise BundleError(f"process {pid} serves no bundle", help="it may have ended meanwhile: look at the list again")
            process.terminate()
            try:
                process.wait(timeout_s)
            except psutil.TimeoutExpired:
                process.kill()
        except psutil.NoSuchProcess:
            raise BundleError(f"there is no process {pid}", help="it may have ended meanwhile: look at the list again") from None


def _folder_served(process: psutil.Process) -> Path | None:
    """The bundle whose ``run.py serve`` this process is; None for any other process, a worker of such a one included."""
    if process.uids().real != os.getuid():
        return None
    words = process.cmdline()
    for script, command in itertools.pairwise(words):
        if command == "serve" and Path(script).name == "run.py":
            folder = (Path(process.cwd()) / script).parent
            return folder if is_bundle(folder) else None
    return None


def _describe(process: psutil.Process, folder: Path) -> Service | None:
    """Tell its ports apart by asking; None while none answers."""
    ports = sorted({c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN})
    for port in ports:
        scheme = _scheme(port)
        if scheme is not None:
            others = [other for other in ports if other != port]
            grpc = f"127.0.0.1:{others[0]}" if others else None
            return Service(folder=str(folder), url=f"{scheme}://127.0.0.1:{port}", grpc_address=grpc, pid=process.pid)
    return None


def _scheme(port: int) -> str | None:
    """``http`` or ``https`` where something answers like a bundle's server."""
    unverified = ssl._create_unverified_context()  # it is our own machine, and nothing is sent
    for scheme, connection in (
        ("http", http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_TIMEOUT_S)),
        ("https", http.client.HTTPSConnection("127.0.0.1", port, timeout=_PROBE_TIMEOUT_S, context=unverified)),
    ):
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/v2/health/live")
            if connection.getresponse().status == 200:
                return scheme
    return None
