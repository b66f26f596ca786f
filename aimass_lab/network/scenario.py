"""What a user says about use and surroundings: request rate, links, price, replicas, and how devices share the work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, UnknownNameError
from ..records import Number
from ..units import parse_bandwidth, parse_rate
from .strategies import STRATEGIES, Strategy

if TYPE_CHECKING:
    from ..records import Unit

DEFAULT_LINK = Number(value=1.25e9, unit="B/s", source="assumed", method="10 Gbit/s, one direction; say which link there is: bandwidth=")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One use of a model.

    Raises:
        UnknownNameError: no such strategy.
        InputError: a number is not positive, or the fields contradict one another.
    """

    requests_per_s: Number | None = None
    link: Number = DEFAULT_LINK
    """One direction of a machine's network link."""
    egress_price: Number | None = None
    """In USD/GB."""
    replicas: int = 1
    strategy: Strategy = "none"
    ranks: int = 1
    ranks_per_node: int | None = None
    device: str | None = None
    """``cpu`` or ``cuda:0`` for the attached one, else a name of the catalogue; where the model is if None."""

    def __post_init__(self) -> None:
        for name in ("replicas", "ranks", "ranks_per_node"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} {value!r} is not a positive integer")
        if self.strategy not in STRATEGIES:
            raise UnknownNameError("way to share the work", self.strategy, STRATEGIES)
        if self.strategy != "none" and self.ranks == 1:
            raise InputError(f"{self.strategy!r} shares work among several devices, and ranks is 1", help="say how many there are: ranks=8")
        if self.strategy == "none" and self.ranks > 1:
            raise InputError(f"{self.ranks} ranks were given and no way to share the work", help="choose one, for example parallel='ddp'")
        if self.ranks_per_node is not None and self.ranks % self.ranks_per_node:
            raise InputError(f"{self.ranks} ranks cannot be spread evenly with {self.ranks_per_node} to a machine")


def make_scenario(
    *,
    rate: float | str | None = None,
    bandwidth: float | str | None = None,
    egress_price: float | None = None,
    replicas: int = 1,
    parallel: Strategy = "none",
    ranks: int = 1,
    ranks_per_node: int | None = None,
    device: str | None = None,
) -> Scenario:
    """Read a scenario as users write it; the arguments are those of the verb ``network``.

    Raises:
        InputError: as `Scenario`, or a text is no rate or bandwidth, or the price is not one.
    """
    if egress_price is not None and (isinstance(egress_price, bool) or not (math.isfinite(egress_price) and egress_price >= 0)):
        raise InputError(f"the price {egress_price!r} is not a number of USD per GB", help="give what your provider bills, for example egress_price=0.09")
    return Scenario(
        requests_per_s=None if rate is None else _given(parse_rate(rate), "request/s", "request rate"),
        link=DEFAULT_LINK if bandwidth is None else _given(parse_bandwidth(bandwidth), "B/s", "one direction of the link"),
        egress_price=None if egress_price is None else _given(egress_price, "USD/GB", "price of traffic that leaves, per 1e9 bytes"),
        replicas=replicas,
        strategy=parallel,
        ranks=ranks,
        ranks_per_node=ranks_per_node,
        device=device,
    )


def _given(value: float, unit: Unit, what: str) -> Number:
    return Number(value=value, unit=unit, source="user", method=f"{what}, given")
