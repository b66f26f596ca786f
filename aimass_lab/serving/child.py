"""Child processes of the server: they see the packages that it sees, and end when it does."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    "import importlib; importlib.import_module(sys.argv[2] + '.' + sys.argv[3]).main(**json.loads(sys.argv[4]))"
)
"""A child sees the packages that its parent sees, whatever the working directory holds."""
PR_SET_PDEATHSIG = 1
NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals of the parent, which a terminal and systemd send to its children, too."""


def start_child(
    module: str, told: Mapping[str, Any], *, handles: Sequence[int] = (), environment: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run `main` of a module of this package in a process of its own.

    Args:
        module: Its name.
        told: Arguments of `main`; it gets ``descriptor``, the inherited socket to this process, and ``parent``, the number of this process, too.
        handles: Of files that it inherits besides.
        environment: What its environment has besides that of this process.

    Returns:
        The process, and our end of the socket.

    Raises:
        OSError: there is no room for another process.
    """
    ours, theirs = socket.socketpair()
    arguments = json.dumps({**told, "descriptor": theirs.fileno(), "parent": os.getpid()})
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_OURS)  # the child begins with what is blocked here, until `die_with` ignores them
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", BOOT, json.dumps(sys.path), __package__ or "", module, arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # stdout belongs to the server's one line
                pass_fds=[theirs.fileno(), *handles],
                env={**os.environ, **(environment or {})},
            )
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process, ours


def die_with(parent: int) -> None:
    """Stop only by the parent's word: its signals are not ours, its death is."""
    for number in NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_OURS)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
