"""Work beside the notebook: one thread, one job at a time, which lets go of the model whenever a cell runs."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import interrupts

LOOK_EVERY_S = 0.01
ASK_AGAIN_S = 5.0
"""A library may swallow an exception; it is not raised again sooner, because the job may be putting things back."""

State = Literal["waiting", "running", "done", "failed", "stopped", "dropped"]
"""*stopped*: while it ran, and what it kept of its work is kept; *dropped*: before it began."""
Work = Callable[[Callable[[float, str], None]], Any]
"""What a job does; it is given where to tell its progress."""

Changed = Callable[["Job"], None]

END_STATES = ("done", "failed", "stopped", "dropped")


class Held(BaseException):
    """Raised inside a job when a cell begins. Not an interrupt: what a verb keeps of interrupted work is not asked for, the job is done again."""


class _Late(BaseException):
    """Takes the place of what was raised from outside when the job had ended already."""


@dataclass(eq=False)
class Job:
    """One piece of work and how far it is."""

    line: str
    """The line of code that it stands for."""
    work: Work
    changed: Changed
    after: Job | None = None
    """What it was asked for together with, and goes on from: without that it is dropped."""
    number: int = field(default_factory=itertools.count(1).__next__)
    state: State = "waiting"
    share: float = 0.0
    text: str = ""
    """What it is doing, or why it failed."""
    result: Any = None


class Worker:
    """One thread and its queue.

    A cell of the notebook and a job never run at the same time: `hold` ends the job's call of the model, waits until the verb has
    put everything back, and `release` lets it begin again. So no cell meets the model in the middle of a measurement, no measurement
    is disturbed by a cell, and a cell waits for one call of the model at most.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._condition = threading.Condition()
        self._holds = 0
        self._in_work = False
        """Whether the thread is where an exception from outside may hit it."""
        self._asked: type[BaseException] | None = None
        """What the running job shall end with."""
        self._asked_at = 0.0
        self._thread: threading.Thread | None = None

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What is running and what waits, in order."""
        with self._condition:
            return (*filter(None, (self._running,)), *self._waiting)

    def submit(self, *calls: tuple[str, Work], changed: Changed) -> tuple[Job, ...]:
        """Queue jobs; each but the first goes on from the one before, and is dropped where that one is not done.

        Args:
            calls: The line of code that a job stands for, and what it does.
            changed: Told whenever the state or progress of one changed, from the worker's thread or the caller's.
        """
        jobs: list[Job] = []
        for line, work in calls:
            jobs.append(Job(line, work, changed, jobs[-1] if jobs else None))
        with self._condition:
            self._waiting.extend(jobs)
            self._begin()
            self._condition.notify_all()
        for job in jobs:
            changed(job)
        return tuple(jobs)

    def stop(self, *numbers: int) -> None:
        """End jobs, as an interrupt of the kernel ends a verb: what it keeps of its work is kept.

        Args:
            numbers: Of the jobs; all if none is given.
        """
        with self._condition:
            dropped = self._drop(lambda job: not numbers or job.number in numbers)
            if self._running is not None and (not numbers or self._running.number in numbers):
                self._running.state = "stopped"
                self._ask(KeyboardInterrupt)
        for job in dropped:
            job.changed(job)

    def hold(self) -> None:
        """Let no job run until `release`; returns once the one that runs has let go of the model."""
        with self._condition:
            self._holds += 1
            while self._running is not None and self._thread is not threading.current_thread():
                self._ask(Held)
                self._condition.wait(LOOK_EVERY_S)

    def release(self) -> None:
        """Undo one `hold`."""
        with self._condition:
            self._holds = max(0, self._holds - 1)
            self._begin()
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; False when the time is up."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            while self._running is not None or self._waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._condition.wait(min(left, 0.5))
        return True

    def _ask(self, kind: type[BaseException]) -> None:
        """Raise `kind` in the job at its next line of Python, as an interrupt does in the main thread; the condition is held."""
        self._asked = self._asked or kind
        thread = self._thread
        if not self._in_work or thread is None or thread.ident is None or time.monotonic() - self._asked_at < ASK_AGAIN_S:
            return
        if interrupts.must_end_first(sys._current_frames().get(thread.ident)):
            return  # asked again by `hold`, or heeded at the next progress
        self._asked_at = time.monotonic()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(self._asked))

    def _drop(self, which: Callable[[Job], bool]) -> list[Job]:
        """Take waiting jobs off the queue, and those that would go on from them; the condition is held."""
        dropped = []
        for job in list(self._waiting):
            if which(job) or (job.after is not None and job.after.state in ("failed", "stopped", "dropped")):
                self._waiting.remove(job)
                job.state = "dropped"
                dropped.append(job)
        return dropped

    def _begin(self) -> None:
        """Start the thread, if there is something to do; the condition is held.

        It ends when there is not, so that a panel that is closed leaves nothing behind.
        """
        if self._thread is None and self._waiting and not self._holds:
            # A daemon: an interpreter that ends shall not wait for a measurement.
            self._thread = threading.Thread(target=self._loop, name="aimass-background", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while True:
            with self._condition:
                if self._holds or not self._waiting:
                    self._thread = None
                    return
                job = self._running = self._waiting.popleft()
                job.state, job.share, job.text, self._asked = "running", 0.0, "", None
            job.changed(job)
            again = self._do(job)
            with self._condition:
                self._running = None
                if again:
                    job.state = "waiting"
                    self._waiting.appendleft(job)
                dropped = self._drop(lambda other: False)
                self._condition.notify_all()
            for one in (job, *dropped):
                one.changed(one)

    def _do(self, job: Job) -> bool:
        """Run a job and note how it ended; True where a cell took its place."""
        outcome: tuple[State, str] = ("done", "")
        try:
            try:
                self._in_work, self._asked_at = True, 0.0
                with self._swallowed():
                    job.result = job.work(lambda share, text: self._tell(job, share, text))
            finally:
                self._end_work()
        except Held:
            return job.state != "stopped"
        except KeyboardInterrupt:
            outcome = ("stopped", "")
        except Exception as error:
            outcome = ("failed", str(error) or type(error).__name__)
        if job.state != "stopped":
            job.state = outcome[0]
        job.text = outcome[1]
        return False

    @contextlib.contextmanager
    def _swallowed(self) -> Iterator[None]:
        """Ask again at once where what was raised ended in the callback of a weak reference or in a destructor.

        Python cannot raise out of these: it tells a hook, which prints it into the cell that has begun, and goes on.
        """
        before, thread = sys.unraisablehook, threading.get_ident()

        def hook(told: sys.UnraisableHookArgs) -> None:
            if threading.get_ident() == thread and self._asked is not None and told.exc_type is self._asked:
                self._asked_at = 0.0
            else:
                before(told)

        sys.unraisablehook = hook
        try:
            yield
        finally:
            if sys.unraisablehook is hook:
                sys.unraisablehook = before

    def _end_work(self) -> None:
        with self._condition:
            self._in_work = False
            # One that came too late is replaced, and this one taken: if it were only taken back, Python would look for it at every step,
            # and torch's profiler with stacks would never end.
            try:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_Late))
                for _ in range(100_000):
                    pass
            except _Late:
                pass

    def _tell(self, job: Job, share: float, text: str) -> None:
        if self._asked is not None and not self._asked_at:  # once only: a verb that was interrupted tells its progress while it keeps what it has
            self._asked_at = time.monotonic()
            raise self._asked
        job.share, job.text = share, text
        job.changed(job)
