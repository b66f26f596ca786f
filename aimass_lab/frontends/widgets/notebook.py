"""Joins the background worker to a notebook's kernel: it rests while a cell runs, and stops when the kernel is interrupted."""

from __future__ import annotations

from typing import Any

from ..background import Worker
from .panel import open_panels


class Joint:
    """One shell and its worker.

    Args:
        shell: The kernel's IPython shell.
    """

    def __init__(self, shell: Any) -> None:
        self.worker = Worker()
        self._shell = shell

    def join(self) -> None:
        """Begin to listen; the worker rests until the cell that is running now has ended."""
        # Not pre_run_cell: what a front-end runs silently must not meet a job either.
        self._shell.events.register("pre_execute", self._before)
        self._shell.events.register("post_execute", self._after)
        self.worker.hold()
        _stop_when_interrupted(self._shell.kernel, self.worker)

    def leave(self) -> None:
        """Stop what runs, and leave the kernel as it was."""
        self.worker.stop()
        self._shell.events.unregister("pre_execute", self._before)
        self._shell.events.unregister("post_execute", self._after)

    def _before(self) -> None:
        if not self._is_from_panel():
            self.worker.hold()

    def _after(self) -> None:
        if self._is_from_panel():
            return
        for panel in open_panels():
            panel.refresh()
        self.worker.release()

    def _is_from_panel(self) -> bool:
        """Whether what the kernel handles now is a message of a panel: ipykernel announces those as it does cells.

        They leave the model alone. If they took the place of a job, a click would begin a measurement anew, and Stop find nothing to stop.
        """
        parent = self._shell.get_parent()
        of_comm = parent.get("header", {}).get("msg_type") == "comm_msg"
        return of_comm and parent.get("content", {}).get("comm_id") in {panel.model_id for panel in open_panels()}


_joined: dict[int, Joint] = {}
"""By the shell's id."""


def join_worker(shell: Any) -> Worker:
    """The one worker of `shell`."""
    if id(shell) not in _joined:
        joint = _joined[id(shell)] = Joint(shell)
        joint.join()
    return _joined[id(shell)].worker


def leave(shell: Any) -> None:
    """Close every panel, stop what runs for them, and leave the kernel as it was."""
    for panel in open_panels():
        panel.close()
    joint = _joined.pop(id(shell), None)
    if joint is not None:
        joint.leave()


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
