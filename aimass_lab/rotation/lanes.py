"""A lane on which real models run, segment by segment, with the clock that its time is read off."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from ..scheduling import Job
from .segments import Pieces
from .worker import Worker

if TYPE_CHECKING:
    import torch

Clock = Literal["device", "wall"]
"""*device*: the time that the device worked, for models and for handing it over; waiting for the next arrival takes none. So it holds on a
machine that other work disturbs, and a run is over as soon as its work is. *wall*: the clock on the wall."""


def reader(device: torch.device, clock: Clock) -> Callable[[], float]:
    """What the steps of calls on `device` are timed by."""
    if device.type == "cuda":
        import torch

        def read() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return read
    return time.thread_time if clock == "device" else time.perf_counter


class Crew:
    """The calls that are under way, each with a worker of its own; as many threads as there were calls at once.

    Args:
        clock: What steps are timed by.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._free: list[Worker] = []
        self._all: list[Worker] = []
        self._under_way: dict[int, Worker] = {}

    def __enter__(self) -> Crew:
        import torch

        self._threads = torch.get_num_threads()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import torch

        for worker in self._all:
            worker.close()
        torch.set_num_threads(self._threads)

    def worker(self, index: int, function: Callable[[], object]) -> Worker:
        """The worker of a request; `function` is the call that it takes up if it has none yet."""
        if index not in self._under_way:
            if not self._free:
                self._free.append(Worker(self._clock, _one_thread))
                self._all.append(self._free[-1])
            worker = self._under_way[index] = self._free.pop()
            worker.start(function)
        return self._under_way[index]

    def release(self, index: int) -> None:
        """Let go of a request whose call has ended."""
        worker = self._under_way.pop(index)
        worker.result = None
        self._free.append(worker)


def _one_thread() -> None:
    # A lane is one core. torch counts the threads of an operator by calling thread, so it must be told in each.
    import torch

    torch.set_num_threads(1)


class DeviceLane:
    """What lanes have in common: the device's clock, which stands still while nothing runs, and what was run.

    Args:
        pace: The processor time of the loop; shared by all lanes.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._time_s = 0.0
        self.segments_s: dict[int, list[tuple[int, float]]] = {}
        """Number and device time of every segment that was run here, by request."""
        self.overheads_s: list[float] = []
        """What choosing and handing over took besides, by segment."""

    def now_s(self) -> float:
        """The time."""
        return self._time_s

    def wait_until(self, time_s: float) -> None:
        """Let the idle time pass at once."""
        self._time_s = max(self._time_s, time_s)
        self._pace.lap()

    def _ran(self, job: Job, used_s: float, overhead_s: float) -> None:
        self._time_s += used_s + overhead_s
        self.segments_s.setdefault(job.request.index, []).append((job.done, used_s))
        self.overheads_s.append(overhead_s)


class ModelLane(DeviceLane):
    """A core, or a GPU, that runs one segment at a time.

    Args:
        pieces: The models, by stream.
        stream_of: The stream of every request.
        crew: Where calls are carried on.
        clock: Which clock is its time.
        pace: The processor time of the loop; shared by all lanes.
    """

    def __init__(self, pieces: Sequence[Pieces], stream_of: Sequence[int], crew: Crew, *, clock: Clock = "device", pace: Pace | None = None) -> None:
        super().__init__(pace or Pace())
        self._pieces = pieces
        self._stream_of = stream_of
        self._crew = crew
        self._clock: Clock = clock
        self._origin_s = time.perf_counter()

    def now_s(self) -> float:
        """The time."""
        return super().now_s() if self._clock == "device" else time.perf_counter() - self._origin_s

    def wait_until(self, time_s: float) -> None:
        """Let the idle time pass: on the device's clock at once, on the wall's by sleeping."""
        if self._clock == "wall" and (left := time_s - self.now_s()) > 0:
            time.sleep(left)
        super().wait_until(time_s)

    def run(self, job: Job) -> tuple[float, bool]:
        """Run the next segment; return the device time that it took, and whether it was the last.

        Raises:
            ModelError: the model raised.
            DoesNotFitError: the device's memory did not suffice.
        """
        index = job.request.index
        worker = self._crew.worker(index, self._pieces[self._stream_of[index]].call)
        before = self._pace.lap()
        started = time.perf_counter()
        used = worker.step()
        took = time.perf_counter() - started
        overhead = before + (self._pace.lap() if self._clock == "device" else took - used)
        self._ran(job, used, overhead)
        if worker.finished:
            self._crew.release(index)
        return used, worker.finished


class Pace:
    """Processor time of the thread that the loop runs in, read lap by lap."""

    def __init__(self) -> None:
        self._last_s = time.thread_time()

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last_s = self._last_s, time.thread_time()
        return self._last_s - last
