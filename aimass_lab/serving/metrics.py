"""What the server counts, in Prometheus' form; no label takes a value from a request but the name of a model that is served."""

from __future__ import annotations

import os
from collections import Counter as CollectionCounter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .memory import KIND, tree_bytes
from .tally import SECONDS, Answers

ERRORS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Answers()
        self.registry.register(self.answers)
        self.startup_s = Gauge("aimass_startup_seconds", "From the start of the process to ready", registry=self.registry)
        self.memory_bytes = Gauge("aimass_memory_bytes", f"{KIND} of the server and its workers", registry=self.registry)
        self.memory_bytes.set_function(lambda: tree_bytes(os.getpid()))
        labels = ["model", "version"]
        self.queue_s = Histogram("aimass_queue_seconds", "Time a request waited for a worker", labels, buckets=SECONDS, registry=self.registry)
        self.compute_s = Histogram("aimass_compute_seconds", "Time a worker took for a batch", labels, buckets=SECONDS, registry=self.registry)
        self.batch_items = Histogram("aimass_batch_items", "Items in a batch", labels, buckets=ITEMS, registry=self.registry)
        self.queue_items = Gauge("aimass_queue_items", "Items waiting for a worker", labels, registry=self.registry)
        self.workers_ready = Gauge("aimass_workers_ready", "Workers that take batches", labels, registry=self.registry)
        self.restarts = Counter("aimass_worker_restarts", "Workers that had to be replaced", labels, registry=self.registry)
        self.parity_error = Gauge(
            "aimass_parity_error", "Largest relative error of a stored sample in a worker's warm-up, alone and in a full batch",
            labels, registry=self.registry,
        )  # fmt: skip
        self.shadow_requests = Counter(
            "aimass_shadow_requests",
            "Copies of requests for a shadow: compared, failed, late, dropped, or unfit for it",
            [*labels, "result"],
            registry=self.registry,
        )
        self.shadow_items = Counter("aimass_shadow_items", "Items that were compared, by whether both decide alike", [*labels, "alike"], registry=self.registry)
        self.shadow_error = Histogram("aimass_shadow_relative_error", "Of a shadow's outputs to those given", labels, buckets=ERRORS, registry=self.registry)
        self.shadow_s = Histogram(
            "aimass_shadow_seconds", "Time of the requests that were compared: of the answer given, and of the shadow's",
            [*labels, "answer"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.holders: CollectionCounter[tuple[str, str]] = CollectionCounter()
        """How many tell of a version: two, while one takes the other's place."""
        of_steps = [*labels, "step", "result"]
        self.ensemble_steps = Counter("aimass_ensemble_steps", "Answers of an ensemble's members", of_steps, registry=self.registry)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class ModelMetrics:
    """Those of one version of one model.

    Args:
        metrics: The server's.
        name: Of the model.
        version: Of the model.
    """

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._labels = (name, version)
        self._metrics = metrics
        metrics.holders[self._labels] += 1
        self._of_models: list[Any] = [
            metrics.queue_s, metrics.compute_s, metrics.batch_items, metrics.queue_items, metrics.workers_ready, metrics.restarts,
        ]  # fmt: skip
        self.queue_s, self.compute_s, self.batch_items, self.queue_items, self.workers_ready, self.restarts = (
            metric.labels(*self._labels) for metric in self._of_models
        )

    def tell_parity(self, error: float) -> None:
        """Show how far the workers' answers are from the stored ones."""
        self._metrics.parity_error.labels(*self._labels).set(error)

    def remove(self) -> None:
        """Tell of the version no more, unless another took its place."""
        metrics = self._metrics
        metrics.holders[self._labels] -= 1
        if metrics.holders[self._labels]:
            return
        del metrics.holders[self._labels]
        for metric in self._of_models:
            metric.remove(*self._labels)
        others = metrics.parity_error, metrics.shadow_requests, metrics.shadow_items, metrics.shadow_error, metrics.shadow_s, metrics.ensemble_steps
        for metric in others:
            metric.remove_by_labels({"model": self._labels[0], "version": self._labels[1]})
