"""What can go wrong while serving: a bundle that cannot be used, a server that cannot run, a request that fails."""

from __future__ import annotations


class BundleError(Exception):
    """The bundle folder is incomplete, altered or not understood; the server does not start."""


class ServerError(Exception):
    """The server cannot start or go on: port taken, no token, model that does not load, crash loop."""


class RequestError(Exception):
    """A request that gets an error instead of outputs.

    Args:
        status: The HTTP status; `grpc_app` translates it.
        text: What was wrong, with the value; sent to the client.
        retry_after_s: When the client may try again, for 503.
    """

    def __init__(self, status: int, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after_s = retry_after_s


CLIENT_GONE = 499
"""Status of a request whose client hung up; only metrics see it."""


def bad(text: str) -> RequestError:
    """The client's mistake: 400."""
    return RequestError(400, text)
