"""What the server counts, in Prometheus' form; no label takes a value from a request but the name of a model that is served."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("aimass_requests", "Inference requests answered", ["protocol", "code"], registry=self.registry)
        labels = ["model", "version"]
        self.queue_s = Histogram("aimass_queue_seconds", "Time a request waited for a worker", labels, buckets=SECONDS, registry=self.registry)
        self.compute_s = Histogram("aimass_compute_seconds", "Time a worker took for a batch", labels, buckets=SECONDS, registry=self.registry)
        self.batch_items = Histogram("aimass_batch_items", "Items in a batch", labels, buckets=ITEMS, registry=self.registry)
        self.queue_items = Gauge("aimass_queue_items", "Items waiting for a worker", labels, registry=self.registry)
        self.workers_ready = Gauge("aimass_workers_ready", "Workers that take batches", labels, registry=self.registry)
        self.restarts = Counter("aimass_worker_restarts", "Workers that had to be replaced", labels, registry=self.registry)

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
        self._of_models: list[Any] = [
            metrics.queue_s, metrics.compute_s, metrics.batch_items, metrics.queue_items, metrics.workers_ready, metrics.restarts,
        ]  # fmt: skip
        self.queue_s, self.compute_s, self.batch_items, self.queue_items, self.workers_ready, self.restarts = (
            metric.labels(*self._labels) for metric in self._of_models
        )

    def remove(self) -> None:
        """Tell of the version no more."""
        for metric in self._of_models:
            metric.remove(*self._labels)
