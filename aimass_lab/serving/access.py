"""Who may ask, and how often: tokens, each with a name and a rate of its own."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import RequestError, ServerError

ANYBODY = "-"
"""The name of callers where no token is asked for."""


ADMIN = "admin"
"""The name of the token that may change what is served; without such a token nobody may."""
LONGEST_WAIT_S = 86400.0
"""That a caller is told, however small its rate: of the smallest the wait is no number of seconds any more."""


@dataclass(frozen=True)
class Token:
    """What a caller shows."""

    value: str
    name: str
    """Stands in logs in its place."""
    requests_per_s: float | None = None
    """Inference requests it is good for; None: as many as the server takes."""


class Door:
    """Lets callers in.

    Args:
        tokens: Those that open it; without any, everybody may come in.
        requests_per_s: Limit of tokens that have none of their own, and of everybody together where there are no tokens; None: none.
        clock: Tells the seconds.
    """

    def __init__(self, tokens: Sequence[Token] = (), *, requests_per_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = tuple(tokens)
        self._values = [(token.value.encode(), token.name) for token in tokens]
        rates = {token.name: token.requests_per_s or requests_per_s for token in tokens} or {ANYBODY: requests_per_s}
        self._buckets = {name: _Bucket(rate, clock) for name, rate in rates.items() if rate is not None}

    @property
    def asks_for_tokens(self) -> bool:
        """Whether callers must show one."""
        return bool(self._values)

    @property
    def limited(self) -> frozenset[str]:
        """Names of the callers that have a rate."""
        return frozenset(self._buckets)

    def admit(self, header: str | None) -> str:
        """Compare an `Authorization` header with every token, in constant time.

        Returns:
            The name of the caller.

        Raises:
            RequestError: 401.
        """
        if not self._values:
            return ANYBODY
        scheme, _, shown = (header or "").partition(" ")
        given = shown.encode("utf-8", "replace") if scheme.lower() == "bearer" else b""  # no token is empty
        found = None
        for value, name in self._values:  # all of them, so that the time does not tell which one was nearly right
            if hmac.compare_digest(given, value):
                found = name
        if found is None:
            raise RequestError(401, "a valid token is needed: Authorization: Bearer TOKEN")
        return found

    def demand_admin(self, name: str) -> None:
        """Let only a caller go on who may change what is served.

        Raises:
            RequestError: 403.
        """
        if name != ADMIN:
            raise RequestError(403, f"only the token named {ADMIN!r} in the token file may change what is served")

    def spend(self, name: str) -> None:
        """Count an inference request of a caller.

        Raises:
            RequestError: 429, with the time after which the next one is within the rate.
        """
        bucket = self._buckets.get(name)
        wait_s = bucket.take() if bucket is not None else 0.0
        if wait_s > 0:
            assert bucket is not None
            raise RequestError(429, f"more than {bucket.rate:g} requests per second", retry_after_s=wait_s)


class _Bucket:
    """Fills at a rate, to no more than one second's worth; each request takes one out."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate = rate
        self._clock = clock
        self._level = self._size = max(1.0, rate)
        self._at = clock()

    def take(self) -> float:
        """Take one out.

        Returns:
            0 where there was one, else the seconds until there is.
        """
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return min((1 - self._level) / self.rate, LONGEST_WAIT_S)


def read_tokens(file: Path | None, environment: str | None) -> tuple[Token, ...]:
    """The tokens from a file or else the one from the environment.

    A line of the file is ``TOKEN``, ``TOKEN NAME`` or ``TOKEN NAME REQUESTS_PER_S``; empty lines and those that begin with # do not count.

    Raises:
        ServerError: the file cannot be read, holds no token, or a line that is not understood.
    """
    if file is None:
        value = (environment or "").strip()
        return (Token(value, "token"),) if value else ()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"cannot read the token file {file}: {getattr(error, 'strerror', None) or error}") from None
    tokens = tuple(_token(file, number, line.split()) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#"))
    if not tokens:
        raise ServerError(f"the token file {file} is empty")
    for what in ("value", "name"):
        found = [getattr(token, what) for token in tokens]
        if twice := [value for value in found if found.count(value) > 1]:
            raise ServerError(f"the token file {file} has {'a token' if what == 'value' else f'the name {twice[0]!r}'} twice")
    return tokens


def _token(file: Path, number: int, words: list[str]) -> Token:
    value, name, rate = (*words, *("", "", "")[len(words) :])[:3]
    try:
        requests_per_s = float(rate) if rate else None
    except ValueError:
        requests_per_s = -1.0
    if len(words) > 3 or (requests_per_s is not None and not 0 < requests_per_s < float("inf")):
        raise ServerError(f"line {number} of the token file {file} is not 'TOKEN [NAME [REQUESTS_PER_S]]'")
    return Token(value, name or f"token-{number}", requests_per_s)
