"""What a spec promises, as conditions under which somebody is told."""

from __future__ import annotations

from typing import Any

from ..manifests.server import METRICS
from ..records import ServingSpec
from ..units import format_seconds
from ._workload import metadata, selector
from ._yaml import Said
from .base import provenance

ERROR_SHARE = 0.01
RESTART_WINDOW = "15m"


def alert_rules(spec: ServingSpec) -> list[dict[str, Any]]:
    """Rules on the metrics that the server itself counts."""
    job = f'job="{spec.name}"'
    target, scale_at = spec.latency_p99_target, spec.scale_at
    p99 = f"histogram_quantile(0.99, sum by (le) (rate(aimass_request_seconds_bucket{{{job}}}[5m])))"
    rate = f"sum(rate(aimass_requests_total{{{job}}}[5m]))"
    errors = f'sum(rate(aimass_requests_total{{{job},code=~"5.."}}[5m]))'
    return [
        _rule(spec, "LatencyAboveTarget", f"{p99} > {target.value:.6g}", "5m", "critical",
              f"p99 above its target of {format_seconds(target.value)}", provenance(target)),
        _rule(spec, "MoreLoadThanPlanned", f'{rate} / count(up{{{job}}} == 1) > {scale_at.value:.6g}', "10m", "warning",
              f"more than {scale_at.value:.4g} requests per second and replica, at which one more is wanted", provenance(scale_at)),
        _rule(spec, "FewerReplicasThanPlanned", f'count(up{{{job}}} == 1) < {int(spec.min_replicas.value)} or absent(up{{{job}}} == 1)', "5m", "critical",
              f"fewer than the {int(spec.min_replicas.value)} replicas that hold the target", provenance(spec.min_replicas)),
        _rule(spec, "Errors", f"{errors} / {rate} > {ERROR_SHARE}", "5m", "critical", f"more than {100 * ERROR_SHARE:.0f} % of the answers are errors",
              "assumed: a threshold of our choice"),
        _rule(spec, "WorkersReplaced", f"sum(increase(aimass_worker_restarts_total{{{job}}}[{RESTART_WINDOW}])) > 0", "1m", "warning",
              f"a model process was replaced in the last {RESTART_WINDOW}", "assumed: none is expected"),
    ]  # fmt: skip


def _rule(spec: ServingSpec, name: str, expression: str, lasting: str, severity: str, summary: str, source: str) -> dict[str, Any]:
    return {
        "alert": f"Aimass{name}",
        "expr": Said(expression, source),
        "for": lasting,
        "labels": {"severity": severity, "service": spec.name},
        "annotations": {"summary": f"{spec.name}: {summary}", "provenance": source, "spec_digest": spec.digest},
    }


def groups(spec: ServingSpec) -> list[dict[str, Any]]:
    """The rules as Prometheus reads them."""
    return [{"name": f"aimass-{spec.name}", "rules": alert_rules(spec)}]


def prometheus_rule(spec: ServingSpec, release: str | None) -> dict[str, Any]:
    """The rules as the Prometheus operator reads them."""
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": _selected(spec, release), "spec": {"groups": groups(spec)}}


def service_monitor(spec: ServingSpec, release: str | None) -> dict[str, Any]:
    """Has every replica scraped, with the token; the job is then called as the service."""
    credentials = {"type": "Bearer", "credentials": {"name": f"{spec.name}-token", "key": "token"}}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": _selected(spec, release),
        "spec": {
            "selector": {"matchLabels": selector(spec)},
            "endpoints": [{"port": "http", "path": METRICS, "interval": "15s", "authorization": credentials}],
        },
    }


def _selected(spec: ServingSpec, release: str | None) -> dict[str, Any]:
    found = metadata(spec)
    if release:
        found["labels"]["release"] = release
    return found
