"""Which steps of progress are told."""

from aimass_lab.frontends import pace
from aimass_lab.frontends.pace import Pace


def test_the_first_of_a_stage_is_told_at_once_and_the_others_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    steps = Pace()
    assert [steps.due(text) for text in ("tracing", "timing batch 1", "timing batch 2", "timing batch 2")] == [True, True, False, False]
    now[0] += pace.EVERY_S
    assert [steps.due("timing batch 4"), steps.due("timing batch 8"), steps.due("memory")] == [True, False, True]
