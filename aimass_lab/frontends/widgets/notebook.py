"""Joins the background worker to a notebook's kernel: it rests while a cell runs, and stops when the kernel is interrupted."""

from __future__ import annotations

from typing import Any

from ..background import Worker
from .panel import open_panels

_joined: dict[int, Worker] = {}
"""The one worker of a shell, by the shell's id."""


def join_worker(shell: Any) -> Worker:
    """The worker of `shell`; a new one rests until the cell that is running now has ended."""
    if id(shell) not in _joined:
        worker = _joined[id(shell)] = Worker()
        # Not pre_run_cell: what a front-end runs silently must not meet a job either.
        shell.events.register("pre_execute", worker.hold)
        shell.events.register("post_execute", _after_cell)
        worker.hold()
        _stop_when_interrupted(shell.kernel, worker)
    return _joined[id(shell)]


def leave(shell: Any) -> None:
    """Close every panel, stop what runs for them, and leave the kernel as it was."""
    for panel in open_panels():
        panel.close()
    worker = _joined.pop(id(shell), None)
    if worker is None:
        return
    worker.stop()
    shell.events.unregister("pre_execute", worker.hold)
    shell.events.unregister("post_execute", _after_cell)


def _after_cell() -> None:
    for panel in open_panels():
        panel.refresh()
    for worker in _joined.values():
        worker.release()


def _stop_when_interrupted(kernel: Any, worker: Worker) -> None:
    """Let the kernel's interrupt stop background work too: while no cell runs, a kernel ignores it.

    ipykernel keeps the handler of the idle kernel aside while it handles a message, and puts it back afterwards: that one is replaced.
    """
    before = getattr(kernel, "saved_sigint_handler", None)

    def interrupted(number: int, frame: Any) -> None:
        # Not in the handler itself: the main thread may hold the worker's lock at this very moment.
        kernel.io_loop.add_callback_from_signal(worker.stop)
        if callable(before):
            before(number, frame)

    if hasattr(kernel, "saved_sigint_handler"):
        kernel.saved_sigint_handler = interrupted
