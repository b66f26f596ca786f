"""A Grafana dashboard for a bundle's metrics, with its promises as lines to stay under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA_VERSION = 39
"""Of dashboards, as Grafana 10.4 writes them; newer ones read it."""
WIDTH, HEIGHT = 8, 7
"""Of a panel; a row is 24 wide."""


def dashboard(name: str, promises: Mapping[str, float]) -> dict[str, Any]:
    """What Grafana imports.

    Args:
        name: Of the service.
        promises: Limits by name: ``"latency_p99"`` in seconds, ``"throughput"`` in requests per second.
    """
    panels = [
        _panel("Requests", "reqps", [("sum by (code) (rate(aimass_requests_total[1m]))", "{{code}}")], promises.get("throughput")),
        _panel("Errors", "percentunit", [('sum(rate(aimass_requests_total{code!="200"}[5m])) / sum(rate(aimass_requests_total[5m]))', "not 200")]),
        _panel("Refused: token, address, model or method", "reqps", [("sum by (code) (rate(aimass_refused_total[5m]))", "{{code}}")]),
        _panel("Answering a request", "s", _quantiles("aimass_request_seconds"), promises.get("latency_p99")),
        _panel("Waiting for a worker", "s", _quantiles("aimass_queue_seconds"), promises.get("latency_p99")),
        _panel("Computing a batch", "s", _quantiles("aimass_compute_seconds"), promises.get("latency_p99")),
        _panel("Items in a batch", "none", [("sum(rate(aimass_batch_items_sum[1m])) / sum(rate(aimass_batch_items_count[1m]))", "mean")]),
        _panel("Items waiting", "none", [("sum by (instance) (aimass_queue_items)", "{{instance}}")]),
        _panel("Workers ready", "none", [("sum by (instance) (aimass_workers_ready)", "{{instance}}")]),
        _panel("Workers replaced", "none", [("sum(increase(aimass_worker_restarts_total[5m]))", "in 5 minutes")]),
        _panel("Memory", "bytes", [("sum by (instance) (aimass_memory_bytes)", "{{instance}}")], promises.get("memory")),
        _panel("Items that a shadow decides alike", "percentunit", [(_share("aimass_shadow_items_total", 'alike="true"'), "version {{version}}")]),
    ]
    for number, panel in enumerate(panels):
        per_row = 24 // WIDTH
        panel |= {"id": number + 1, "gridPos": {"x": number % per_row * WIDTH, "y": number // per_row * HEIGHT, "w": WIDTH, "h": HEIGHT}}
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "title": f"{name}: serving", "uid": None, "tags": ["aimass"], "schemaVersion": SCHEMA_VERSION, "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"}, "templating": {"list": [source]}, "panels": panels,
    }  # fmt: skip


def _share(metric: str, part: str) -> str:
    return f"sum by (version) (rate({metric}{{{part}}}[5m])) / sum by (version) (rate({metric}[5m]))"


def _quantiles(metric: str) -> list[tuple[str, str]]:
    return [(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[1m])))", f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)]


def _panel(title: str, unit: str, queries: Sequence[tuple[str, str]], limit: float | None = None) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    targets = [
        {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": source} for i, (expression, legend) in enumerate(queries)
    ]  # fmt: skip
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if limit is not None:
        steps.append({"color": "red", "value": limit})
    style = {"thresholdsStyle": {"mode": "line" if limit is not None else "off"}}
    return {
        "type": "timeseries", "title": title, "datasource": source, "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}, "custom": style}, "overrides": []},
    }  # fmt: skip
