"""What manifests must know of the server in a bundle; a test holds these figures against the server itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HTTP_PORT, GRPC_PORT = 8000, 8001
LIVE, READY = "/v2/health/live", "/v2/health/ready"
"""Asked without a token."""
METRICS = "/metrics"
"""Asked with a token."""
DRAIN_S = 32
"""After SIGTERM: half a second for balancers to notice, the time a request may take (30 s), and one more."""
TOKEN_VARIABLE = "AIMASS_TOKEN"
METRIC_NAMES = frozenset({
    "aimass_requests", "aimass_refused", "aimass_queue_seconds", "aimass_compute_seconds", "aimass_batch_items", "aimass_queue_items", "aimass_workers_ready",
    "aimass_worker_restarts", "aimass_request_seconds", "aimass_startup_seconds", "aimass_memory_bytes", "aimass_ensemble_steps",
    "aimass_shadow_requests", "aimass_shadow_items", "aimass_shadow_relative_error", "aimass_shadow_seconds", "aimass_parity_error",
})  # fmt: skip
USER = 10001
"""Of the bundle's image."""


def command(http_port: int = HTTP_PORT) -> tuple[list[str], list[str]]:
    """The bundle's own entry, and its arguments to listen for others; it then demands a token."""
    return ["python", "run.py"], ["serve", "--host", "0.0.0.0", "--port", str(http_port), "--grpc-port", str(GRPC_PORT)]


def probe_command() -> list[str]:
    """Ask whether it is ready, with nothing but what the image has, and no proxy, which the environment of a container may name."""
    ask = f"c = HTTPConnection('127.0.0.1', {HTTP_PORT}, timeout=2); c.request('GET', '{READY}')"
    return ["python", "-c", f"from http.client import HTTPConnection; {ask}; exit(c.getresponse().status != 200)"]


def is_server(container: Mapping[str, Any]) -> bool:
    """Whether a container runs a bundle's server."""
    return "run.py" in _words(container)


def listens_on(container: Mapping[str, Any]) -> set[int]:
    """The ports that a bundle's server is told to listen on; none where the container runs something else."""
    words = _words(container)
    if not is_server(container) or "serve" not in words:
        return set()
    given = {"--port": HTTP_PORT, "--grpc-port": GRPC_PORT}
    for option in given:
        if option in words[:-1] and words[words.index(option) + 1].isdigit():
            given[option] = int(words[words.index(option) + 1])
    return set(given.values())


def _words(container: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key in ("command", "args"):
        value = container.get(key)
        words += map(str, value) if isinstance(value, list) else str(value or "").split()
    return words
