"""What REST and gRPC share: the models that are served, the door, and whether the server is ready."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .access import Door
from .batcher import Batcher, Hangup, make_frame
from .config import ServingConfig, load_vectors
from .devices import CPU
from .errors import RequestError
from .journal import Journal
from .metrics import Metrics, ModelMetrics
from .pool import Frame, WarmUp, Worker, WorkerPool
from .request_log import RequestLog
from .runners.base import find_format
from .tally import Tally
from .tensors import InferRequest, Tensor, encode

if TYPE_CHECKING:
    from .shadow import Shadows
    from .tracing import Recorder, Tracing

ENSEMBLE = "aimass_ensemble"
"""What the protocol's metadata calls a model that is made of others."""
BACKGROUND_PATIENCE = 20
"""Times as long may a worker take that has the processor when nobody else wants it: late it is, but not hung."""

_numbers = itertools.count(1)


class Servable(ABC):
    """What answers inference requests under a name and a version."""

    platform: str

    def __init__(self, config: ServingConfig, folder: Path, *, background: bool = False) -> None:
        self.number = next(_numbers)
        """Tells it from others of the same name and version, before and after it."""
        self.config = config
        self.folder = folder
        """Of the bundle whose samples fit."""
        self.num_users = 0
        """Requests that were sent here and are not answered yet."""
        self.num_asked = 0
        """Requests that were sent here so far."""
        self._use = _Use(self)
        self.background = background
        """Whether it is a shadow: it answers those who name its version, and has the processor when nobody else wants it."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether requests would be computed at once."""

    @property
    def num_waiting(self) -> int:
        """Items that wait for a worker."""
        return 0

    def show(self) -> None:
        """Let metrics tell of this one, where they told of another of the same name and version."""
        return

    @abstractmethod
    async def infer(self, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """Compute all outputs of a checked request, in the order of the signature.

        Raises:
            RequestError: it cannot.
        """

    @abstractmethod
    async def close(self) -> None:
        """End what belongs to it."""

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """While a request is on its way through this version, it is not ended."""
        return self._use


class _Use(contextlib.AbstractContextManager[None]):
    """Counts those who are in the block; one for all of them."""

    def __init__(self, model: Servable) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.num_users += 1
        self._model.num_asked += 1

    def __exit__(self, *exc: object) -> None:
        self._model.num_users -= 1


class Model(Servable):
    """One version of one model: its signature, its queue and its workers."""

    def __init__(self, folder: Path, config: ServingConfig, service: LocalService, *, background: bool = False, devices: Sequence[str] = (CPU,)) -> None:
        super().__init__(config, folder, background=background)
        self.platform = find_format(config.format).PLATFORM
        self._service = service
        self._metrics = ModelMetrics(service.metrics, config.name, config.version)
        hang_s = config.request_timeout_s * (BACKGROUND_PATIENCE if background else 1)
        self.batcher = Batcher(config, self._metrics, service.journal, hang_s=hang_s)
        told = (self._metrics.tell_parity, self._on_ready, self._on_restart)
        self.pool = WorkerPool(folder, config, warm_up(folder, config), *told, service.journal, devices=devices)

    @property
    def ready(self) -> bool:
        """Whether a worker is up."""
        return bool(self.pool.ready)

    @property
    def num_waiting(self) -> int:
        """Items in the queue."""
        return self.batcher.num_waiting

    def show(self) -> None:
        """Let metrics tell of this queue and these workers."""
        self._metrics.queue_items.set_function(lambda: self.batcher.num_waiting)  # read when somebody asks, not set with every request
        self._metrics.workers_ready.set_function(lambda: len(self.pool.ready))

    async def infer(self, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """Compute all outputs in a batch with others; raises as `Batcher.infer`."""
        return await self.batcher.infer(request, hangup)

    async def close(self) -> None:
        """End the workers."""
        await self.pool.stop()
        self._metrics.remove()

    def _on_ready(self, worker: Worker) -> None:
        self.batcher.offer(worker)
        self._service.changed()

    def _on_restart(self) -> None:
        self._metrics.restarts.inc()
        self._service.changed()


class Catalogue(Protocol):
    """What can be served, for those who ask and those who may change it."""

    async def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Name, version and state of everything there is, or of what is `ready` alone."""

    async def load(self, name: str) -> None:
        """Serve the newest versions of a model that are there.

        Raises:
            RequestError: 404, there is none; 400, none could be loaded, with the reason.
        """

    async def unload(self, name: str) -> None:
        """Stop serving a model until it is loaded again.

        Raises:
            RequestError: 404, there is none.
        """


class Service(ABC):
    """The models by name and version, behind one door: what REST and gRPC talk to.

    Args:
        door: Lets callers in.
        log: Where requests are written down.
        tally: Where answers are counted.
        canary: Share of the requests that name no version that the newest one gets, while one before it is served, too; None: all.
    """

    def __init__(self, door: Door, log: RequestLog, tally: Tally, *, canary: float | None = None) -> None:
        self.models: dict[tuple[str, str], Servable] = {}
        self._answering: dict[str, list[Servable]] = {}
        self.door = door
        self.log = log
        self.tally = tally
        self._canary = canary
        self.tracing: Tracing | None = None
        """Records requests; None: nobody asked for it."""
        self.started = False
        """Set once all workers have been ready; from then on requests wait for a worker that is being replaced."""
        self.draining = False
        """Set by SIGTERM: not ready any more, though requests are still answered."""

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here: all that computes would do so at once.

        Ensembles do not count. Where the workers of a member are gone, that member is not ready itself; where a member was unloaded, or its new
        version has another signature, somebody wanted that, and only the ensemble says that it is not ready: the other models must not be
        cut off from their requests.
        """
        computing = [model for model in self.models.values() if not model.background and model.platform != ENSEMBLE]
        return self.started and not self.draining and bool(computing) and all(model.ready for model in computing)

    def find(self, name: str, version: str | None) -> Servable:
        """The model called `name`, in the version asked for; where none is, in the newest, or in the one before for the share that canaries leave it.

        A shadow answers only those who name its version.

        Raises:
            RequestError: 404.
        """
        if version:
            if (model := self.models.get((name, version))) is not None:
                return model
        elif answering := self._answering.get(name) or self._sort(name):
            before = len(answering) > 1 and self._canary is not None and random.random() >= self._canary
            return answering[-2 if before else -1]
        shown = repr(name[:80]) + (f" in version {version[:80]!r}" if version else "")
        raise RequestError(404, f"no model {shown}; there are: {', '.join(f'{n!r} version {v!r}' for n, v in self.models)}")

    def _sort(self, name: str) -> list[Servable]:
        """The versions of a model that answer those who name none, oldest first; kept until others are served."""
        found = [model for (other, _), model in self.models.items() if other == name and not model.background]
        if found:
            self._answering[name] = found = sorted(found, key=lambda model: version_order(model.config.version))
        return found

    def versions(self, name: str) -> list[str]:
        """Those of a model that answer who names them, oldest first; a shadow does, too."""
        return sorted((version for other, version in self.models if other == name), key=version_order)

    def trace(self, protocol: str, model: Servable, find: Callable[[str], str | None]) -> contextlib.AbstractContextManager[Recorder | None]:
        """Record the request that is answered in the block, where that is wanted; see `Tracing.request`."""
        return contextlib.nullcontext() if self.tracing is None else self.tracing.request(protocol, model.config, find)

    async def spend(self, caller: str) -> None:
        """Count an inference request of a caller.

        Raises:
            RequestError: 429, with the time after which the next one is within the rate.
        """
        self.door.spend(caller)

    async def infer(self, model: Servable, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """Compute all outputs of a checked request.

        Raises:
            RequestError: 503 while the server starts, and whatever the model raises.
        """
        if not self.started:
            raise RequestError(503, "the model is still loading", retry_after_s=1.0)
        return await model.infer(request, hangup)

    @abstractmethod
    async def exposition(self) -> bytes:
        """The metrics of the whole server, in Prometheus' format."""


class LocalService(Service):
    """One whose models have their queues in this process.

    Args:
        metrics: What is counted.
        door: Lets callers in.
        log: Where requests are written down.
        journal: Where batches are, and what became of workers.
        canary: As of `Service`.
    """

    def __init__(self, metrics: Metrics, door: Door, log: RequestLog, journal: Journal, *, canary: float | None = None) -> None:
        tally = Tally()
        super().__init__(door, log, tally, canary=canary)
        self.metrics = metrics
        metrics.answers.tallies.append(tally)
        self.journal = journal
        self.shadows: Shadows | None = None
        """Compares the answers of a version that is to come; None: nobody asked for it."""
        self.changed: Callable[[], None] = lambda: None
        """Called whenever another answer to what is served, and whether it is ready, is due."""

    def add(self, model: Servable) -> None:
        """Send requests to a version from now on."""
        self.models[model.config.name, model.config.version] = model
        self._answering.clear()
        model.show()
        self.changed()

    def remove(self, key: tuple[str, str]) -> Servable:
        """Send no more requests to a version; those that it has go on."""
        model = self.models.pop(key)
        self._answering.clear()
        self.changed()
        return model

    def shadow_of(self, model: Servable) -> Servable | None:
        """The version that gets copies of what `model` is asked."""
        if model.background:
            return None
        return next((other for (name, _), other in self.models.items() if name == model.config.name and other.background), None)

    async def infer(self, model: Servable, request: InferRequest, hangup: Hangup | None = None) -> list[Tensor]:
        """As of `Service`; the shadow, where there is one, may get a copy."""
        if self.shadows is None:
            return await super().infer(model, request, hangup)
        began = time.monotonic()
        outputs = await super().infer(model, request, hangup)
        self.shadows.offer(model, request, outputs, time.monotonic() - began)
        return outputs

    async def exposition(self) -> bytes:
        """Which looks at every process of the server, and so in a thread."""
        return await asyncio.to_thread(self.metrics.text)


def warm_up(folder: Path, config: ServingConfig) -> list[WarmUp]:
    """A batch of one and a full batch, made of the bundle's stored inputs; and one item of the largest sizes, where requests may choose them."""
    inputs, outputs = load_vectors(folder, config)

    def of(arrays: list[np.ndarray[Any, Any]], size: int) -> list[np.ndarray[Any, Any]]:
        return [np.resize(array, (size, *array.shape[1:])) if config.batched else array for array in arrays]

    batches = [WarmUp(_frame(config, of(inputs, size)), of(outputs, size)) for size in sorted({1, config.max_batch_size})]
    if config.dimensions:
        batches.append(WarmUp(_frame(config, _largest(config, of(inputs, 1))), None))
    return batches


def _frame(config: ServingConfig, rows: list[np.ndarray[Any, Any]]) -> Frame:
    size = len(rows[0]) if config.batched else 1
    tensors = [Tensor(spec, array.shape, encode(spec.datatype, array)) for spec, array in zip(config.inputs, rows, strict=True)]
    return make_frame([InferRequest(id="", inputs=tensors, items=size, outputs=[])])


def _largest(config: ServingConfig, rows: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    rows = list(rows)
    for dimension in config.dimensions:
        for index, axis in dimension.axes:
            rows[index] = np.take(rows[index], np.arange(dimension.max) % rows[index].shape[axis], axis=axis)
    return rows


def version_order(version: str) -> tuple[int, str]:
    """Sorts whole numbers by their value, and anything else before them."""
    return (int(version), "") if version.isdecimal() else (-1, version)
