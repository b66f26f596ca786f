"""Whether the machine left a run in peace."""

from __future__ import annotations

from ..environment import usable_cores
from ..records import Note
from ..serving.verify import noise_in
from .replicas import Run

CROWDED_SHARE = 0.9
"""More of the cores than this busy with the servers and the load themselves: they wait for each other."""


def disturbance(run: Run) -> str | None:
    """Why a run's times judge no prediction; None where they do."""
    return next((text for result in run.results if (text := noise_in(result, run.disturbance))), None)


def crowd_note(run: Run) -> tuple[Note, ...]:
    """A doubt, where the load had no core of its own."""
    cores = usable_cores()
    if run.own_cores <= CROWDED_SHARE * cores:
        return ()
    text = f"servers and load kept {run.own_cores:.1f} of {cores:g} cores busy, so they waited for each other; clients elsewhere would not be in the way"
    return (Note(code="W-CROWDED", text=text),)
