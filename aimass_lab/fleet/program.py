"""A mixed-integer linear program that is put together row by row and solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
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
_FEW = 250
"""Up to so many integer variables, a program is solved without looking for good solutions on the way, without beginning anew where some variables
are settled, and with cuts at the root only: each takes longer than the branching that it saves."""
_BRANCH_ONLY: dict[str, float | bool] = {
    "mip_heuristic_effort": 0.0,
    "mip_heuristic_run_feasibility_jump": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_root_reduced_cost": False,
    "mip_allow_restart": False,
    "mip_allow_cut_separation_at_nodes": False,
}


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
        self._starts: list[int] = []
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
        self._starts.append(len(self._columns))
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
        wanted = [v for v, integer in enumerate(self._integer) if integer] if integers is True else list(integers or ())
        options: dict[str, float | bool] = {"mip_rel_gap": gap}
        if len(wanted) <= _FEW:
            options |= _BRANCH_ONLY
        solver = self._solved(terms, wanted, seconds, options)
        if solver is None:
            return None
        found = solver.getInfo()
        values, objective = _array(solver.getSolution().col_value), found.objective_function_value
        return Optimum(values, objective, found.mip_dual_bound if wanted else objective)

    def relax(self, terms: Terms, *, seconds: float) -> Relaxed | None:
        """Find values that make the sum of `terms` small if nothing need be whole; None where there are none, or not in time."""
        import highspy

        solver = self._solved(terms, (), seconds, {})
        if solver is None or solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        found = solver.getSolution()
        return Relaxed(_array(found.col_value), solver.getInfo().objective_function_value, _array(found.col_dual), _array(found.row_dual))

    def _solved(self, terms: Terms, integers: Collection[int], seconds: float, options: Mapping[str, float | bool]) -> Any:
        """A solver that has found something; None where it has not."""
        import highspy

        from ._solver import Solver

        solver = Solver()
        for name, value in {"threads": 1, "time_limit": max(seconds, 0.05), **options}.items():
            solver.setOptionValue(name, value)
        solver.passModel(self._model(terms, integers))
        solver.solve_beside()
        return solver if solver.getInfo().primal_solution_status == highspy.kSolutionStatusFeasible else None

    def _model(self, terms: Terms, integers: Collection[int]) -> Any:
        import highspy
        import numpy as np

        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self._low), len(self._row_low)
        costs = np.zeros(len(self._low))
        costs[list(terms)] = list(terms.values())
        model.col_cost_ = costs
        model.col_lower_, model.col_upper_ = _array(self._low), _array(self._high)
        model.row_lower_, model.row_upper_ = _array(self._row_low), _array(self._row_high)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array([*self._starts, len(self._columns)], dtype=np.int32)
        model.a_matrix_.index_, model.a_matrix_.value_ = np.array(self._columns, dtype=np.int32), _array(self._values)
        if integers:
            kinds = [highspy.HighsVarType.kContinuous] * len(self._low)
            for variable in integers:
                kinds[variable] = highspy.HighsVarType.kInteger
            model.integrality_ = kinds
        return model


def _array(values: Sequence[float]) -> Array:
    import numpy as np

    return np.array(values, dtype=float)
