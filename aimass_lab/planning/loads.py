"""How one replica of a plan does at other loads than the planned one."""

from __future__ import annotations

from collections.abc import Callable

from ..records import LoadPoint
from .simulate import Simulation

SHARES = (0.2, 0.45, 0.65, 0.8, 0.9, 0.96)
"""Of the rate from which on the queue grows without bound; closer to each other there, where latencies climb."""


def simulate_loads(
    limit: float, planned: tuple[float, Simulation], simulate: Callable[[float], Simulation], make: Callable[[float, Simulation], LoadPoint]
) -> tuple[LoadPoint, ...]:
    """Simulate a replica at shares of what it carries.

    Requests pick a replica at random, so one of them at its share of the rate stands for any number of replicas at any rate.

    Args:
        limit: Requests per second from which on its queue grows.
        planned: The rate that it was planned for, and what was found there.
        simulate: Simulates it at a rate.
        make: Makes the numbers of a rate and of what was found.
    """
    found = {share * limit: simulate(share * limit) for share in SHARES}
    return tuple(make(rate, simulation) for rate, simulation in sorted({**found, planned[0]: planned[1]}.items()))
