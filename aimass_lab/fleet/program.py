"""A mixed-integer linear program that is put together row by row and solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Terms = Mapping[int, float]
"""Variable -> coefficient."""
KEPT = 1e-5
"""What an aim that was reached may lose to those after it: more than the 1e-6 by which HiGHS takes a row or a whole number for right, or its own
optimum may contradict the row that keeps it."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """What the solver found."""

    values: Array
    """By variable."""
    objective: float
    bound: float
    """No solution is below it."""

    @property
    def closed(self) -> bool:
        """Whether it is proven to be the best."""
        return self.objective <= self.bound + 1e-6 * max(1.0, abs(self.bound))


class Program:
    """Variables with bounds, rows with bounds, and objectives that are made small one after the other."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._integer: list[bool] = []
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._row_low: list[float] = []
        self._row_high: list[float] = []

    def variable(self, low: float = 0.0, high: float = math.inf, *, integer: bool = False) -> int:
        """Add a variable and return its place."""
        self._low.append(low)
        self._high.append(high)
        self._integer.append(integer)
        return len(self._low) - 1

    def row(self, terms: Terms, low: float = -math.inf, high: float = math.inf) -> int:
        """Demand that the sum of `terms` lies between `low` and `high`; return the row's place."""
        place = len(self._row_low)
        self._rows += [place] * len(terms)
        self._columns += terms.keys()
        self._values += terms.values()
        self._row_low.append(low)
        self._row_high.append(high)
        return place

    def keep(self, terms: Terms, reached: float) -> int:
        """Demand that the sum of `terms`, which was made as small as `reached`, stays so; return the row's place."""
        return self.row({variable: -coefficient for variable, coefficient in terms.items()}, low=-reached - KEPT)

    def lower_bound(self, row: int, low: float) -> None:
        """Give a row another lower bound."""
        self._row_low[row] = low

    def minimise(self, terms: Terms, *, seconds: float, gap: float = 0.0, integers: bool = True) -> Optimum | None:
        """Find values that make the sum of `terms` small.

        Args:
            terms: The objective.
            seconds: Time after which the best found so far is returned.
            gap: Relative distance to the bound at which to stop.
            integers: Whether integer variables must be so; without, it is the linear relaxation.

        Returns:
            None where the rows contradict each other, or nothing was found in time.
        """
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        costs = np.zeros(len(self._low))
        costs[list(terms)] = list(terms.values())
        matrix = csr_array((self._values, (self._rows, self._columns)), shape=(len(self._row_low), len(self._low)))
        found = milp(
            costs,
            integrality=np.array(self._integer, dtype=int) if integers else None,
            bounds=Bounds(self._low, self._high),
            constraints=LinearConstraint(matrix, self._row_low, self._row_high),
            options={"time_limit": max(seconds, 0.05), "mip_rel_gap": gap},
        )
        if found.x is None:
            return None
        bound = found.mip_dual_bound if integers and found.mip_dual_bound is not None else found.fun
        return Optimum(found.x, float(found.fun), float(bound))
