"""Watches a running bundle's server by its metrics: latency, queue, utilization, restarts, and what is left of its error budget."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .records import INTERRUPTED, ErrorBudget, Monitoring, MonitorPoint, Note, Number, Unit, derived
from .units import format_seconds, format_share

TIMEOUT_S = 10.0
IN_BUCKET = "the ends of the histogram's bucket"

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Look:
    """What the metrics said at one moment, summed over models and protocols."""

    at_s: float
    codes: dict[str, float]
    """Answers so far, by HTTP status."""
    latency: dict[float, float]
    """Requests that got outputs so far, by the upper end of the bucket, cumulative."""
    busy_s: float
    batches: float
    items: float
    queue_items: float
    workers_ready: float
    restarts: float
    models: tuple[str, ...]

    @property
    def failed(self) -> float:
        """Requests that were not answered with 200."""
        return sum(count for code, count in self.codes.items() if code != "200")


def monitor(
    url: str, *, seconds: float, every: float = 1.0, latency_s: float | None = None, attainment: float = 0.99, token: str | None = None,
    progress: Progress | None = None,
) -> Monitoring:  # fmt: skip
    """Look at a server's metrics again and again; an interrupt ends it early and keeps what was seen.

    Args:
        url: ``http://HOST:PORT``.
        seconds: How long.
        every: Seconds from one look to the next.
        latency_s: Within which requests should be answered; what the bundle promises of its p99 if not given.
        attainment: Share of all requests that should be.
        token: That the server asks for.
        progress: Told a line at every look.

    Raises:
        InputError: nothing there answers with a bundle's metrics, or a value is out of range.
    """
    for name, value in (("seconds", seconds), ("time between looks", every)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be above 0, got {value}")
    if not 0 < attainment < 1:
        raise InputError(f"the share of requests in time must lie between 0 and 1, got {attainment}", help="0.99 lets one of a hundred be late")
    say, began, interrupted = progress or (lambda share, text: None), time.perf_counter(), False
    base = url.rstrip("/")
    looks = [_look(base, token, began)]
    try:
        while len(looks) < 2 or looks[-1].at_s < seconds:
            time.sleep(max(0.01, min(every, began + seconds - time.perf_counter())))
            looks.append(_look(base, token, began))
            say(min(1.0, looks[-1].at_s / seconds), line(point(*looks[-2:])))
    except KeyboardInterrupt:
        interrupted = True
        looks.append(_look(base, token, began))
    target = _target(base, token, looks[0].models, latency_s)
    return _record(url, looks, target, attainment, interrupted)


def line(seen: MonitorPoint) -> str:
    """One look as people read it."""
    latency = "nothing answered" if seen.latency_p99_s is None else f"p99 up to {format_seconds(seen.latency_p99_s)}"
    failed = f", {seen.failed_per_s:.3g}/s failed" if seen.failed_per_s else ""
    restarts = f", {seen.restarts:g} restarted" if seen.restarts else ""
    return f"{seen.requests_per_s:.4g} requests/s, {latency}, {seen.queue_items:g} waiting, {format_share(seen.utilization)} busy{failed}{restarts}"


# --- reading -------------------------------------------------------------------------------------


def _get(url: str, token: str | None) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        with error:
            help = "it asks for a token: --token TOKEN" if error.code == 401 else "give the address of a bundle's server"
            raise InputError(f"{url} answered {error.code}", help=help) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"nothing answers at {url}: {reason}", help="give the address of a bundle's server, such as http://127.0.0.1:8000") from None


def _look(base: str, token: str | None, began: float) -> Look:
    from prometheus_client.parser import text_string_to_metric_families

    text = _get(f"{base}/metrics", token).decode("utf-8", "replace")
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise InputError(f"{base}/metrics holds no metrics: {error}", help="give the address of a bundle's server") from None

    def total(name: str) -> float:
        return sum(sample.value for sample in samples if sample.name == name)

    def by(name: str, label: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for sample in samples:
            if sample.name == name:
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found

    ready = [sample for sample in samples if sample.name == "aimass_workers_ready"]
    if not ready:
        raise InputError(f"{base}/metrics tells of no model that a bundle's server serves", help="give the address of a bundle's server")
    return Look(
        at_s=time.perf_counter() - began,
        codes=by("aimass_requests_total", "code"),
        latency={float(end): count for end, count in by("aimass_request_seconds_bucket", "le").items()},
        busy_s=total("aimass_compute_seconds_sum"),
        batches=total("aimass_batch_items_count"),
        items=total("aimass_batch_items_sum"),
        queue_items=total("aimass_queue_items"),
        workers_ready=sum(sample.value for sample in ready),
        restarts=total("aimass_worker_restarts_total"),
        models=tuple(sorted(f"{sample.labels['model']} {sample.labels['version']}" for sample in ready)),
    )


def _target(base: str, token: str | None, models: Sequence[str], given_s: float | None) -> Number | None:
    if given_s is not None:
        if not (math.isfinite(given_s) and given_s > 0):
            raise InputError(f"the latency must be above 0, got {given_s}")
        return Number(value=given_s, unit="s", source="user", method="asked for")
    with contextlib.suppress(InputError, ValueError, KeyError):
        promised = json.loads(_get(f"{base}/v2/models/{models[0].split()[0]}/promises", token))["promises"]
        limit: dict[str, Any] = next(promise["limit"] for promise in promised if promise["name"] == "latency_p99")
        return Number(value=limit["value"], unit="s", source="user", method="the p99 that the bundle promises")
    return None


# --- computing -----------------------------------------------------------------------------------


def point(before: Look, after: Look) -> MonitorPoint:
    """What happened from one look to the next."""
    took = max(after.at_s - before.at_s, 1e-9)
    counts = _since(before, after)
    return MonitorPoint(
        at_s=after.at_s,
        requests_per_s=(sum(after.codes.values()) - sum(before.codes.values())) / took,
        failed_per_s=(after.failed - before.failed) / took,
        latency_p50_s=_end(quantile(counts, 0.5)),
        latency_p99_s=_end(quantile(counts, 0.99)),
        queue_items=after.queue_items,
        utilization=_busy(before, after),
        workers_ready=after.workers_ready,
        restarts=after.restarts - before.restarts,
    )


def _end(found: tuple[float, float, float] | None) -> float | None:
    return None if found is None else found[2]


def _busy(before: Look, after: Look) -> float:
    """Of the workers that were ready; a batch counts when it ends, so that a short stretch may seem busier than it can be."""
    workers = (before.workers_ready + after.workers_ready) / 2
    took = (after.at_s - before.at_s) * workers
    return min(1.0, (after.busy_s - before.busy_s) / took) if took > 0 else 0.0


def _since(before: Look, after: Look) -> dict[float, float]:
    return {end: count - before.latency.get(end, 0.0) for end, count in sorted(after.latency.items())}


def quantile(counts: dict[float, float], share: float) -> tuple[float, float, float] | None:
    """A quantile of a histogram, linear within its bucket as Prometheus' `histogram_quantile` has it, and the ends of the bucket.

    Args:
        counts: Observations up to the upper end of each bucket, cumulative, in order; the last end is infinite.
        share: Which.

    Returns:
        None where nothing was observed. Beyond the last finite end, that end three times.
    """
    ends, total = list(counts), max(counts.values(), default=0.0)
    if total <= 0:
        return None
    rank = share * total
    for (low, below), (high, within) in itertools.pairwise([(0.0, 0.0), *counts.items()]):
        if within >= rank and within > below:
            if math.isinf(high):
                break
            return low + (high - low) * (rank - below) / (within - below), low, high
    last = max((end for end in ends if math.isfinite(end)), default=0.0)
    return last, last, last


def in_time(counts: dict[float, float], latency_s: float) -> tuple[float, float, float]:
    """Observations of at most `latency_s`, linear within its bucket, and what the bucket leaves open."""
    for (low, below), (high, within) in itertools.pairwise([(0.0, 0.0), *counts.items()]):
        if latency_s <= high:
            if math.isinf(high):
                return below, below, within
            exact = latency_s == high
            return below + (within - below) * (latency_s - low) / (high - low), within if exact else below, within
    return 0.0, 0.0, 0.0


def _record(url: str, looks: Sequence[Look], target: Number | None, attainment: float, interrupted: bool) -> Monitoring:
    first, last = looks[0], looks[-1]
    points = tuple(point(before, after) for before, after in itertools.pairwise(looks))
    span, requests, failed = last.at_s - first.at_s, sum(last.codes.values()) - sum(first.codes.values()), last.failed - first.failed
    counts, batches = _since(first, last), last.batches - first.batches

    def number(value: float, unit: Unit, method: str, n: float | None = None) -> Number:
        return Number(value=value, unit=unit, source="measured", method=method, n=None if n is None else int(n))

    def latency(share: float) -> Number | None:
        found = quantile(counts, share)
        if found is None:
            return None
        value, low, high = found
        return Number(
            value=value, unit="s", source="measured", method="in the server, from its histogram", interval=(low, high), interval_kind=IN_BUCKET,
            n=int(max(counts.values())),
        )  # fmt: skip

    notes = [Note(code=INTERRUPTED, text=f"ended after {format_seconds(span)}")] if interrupted else []
    if requests < 1:
        notes.append(Note(code="idle", text="no request came meanwhile"))
    return Monitoring(
        url=url,
        models=last.models,
        span=number(span, "s", "from the first look to the last", len(looks)),
        requests=number(requests, "request", "answered meanwhile"),
        failed=number(failed, "request", "not answered with 200"),
        throughput=number(requests / span, "request/s", "answers over time", requests),
        latency_p50=latency(0.5),
        latency_p99=latency(0.99),
        batch_size=number((last.items - first.items) / batches, "item", "items over batches", batches) if batches else None,
        queue=number(sum(p.queue_items for p in points) / len(points), "item", "mean of the looks", len(points)),
        utilization=number(_busy(first, last), "ratio", "time that workers had a batch over that of the ready ones"),
        restarts=number(last.restarts - first.restarts, "worker", "that had to be replaced"),
        budget=_budget(counts, requests, failed, target, attainment) if target is not None and requests else None,
        points=points,
        notes=tuple(notes),
    )


def _budget(counts: dict[float, float], requests: float, failed: float, target: Number, attainment: float) -> ErrorBudget:
    value, low, high = (min(1.0, count / requests) for count in in_time(counts, target.value))
    attained = Number(
        value=value, unit="ratio", source="measured", method="requests answered in time, by the server's histogram",
        interval=(min(low, value), max(high, value)), interval_kind=IN_BUCKET, n=int(requests),
    )  # fmt: skip
    allowed = 1 - attainment
    spent = derived(
        (1 - value) / allowed, "ratio", "requests late or failed, over those that may be", [("attained", attained)],
        interval=((1 - max(high, value)) / allowed, (1 - min(low, value)) / allowed), interval_kind=IN_BUCKET,
    )  # fmt: skip
    return ErrorBudget(latency=target, attainment_target=attainment, attained=attained, spent=spent)
