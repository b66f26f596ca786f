"""Looks at the machine for the panels that are open, once for all of them, and not at all while there is none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from .. import __version__
from ..bundle.served import ServedBundles
from ..errors import StoreError
from ..readings import Sampler
from ..readings.base import Reasons, Sources
from ..readings.kernels import ProcessTrees, gpu_memory, gpu_use
from ..records import KernelUse, Live, Note, Readings, Service, to_json
from ..store import Store

SHORTEST_S, LONGEST_S, USUAL_S = 0.5, 60.0, 2.0
SERVICES_EVERY_S = 5.0
"""Going through all processes takes tens of milliseconds where there are many."""


class LiveFeed:
    """Samples at the pace of its fastest listener; a listener that does not keep up misses frames instead of piling them up.

    Args:
        app: Jupyter's `ServerApp`.
        services: Looks for served bundles.
        sources: Where to read.
    """

    def __init__(self, app: Any, services: ServedBundles, sources: Sources | None = None) -> None:
        self._app, self._sources = app, sources
        self._services = services
        self._served: tuple[Service, ...] = ()
        self._served_at = float("-inf")
        self._paces: dict[Any, float] = {}
        self._due: dict[Any, float] = {}
        self._writing: dict[Any, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def join(self, listener: Any) -> None:
        """Send frames to a listener: what has ``write_message``."""
        self._paces[listener], self._due[listener] = USUAL_S, 0.0
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._wake.set()

    def pace(self, listener: Any, interval_s: float) -> None:
        """How often a listener wants to hear, within limits."""
        if listener in self._paces and interval_s == interval_s:  # not NaN
            self._paces[listener] = min(max(interval_s, SHORTEST_S), LONGEST_S)
            self._wake.set()

    def leave(self, listener: Any) -> None:
        """A listener has gone; with the last one the looking ends."""
        for kept in (self._paces, self._due):
            kept.pop(listener, None)
        if not self._paces and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        sampler, trees = await asyncio.to_thread(Sampler, self._sources, unique=False), ProcessTrees()
        try:
            await asyncio.sleep(0.2)  # rates need two looks
            while True:
                text = to_json(await self._look(sampler, trees), indent=None)
                now_s = time.monotonic()
                for listener in [one for one, due_s in self._due.items() if due_s <= now_s + 0.05]:
                    self._due[listener] = now_s + self._paces[listener]
                    if listener not in self._writing:
                        self._writing[listener] = asyncio.create_task(self._write(listener, text))
                self._wake.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(SHORTEST_S, min(self._due.values(), default=0.0) - time.monotonic()))
                    for listener, due_s in self._due.items():  # someone wants to hear more often from now on
                        self._due[listener] = min(due_s, time.monotonic() + self._paces[listener])
        except Exception:
            self._app.log.exception("aimass_lab: looking at the machine failed; the panel gets no more readings")
            raise
        finally:
            sampler.close()

    async def _write(self, listener: Any, text: str) -> None:
        from tornado.websocket import WebSocketClosedError

        try:
            await listener.write_message(text)
        except WebSocketClosedError:
            self.leave(listener)
        finally:
            self._writing.pop(listener, None)

    async def _look(self, sampler: Sampler, trees: ProcessTrees) -> Live:
        kernels = await self._kernels()
        return await asyncio.to_thread(self._read, sampler, trees, kernels)

    async def _kernels(self) -> list[KernelUse]:
        """The server's kernels, with nothing measured yet."""
        paths = {session["kernel"]["id"]: session["path"] for session in await self._app.session_manager.list_sessions()}
        manager = self._app.kernel_manager
        found = []
        for kernel_id in manager.list_kernel_ids():
            with contextlib.suppress(KeyError):  # it ended meanwhile
                kernel = manager.get_kernel(kernel_id)
                busy = getattr(kernel, "execution_state", "") == "busy"
                pid = getattr(getattr(kernel, "provisioner", None), "pid", None)
                found.append(KernelUse(kernel_id=kernel_id, name=kernel.kernel_name, path=paths.get(kernel_id), busy=busy, pid=pid))
        return found

    def _read(self, sampler: Sampler, trees: ProcessTrees, kernels: list[KernelUse]) -> Live:
        readings, reasons = sampler.read(), Reasons()
        trees.begin({kernel.pid for kernel in kernels if kernel.pid is not None})
        if time.monotonic() - self._served_at > SERVICES_EVERY_S:
            self._served, self._served_at = self._services.find(), time.monotonic()
        families: dict[str, frozenset[int]] = {}
        measured = tuple(self._measure(kernel, trees, families, readings, reasons) for kernel in kernels)
        return Live(
            version=__version__,
            readings=readings,
            kernels=measured,
            gpus=gpu_memory(readings, {k.kernel_id: (k.path or k.name, families[k.kernel_id]) for k in kernels if k.kernel_id in families}),
            services=self._served,
            newest_run=_newest_run(reasons),
            notes=tuple(reasons.notes),
        )

    def _measure(self, kernel: KernelUse, trees: ProcessTrees, families: dict[str, frozenset[int]], readings: Readings, reasons: Reasons) -> KernelUse:
        """What a kernel takes; its processes are noted in `families`."""
        import msgspec

        if kernel.pid is None:
            reasons.add("kernel.process", f"the kernel {kernel.name} runs where this server cannot look")
            return kernel
        family, cpu, memory = trees.read(kernel.pid)
        families[kernel.kernel_id] = family
        gpu_memory, gpu_share = gpu_use(family, readings, reasons)
        return msgspec.structs.replace(
            kernel, num_processes=len(family), cpu=cpu, memory_bytes=memory, gpu_memory_bytes=gpu_memory, gpu_utilization=gpu_share
        )  # fmt: skip


def _newest_run(reasons: Reasons) -> int:
    try:
        runs = Store().runs(limit=1)
    except StoreError as error:
        reasons.notes.append(Note(code="missing:history", text=error.message))
        return 0
    return runs[0].id if runs else 0
