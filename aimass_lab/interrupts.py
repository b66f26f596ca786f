"""Interrupts that wait for what must not be left half done: an import, which would stay broken for as long as the process lives, and putting a model back."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

LOOK_EVERY_S = 0.02

P = ParamSpec("P")
T = TypeVar("T")

_WHOLE: set[str] = set()
"""Files whose functions are ended before an interrupt is heeded."""


def keep_whole(file: str) -> None:
    """Let no interrupt break into the functions of a file: what is between the beginning and the end of a context manager in it is none of them.

    Args:
        file: The module's ``__file__``.
    """
    _WHOLE.add(file)


def must_end_first(frame: FrameType | None, *, below: FrameType | None = None) -> bool:
    """Whether a thread does what nothing may break into: importing, or what a file does that is kept whole.

    Args:
        frame: What the thread does now.
        below: What it did when it began what is asked about; None: since it was started.
    """
    if importing(frame, below=below):
        return True
    while frame is not None and frame is not below:
        if frame.f_code.co_filename in _WHOLE:
            return True
        frame = frame.f_back
    return False


def importing(frame: FrameType | None, *, below: FrameType | None = None) -> bool:
    """Whether a thread is within an import.

    Args:
        frame: What the thread does now.
        below: What it did when it began what is asked about; None: since it was started.
    """
    while frame is not None and frame is not below:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def spare_imports(work: Callable[[], T]) -> T:
    """Do some work that an interrupt (Ctrl-C, or Jupyter's button) may end, but not within an import, nor while a model is put back: it then ends right after.

    An import that is broken off leaves the modules that were done, without the package that they belong to; the next import of that package takes them
    for granted, and misses what only their first import gives it. Nothing changes in other threads, and where somebody else handles interrupts.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return work()
    begun, late, again, asking = sys._getframe(), False, threading.Event(), list[threading.Thread]()

    def ask_again() -> None:
        if not again.wait(LOOK_EVERY_S):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # the signal itself: it ends waiting, too

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal late
        late = again.is_set() or must_end_first(frame, below=begun)
        if not late:
            raise KeyboardInterrupt
        if not again.is_set():
            thread = threading.Thread(target=ask_again, name="aimass-interrupt", daemon=True)
            thread.start()
            asking.append(thread)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        return work()
    finally:
        again.set()
        for thread in asking:
            thread.join()  # what it still sends must not reach whoever comes after
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if late:
            raise KeyboardInterrupt


def sparing_imports(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, of which an interrupt breaks off no import: for public ones that load libraries as they go, and that people call without a verb."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return spare_imports(lambda: function(*args, **kwargs))

    return call
