"""Servers of one bundle that run side by side, each with a journal, and the load that they get."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from ..errors import BundleError
from ..serving.config import ServingConfig, load_config
from ..serving.errors import ServerError
from ..serving.launch import Server, start
from ..serving.load import OPENED_BEFORE, LoadResult, SoFar, make_bodies, run_loads
from ..serving.watch import Disturbance, Watch
from .journal import Events, read_journal

if TYPE_CHECKING:
    from ..planning.queueing import Array


@dataclass(frozen=True, kw_only=True)
class Run:
    """One load, and what the machine did meanwhile."""

    results: list[LoadResult]
    """By replica."""
    events: list[Events]
    """By replica: what its journal tells of this load."""
    disturbance: Disturbance
    """What other work took."""
    own_cores: float
    """Cores that the servers and this process kept busy."""
    front_end_s: float
    """Processor time of the front ends."""

    @property
    def num_requests(self) -> int:
        """That were sent."""
        return sum(len(result.status) for result in self.results)

    @property
    def interrupted(self) -> bool:
        """Whether it was ended early."""
        return any(result.interrupted for result in self.results)


class Replicas:
    """Servers of one bundle; a context manager that starts and stops them.

    Args:
        folder: The bundle.
        count: How many.
        seed: Of the order of the stored inputs that are sent.
    """

    def __init__(self, folder: Path, count: int, *, seed: int = 0) -> None:
        self.folder = folder
        self.config: ServingConfig = load_config(folder)
        self.servers: list[Server] = []
        self._count = count
        self._bodies = make_bodies(folder, self.config, seed=seed)
        self._journals: list[Path] = []
        self._stack = ExitStack()

    def __enter__(self) -> Replicas:
        """Start all of them.

        Raises:
            BundleError: one does not start.
        """
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aimass-rehearsal-")))
            for number in range(self._count):
                self._journals.append(scratch / f"{number}.jsonl")
                try:
                    server = start(self.folder, grpc_port=None, arguments=("--journal", str(self._journals[-1])), private=True)
                except ServerError as error:
                    raise BundleError(f"the bundle does not run: {error}", help=f"prove it: aimass check {self.folder}") from error
                self.servers.append(stack.enter_context(server))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop them."""
        self._stack.close()

    def send(
        self,
        times: Sequence[Array],
        duration_s: float,
        *,
        meanwhile: Callable[[], None] | None = None,
        keep: bool = False,
        connections: int = OPENED_BEFORE,
    ) -> Run:
        """Send each its requests when they are due.

        Args:
            times: By replica: seconds from the start, ascending.
            duration_s: Over which they are spread.
            meanwhile: Called about ten times a second.
            keep: Whether an interrupt only ends the sending.
            connections: To each server, that are open before the first request leaves.

        Raises:
            BundleError: a server cannot be reached.
        """
        watch = Watch(*(server.pid for server in self.servers))
        own, front = watch.own_s(), self._front_end_s()

        def look(_: Sequence[SoFar]) -> None:
            watch.sample()
            if meanwhile is not None:
                meanwhile()

        watch.begin()
        urls = [server.url for server in self.servers]
        try:
            results = run_loads(urls, self.config, self._bodies, times, duration_s=duration_s, meanwhile=look, keep=keep, connections=connections)
        except ServerError as error:
            raise BundleError(str(error), help="its log said: " + "; ".join(server.log.strip()[-500:] for server in self.servers)) from error
        disturbance = watch.end()
        took = float(disturbance.ends[-1] - disturbance.ends[0])
        begins = [result.began_s for result in results]
        return Run(
            results=results,
            events=[read_journal(path, begin) for path, begin in zip(self._journals, begins, strict=True)],
            disturbance=disturbance,
            own_cores=(watch.own_s() - own) / took,
            front_end_s=self._front_end_s() - front,
        )

    def worker_startup_s(self) -> float:
        """Seconds until the slowest of the first workers took batches."""
        events = [event for path in self._journals for event in read_journal(path, 0.0).workers]
        return max(float(event["seconds"]) for event in events if event["event"] == "ready" and not event["again"])

    def kill_worker(self) -> bool:
        """Kill -9 the worker that has been taking batches for the longest time; False where none does at this moment."""
        ready: dict[int, float] = {}
        for path in self._journals:
            for event in read_journal(path, 0.0).workers:
                if event["event"] == "ready":
                    ready[event["worker"]] = event["at"]
                else:
                    ready.pop(event["worker"], None)
        for worker in sorted(ready, key=lambda pid: ready[pid]):
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(worker).kill()
                return True
        return False

    def _front_end_s(self) -> float:
        times = [psutil.Process(server.pid).cpu_times() for server in self.servers]
        return sum(t.user + t.system for t in times)
