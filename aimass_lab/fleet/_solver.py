"""HiGHS as it is used here: silent, in a thread of its own, and ended by an interrupt."""

from __future__ import annotations

import threading

import highspy

_LOOK_EVERY_S = 0.1
"""A thread of the notebook's that is asked to end by an exception sees it once it is back in Python."""
_ENDS_WITHIN_S = 0.5
"""How long an interrupt waits for the solver to look whether it shall go on, which it does at each node and iteration, and not in between."""


class Solver(highspy.Highs):  # type: ignore[misc]  # whose types mypy is told not to follow
    """HiGHS that writes nothing."""

    def enableCallbacks(self) -> None:
        """Called by the constructor: asking for callbacks writes a banner (1.16), if nobody has said not to."""
        self.silent()
        super().enableCallbacks()

    def solve_beside(self) -> None:
        """Solve in a thread of its own, and give up where the caller is interrupted.

        HiGHS keeps for each thread that calls it how many it works with, and refuses another number from then on: here it neither meets what another
        of the notebook's solvers asked for, nor decides it for them. Its own ``startSolve`` lets one solver of the process run at a time.
        """
        self.HandleUserInterrupt = True
        ended = threading.Event()  # and not the thread's own join, which in Python 3.11 takes a thread for ended once a wait for it was interrupted

        def work() -> None:
            try:
                self.run()
            finally:
                ended.set()

        try:
            threading.Thread(target=work, name="aimass-solver", daemon=True).start()
            while not ended.wait(_LOOK_EVERY_S):
                pass
        except BaseException:
            self.cancelSolve()
            ended.wait(_ENDS_WITHIN_S)
            raise
        finally:
            if ended.is_set():
                self.disableCallbacks()  # which hold the solver, and so would keep it for ever
