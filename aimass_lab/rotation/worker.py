"""A thread that carries one call of a model from pause to pause, so that other calls can run in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_HERE = threading.local()


class Abandoned(BaseException):
    """The call is not wanted any more: unwinds the model's own frames, so it is no `Exception` that they could catch."""


class Worker:
    """One thread; between two steps it waits, with the call's frames and activations as they are.

    A step is handed over by locks, so exactly one of worker and caller runs at any time.

    Args:
        clock: What a step is timed by; called in the worker's thread.
        begin: Called once in the new thread.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time, begin: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._begin = begin
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._function: Callable[[], object] | None = None
        self._abandon = False
        self._used_s = 0.0
        self._since_s = 0.0
        self._error: BaseException | None = None
        self.result: object = None
        """What the last call returned."""
        self.finished = True
        """Whether no call is under way."""
        self._thread = threading.Thread(target=self._serve, name="aimass-rotation", daemon=True)
        self._thread.start()

    def start(self, function: Callable[[], object]) -> None:
        """Take up a call; nothing of it runs before the first step."""
        assert self.finished
        self._function, self.finished, self.result = function, False, None

    def step(self) -> float:
        """Run up to the next pause, or to the end; return the time that took.

        Raises:
            BaseException: what the call raised.
        """
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._used_s

    def close(self) -> None:
        """End the thread; a call under way is unwound where it stands."""
        self._abandon = True
        self._function = None
        self._go.release()
        self._thread.join()

    def _serve(self) -> None:
        if self._begin is not None:
            self._begin()
        _HERE.worker = self
        while True:
            self._go.acquire()
            if self._function is None:
                return
            self._since_s = self._clock()
            try:
                self.result = self._function()
            except Abandoned:
                return
            except BaseException as error:  # handed to the caller's thread, interrupts included
                self._error = error
            self._used_s = self._clock() - self._since_s
            self.finished = True
            self._back.release()

    def _pause(self) -> None:
        self._used_s = self._clock() - self._since_s
        self._back.release()
        self._go.acquire()
        if self._abandon:
            raise Abandoned
        self._since_s = self._clock()


def pause() -> None:
    """End a step of the worker in whose thread this is called; elsewhere do nothing."""
    worker: Worker | None = getattr(_HERE, "worker", None)
    if worker is not None:
        worker._pause()
