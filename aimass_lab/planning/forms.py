"""A loop over numbers in two forms from one source: Python runs it as it stands, or numba compiles it where that is installed and pays.

Both forms do the same operations on the same 64-bit numbers in the same order, so results are equal to the last bit: nothing that
reorders or fuses arithmetic is switched on. Compiling, or loading what was compiled before, takes a moment; a loop is therefore run
by Python until it has had so much to do in this process that the moment is worth it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAYS = 2_000_000
"""Steps of a loop after which it is compiled: Python has then spent about as long on them as that takes, a second, or half more the first time of all."""


@dataclass(frozen=True)
class Form:
    """One form of a loop, with numbers held as it is quickest with them."""

    run: Callable[..., Any]
    compiled: bool

    def numbers(self, array: NDArray[Any]) -> Any:
        """Numbers to be read: lists for Python, which is several times slower at indexing arrays."""
        return array if self.compiled else array.tolist()

    def room(self, count: int, fill: float) -> Any:
        """Numbers to be written, of the type of `fill`."""
        import numpy as np

        return np.full(count, fill) if self.compiled else [fill] * count

    def joined(self, before: Any, more: NDArray[Any]) -> Any:
        """Numbers to be read with more behind them."""
        import numpy as np

        return np.concatenate([before, more]) if self.compiled else [*before, *more.tolist()]


class Loop:
    """Decorates a function that loops over sequences of numbers, in the part of Python that numba compiles.

    Args:
        function: Takes and returns numbers, and sequences of them from a `Form`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__doc__ = function.__doc__
        self.python = Form(function, compiled=False)
        """For what is called so often that calling compiled code would take longer than it saves."""
        self._compiled: Form | None = None
        self._steps = 0

    def form(self, steps: int) -> Form:
        """The form to use.

        Args:
            steps: How many steps the loop is about to make, about.
        """
        self._steps += steps
        if self._steps < PAYS:
            return self.python
        if self._compiled is None:
            self._compiled = _compile(self.python.run) or self.python
        return self._compiled


def _compile(function: Callable[..., Any]) -> Form | None:
    """None where there is no numba, or it is switched off by its own NUMBA_DISABLE_JIT."""
    try:
        import numba
    except ModuleNotFoundError as missing:
        if missing.name != "numba":
            raise
        return None
    except ImportError as unfit:  # for example made for another NumPy
        warnings.warn(f"simulating in plain Python, since numba does not load: {unfit}", stacklevel=4)
        return None
    if numba.config.DISABLE_JIT:
        return None
    try:
        return Form(numba.njit(cache=True)(function), compiled=True)
    except RuntimeError:  # nowhere to keep what was compiled: neither beside the file nor in the user's cache
        return Form(numba.njit(function), compiled=True)
