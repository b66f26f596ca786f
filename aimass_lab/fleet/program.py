"""A mixed-integer linear program that is put together row by row and solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, eq=False)
class Relaxed:
    """An optimum of the linear relaxation, and what it costs to move away from it."""

    values: Array
    objective: float
    reduced: Array
    """By variable: what the objective changes by for each unit that the variable leaves the bound at which it is; 0 between bounds."""
    prices: Array
    """By row: what the objective changes by for each unit that the row's bound is moved; 0 where it does not bind."""


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

    def fix(self, values: Mapping[int, float]) -> None:
        """Give variables the values that they must have."""
        for variable, value in values.items():
            self._low[variable] = self._high[variable] = value

    def copy(self) -> Program:
        """The same, to be changed by itself."""
        other = Program()
        for name, held in vars(self).items():
            setattr(other, name, list(held))
        return other

    def minimise(self, terms: Terms, *, seconds: float, gap: float = 0.0, integers: bool | Collection[int] = True) -> Optimum | None:
        """Find values that make the sum of `terms` small.

        Args:
            terms: The objective.
            seconds: Time after which the best found so far is returned.
            gap: Relative distance to the bound at which to stop.
            integers: Whether integer variables must be so, or which of them; without any, it is the linear relaxation.

        Returns:
            None where the rows contradict each other, or nothing was found in time.
        """
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp

        integrality = np.array(self._integer, dtype=int)
        if not isinstance(integers, bool):
            integrality = np.zeros(len(self._low), dtype=int)
            integrality[list(integers)] = 1
        found = milp(
            self._costs(terms),
            integrality=integrality if integers else None,
            bounds=Bounds(self._low, self._high),
            constraints=LinearConstraint(self._matrix(), self._row_low, self._row_high),
            options={"time_limit": max(seconds, 0.05), "mip_rel_gap": gap},
        )
        if found.x is None:
            return None
        bound = found.mip_dual_bound if integers and found.mip_dual_bound is not None else found.fun
        return Optimum(found.x, float(found.fun), float(bound))

    def relax(self, terms: Terms, *, seconds: float) -> Relaxed | None:
        """Find values that make the sum of `terms` small if nothing need be whole; None where there are none, or not in time."""
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import vstack

        matrix, low, high = self._matrix(), np.array(self._row_low), np.array(self._row_high)
        same = low == high
        above, below = np.flatnonzero(np.isfinite(low) & ~same), np.flatnonzero(np.isfinite(high) & ~same)
        same = np.flatnonzero(same)
        found = linprog(
            self._costs(terms),
            A_ub=vstack([matrix[below], -matrix[above]], format="csr"),
            b_ub=np.concatenate([high[below], -low[above]]),
            A_eq=matrix[same],
            b_eq=low[same],
            bounds=np.column_stack([self._low, self._high]),
            method="highs",
            options={"time_limit": max(seconds, 0.05)},
        )
        if found.status != 0:
            return None
        prices = np.zeros(len(low))
        prices[below] += found.ineqlin.marginals[: len(below)]
        prices[above] -= found.ineqlin.marginals[len(below) :]
        prices[same] += found.eqlin.marginals
        return Relaxed(found.x, float(found.fun), found.lower.marginals + found.upper.marginals, prices)

    def _costs(self, terms: Terms) -> Array:
        import numpy as np

        costs = np.zeros(len(self._low))
        costs[list(terms)] = list(terms.values())
        return costs

    def _matrix(self) -> Any:
        from scipy.sparse import csr_array

        return csr_array((self._values, (self._rows, self._columns)), shape=(len(self._row_low), len(self._low)))
