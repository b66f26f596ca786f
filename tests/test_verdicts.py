"""One rule behind every verdict: figures that were taken while others had the machine decide nothing, however clear they look."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import torch
from models import TinyMLP, features
from trial_records import given, trial_record

from aimass_lab.baseline import compare_with_baseline
from aimass_lab.bundle.runtimes import slower_at, slower_notes
from aimass_lab.comparison import compare_records, how_it_stands, is_doubtful
from aimass_lab.environment import LoadMeter
from aimass_lab.formats.measure import Speed
from aimass_lab.frontends.layouts import lay_out
from aimass_lab.frontends.render import render_text
from aimass_lab.headlines import headline
from aimass_lab.recipe import read_recipe
from aimass_lab.records import Check, Number, Run
from aimass_lab.searching.objectives import compare
from aimass_lab.trial import run_trial
from aimass_lab.workload import Workload


def number(value: float, spread: float = 0.0, *, unit: str = "s", noisy: bool = False) -> Number:
    interval = (value - spread, value + spread) if spread else None
    return Number(value=value, unit=unit, source="measured", method="given", interval=interval, quality="noisy" if noisy else "ok")


@pytest.mark.parametrize(
    ("now", "before", "tolerance", "expected"),
    [
        (number(2.0, 0.1), number(1.0, 0.1), 0.0, "higher"),
        (number(1.0, 0.1), number(2.0, 0.1), 0.0, "lower"),
        (number(1.1, 0.1), number(1.0, 0.1), 0.0, "same"),
        (number(2.0), number(1.0), 0.0, "higher"),
        (number(1.0), number(1.0), 0.0, "same"),
        (number(1.3, 0.1), number(1.0, 0.1), 0.2, "same"),  # 1.2 against 1.1: less than the tolerance
        (number(1.0, 0.1), number(1.3, 0.1), 0.2, "same"),
        (number(9.0, 0.1), number(1.0, 0.1), 0.2, "higher"),
    ],
)
def test_apart_is_what_lies_apart(now, before, tolerance, expected):
    assert how_it_stands(now, before, tolerance=tolerance) == expected
    for one, other in itertools.product((False, True), repeat=2):
        marked = (msgspec.structs.replace(n, quality="noisy" if busy else "ok") for n, busy in ((now, one), (before, other)))
        assert how_it_stands(*marked, tolerance=tolerance) == ("cannot tell" if one or other else expected)


# --- everything that compares keeps to it ------------------------------------------------------


@pytest.fixture(scope="module")
def busy_trial():
    """A copy that looks clearly slower, measured with two threads beside other work."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoadMeter, "foreign_cores", 1.5)
        patch.setattr(LoadMeter, "pressure", 0.4)
        patch.setattr(LoadMeter, "stolen", 0.0)
        patch.setattr(LoadMeter, "update", lambda self: None)
        try:
            return run_trial(Workload(TinyMLP(), features(16)), read_recipe("bf16"), batch_sizes=(1, 4), threads=2, budget_s=0.4)
        finally:
            torch.set_num_threads(threads)


def test_a_trial_says_that_it_cannot_tell_and_why_and_what_to_do(busy_trial):
    assert busy_trial.verdict == "cannot tell"
    assert {p.verdict for p in busy_trial.points} == {"cannot tell"}
    assert not busy_trial.recommended
    for words in ("cannot tell at batch 1, 4", "other processes kept 1.5 of", "tasks waited for a core 40 % of the time", "repeat it", "threads=1"):
        assert words in busy_trial.recommendation, words
    page = lay_out(busy_trial)
    assert page.tone == "warn"
    assert page.headline.startswith("Cannot tell at batch 1, 4")
    text = render_text(busy_trial)
    assert "slower" not in text
    assert "faster" not in text.replace("whether it is faster", "")
    assert all(f"{p.speedup.value:.3g}"[:3] in text for p in busy_trial.points)  # the figures are shown all the same
    assert "cannot tell" in headline(busy_trial)


def test_a_trial_keeps_to_the_rule(busy_trial):
    for point in busy_trial.points:
        assert is_doubtful(point.speedup)
        assert point.speedup.interval is not None
        assert is_doubtful(point.processor_speedup)  # threads that wait spin
        assert point.one_thread_speedup is not None
        assert not is_doubtful(point.one_thread_speedup)
    assert any("the processor time of one thread says" in reason for reason in busy_trial.reasons)


def test_two_runs_are_not_told_apart_by_figures_of_a_busy_machine(busy_trial):
    def run(number):
        return Run(id=number, verb="trial", model="m", model_digest="d", taken_at="2026-01-01T00:00:00+00:00", summary="")

    def trial(seconds, quality="ok"):
        latencies = {name: given(seconds, "s", quality) for name in ("latency_original", "latency_variant")}
        record = trial_record(busy_trial.model, busy_trial.environment, **latencies)
        return msgspec.structs.replace(record, apply_time=given(seconds, "s", quality))

    for before, after, verdict in ((trial(1), trial(9), "higher"), (trial(1), trial(9, "noisy"), "cannot tell"), (trial(9, "noisy"), trial(1), "cannot tell")):
        found = compare_records((run(1), before), (run(2), after))
        assert {d.name: d.verdict for d in found.differences}["apply_time"] == verdict
        assert ("W-NOISY" in {note.code for note in found.notes}) == (verdict == "cannot tell")
        assert {d.name: d.verdict for d in found.differences}["size_bytes"] == "same within spread"  # bytes stay what they are
        assert ("too busy to tell" in headline(found)) == (verdict == "cannot tell")


def test_a_search_takes_no_figure_of_a_busy_machine_for_a_difference():
    fast, slow = number(200.0, 1.0, unit="item/s"), number(100.0, 1.0, unit="item/s")
    assert compare("throughput", fast, slow) == "better"
    assert compare("throughput", msgspec.structs.replace(fast, quality="noisy"), slow) == "within noise"


def test_a_baseline_judges_no_trial_of_a_busy_machine(busy_trial):
    before = msgspec.structs.replace(
        busy_trial, points=tuple(msgspec.structs.replace(p, speedup=msgspec.structs.replace(p.speedup, quality="ok")) for p in busy_trial.points)
    )
    found = compare_with_baseline(Check(subject="trial", passed=True), before, busy_trial, baseline="base", tolerance=0.05)
    assert {c.name: c.verdict for c in found.changes}["speedup"] == "not judged"
    assert found.passed is None


def test_no_runtime_is_called_slower_than_torch_by_figures_of_a_busy_machine():
    slow = Speed(format="onnx", batch_size=1, ratio=number(0.01, 0.001, unit="ratio"))
    busy = Speed(format="onnx", batch_size=1, ratio=number(0.01, 0.001, unit="ratio", noisy=True))
    assert [note.code for note in slower_notes("onnx", [slow], None)] == ["W-FORMAT-SLOWER"]
    assert slower_notes("onnx", [busy], None) == ()
    assert slower_at([busy]) == [busy]  # something has to be shipped, and it is not taken if there is another
