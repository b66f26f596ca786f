"""Turns what a user asked for, in people's words, into the numbers that a plan is made for."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import InputError
from .records import Number, Target
from .units import parse_rate, parse_seconds


def make_target(rate: float | str, p99: float | str, *, max_replicas: int = 1000, headroom: float = 0.0, budget: float | None = None) -> Target:
    """Turn what the user asked for into a target.

    Raises:
        InputError: a value that is no rate, no time or no share.
    """
    if headroom < 0:
        raise InputError(f"headroom {headroom} is negative", help="0.2 plans for 1.2 times the rate")
    if max_replicas < 1:
        raise InputError(f"max_replicas {max_replicas} allows no replica at all", help="give at least 1")
    return Target(
        requests_per_s=Number(value=parse_rate(rate), unit="request/s", source="user", method="asked for"),
        latency_p99=Number(value=parse_seconds(p99), unit="s", source="user", method="asked for"),
        max_replicas=max_replicas,
        headroom=headroom,
        budget=None if budget is None else Number(value=budget, unit="USD/h", source="user", method="asked for"),
    )


def parse_prices(price: Mapping[str, str] | None) -> dict[str, float]:
    """Read prices in USD per hour by device.

    Raises:
        InputError: one of them is no number.
    """
    prices = {}
    for name, text in (price or {}).items():
        try:
            prices[name] = float(text)
        except ValueError:
            raise InputError(f"the price {text!r} of {name!r} is not a number of USD per hour") from None
    return prices
